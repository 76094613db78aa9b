"""Many small separable spots drawn into one image."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from petomo.physics.compiled import compiled


class _DrawWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, columns, first_row, first_column, shape):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(rows, columns, first_row, first_column)
        image, module = rows.new_zeros(*shape), _module(rows)
        if module is not None:
            module.draw(*_arrays(image, rows, columns, first_row, first_column))
            return image
        index = _index(rows, columns, first_row, first_column, shape[1])
        image.view(-1).index_add_(0, index.flatten(), (rows[:, :, None] * columns[:, None]).flatten())
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, columns, first_row, first_column = ctx.saved_tensors
        places = first_row, first_column
        module = _module(rows)
        if module is not None:
            grads = torch.empty_like(rows), torch.empty_like(columns)
            module.read(*_arrays(upstream.contiguous(), rows, columns, *places, *grads))
            return *grads, None, None, None
        windows = upstream.flatten()[_index(rows, columns, *places, upstream.shape[1])]
        by_rows = torch.matmul(windows, columns[:, :, None])[..., 0]
        by_columns = torch.matmul(rows[:, None], windows)[:, 0]
        return by_rows, by_columns, None, None, None


def _index(rows: Tensor, columns: Tensor, first_row: Tensor, first_column: Tensor, width: int) -> Tensor:
    """Where in the flat image the pixels of all windows lie, ``(spot, ky, kx)``."""
    y, x = (torch.arange(part.shape[1], device=rows.device) for part in (rows, columns))
    return ((first_row[:, None] + y) * width)[:, :, None] + (first_column[:, None] + x)[:, None]


def _module(like: Tensor) -> ModuleType | None:
    return compiled("compiled_splat") if like.device.type == "cpu" else None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().numpy() for t in tensors]


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
    return _DrawWindows.apply(rows, columns, first_row, first_column, shape)  # pyright: ignore
