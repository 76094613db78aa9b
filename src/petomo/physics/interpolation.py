"""Interpolation kernels along one axis, and the prefilter that makes B-splines interpolate."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Interpolation = Literal["linear", "cubic", "spline"]


def _linear(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 1 - np.abs(t), -np.sign(t)


def _keys(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Keys 1981, a = -1/2
    u, sign = np.abs(t), np.sign(t)
    near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    near_slope, far_slope = 4.5 * u**2 - 5 * u, -1.5 * u**2 + 5 * u - 4
    return np.where(u < 1, near, far), np.where(u < 1, near_slope, far_slope) * sign


def _spline(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # cubic B-spline (Unser 1999), used with the prefilter of `spline_coefficients`
    u, sign = np.abs(t), np.sign(t)
    near, far = 2 / 3 - u**2 + u**3 / 2, (2 - u) ** 3 / 6
    near_slope, far_slope = -2 * u + 1.5 * u**2, -((2 - u) ** 2) / 2
    return np.where(u < 1, near, far), np.where(u < 1, near_slope, far_slope) * sign


#: kernel ``t -> (weight, slope)`` and its half width in voxels
KERNELS = {"linear": (_linear, 1), "cubic": (_keys, 2), "spline": (_spline, 2)}


@lru_cache(maxsize=32)
def _pivots(n: int) -> tuple[float, ...]:
    """Reciprocal pivots of the tridiagonal matrix (1, 4, 1), six times the B-spline's sampling matrix."""
    pivots = [0.25]
    while len(pivots) < n:
        pivots.append(1 / (4 - pivots[-1]))
    return tuple(pivots[:n])


@lru_cache(maxsize=32)
def _prefilter_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Inverse of the B-spline's sampling matrix."""
    off = np.full(n - 1, 1 / 6)
    sampling = np.diag(np.full(n, 2 / 3)) + np.diag(off, 1) + np.diag(off, -1)
    return torch.as_tensor(np.linalg.inv(sampling), dtype=dtype, device=device)


def spline_coefficients(samples: Tensor) -> Tensor:
    """Cubic B-spline coefficients along z and x of samples ``(z, x, y)``, zero outside (Unser 1999)."""
    return _SplineCoefficients.apply(samples)  # pyright: ignore[reportReturnType]


class _SplineCoefficients(torch.autograd.Function):
    """Inverse of the sampling matrix along two axes; symmetric, so its own adjoint."""

    @staticmethod
    def forward(_ctx, planes):
        nz, nx, _ = planes.shape
        if planes.is_cuda:  # two products instead of thousands of small kernels
            mz, mx = (_prefilter_matrix(n, planes.dtype, planes.device) for n in (nz, nx))
            return torch.matmul(mx, torch.tensordot(mz, planes, dims=1))
        pz, px = _pivots(nz), _pivots(nx)
        scale = 36 * torch.outer(*(torch.tensor(p, dtype=planes.dtype) for p in (pz, px)))
        out = torch.mul(planes, scale[:, :, None], out=planes.new_empty(planes.shape))
        for pivots, lines in ((pz, out.unbind(0)), (px, out.unbind(1))):  # Thomas algorithm, in place
            for i in range(1, len(lines)):
                lines[i].sub_(lines[i - 1], alpha=pivots[i])
            for i in range(len(lines) - 2, -1, -1):
                lines[i].sub_(lines[i + 1], alpha=pivots[i])
        return out

    @staticmethod
    def backward(_ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SplineCoefficients.apply(gradient)
