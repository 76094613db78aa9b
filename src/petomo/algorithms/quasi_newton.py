"""Limited-memory BFGS with a preconditioner, as a generator (Nocedal and Wright 2006, Algorithm 7.5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_MEMORY = 10
_SUFFICIENT = 1e-4
_MOST_TRIALS = 8


class Iterate(NamedTuple):
    """Point, value and gradient after an iteration, and the step's share of the full one."""

    point: Tensor
    value: float
    gradient: Tensor
    step: float


def minimise(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    longest: Tensor | float = math.inf,
    least: Tensor | float = -math.inf,
) -> Iterator[Iterate]:
    """Yield the start and then ever better points; ends when no step along the direction helps.

    Parameters
    ----------
    evaluate : callable
        ``point -> (value, gradient)``.
    start : Tensor
        1D, float64.
    precondition : callable
        Applies a positive definite approximation of the inverse Hessian.
    longest : Tensor or float
        How far a single unknown may go in one step.
    least : Tensor or float
        What no unknown may fall below.
    """
    reach, floor = (torch.as_tensor(limit, dtype=start.dtype) for limit in (longest, least))
    point = start.clamp_min(floor)
    value, gradient = evaluate(point)
    yield Iterate(point, value, gradient, 0.0)

    def within(direction: Tensor) -> Tensor:
        # each by itself: shortened as a whole, a step would be as long as the least known of all lets it
        return (point + direction.clamp(-reach, reach)).clamp_min(floor) - point

    pairs: list[tuple[Tensor, Tensor]] = []
    while True:
        direction = within(-_two_loops(gradient, pairs, precondition))
        slope = float(gradient @ direction)
        if slope >= 0:
            pairs, direction = [], within(-precondition(gradient))
            slope = float(gradient @ direction)
        found = _backtrack(evaluate, point, value, direction, slope, 1.0)
        if found is None:
            return
        change, bend = found.point - point, found.gradient - gradient
        if float(change @ bend) > 1e-12 * float(change.norm() * bend.norm()):
            pairs = [*pairs, (change, bend)][-_MEMORY:]
        point, value, gradient = found.point, found.value, found.gradient
        yield found


def _two_loops(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], precondition: Callable) -> Tensor:
    out, shares = gradient.clone(), []
    for change, bend in reversed(pairs):
        share = (change @ out) / (change @ bend)
        out -= share * bend
        shares.append(share)
    out = precondition(out)
    for (change, bend), share in zip(pairs, reversed(shares), strict=True):
        out += (share - (bend @ out) / (change @ bend)) * change
    return out


def _backtrack(
    evaluate, point: Tensor, value: float, direction: Tensor, slope: float, step: float
) -> Iterate | None:
    for _ in range(_MOST_TRIALS):
        trial = point + step * direction
        new, gradient = evaluate(trial)
        if math.isfinite(new) and new <= value + _SUFFICIENT * step * slope:
            return Iterate(trial, new, gradient, step)
        # the parabola through value, slope and the trial, within bounds
        rise = new - value - slope * step
        wanted = -slope * step / (2 * rise) if math.isfinite(rise) and rise > 0 else 0.1
        step *= min(0.5, max(0.1, wanted))
    return None
