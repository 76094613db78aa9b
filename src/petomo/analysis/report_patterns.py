"""Which patterns are worth a place in ``patterns.h5``, and so in the report's picker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_A_SIDE = 3  # patterns of a tilt along either side of its scan


def choose_patterns(
    losses: Sequence[np.ndarray], scan_shapes: Sequence[Sequence[int]]
) -> dict[str, tuple[int, int]]:
    """Patterns to keep: the worst and the median of all, and of each tilt its worst and an even grid.

    Parameters
    ----------
    losses : sequence of np.ndarray
        Per tilt the loss of each position ``(k,)``.
    scan_shapes : sequence of (int, int)
        Per tilt ``(scan_y, scan_x)``, whose product is k.

    Returns
    -------
    dict
        Group names of ``patterns.h5`` to (tilt, position).
    """
    everything = np.concatenate([np.asarray(values, float) for values in losses])
    tilts = np.repeat(np.arange(len(losses)), [len(values) for values in losses])
    places = np.concatenate([np.arange(len(values)) for values in losses])
    order = np.argsort(everything, kind="stable")
    worst, median = order[-1], order[len(order) // 2]
    chosen = {name: (int(tilts[i]), int(places[i])) for name, i in (("worst", worst), ("median", median))}
    for tilt, (values, (rows, columns)) in enumerate(zip(losses, scan_shapes, strict=True)):
        grid = {int(row) * columns + int(column) for row in _inner(rows) for column in _inner(columns)}
        for position in sorted(grid | {int(np.argmax(values))}):
            if (tilt, position) not in chosen.values():
                chosen[f"tilt_{tilt:02d}_position_{position:05d}"] = (tilt, position)
    return chosen


def _inner(count: int) -> np.ndarray:
    """Middles of equal parts of a side."""
    return ((np.arange(_A_SIDE) + 0.5) * count / _A_SIDE).astype(int)
