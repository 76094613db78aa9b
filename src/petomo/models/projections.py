"""2D phase projections of a volume, their adjoint and their slopes for the pose (paper Eq. 12, 13)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.core.threads import shares, spread
from petomo.physics.resample import Interpolation, SliceGeometry, rotate_and_bin, turns_by_slices
from petomo.physics.tilt import prefilter, rows_last

POSE_PARAMETERS = ("phi", "theta", "psi", "tau_x", "tau_y")


@dataclass(frozen=True)
class ProjectionGeometry:
    """Where the volume and the projections lie.

    Parameters
    ----------
    volume : Grid
        ``z y x`` with cubic voxels.
    image_shape : (int, int)
        ``y x`` of a projection, sampled like the volume; the optical axis is at ``n // 2``.
    scale : float
        Phase per potential and length, rad / (V angstrom): the interaction constant for a volume in volts,
        1 for a volume in rad / angstrom.
    interpolation : {"spline", "cubic", "linear"}
        See `petomo.physics.resample.rotate_and_bin`.
    """

    volume: Grid
    image_shape: tuple[int, int]
    scale: float = 1.0
    interpolation: Interpolation = "spline"

    def __post_init__(self):
        if len(self.volume.shape) != 3 or len(set(self.volume.pixel_size)) != 1:
            raise ValueError(f"projections need a 3D grid with cubic voxels, got {self.volume}")

    @property
    def voxel(self) -> float:
        """Voxel and projection pixel in angstrom."""
        return self.volume.pixel_size[0]

    @property
    def slices(self) -> SliceGeometry:
        """One slice as thick as the volume's diagonal in the tilt plane: no tilt cuts a corner off."""
        depth, _, width = self.volume.shape
        samples = int((depth**2 + width**2) ** 0.5) + 2
        return SliceGeometry(1, samples * self.voxel, self.image_shape, self.voxel)


def project_tilt(
    volume: Tensor, poses: Poses, tilt: int, geometry: ProjectionGeometry, filtered: bool = False
) -> Tensor:
    """One projection ``y x`` in rad, differentiable for the volume and the pose (paper Eq. 13).

    ``filtered`` as for `petomo.physics.resample.rotate_and_bin`.
    """
    pose = poses.phi[tilt], poses.theta[tilt], poses.psi[tilt], poses.tau[tilt]
    stack = rotate_and_bin(volume, *pose, geometry.slices, geometry.interpolation, filtered=filtered)
    return geometry.scale * stack[0]


def project(volume: Tensor, poses: Poses, geometry: ProjectionGeometry) -> Tensor:
    """All projections ``tilt y x`` in rad of a volume ``z y x`` (paper Eq. 13)."""
    whole = torch.is_grad_enabled() and volume.requires_grad
    shared = not whole and _share_coefficients(poses, geometry)
    source = prefilter(volume) if shared else volume
    parts = [slice(0, len(poses))] if whole else shares(len(poses), device=volume.device)

    def some(part: slice) -> Tensor:
        return torch.stack(
            [project_tilt(source, poses, t, geometry, shared) for t in range(part.start, part.stop)]
        )

    return torch.cat(spread(some, parts))


def _share_coefficients(poses: Poses, geometry: ProjectionGeometry) -> bool:
    """Whether all tilts see the volume through the same spline coefficients, which are half of the work."""
    angles = zip(poses.phi, poses.theta, poses.psi, strict=True)
    height = geometry.volume.shape[1]
    return geometry.interpolation == "spline" and all(
        turns_by_slices(*a, height, geometry.slices) for a in angles
    )


@torch.enable_grad()
def back_project_tilt(
    image: Tensor, poses: Poses, tilt: int, geometry: ProjectionGeometry, filtered: bool = False
) -> Tensor:
    """Adjoint of `project_tilt` in the volume: ``z y x`` from one image ``y x``."""
    # the operator is linear: its derivative at any volume, here zero, is the operator itself
    volume = rows_last(image.new_zeros(()).expand(geometry.volume.shape)).requires_grad_()
    (gradient,) = torch.autograd.grad(project_tilt(volume, poses, tilt, geometry, filtered), volume, image)
    return gradient


def back_project(images: Tensor, poses: Poses, geometry: ProjectionGeometry) -> Tensor:
    """Adjoint of `project` in the volume: ``z y x`` from images ``tilt y x``."""
    shared = _share_coefficients(poses, geometry)

    def some(part: slice) -> Tensor:
        total = rows_last(images.new_zeros(()).expand(geometry.volume.shape))
        for tilt in range(part.start, part.stop):
            total += back_project_tilt(images[tilt], poses, tilt, geometry, shared)
        return total

    total = sum(spread(some, shares(len(poses), device=images.device)), images.new_zeros(()))
    return prefilter(total) if shared else total


def pose_derivatives(volume: Tensor, poses: Poses, geometry: ProjectionGeometry) -> tuple[Tensor, Tensor]:
    """Projections and their slopes for the five pose parameters.

    A turn by ``omega`` about the specimen's origin moves its points by ``omega x (r - tau)``, so that a
    projection P with first moment M along the beam changes by
    ``-d/dx (omega_y M - omega_z y P) - d/dy (omega_z x P - omega_x M)``: two projections give all slopes.

    Returns
    -------
    projections : Tensor
        ``tilt y x`` in rad.
    slopes : Tensor
        ``tilt parameter y x`` in the order of `POSE_PARAMETERS`, rad per radian or per angstrom.
    """
    like = {"dtype": volume.dtype, "device": volume.device}
    depth, height, width = (geometry.volume.coordinates(a, **like) for a in range(3))
    images = Grid(geometry.image_shape, geometry.voxel)
    y, x = (images.coordinates(a, **like) for a in range(2))
    projections, slopes = [], []
    for tilt, rotation in enumerate(poses.matrices().to(volume)):
        r = rotation[2]  # height along the beam of a sample point
        beam = r[2] * depth[:, None, None] + r[1] * height[:, None] + r[0] * width
        image = project_tilt(volume, poses, tilt, geometry)
        moment = project_tilt(volume * beam, poses, tilt, geometry)
        tau = poses.tau[tilt].to(volume)
        x_image, y_image = (x - tau[0]) * image, (y - tau[1])[:, None] * image
        cos, sin = math.cos(poses.psi[tilt]), math.sin(poses.psi[tilt])
        # axes of the three turns in the laboratory: Rz(psi) Ry(theta) x, Rz(psi) y, z
        axes = ((*rotation[:, 0],), (-sin, cos, 0.0), (0.0, 0.0, 1.0))
        fluxes = [(oy * moment - oz * y_image, oz * x_image - ox * moment) for ox, oy, oz in axes]
        fluxes += [(image, torch.zeros_like(image)), (torch.zeros_like(image), image)]
        flux_x, flux_y = (torch.stack(f) for f in zip(*fluxes, strict=True))
        slopes.append(-_derivative(flux_x, images, -1) - _derivative(flux_y, images, -2))
        projections.append(image)
    return torch.stack(projections), torch.stack(slopes)


def _derivative(images: Tensor, grid: Grid, axis: int) -> Tensor:
    """Spectral derivative along one axis, per angstrom."""
    n = grid.shape[axis]
    q = torch.fft.rfftfreq(n, grid.pixel_size[axis], dtype=images.dtype, device=images.device)
    if n % 2 == 0:
        q[-1] = 0  # the sign of the Nyquist frequency is not defined
    factor = torch.complex(torch.zeros_like(q), 2 * torch.pi * q)
    factor = factor[:, None] if axis == -2 else factor
    return torch.fft.irfft(torch.fft.rfft(images, dim=axis) * factor, n=n, dim=axis)
