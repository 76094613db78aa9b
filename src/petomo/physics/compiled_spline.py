"""The sweeps that make B-spline coefficients, compiled by numba: twice through memory for both axes."""

from __future__ import annotations

import numpy as np

from petomo.physics.jit import inlined, jit

# ``carried`` is the row before, swept along x alone: the sweeps of both axes commute


@inlined
def _onwards(out, line, scale, carried, along_x, neighbour, along_z):
    for j in range(out.shape[0]):
        carried[j] = line[j] * scale - along_x * carried[j]
        out[j] = carried[j] - along_z * neighbour[j]


@inlined
def _onwards_in_place(line, scale, carried, along_x, neighbour, along_z):
    # a copy of the above: the compiler makes vectors of it only where nothing overlaps
    for j in range(line.shape[0]):
        carried[j] = line[j] * scale - along_x * carried[j]
        line[j] = carried[j] - along_z * neighbour[j]


@inlined
def _back(line, carried, along_x, neighbour, along_z):
    for j in range(line.shape[0]):
        carried[j] = line[j] - along_x * carried[j]
        line[j] = carried[j] - along_z * neighbour[j]


@jit
def sweep(out, planes, scale, pivots_z, pivots_x, first, last):
    """Thomas algorithm along z and x of ``planes`` ``(z, x, y)`` into ``out``, which may be the same.

    ``pivots`` are reciprocal pivots of the tridiagonal matrix (1, 4, 1), ``scale`` is 36 times their outer
    product; only ``first <= y < last``.
    """
    depth, width, _ = planes.shape
    carried = np.zeros(last - first, planes.dtype)
    nothing = np.zeros_like(carried)
    in_place = out.ctypes.data == planes.ctypes.data
    for z in range(depth):
        carried[:] = 0
        for x in range(width):
            neighbour = out[z - 1, x][first:last] if z > 0 else nothing
            line, pivots = out[z, x][first:last], (pivots_x[x], pivots_z[z])
            if in_place:
                _onwards_in_place(line, scale[z, x], carried, pivots[0], neighbour, pivots[1])
            else:
                _onwards(
                    line, planes[z, x][first:last], scale[z, x], carried, pivots[0], neighbour, pivots[1]
                )
    for z in range(depth - 1, -1, -1):
        carried[:] = 0
        for x in range(width - 1, -1, -1):
            neighbour = out[z + 1, x][first:last] if z < depth - 1 else nothing
            _back(out[z, x][first:last], carried, pivots_x[x], neighbour, pivots_z[z])
