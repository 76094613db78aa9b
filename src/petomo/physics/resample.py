"""A_theta,tau and B_b: the rotated, translated volume binned into slices (paper Eq. 12 and 14).

The rotation is ``Rz(psi) Ry(theta) Rx(phi)``. Each factor turns one plane, so no 3D interpolation is
needed: phi is a Fourier rotation of the (z, y) planes, theta and the binning along the beam are ONE
sparse matrix from (z, x) to (slice, x), the same for every y, and psi and tau act on the few binned
slices by Fourier shears. A small phi is no work of its own: after theta it shifts whole slices along y, by
their height. `rotate_and_bin_reference` does the same by 3D interpolation, as a check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from petomo.core.parallel import ALONE, Team
from petomo.core.pose import rotation_matrices
from petomo.physics.fourier import rotate_plane
from petomo.physics.interpolation import KERNELS, Interpolation, spline_coefficients

#: angstrom that a point may be shifted amiss where a turn by a small phi is done slice by slice
_BLUR = 0.01


@dataclass(frozen=True)
class SliceGeometry:
    """Output of `rotate_and_bin`.

    Parameters
    ----------
    slices : int
        Number of slices along the beam.
    thickness : float
        Slice thickness in angstrom; need not be a multiple of the voxel.
    shape : (int, int)
        Lateral shape ``y x`` of every slice; the optical axis is at ``n // 2``.
    voxel : float
        Lateral sampling and volume voxel in angstrom.
    """

    slices: int
    thickness: float
    shape: tuple[int, int]
    voxel: float

    @property
    def samples(self) -> int:
        """Samples of the volume per slice, never coarser than a voxel."""
        return max(1, math.ceil(self.thickness / self.voxel - 1e-9))


# ------------------------------------------------------------ sparse matrix


class _Csr(NamedTuple):
    """Rows of a sparse matrix for `embedding_bag`."""

    indices: Tensor
    offsets: Tensor
    weights: Tensor

    def apply(self, dense: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            self.indices,
            dense,
            self.offsets,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )


def _to_csr(matrix: scipy.sparse.csr_array, dtype: torch.dtype, device: torch.device) -> _Csr:
    return _Csr(
        torch.as_tensor(matrix.indices.astype(np.int32), device=device),
        torch.as_tensor(matrix.indptr.astype(np.int32), device=device),
        torch.as_tensor(matrix.data, dtype=dtype, device=device),
    )


def _tilt_matrix(
    theta: float, depth: int, width: int, geometry: SliceGeometry, kind: Interpolation, derivative: bool
) -> scipy.sparse.csr_array:
    """Sparse ``(slice * x_out, z * x_in)`` matrix of Ry(theta) and the line integral over slices."""
    kernel, half = KERNELS[kind]
    s, n, out = geometry.slices, geometry.samples, geometry.shape[1]
    step = geometry.thickness / n / geometry.voxel
    z_lab = (np.arange(s * n) - (s * n - 1) / 2) * step
    x_lab = np.arange(out) - out // 2.0
    z_lab, x_lab = np.meshgrid(z_lab, x_lab, indexing="ij")
    c, si = math.cos(theta), math.sin(theta)
    # Ry: x_lab = c x + s z, z_lab = -s x + c z
    x, z = c * x_lab - si * z_lab, si * x_lab + c * z_lab
    dx, dz = -si * x_lab - c * z_lab, c * x_lab - si * z_lab  # with respect to theta
    row = np.broadcast_to((np.arange(s * n) // n)[:, None] * out + np.arange(out), x.shape)
    rows, columns, values = [], [], []
    x0, z0 = np.floor(x).astype(np.int64), np.floor(z).astype(np.int64)
    taps = range(1 - half, half + 1)
    wx, wz = [kernel(x - (x0 + k)) for k in taps], [kernel(z - (z0 + k)) for k in taps]
    for a, kz in enumerate(taps):
        iz = z0 + kz + depth // 2
        for b, kx in enumerate(taps):
            ix = x0 + kx + width // 2
            inside = (iz >= 0) & (iz < depth) & (ix >= 0) & (ix < width)
            if derivative:
                weight = wz[a][0] * wx[b][1] * dx + wz[a][1] * wx[b][0] * dz
            else:
                weight = wz[a][0] * wx[b][0]
            rows.append(row[inside])
            columns.append((iz * width + ix)[inside])
            values.append(weight[inside] * step)
    triplets = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.coo_array(triplets, shape=(s * out, depth * width)).tocsr()


def _tilt_operator(theta, depth, width, geometry, kind, dtype, device) -> tuple[_Csr, _Csr]:
    """The tilt matrix and its transpose."""
    matrix = _tilt_matrix(theta, depth, width, geometry, kind, derivative=False)
    return _to_csr(matrix, dtype, device), _to_csr(matrix.T.tocsr(), dtype, device)


def _tilt_slope(theta, depth, width, geometry, kind, dtype, device) -> _Csr:
    """Derivative of the tilt matrix with respect to theta."""
    return _to_csr(_tilt_matrix(theta, depth, width, geometry, kind, derivative=True), dtype, device)


_known_tilt_operator = lru_cache(maxsize=128)(_tilt_operator)
# an angle under refinement stays for the batches of one visit and never comes back
_recent_tilt_operator, _recent_tilt_slope = lru_cache(maxsize=2)(_tilt_operator), lru_cache(2)(_tilt_slope)


class _TiltAndBin(torch.autograd.Function):
    """``(z, x, y)`` to ``(slice, x, y)`` with the exact adjoint and the gradient for theta."""

    @staticmethod
    def forward(ctx, volume, theta, geometry, kind):
        depth, width, height = volume.shape
        angle = float(theta)
        operator = _recent_tilt_operator if ctx.needs_input_grad[1] else _known_tilt_operator
        matrix, ctx.adjoint = operator(angle, depth, width, geometry, kind, volume.dtype, volume.device)
        ctx.save_for_backward(volume if ctx.needs_input_grad[1] else volume.new_empty(0))
        ctx.args = (angle, depth, width, height, geometry, kind)
        return matrix.apply(volume.reshape(depth * width, height)).view(
            geometry.slices, geometry.shape[1], height
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        angle, depth, width, height, geometry, kind = ctx.args
        flat = gradient.reshape(-1, height).contiguous()
        grad_volume = grad_theta = None
        if ctx.needs_input_grad[0]:
            grad_volume = ctx.adjoint.apply(flat).view(depth, width, height)
        if ctx.needs_input_grad[1]:
            (volume,) = ctx.saved_tensors
            slope = _recent_tilt_slope(angle, depth, width, geometry, kind, flat.dtype, flat.device)
            moved = slope.apply(volume.reshape(depth * width, height))
            grad_theta = (moved * flat).sum()
        return grad_volume, grad_theta, None, None


# ---------------------------------------------------------------- operator


def rotate_and_bin(
    volume: Tensor,
    phi: Tensor,
    theta: Tensor,
    psi: Tensor,
    tau: Tensor,
    geometry: SliceGeometry,
    interpolation: Interpolation = "spline",
    team: Team = ALONE,
) -> Tensor:
    """Slices ``B_b A_Theta,tau V`` (paper Eq. 12, 14): volt angstrom, the potential integrated over a slice.

    Differentiable once with respect to everything but the geometry. Outside the volume is vacuum, but
    phi, psi and tau move it periodically: leave a margin as wide as the motion, both in the volume and
    in the geometry's lateral shape.

    Parameters
    ----------
    volume : Tensor
        Real potential in volts, ``z y x``, origin at ``n // 2``.
    phi, theta, psi : Tensor
        Angles in radian (0-dim), paper Eq. 11.
    tau : Tensor
        Shift (x, y) in angstrom.
    geometry : SliceGeometry
        Slices to make.
    interpolation : {"spline", "cubic", "linear"}
        Kernel in the (z, x) plane: cubic B-spline with prefilter, Keys' cubic convolution, or linear.
    team : Team
        Processes that share the work, each with the same arguments, and all get all slices. The gradient of
        the volume is then summed over them; those of the angles and of tau remain to be.

    Returns
    -------
    Tensor
        ``(slice, y, x)``; slice ``s`` is centred on the beam at ``z = (s - (S - 1) / 2) thickness``.
    """
    height, turned = volume.shape[1], _phi_last(phi, theta, psi)
    cuts = _thinner(float(turned[0].detach()), height, geometry)
    if cuts is None:
        stack = _tilt(_turn_planes(volume, phi, team), height, theta, geometry, interpolation, team)
        return _turn_slices(stack, psi, tau, None, geometry.voxel)
    thin = replace(geometry, slices=geometry.slices * cuts, thickness=geometry.thickness / cuts)
    stack = _tilt(team.slab(volume, dim=1), height, turned[1], thin, interpolation, team)
    z = (
        torch.arange(thin.slices, dtype=phi.dtype, device=phi.device) - (thin.slices - 1) / 2
    ) * thin.thickness
    stack = _turn_slices(stack, turned[2], tau, -torch.sin(turned[0]) * z, geometry.voxel)
    return stack.unflatten(0, (geometry.slices, cuts)).sum(1) if cuts > 1 else stack


def _turn_planes(volume: Tensor, phi: Tensor, team: Team) -> Tensor:
    """``Rx(phi)`` of a whole volume, this process' slab of y."""
    if not phi.requires_grad and float(phi) == 0.0:
        return team.slab(volume, dim=1)
    # Rx turns +y towards +z: planes (z, y) for every x
    part = rotate_plane(team.slab(volume, dim=2).permute(2, 0, 1), phi).permute(1, 2, 0)
    return team.exchange(part, volume.shape[2], have=2, want=1)


def _tilt(
    part: Tensor,
    height: int,
    theta: Tensor,
    geometry: SliceGeometry,
    interpolation: Interpolation,
    team: Team,
) -> Tensor:
    """``Ry(theta)`` and the slices, from this process' slab of ``height`` rows; all get all slices."""
    planes = part.permute(0, 2, 1)
    if interpolation == "spline":
        planes = spline_coefficients(planes)
    stack = _TiltAndBin.apply(planes.contiguous(), theta, geometry, interpolation).permute(0, 2, 1)  # pyright: ignore
    return _fit(team.join(stack, height, dim=1), geometry.shape[0], dim=1) * geometry.voxel


def _turn_slices(stack: Tensor, psi: Tensor, tau: Tensor, rise: Tensor | None, voxel: float) -> Tensor:
    """Shift every slice by its ``rise`` along y, then ``Rz(psi)``, then shift all by tau; angstrom."""
    angles = (psi, tau) if rise is None else (psi, tau, rise)
    if not any(a.requires_grad or bool(a.any()) for a in angles):
        return stack.contiguous()
    across, down = tau / voxel
    if rise is not None:
        rise = rise[:, None, None] / voxel
        across, down = across - torch.sin(psi) * rise, down + torch.cos(psi) * rise
    return rotate_plane(stack, psi, (across.to(stack.dtype), down.to(stack.dtype)))


def _phi_last(phi: Tensor, theta: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angles (x, y, z) with ``Rz(z) Rx(x) Ry(y) = Rz(psi) Ry(theta) Rx(phi)``."""
    s, c = torch.sin(phi), torch.cos(phi)
    return (
        torch.asin(torch.cos(theta) * s),
        torch.atan2(torch.sin(theta), torch.cos(theta) * c),
        psi - torch.atan2(torch.sin(theta) * s, c),
    )


def _thinner(angle: float, height: int, geometry: SliceGeometry) -> int | None:
    """Into how many to cut each slice so that a turn by ``angle`` about x only shifts them along y.

    None where that would not do: where what moves along the beam gets into other slices, or y is
    foreshortened.
    """
    reach = abs(math.sin(angle)) * height * geometry.voxel / 2
    if abs(angle) * reach > 2 * _BLUR or (geometry.slices > 1 and reach > geometry.thickness / 24):
        return None
    return max(1, math.ceil(abs(math.sin(angle)) * geometry.thickness / 2 / _BLUR))


def _fit(stack: Tensor, size: int, dim: int) -> Tensor:
    """Crop or zero-pad one axis, keeping ``n // 2`` where it is."""
    have = stack.shape[dim]
    before = size // 2 - have // 2
    after = size - have - before
    pad = [0] * (2 * (stack.ndim - dim))
    pad[-2], pad[-1] = before, after
    return torch.nn.functional.pad(stack, pad)


def rotate_and_bin_reference(
    volume: Tensor, phi: Tensor, theta: Tensor, psi: Tensor, tau: Tensor, geometry: SliceGeometry
) -> Tensor:
    """The same operator by one trilinear 3D interpolation: slow and blurring, for tests and comparisons."""
    dtype, device = volume.dtype, volume.device
    rotation = rotation_matrices(phi, theta, psi).to(dtype)
    s, n, (ny, nx) = geometry.slices, geometry.samples, geometry.shape
    step = geometry.thickness / n / geometry.voxel
    z = (torch.arange(s * n, dtype=dtype, device=device) - (s * n - 1) / 2) * step
    y = torch.arange(ny, dtype=dtype, device=device) - ny // 2
    x = torch.arange(nx, dtype=dtype, device=device) - nx // 2
    shift = tau.to(dtype) / geometry.voxel
    zz, yy, xx = torch.meshgrid(z, y, x, indexing="ij")
    lab = torch.stack([xx - shift[0], yy - shift[1], zz], dim=-1)
    sample = lab @ rotation  # R^T applied to row vectors
    size = torch.tensor(volume.shape[::-1], dtype=dtype, device=device)
    normalised = 2 * (sample + size.div(2, rounding_mode="floor")) / (size - 1) - 1
    out = torch.nn.functional.grid_sample(volume[None, None], normalised[None], align_corners=True)[0, 0]
    return out.view(s, n, ny, nx).sum(1) * step * geometry.voxel
