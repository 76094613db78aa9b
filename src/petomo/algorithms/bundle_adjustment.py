"""Pose refinement with the specimen's own atoms as fiducial markers (bundle adjustment).

A voxel volume can absorb a wrong shift of one tilt, because at high resolution the tilts hardly share
Fourier components. A sparse model cannot: a few hundred Gaussian blobs have to explain every
projection, so that positions of blobs and poses of tilts are found together, as with gold beads in
cryo-tomography (Lawrence 1992). Blobs need not be single atoms; where nothing sharp is seen, the
poses of `petomo.algorithms.tilt_alignment` stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from petomo.algorithms.coarse_alignment import smooth_seen
from petomo.algorithms.status import Status
from petomo.core.grid import Grid
from petomo.core.pose import Poses, rotation_matrices
from petomo.physics.splat import draw_windows

_SIGMAS = 4.5  # of the widest blob, beyond which nothing of it is drawn


@dataclass(frozen=True)
class BundleOptions:
    """Settings of `adjust`.

    Parameters
    ----------
    iterations : int
        Gradient steps.
    width_angstrom : float
        First guess of the blobs' standard deviation.
    blur_angstrom : float
        Standard deviation of a Gaussian that blurs projections and blobs: catches tilts that are farther off
        than a blob is wide, with poses that are less sharp.
    blob_step, shift_step : float
        Adam steps in angstrom.
    angle_step : float
        Adam step in radian.
    sparsity : float
        L1 of the blob weights; removes blobs that explain noise.
    affine : bool
        Let the scan of every tilt be stretched and sheared a little (rotation is psi's).
    affine_width : float
        Standard deviation expected of these distortions.
    phi_width, theta_width, psi_width : float
        Standard deviation in radian expected of phi about zero, theta about its nominal value, and psi
        about the direction of the tilt axis.
    correlation : float
        Angstrom: size of a patch of independent misfit, to weigh the data against these widths.
    """

    iterations: int = 400
    width_angstrom: float = 0.4
    blur_angstrom: float = 0.0
    blob_step: float = 0.02
    shift_step: float = 0.02
    angle_step: float = 2e-3
    sparsity: float = 0.02
    affine: bool = True
    affine_width: float = 0.01
    phi_width: float = math.radians(0.2)
    theta_width: float = math.radians(0.2)
    psi_width: float = math.radians(0.3)
    correlation: float = 2.0


def find_blobs(
    volume: Tensor, voxel: float, most: int, distance: float, threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Highest local maxima of a volume.

    Parameters
    ----------
    volume : Tensor
        ``z y x``.
    voxel : float
        Angstrom.
    most : int
        Keep at most so many.
    distance : float
        No two closer than this, in angstrom.
    threshold : float
        Least height, not below zero.

    Returns
    -------
    points : Tensor
        ``(n, 3)`` as (x, y, z) in angstrom, origin at ``n // 2``, sub-voxel by parabolas through the
        logarithm, which is exact for Gaussians.
    heights : Tensor
        ``(n,)``.
    """
    reach = max(1, round(distance / voxel / 2))
    top = max_pool3d(volume[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0]
    inner = torch.zeros_like(volume, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    index = torch.nonzero((volume == top) & (volume > threshold) & inner)
    heights = volume[tuple(index.T)]
    order = heights.argsort(descending=True)[:most]
    index, heights = index[order], heights[order]
    points = index.to(torch.float64)
    for axis in range(3):
        step = torch.zeros(3, dtype=index.dtype, device=index.device)
        step[axis] = 1
        low, high = (volume[tuple((index + side * step).T)] / heights for side in (-1, 1))
        low, high = (side.clamp_min(1e-3).double().log() for side in (low, high))
        bend = (low + high).clamp_max(-1e-12)
        points[:, axis] += (0.5 * (low - high) / bend).clamp(-0.5, 0.5)
    centre = torch.tensor([n // 2 for n in volume.shape], dtype=torch.float64, device=volume.device)
    return ((points - centre) * voxel).flip(-1), heights


class _Bundle(torch.nn.Module):
    """Blobs and poses; ``forward`` projects."""

    def __init__(self, points: Tensor, weights: Tensor, poses: Poses, width: float):
        super().__init__()
        parameter = torch.nn.Parameter
        self.points = parameter(points.clone())
        self.weights = parameter(weights.clone())
        self.width = parameter(points.new_full((len(points),), math.log(width)))
        self.angles = parameter(torch.stack([poses.phi, poses.theta, poses.psi], -1).to(points))
        self.tau = parameter(poses.tau.to(points).clone())
        # stretch along x, stretch along y, shear
        self.affine = parameter(points.new_zeros(len(poses), 3))

    def scan_points(self) -> Tensor:
        """Where every tilt's scan sees the blobs, ``(tilt, n, 2)``."""
        matrices = rotation_matrices(*self.angles.unbind(-1))
        lab = torch.einsum("tij,pj->tpi", matrices[:, :2], self.points) + self.tau[:, None]
        a, b, c = (v[:, None] for v in self.affine.unbind(-1))
        x, y = lab.unbind(-1)
        return torch.stack([x * (1 + a) + c * y, y * (1 + b) + c * x], dim=-1)

    def forward(self, grid: Grid, reach: int) -> Tensor:
        """Projections ``(tilt, y, x)``; a blob is drawn within ``reach`` pixels."""
        points, scale = self.scan_points(), torch.exp(-self.width)[:, None]
        lines, corners = [], []
        for axis in (0, 1):
            place, n, pixel = points[..., 1 - axis], grid.shape[axis], grid.pixel_size[axis]
            many = min(2 * reach + 1, n)
            corner = (place.detach() / pixel).round().long() + n // 2 - reach
            corner = corner.clamp(0, n - many)
            coordinate = pixel * (corner[..., None] + torch.arange(many, device=place.device) - n // 2)
            lines.append(torch.exp(-0.5 * ((coordinate - place[..., None]) * scale) ** 2))
            corners.append(corner)
        rows = lines[0] * self.weights[:, None]
        return torch.stack(
            [
                draw_windows(*parts, grid.shape)
                for parts in zip(rows, lines[1], corners[0], corners[1], strict=True)
            ]
        )


def adjust(
    projections: Tensor,
    mask: Tensor,
    pixel_size: float,
    points: Tensor,
    poses: Poses,
    tilts: Tensor,
    options: BundleOptions,
) -> Iterator[Status]:
    """Fit blobs, poses and scan distortions to projections together.

    Minimises ``sum_t |m_t (y_t - offset_t - sum_b w_b g(r - P R_t r_b - tau_t))|^2`` plus priors, by Adam
    with a falling step.

    Parameters
    ----------
    projections, mask : Tensor
        ``(tilt, y, x)``; phase in radian and its weight (0 where the scan did not look).
    pixel_size : float
        Angstrom.
    points : Tensor
        First guess of the blobs, ``(n, 3)``.
    poses : Poses
        First guess.
    tilts : Tensor
        Nominal stage tilts in radian, about which theta is expected.
    options : BundleOptions
        Steps and priors.

    Yields
    ------
    Status
        ``state`` is empty but for the last, which holds ``points``, ``weights``, ``width`` (logarithm of the
        standard deviation), ``angles``, ``tau``, ``affine`` (tilt, 3).
    """
    mask = mask.to(projections.device, torch.float32)
    data, blur = projections.float(), options.blur_angstrom / pixel_size
    if blur > 0:
        data = smooth_seen(data, mask, blur, least=1e-3)
    like = {"dtype": data.dtype, "device": data.device}
    grid = Grid(tuple(data.shape[1:]), (pixel_size, pixel_size))
    scale = float(((data**2 * mask).sum() / mask.sum()).sqrt())
    weights = torch.full((len(points),), scale, **like)
    least, first, most = (
        math.hypot(f * options.width_angstrom, options.blur_angstrom) for f in (0.5, 1, 1.6)
    )
    bundle = _Bundle(points.to(**like), weights, poses, first)
    optimiser = torch.optim.Adam(_groups(bundle, options, scale), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, i / options.iterations)))
    )
    nominal = tilts.to(**like)
    patches = float(mask.sum()) * (pixel_size / options.correlation) ** 2
    reach = math.ceil(_SIGMAS * most / pixel_size)
    for iteration in range(options.iterations):
        optimiser.zero_grad()
        misfit = _misfit(bundle(grid, reach), data, mask) / scale**2
        # of p independent patches with a mean squared misfit m each, the log-likelihood is p m / (2 m_end)
        prior = _prior(bundle, nominal, options) * float(misfit.detach()) / patches
        sparsity = 0.05 * options.sparsity * bundle.weights.mean() / scale
        (misfit + prior + sparsity).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            bundle.weights.clamp_(min=0)
            bundle.width.clamp_(math.log(least), math.log(most))
            _centre(bundle)
        last = iteration + 1 == options.iterations
        yield Status(iteration + 1, float(misfit.detach()), state=_result(bundle) if last else {})


def _groups(bundle: _Bundle, options: BundleOptions, scale: float) -> list[dict]:
    """What Adam moves, and how far a step."""
    return [
        {"params": [bundle.points], "lr": options.blob_step},
        {"params": [bundle.weights], "lr": 0.05 * scale},
        {"params": [bundle.width], "lr": 0.01},
        {"params": [bundle.angles], "lr": options.angle_step},
        {"params": [bundle.tau], "lr": options.shift_step},
        {"params": [bundle.affine], "lr": options.angle_step if options.affine else 0.0},
    ]


def _misfit(model: Tensor, data: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error where the scan looked, one constant per tilt left free."""
    residual, norm = data - model, mask.sum((1, 2)).clamp_min(1)
    offset = (residual * mask).sum((1, 2)) / norm
    return ((residual - offset[:, None, None]) ** 2 * mask).sum() / norm.sum()


def _prior(bundle: _Bundle, nominal: Tensor, options: BundleOptions) -> Tensor:
    """Sum of squared deviations of the angles and scans from what is expected, in standard deviations."""
    phi, theta, psi = bundle.angles.unbind(-1)
    deviations = (
        phi / options.phi_width,
        (theta - nominal) / options.theta_width,
        (psi - psi.mean()) / options.psi_width,
        bundle.affine.flatten() / options.affine_width,
    )
    return sum((d**2).sum() for d in deviations)  # pyright: ignore[reportReturnType]


def _result(bundle: _Bundle) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", torch.float64).clone() for k, v in bundle.named_parameters()}


def _centre(bundle: _Bundle):
    """Hold the gauge: no common stretch of the scans, which would only rescale the specimen."""
    bundle.affine.data -= bundle.affine.data.mean(0)


def poses_of(state: dict) -> Poses:
    """Poses of the last `Status.state` of `adjust`."""
    phi, theta, psi = state["angles"].unbind(-1)
    return Poses(phi, theta, psi, state["tau"])
