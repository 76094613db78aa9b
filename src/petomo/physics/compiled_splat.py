"""Separable spots drawn into an image and read back from it, compiled by numba."""

from __future__ import annotations

from petomo.physics.jit import inlined, jit


@jit
def draw(image, rows, columns, first_row, first_column):
    """Add ``rows_b(y) columns_b(x)`` to ``image``, every spot at its place."""
    wide = columns.shape[1]
    for spot in range(rows.shape[0]):
        column, left = columns[spot], first_column[spot]
        for i in range(rows.shape[1]):
            line, height = image[first_row[spot] + i][left : left + wide], rows[spot, i]
            for j in range(wide):
                line[j] += height * column[j]


@inlined
def _dot(line, column):
    total = line[0] * column[0]
    for j in range(1, line.shape[0]):
        total += line[j] * column[j]
    return total


@jit
def read(image, rows, columns, first_row, first_column, by_rows, by_columns):
    """Gradients in the profiles where ``image`` is the gradient in what `draw` drew."""
    wide = columns.shape[1]
    for spot in range(rows.shape[0]):
        column, left, along = columns[spot], first_column[spot], by_columns[spot]
        for j in range(wide):
            along[j] = 0
        for i in range(rows.shape[1]):
            line, height = image[first_row[spot] + i][left : left + wide], rows[spot, i]
            by_rows[spot, i] = _dot(line, column)
            for j in range(wide):
                along[j] += line[j] * height
