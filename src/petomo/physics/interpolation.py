"""Interpolation kernels along one axis, and the prefilter that makes B-splines interpolate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from petomo.core.threads import shares, spread
from petomo.physics.compiled import compiled

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


def spline_coefficients(samples: Tensor, out: Tensor | None = None) -> Tensor:
    """Cubic B-spline coefficients along z and x, zero outside (Unser 1999); its own adjoint.

    The inverse of a symmetric matrix along either axis.

    Parameters
    ----------
    samples : Tensor
        ``(z, x, y)``.
    out : Tensor, optional
        Contiguous like the samples, or the samples themselves: where to put the coefficients.
    """
    nz, nx, ny = samples.shape
    if samples.device.type != "cpu":  # two products instead of thousands of small kernels
        mz, mx = (_prefilter_matrix(n, samples.dtype, samples.device) for n in (nz, nx))
        found = torch.matmul(mx, torch.tensordot(mz, samples, dims=1))
        return found if out is None else out.copy_(found)
    samples = samples.contiguous()
    out = torch.empty_like(samples) if out is None else out
    pivots = [torch.tensor(_pivots(n), dtype=samples.dtype) for n in (nz, nx)]
    scale, module = 36 * torch.outer(*pivots), compiled("compiled_spline")
    if module is None:
        torch.mul(samples, scale[:, :, None], out=out)
        for lines, pivot in zip((out.unbind(0), out.unbind(1)), pivots, strict=True):  # Thomas algorithm
            _sweep(lines, pivot.tolist())
        return out
    arrays = [t.detach().numpy() for t in (out, samples, scale, *pivots)]
    # a cache line is written by one thread
    spread(lambda part: module.sweep(*arrays, part.start, part.stop), shares(ny, least=16))
    return out


def _sweep(lines: Sequence[Tensor], pivots: Sequence[float]) -> None:
    for i in range(1, len(lines)):
        lines[i].sub_(lines[i - 1], alpha=pivots[i])
    for i in range(len(lines) - 2, -1, -1):
        lines[i].sub_(lines[i + 1], alpha=pivots[i])
