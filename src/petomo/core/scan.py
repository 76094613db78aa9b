"""Scan positions as a whole: what all of them share, and turning them with the specimen."""

from __future__ import annotations

import torch
from torch import Tensor


def affine_basis(positions: Tensor) -> Tensor:
    """``(k, 2, 6)``: a common shift and a linear map of scan positions about their centre."""
    centred = positions - positions.mean(0)
    zero, one = torch.zeros_like(centred[:, 0]), torch.ones_like(centred[:, 0])
    x, y = centred.unbind(-1)
    rows = torch.stack([one, zero, x, y, zero, zero, zero, one, zero, zero, x, y], dim=-1)
    return rows.view(-1, 2, 6)


def turn_scan(positions: Tensor, tau: Tensor, angle: float | Tensor) -> Tensor:
    """Positions ``(k, 2)`` turned about the specimen's origin, with the specimen."""
    angle = torch.as_tensor(angle, dtype=torch.float64, device=positions.device)
    c, s = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
    return ((positions.double() - tau) @ matrix + tau).to(positions.dtype)
