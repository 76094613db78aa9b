"""Preconditioned conjugate gradients for unknowns in blocks (Shewchuk 1994, section B3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Blocks = tuple[Tensor, ...]


def conjugate_gradients(
    product: Callable[[Blocks], Blocks],
    right: Blocks,
    precondition: Callable[[Blocks], Blocks],
    iterations: int,
    tolerance: float = 0.0,
) -> Blocks:
    """Solve ``product(x) = right`` from zero.

    Parameters
    ----------
    product, precondition : callable
        The positive definite operator and an approximate inverse of it. A direction in which the operator is
        not positive ends the iteration.
    right : tuple of Tensor
        Right-hand side.
    iterations : int
        Most iterations.
    tolerance : float
        Size of the preconditioned residual, as a share of the first one, at which to end.
    """
    solution = tuple(torch.zeros_like(part) for part in right)
    residual = right
    direction = preconditioned = precondition(residual)
    size = first = _dot(residual, preconditioned)
    for _ in range(iterations):
        image = product(direction)
        bend = _dot(direction, image)
        if bend <= 0 or size <= tolerance**2 * first:
            break
        length = size / bend
        solution = tuple(s + length * d for s, d in zip(solution, direction, strict=True))
        residual = tuple(r - length * i for r, i in zip(residual, image, strict=True))
        preconditioned = precondition(residual)
        size, previous = _dot(residual, preconditioned), size
        direction = tuple(p + size / previous * d for p, d in zip(preconditioned, direction, strict=True))
    return solution


def _dot(a: Blocks, b: Blocks) -> float:
    return sum(
        float(torch.dot(u.flatten().double(), v.flatten().double())) for u, v in zip(a, b, strict=True)
    )
