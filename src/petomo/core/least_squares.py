"""Small least-squares fits that give the same bits on every run."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(design: Tensor, target: Tensor) -> Tensor:
    """Solution ``(p, q)`` of ``design (n, p) @ solution = target (n, q)`` for few, well separated columns.

    Normal equations summed in a fixed order: LAPACK's own least squares round by where in memory its
    workspace lies, so that a resumed run would differ in the last bit. Columns without information (a scan
    of one line has no slope across) get zero.
    """
    matrix = (design[:, :, None] * design[:, None, :]).sum(0)
    matrix.diagonal().add_(1e-14 * matrix.trace() + torch.finfo(matrix.dtype).tiny)
    return torch.linalg.solve(matrix, (design[:, :, None] * target[:, None, :]).sum(0))
