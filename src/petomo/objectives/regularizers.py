"""Regularisers: small frozen objects with a value, a proximal step, a filter, or a filter of the gradient.

Everything that ends in an underscore changes the tensor it is given and nothing else, so that an
optimiser that owns the volume keeps owning it. A volume is real, or complex with the absorptive
potential as its imaginary part; axes are the array's, ``z y x``, and voxel sizes are given in that
order in angstrom.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from petomo.objectives.filters import Butterworth, DepthKernel, Gaussian, Voxel, voxel_sizes
from petomo.objectives.total_variation import TotalVariation3D


class Regularizer(Protocol):
    """Anything with a name; what it can do is told by the protocols below."""

    @property
    def name(self) -> str:
        """Short name, as in a configuration."""
        ...


@runtime_checkable
class Proximal(Protocol):
    """``prox_`` replaces v by ``argmin_x f(x) + |x - v|^2 / (2 step)``."""

    def prox_(self, v: Tensor, step: float) -> None:
        """Proximal step in place."""
        ...


@runtime_checkable
class Filter(Protocol):
    """``filter_`` applies a fixed linear filter."""

    def filter_(self, v: Tensor) -> None:
        """Filter in place."""
        ...


@runtime_checkable
class GradientFilter(Protocol):
    """``filter_gradient`` shapes the update, and thereby only how the optimum is approached."""

    def filter_gradient(self, g: Tensor) -> Tensor:
        """Filtered copy of a gradient."""
        ...


@runtime_checkable
class Separable(Protocol):
    """Acts voxel by voxel: ``within`` is the same for a part of the volume, None if it cannot be."""

    def within(self, part: tuple[slice, ...]) -> Proximal | None:
        """What the term does to ``v[part]``."""
        ...


def separated(terms: Iterable[object], part: tuple[slice, ...]) -> list[Proximal] | None:
    """``terms`` for ``v[part]`` alone, None if one of them has to see more of the volume."""
    out = []
    for term in terms:
        mine = term.within(part) if isinstance(term, Separable) else None
        if mine is None:
            return None
        out.append(mine)
    return out


def regularize_(terms: Iterable[object], v: Tensor, step: float = 1.0) -> None:
    """Apply the proximal steps and filters of ``terms`` to ``v`` in place, in the order given."""
    for term in terms:
        if isinstance(term, Proximal):
            term.prox_(v, step)
        if isinstance(term, Filter):
            term.filter_(v)


def regularize_gradient(terms: Iterable[object], g: Tensor) -> Tensor:
    """``g`` after all gradient filters among ``terms``."""
    for term in terms:
        if isinstance(term, GradientFilter):
            g = term.filter_gradient(g)
    return g


@torch.no_grad()
def shrink_(v: Tensor, threshold: float) -> None:
    """Soft threshold ``sign(v) max(|v| - threshold, 0)`` of a real tensor in place (paper Eq. 17)."""
    v.sub_(v.clamp(-threshold, threshold))


@dataclass(frozen=True)
class L1Imaginary:
    """``f(V) = weight * sum |Im V|``; prox: ``shrink(Im V, weight * step)`` (paper Eq. 16, 17).

    A real volume has no imaginary part and is left alone.

    Parameters
    ----------
    weight : float
        Per volt.
    """

    weight: float
    name: str = field(default="l1_imaginary", init=False)

    def value(self, v: Tensor) -> Tensor:
        """Scalar."""
        return self.weight * v.imag.abs().sum() if v.is_complex() else v.new_zeros(())

    @torch.no_grad()
    def prox_(self, v: Tensor, step: float) -> None:
        """Soft threshold of Im V in place."""
        if v.is_complex():
            shrink_(torch.view_as_real(v)[..., 1], self.weight * step)

    def within(self, part: tuple[slice, ...]) -> L1Imaginary:  # noqa: ARG002 - everywhere the same
        """Itself."""
        return self


@dataclass(frozen=True)
class L1Real:
    """``f(V) = weight * sum |Re V|``; prox: ``shrink(Re V, weight * step)``.

    Parameters
    ----------
    weight : float
        Per volt.
    """

    weight: float
    name: str = field(default="l1_real", init=False)

    def value(self, v: Tensor) -> Tensor:
        """Scalar."""
        return self.weight * v.real.abs().sum()

    @torch.no_grad()
    def prox_(self, v: Tensor, step: float) -> None:
        """Soft threshold of Re V in place."""
        shrink_(_real_part(v), self.weight * step)

    def within(self, part: tuple[slice, ...]) -> L1Real:  # noqa: ARG002 - everywhere the same
        """Itself."""
        return self


@dataclass(frozen=True)
class About:
    """``f(V - reference)``: pulls towards what is known already, in place of zero.

    Parameters
    ----------
    reference : Tensor
        Real, of the volume's shape, in volts.
    term : Proximal
        f.
    """

    reference: Tensor
    term: Proximal
    name: str = field(default="about", init=False)

    @torch.no_grad()
    def prox_(self, v: Tensor, step: float) -> None:
        """Proximal step of f on the difference, in place."""
        v.sub_(self.reference)
        self.term.prox_(v, step)
        v.add_(self.reference)

    def within(self, part: tuple[slice, ...]) -> About | None:
        """About a part of the reference, if its term is separable."""
        terms = separated([self.term], part)
        return None if terms is None else About(self.reference[part], terms[0])


@dataclass(frozen=True)
class NonNegative:
    """``f(V) = 0 if Re V >= 0 everywhere, else infinity``; prox: ``max(Re V, 0)``, Im V untouched."""

    name: str = field(default="nonnegative", init=False)

    @torch.no_grad()
    def prox_(self, v: Tensor, step: float = 1.0) -> None:  # noqa: ARG002 - a projection has no step
        """Projection in place."""
        _real_part(v).clamp_min_(0)

    def within(self, part: tuple[slice, ...]) -> NonNegative:  # noqa: ARG002 - everywhere the same
        """Itself."""
        return self


@dataclass(frozen=True)
class Support:
    """``f(V) = 0 if V vanishes outside the mask, else infinity``; prox: ``mask * V``.

    Parameters
    ----------
    mask : Tensor
        Bool, shape of the volume; see `specimen_support`.
    """

    mask: Tensor = field(repr=False)
    name: str = field(default="support", init=False)

    @torch.no_grad()
    def prox_(self, v: Tensor, step: float = 1.0) -> None:  # noqa: ARG002 - a projection has no step
        """Projection in place."""
        v.mul_(self.mask.to(v.device))

    def within(self, part: tuple[slice, ...]) -> Support:
        """With a part of the mask."""
        return Support(self.mask[part])


def specimen_support(
    volume: Tensor, voxel_size: Voxel, threshold: float = 0.1, grow: float = 3.0, smooth: float = 1.0
) -> Tensor:
    """Bool mask of where the specimen is, from its own low-resolution outline.

    Re V is blurred by a Gaussian, cut at a share of its maximum, and the region is grown by a ball.

    Parameters
    ----------
    volume : Tensor
        ``z y x``, volts.
    voxel_size : float or tuple
        Angstrom.
    threshold : float
        Share of the blurred maximum that counts as specimen.
    grow, smooth : float
        Angstrom: radius of the ball, standard deviation of the Gaussian.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a share of the maximum between 0 and 1, got {threshold}")
    low = volume.detach().real.clone()
    Gaussian(smooth, voxel_size).filter_(low)
    core = (low > threshold * low.max()).cpu().numpy()
    distance = np.asarray(distance_transform_edt(~core, sampling=voxel_sizes(voxel_size, volume.ndim)))
    return torch.as_tensor(distance <= grow, device=volume.device)


def _real_part(v: Tensor) -> Tensor:
    return torch.view_as_real(v)[..., 0] if v.is_complex() else v


__all__ = [
    "About",
    "Butterworth",
    "DepthKernel",
    "Filter",
    "Gaussian",
    "GradientFilter",
    "L1Imaginary",
    "L1Real",
    "NonNegative",
    "Proximal",
    "Regularizer",
    "Separable",
    "Support",
    "TotalVariation3D",
    "regularize_",
    "regularize_gradient",
    "separated",
    "shrink_",
    "specimen_support",
]
