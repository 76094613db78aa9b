"""Isotropic total variation and its proximal step by fast gradient projection."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from petomo.objectives.filters import voxel_sizes


@dataclass(frozen=True)
class TotalVariation3D:
    """``f(V) = weight * sum_r |D V(r)|_2`` with forward differences D, zero across the far faces.

    Differences are divided by the voxel's size relative to the smallest one, so that an isotropic
    volume has plain differences. The prox

    ``argmin_x |x - v|^2 / 2 + weight step TV(x)``

    is solved in its dual by fast gradient projection (Beck and Teboulle 2009, IEEE TIP 18, 2419),
    optionally with ``x >= 0``. The real and imaginary part of a complex volume are treated apart. Any
    number of axes is allowed.

    Parameters
    ----------
    weight : float
        Per volt.
    voxel_size : float or tuple
        Angstrom; only ratios matter.
    iterations : int
        Dual iterations; the dual gap falls as 1 / iterations^2.
    nonnegative : bool
        Solve with the constraint Re x >= 0 as well (which is not the same as clamping afterwards).
    """

    weight: float
    voxel_size: float | tuple[float, ...] = 1.0
    iterations: int = 40
    nonnegative: bool = False
    name: str = field(default="total_variation", init=False)

    def value(self, v: Tensor) -> Tensor:
        """Scalar; differentiable where the gradient does not vanish."""
        if v.is_complex():
            return self.value(v.real) + self.value(v.imag)
        return self.weight * torch.linalg.vector_norm(_differences(v, self._scales(v)), dim=0).sum()

    @torch.no_grad()
    def prox_(self, v: Tensor, step: float) -> None:
        """Proximal step in place."""
        if v.is_complex():
            real, imaginary = torch.view_as_real(v).unbind(-1)
            self._prox_real_(real, step, self.nonnegative)
            self._prox_real_(imaginary, step, False)
        else:
            self._prox_real_(v, step, self.nonnegative)

    def _prox_real_(self, v: Tensor, step: float, nonnegative: bool) -> None:
        scales, strength = self._scales(v), self.weight * step
        dual = v.new_zeros(v.ndim, *v.shape)
        if strength > 0:
            # |D|^2 <= 4 sum scales^2 bounds the dual's curvature
            rate = 1 / (4 * sum(s * s for s in scales) * strength)
            ahead, momentum = dual.clone(), 1.0
            for _ in range(self.iterations):
                x = _primal(v, ahead, strength, scales, nonnegative)
                new = ahead.add_(_differences(x, scales), alpha=rate)
                new /= torch.linalg.vector_norm(new, dim=0).clamp_min_(1)
                following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
                ahead = new + (new - dual) * ((momentum - 1) / following)
                dual, momentum = new, following
        v.copy_(_primal(v, dual, strength, scales, nonnegative))

    def _scales(self, v: Tensor) -> tuple[float, ...]:
        sizes = voxel_sizes(self.voxel_size, v.ndim)
        return tuple(min(sizes) / h for h in sizes)


def _primal(v: Tensor, dual: Tensor, strength: float, scales: tuple[float, ...], nonnegative: bool) -> Tensor:
    x = v - strength * _differences_adjoint(dual, scales)
    return x.clamp_min_(0) if nonnegative else x


def _differences(v: Tensor, scales: tuple[float, ...]) -> Tensor:
    out = v.new_zeros(v.ndim, *v.shape)
    for axis, s in enumerate(scales):
        n = v.shape[axis] - 1
        out[axis].narrow(axis, 0, n).copy_((v.narrow(axis, 1, n) - v.narrow(axis, 0, n)) * s)
    return out


def _differences_adjoint(p: Tensor, scales: tuple[float, ...]) -> Tensor:
    out = torch.zeros_like(p[0])
    for axis, s in enumerate(scales):
        n = p.shape[axis + 1] - 1
        q = p[axis].narrow(axis, 0, n)
        out.narrow(axis, 0, n).sub_(q, alpha=s)
        out.narrow(axis, 1, n).add_(q, alpha=s)
    return out
