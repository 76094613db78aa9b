"""Many small separable spots drawn into one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _DrawWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, columns, index, shape):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(rows, columns, index)
        image = rows.new_zeros(shape[0] * shape[1])
        image.index_add_(0, index.flatten(), (rows[:, :, None] * columns[:, None]).flatten())
        return image.view(*shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, columns, index = ctx.saved_tensors
        windows = upstream.flatten()[index]
        by_rows = torch.matmul(windows, columns[:, :, None])[..., 0]
        by_columns = torch.matmul(rows[:, None], windows)[:, 0]
        return by_rows, by_columns, None, None


def draw_windows(
    rows: Tensor, columns: Tensor, first_row: Tensor, first_column: Tensor, shape: Sequence[int]
) -> Tensor:
    """``sum_b rows_b(y - first_row_b) columns_b(x - first_column_b)``, an image ``(y, x)``.

    Differentiable once in rows and columns.

    Parameters
    ----------
    rows, columns : Tensor
        Profiles of every spot along y ``(spot, ky)`` and along x ``(spot, kx)``.
    first_row, first_column : Tensor
        Where each spot's window begins, integers ``(spot,)``; the windows lie inside the image.
    shape : (int, int)
        Of the image.
    """
    y, x = (torch.arange(part.shape[1], device=rows.device) for part in (rows, columns))
    index = ((first_row[:, None] + y) * shape[1])[:, :, None] + (first_column[:, None] + x)[:, None]
    return _DrawWindows.apply(rows, columns, index, shape)  # pyright: ignore
