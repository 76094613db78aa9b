"""Parts of a scan and of its patterns, cut out while reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petomo.core.errors import UserError
from petomo.io.file_source import Source, checked_indices


@dataclass(frozen=True)
class Window:
    """What of a tilt to read; see the data section's keys of the same names."""

    scan: tuple[int, int, int, int] | None = None
    centre: tuple[float, float] | None = None
    shape: tuple[int, int] | None = None
    zero_below: float | None = None

    def __bool__(self) -> bool:
        return (self.scan, self.centre, self.shape, self.zero_below) != (None,) * 4


@dataclass(frozen=True)
class WindowSource:
    """Patterns of a `Source` within a `Window`; only these are read.

    Parameters
    ----------
    source : Source
        All patterns as stored.
    scan_shape : (int, int)
        Full scan (scan_y, scan_x).
    window : Window
        Must lie within the scan.
    """

    source: Source
    scan_shape: tuple[int, int]
    window: Window

    @property
    def scan(self) -> tuple[int, int]:
        """(scan_y, scan_x) of the window."""
        y0, y1, x0, x1 = self._scan
        return y1 - y0, x1 - x0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        return self.scan[0] * self.scan[1], *(self.window.shape or self.source.shape[1:])

    @property
    def unrecorded(self) -> np.ndarray | None:
        """True where a pattern reaches beyond the stored one, or this measured nothing; None if nowhere."""
        stored, out = self.source.unrecorded, np.ones(self.shape[1:], bool)
        to, of = zip(*(_overlap(*lengths) for lengths in self._lengths()), strict=True)
        out[to[0], to[1]] = False if stored is None else stored[of[0], of[1]]
        return out if out.any() else None

    @property
    def _scan(self) -> tuple[int, int, int, int]:
        return self.window.scan or (0, self.scan_shape[0], 0, self.scan_shape[1])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Patterns ``(len(indices), ky, kx)``, the beam's pixel at ``n // 2``."""
        y0, _, x0, _ = self._scan
        y, x = np.divmod(checked_indices(indices, self.shape[0]), self.scan[1])
        stored = self.source.read((y + y0) * self.scan_shape[1] + x + x0)
        if self.window.zero_below is not None:
            stored = np.where(stored < self.window.zero_below, stored.dtype.type(0), stored)
        if self.window.centre is None and self.window.shape is None:
            return stored
        out = np.zeros((len(stored), *self.shape[1:]), stored.dtype)
        to, of = zip(*(_overlap(*lengths) for lengths in self._lengths()), strict=True)
        out[:, to[0], to[1]] = stored[:, of[0], of[1]]
        return out

    def _lengths(self) -> list[tuple[int, int, int]]:
        """(pixels wanted, pixels stored, beam's pixel) of both detector axes."""
        full = self.source.shape[1:]
        centre = self.window.centre or tuple(n // 2 for n in full)
        return [(n, m, int(np.floor(c + 0.5))) for n, m, c in zip(self.shape[1:], full, centre, strict=True)]


def _overlap(wanted: int, stored: int, centre: int) -> tuple[slice, slice]:
    """Where pixels land, and where they are taken from, so that ``centre`` lands at ``wanted // 2``."""
    shift = wanted // 2 - centre
    start, stop = max(0, shift), min(wanted, stored + shift)
    return slice(start, max(start, stop)), slice(start - shift, max(start, stop) - shift)


def windowed(path: Path, source: Source, scan_shape: tuple[int, int], window: Window) -> WindowSource:
    """A part of a tilt.

    Raises
    ------
    UserError
        If the window does not lie within the data.
    """
    if window.scan is not None and (window.scan[1] > scan_shape[0] or window.scan[3] > scan_shape[1]):
        raise UserError(
            f"{path}: the scan is {scan_shape[0]} x {scan_shape[1]}, but data.scan_window "
            f"{list(window.scan)} reaches beyond it; correct data.scan_window"
        )
    full = source.shape[1:]
    if window.centre is not None and any(c > n - 1 for c, n in zip(window.centre, full, strict=True)):
        raise UserError(
            f"{path}: the patterns have {full[0]} x {full[1]} pixels, but data.pattern_centre "
            f"{list(window.centre)} lies outside; correct data.pattern_centre"
        )
    if window.shape is not None and any(n > 4 * m for n, m in zip(window.shape, full, strict=True)):
        raise UserError(
            f"{path}: the patterns have {full[0]} x {full[1]} pixels, but data.pattern_shape "
            f"{list(window.shape)} is more than four times as many; correct data.pattern_shape"
        )
    return WindowSource(source, scan_shape, window)
