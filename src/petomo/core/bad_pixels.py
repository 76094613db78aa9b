"""Detector pixels that measured nothing, replaced by what their neighbours say."""

from __future__ import annotations

import numpy as np


def mend(patterns: np.ndarray, bad: np.ndarray, good: np.ndarray | None = None) -> np.ndarray:
    """Patterns ``(k, ky, kx)``, each bad pixel replaced by the median of good ones up to 2 pixels away.

    ``good`` is where something was measured, if that is not everywhere else.
    """
    if not bad.any():
        return patterns
    out, padded = patterns.copy(), np.pad(~bad if good is None else good, 2)
    for y, x in np.argwhere(bad):
        near = np.argwhere(padded[y : y + 5, x : x + 5]) + np.array([y - 2, x - 2])
        # zero where nothing near is good: whatever a bad pixel holds is no measurement
        out[:, y, x] = np.median(patterns[:, near[:, 0], near[:, 1]], axis=1) if len(near) else 0
    return out
