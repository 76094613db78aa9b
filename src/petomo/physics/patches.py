"""C_w: cropping probe-sized patches out of slices at scan positions (paper Eq. 8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_positions(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Whole pixels (int64, detached) and the remainder in [-1/2, 1/2] of positions ``(k, 2)`` in pixels."""
    whole = torch.round(pixels.detach())
    return whole.to(torch.int64), pixels - whole


def corners(whole: Tensor, field: Sequence[int], window: Sequence[int]) -> Tensor:
    """First pixel ``(k, 2)`` as (row, column) of the patch whose centre ``n // 2`` lies at ``whole`` (x, y).

    ``whole`` counts from the optical axis, pixel ``field // 2``.
    """
    row = whole[:, 1] + field[0] // 2 - window[0] // 2
    column = whole[:, 0] + field[1] // 2 - window[1] // 2
    return torch.stack([row, column], dim=-1)


def required_margin(corner: Tensor, field: Sequence[int], window: Sequence[int]) -> tuple[int, int, int, int]:
    """Pixels (left, right, top, bottom) by which a field must grow so that every patch lies inside."""
    low, high = corner.amin(0), corner.amax(0)
    top, left = (max(0, -int(v)) for v in low)
    bottom, right = (max(0, int(v) + w - n) for v, w, n in zip(high, window, field, strict=True))
    return left, right, top, bottom


def crop(stack: Tensor, corner: Tensor, window: Sequence[int]) -> Tensor:
    """C_w (paper Eq. 8): patches ``(slice, k, y, x)`` of a stack ``(slice, Y, X)``, corners inside it."""
    (h, w), places = window, corner.tolist()
    return torch.stack([stack[:, y : y + h, x : x + w] for y, x in places], dim=1)


def scatter_add_(stack: Tensor, patches: Tensor, corner: Tensor) -> Tensor:
    """Adjoint of `crop` (paper Eq. 8): add patches ``(slice, k, y, x)`` into ``stack`` in place."""
    h, w = patches.shape[-2:]
    for i, (y, x) in enumerate(corner.tolist()):
        stack[:, y : y + h, x : x + w] += patches[:, i]
    return stack
