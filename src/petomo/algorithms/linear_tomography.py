"""Linear tomography at fixed poses by accelerated projected gradients (paper Algorithm 2, inner loop)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from petomo.algorithms.status import Status
from petomo.core.pose import Poses
from petomo.models.projections import (
    ProjectionGeometry,
    back_project,
    back_project_tilt,
    project,
    project_tilt,
)
from petomo.physics.tilt import rows_last

Prox = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class TomographyOptions:
    """How `linear_tomography` solves.

    Parameters
    ----------
    iterations : int
        Passes over all tilts.
    nonnegative : bool
        Keep the potential >= 0.
    fit_offsets : bool
        Fit one constant per projection: a ptychographic phase is known up to a constant only.
    shrinkage : float
        Weight of an L1 penalty on the volume, in units of the largest value of the first gradient (0 to 1).
    prox : callable or None
        Any further regulariser, ``prox(volume, step) -> volume``.
    support : Tensor or None
        Voxels that may be other than zero, bool ``z y x``.
    """

    iterations: int = 40
    nonnegative: bool = True
    fit_offsets: bool = False
    shrinkage: float = 0.0
    prox: Prox | None = field(default=None, compare=False)
    support: Tensor | None = field(default=None, compare=False)


def operator_norm(weights: Tensor, poses: Poses, geometry: ProjectionGeometry, iterations: int = 8) -> float:
    """Largest eigenvalue of ``A^T W A`` by power iteration, with 5 % to spare.

    The eigenvector is smooth and non-negative, so a flat start converges within a few iterations.
    """
    volume = torch.ones(geometry.volume.shape, dtype=weights.dtype, device=weights.device)
    eigenvalue = volume.new_ones(())
    for _ in range(iterations):
        volume = volume / volume.norm()
        volume = back_project(weights * project(volume, poses, geometry), poses, geometry)
        eigenvalue = volume.norm()
    return 1.05 * float(eigenvalue)


def residuals(model: Tensor, projections: Tensor, weights: Tensor, fit_offsets: bool) -> Tensor:
    """``model - projections``, less its weighted mean per tilt if the offsets are free."""
    residual = model - projections
    if not fit_offsets:
        return residual
    weight = weights.sum((-2, -1), keepdim=True).clamp_min(1e-12)
    return residual - (weights * residual).sum((-2, -1), keepdim=True) / weight


def linear_tomography(
    projections: Tensor,
    poses: Poses,
    geometry: ProjectionGeometry,
    options: TomographyOptions | None = None,
    weights: Tensor | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Status]:
    """Minimise ``1/2 sum w (A V - y)^2`` over volumes, one `Status` an iteration (paper Algorithm 2).

    FISTA (Beck and Teboulle 2009) with the restart of O'Donoghue and Candes (2015).

    Parameters
    ----------
    projections : Tensor
        Phases ``tilt y x`` in rad, sampled like the volume.
    poses : Poses
        Fixed poses.
    geometry : ProjectionGeometry
        Volume grid and units.
    options : TomographyOptions, optional
        Solver settings.
    weights : Tensor, optional
        ``tilt y x`` or broadcastable, >= 0; zero where a projection is not to be trusted.
    state : dict, optional
        A `Status.state` to continue from; or just a first guess of ``volume``, and ``norm`` if it is known.

    Yields
    ------
    Status
        ``loss`` is the mean weighted squared error in rad^2 before the update; ``state["volume"]`` is the
        volume ``z y x`` after it.
    """
    options = options or TomographyOptions()
    weights = torch.ones_like(projections) if weights is None else weights.expand_as(projections)
    state = dict(state or {})
    volume, device = state.get("volume"), projections.device
    volume = projections.new_zeros(geometry.volume.shape) if volume is None else volume.to(device)
    volume, momentum = rows_last(volume), state.get("momentum", 1.0)
    lookahead = rows_last(state.get("lookahead", volume).to(device))
    norm = state.get("norm") or operator_norm(weights, poses, geometry)
    shrinkage, total = state.get("shrinkage"), float(weights.sum())
    for iteration in range(state.get("iteration", 0) + 1, options.iterations + 1):
        gradient, loss = _gradient(lookahead, projections, weights, poses, geometry, options.fit_offsets)
        if shrinkage is None:
            shrinkage = options.shrinkage * float(gradient.abs().amax())
        updated = _prox(lookahead - gradient / norm, shrinkage / norm, 1 / norm, options)
        change = updated - volume
        if float((lookahead - updated).flatten() @ change.flatten()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        lookahead = updated + (momentum - 1) / following * change
        volume, momentum = updated, following
        yield Status(
            iteration,
            loss / total,
            state={
                "iteration": iteration,
                "volume": volume,
                "lookahead": lookahead,
                "momentum": momentum,
                "norm": norm,
                "shrinkage": shrinkage,
            },
        )


def reconstruct_linear(
    projections: Tensor,
    poses: Poses,
    geometry: ProjectionGeometry,
    options: TomographyOptions | None = None,
    weights: Tensor | None = None,
    state: dict[str, Any] | None = None,
) -> Tensor:
    """Volume ``z y x`` after all iterations of `linear_tomography`."""
    volume = (state or {}).get("volume", projections.new_zeros(geometry.volume.shape))
    for status in linear_tomography(projections, poses, geometry, options, weights, state):
        volume = status.state["volume"]
    return volume


def _gradient(
    volume: Tensor,
    projections: Tensor,
    weights: Tensor,
    poses: Poses,
    geometry: ProjectionGeometry,
    fit_offsets: bool,
) -> tuple[Tensor, float]:
    """Gradient of half the weighted squared error, and that error; one tilt in memory at a time."""
    gradient, loss = torch.zeros_like(volume), 0.0
    for tilt in range(len(poses)):
        model = project_tilt(volume, poses, tilt, geometry)
        residual = residuals(model, projections[tilt], weights[tilt], fit_offsets)
        weighted = weights[tilt] * residual
        loss += float((weighted * residual).sum())
        gradient += back_project_tilt(weighted, poses, tilt, geometry)
    return gradient, loss


def _prox(volume: Tensor, threshold: float, step: float, options: TomographyOptions) -> Tensor:
    if threshold:
        volume = torch.sign(volume) * (volume.abs() - threshold).clamp_min(0)
    if options.prox is not None:
        volume = options.prox(volume, step)
    if options.support is not None:
        volume = volume * options.support
    return volume.clamp_min(0) if options.nonnegative else volume
