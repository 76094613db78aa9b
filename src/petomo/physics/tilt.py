"""Ry(theta) and the binning along the beam: one sparse matrix from (z, x) to (slice, x) for all y."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from petomo.physics.interpolation import KERNELS, Interpolation, spline_coefficients


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


class Csr(NamedTuple):
    """Rows of a sparse matrix for `embedding_bag`."""

    indices: Tensor
    offsets: Tensor
    weights: Tensor

    def apply(self, dense: Tensor) -> Tensor:
        """Times the columns of ``dense``."""
        return torch.nn.functional.embedding_bag(
            self.indices,
            dense,
            self.offsets,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )


def _to_csr(
    matrix: scipy.sparse.csr_array, values: np.ndarray, dtype: torch.dtype, device: torch.device
) -> Csr:
    return Csr(
        torch.as_tensor(matrix.indices.astype(np.int32), device=device),
        torch.as_tensor(matrix.indptr.astype(np.int32), device=device),
        torch.as_tensor(values, dtype=dtype, device=device),
    )


@lru_cache(maxsize=2)
def _tilt_matrix(
    theta: float, depth: int, width: int, geometry: SliceGeometry, kind: Interpolation
) -> scipy.sparse.csr_array:
    """Sparse ``(slice * x_out, z * x_in)`` matrix of Ry(theta) and the line integral over slices.

    Its imaginary part is its derivative with respect to theta, which has the same places.
    """
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
            slope = wz[a][0] * wx[b][1] * dx + wz[a][1] * wx[b][0] * dz
            weight = wz[a][0] * wx[b][0] + 1j * slope
            rows.append(row[inside])
            columns.append((iz * width + ix)[inside])
            values.append(weight[inside] * step)
    triplets = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.coo_array(triplets, shape=(s * out, depth * width)).tocsr()


def _tilt_operator(theta, depth, width, geometry, kind, dtype, device) -> tuple[Csr, Csr]:
    """The tilt matrix and its transpose."""
    matrix = _tilt_matrix(theta, depth, width, geometry, kind)
    one, other = (_to_csr(m, np.real(m.data), dtype, device) for m in (matrix, matrix.T.tocsr()))
    return one, other


def _tilt_slope(theta, depth, width, geometry, kind, dtype, device) -> Csr:
    """Derivative of the tilt matrix with respect to theta."""
    matrix = _tilt_matrix(theta, depth, width, geometry, kind)
    return _to_csr(matrix, np.imag(matrix.data), dtype, device)


_known_tilt_operator = lru_cache(maxsize=128)(_tilt_operator)
# an angle under refinement stays for the batches of one visit and never comes back
_recent_tilt_operator, _recent_tilt_slope = lru_cache(maxsize=2)(_tilt_operator), lru_cache(2)(_tilt_slope)


class _TiltAndBin(torch.autograd.Function):
    """``(z, x, y)`` to ``(slice, x, y)`` with the exact adjoint and the gradient for theta."""

    @staticmethod
    def forward(ctx, volume, theta, geometry, kind, prefilter):
        ctx.prefilter = prefilter
        volume = spline_coefficients(volume) if prefilter else volume.contiguous()
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
            if ctx.prefilter:
                grad_volume = spline_coefficients(grad_volume, out=grad_volume)
        if ctx.needs_input_grad[1]:
            (volume,) = ctx.saved_tensors
            slope = _recent_tilt_slope(angle, depth, width, geometry, kind, flat.dtype, flat.device)
            moved = slope.apply(volume.reshape(depth * width, height))
            grad_theta = (moved * flat).sum()
        return grad_volume, grad_theta, None, None, None


def tilt_and_bin(
    volume: Tensor,
    theta: Tensor,
    geometry: SliceGeometry,
    interpolation: Interpolation,
    filtered: bool = False,
) -> Tensor:
    """Turn by theta about y, and integrate over slices.

    Differentiable once in the volume and theta.

    Parameters
    ----------
    volume : Tensor
        Real ``(z, y, x)``; outside is vacuum.
    theta : Tensor
        Radian (0-dim).
    geometry : SliceGeometry
        Slices to make; the y of its shape is left to the volume.
    interpolation : {"spline", "cubic", "linear"}
        Kernel in the (z, x) plane.
    filtered : bool
        Whether a volume for splines holds their coefficients already, see `prefilter`.

    A volume laid out by `rows_last` is turned without a copy of it.

    Returns
    -------
    Tensor
        ``(slice, y, x)``, the integral along z in voxels.
    """
    prefilter = interpolation == "spline" and not filtered
    planes = volume.permute(0, 2, 1)
    return _TiltAndBin.apply(planes, theta, geometry, interpolation, prefilter).permute(0, 2, 1)  # pyright: ignore


def prefilter(volume: Tensor) -> Tensor:
    """Cubic B-spline coefficients along z and x of a volume ``(z, y, x)``: its own adjoint, no autograd."""
    return spline_coefficients(volume.detach().permute(0, 2, 1)).permute(0, 2, 1)


def rows_last(volume: Tensor) -> Tensor:
    """Copy of a volume ``(z, y, x)`` whose neighbours in memory lie along y: so turning by theta reads it."""
    return volume.permute(0, 2, 1).clone(memory_format=torch.contiguous_format).permute(0, 2, 1)
