"""What the patterns themselves tell of detector and beam: bad pixels, saturation, the disk and its drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage, signal

from petomo.core.bad_pixels import mend
from petomo.core.dataset import FourDSTEM

_PARTS = 4
"""The scan is split into so many parts along each axis."""


@dataclass(frozen=True)
class TiltSurvey:
    """Sums of one tilt's patterns, in electrons, in the orientation that ``data.flip`` gives.

    Parameters
    ----------
    sums : np.ndarray
        Patterns summed over each part of the scan, ``(part, ky, kx)``.
    places : np.ndarray
        Middle of each part, ``(part, 2)`` as (y, x), in units of the whole scan, zero at its centre.
    patterns : int
        Patterns surveyed.
    peak, hits : np.ndarray
        Highest value of every pixel and how often it was reached, ``(ky, kx)``.
    """

    sums: np.ndarray
    places: np.ndarray
    patterns: int
    peak: np.ndarray
    hits: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Sum of all patterns ``(ky, kx)``."""
        return self.sums.sum(0)

    def mended(self, bad: np.ndarray) -> TiltSurvey:
        """Same sums with bad pixels ``(ky, kx)`` replaced by the median of their good neighbours."""
        return replace(self, sums=mend(self.sums, bad), peak=np.where(bad, 0, self.peak))


def survey_tilt(tilt: FourDSTEM, max_patterns: int = 16384, block_bytes: int = 2**25) -> TiltSurvey:
    """Read whole scan rows in blocks, evenly spread if the scan has more than ``max_patterns`` positions."""
    ny, nx = tilt.scan_shape
    rows = np.arange(0, ny, max(1, math.ceil(ny * nx / max_patterns)))
    parts = min(_PARTS, len(rows)), min(_PARTS, nx)
    down, across = np.arange(ny) * parts[0] // ny, np.arange(nx) * parts[1] // nx
    sums = np.zeros((parts[0] * parts[1], *tilt.pattern_shape))
    peak, hits = np.full(tilt.pattern_shape, -np.inf), np.zeros(tilt.pattern_shape, np.int64)
    index = (rows[:, None] * nx + np.arange(nx)).ravel()
    size = max(1, block_bytes // (4 * math.prod(tilt.pattern_shape)))
    for start in range(0, len(index), size):
        chosen = index[start : start + size]
        batch = tilt.patterns(chosen)
        part = down[chosen // nx] * parts[1] + across[chosen % nx]
        for number in np.unique(part):
            sums[number] += batch[part == number].sum(0, dtype=np.float64)
        highest = batch.max(0)
        reached = (batch == highest).sum(0)
        hits = np.where(highest > peak, reached, hits + np.where(highest == peak, reached, 0))
        peak = np.maximum(peak, highest)
    y, x = (
        np.array([np.flatnonzero(of == i).mean() - (len(of) - 1) / 2 for i in range(count)]) / len(of)
        for of, count in ((down, parts[0]), (across, parts[1]))
    )
    places = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    return TiltSurvey(sums, places, len(index), peak, hits)


def bad_pixels(tilts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Hot and dead pixels ``(ky, kx)``, judged from the summed patterns ``(ky, kx)`` of all tilts together.

    Hot is a pixel above twice its neighbours, in most of the tilts; dead is one next to nothing although
    pixels opposite each other are lit: a dark pixel outside the convex disk has no such pair. Bragg disks
    and the gaps between them move with the tilt and do not count.
    """
    total = np.asarray(np.sum(tilts, axis=0, dtype=np.float64))
    hot = total > 2 * _bright_neighbours(total) + 6 * np.sqrt(_bright_neighbours(total)) + 10
    if hot.any():
        hot &= np.mean([image > 1.5 * _bright_neighbours(image) for image in tilts], axis=0) > 0.5
    # a hot pixel would make the dark ones beside it look dead
    lit, total = _between(mend(total[None], hot)[0]), np.where(hot, np.inf, total)
    dead = (total < 0.05 * lit) & (lit > 50)
    if dead.any():
        mended = mend(np.stack(tilts), hot)
        dead &= np.mean([image < 0.1 * _between(image) for image in mended], axis=0) > 0.5
    return hot, dead


def _bright_neighbours(image: np.ndarray) -> np.ndarray:
    """Third highest value among the 24 pixels around each: hot pairs do not hide each other.

    Opposite edges are neighbours, since a mirrored pattern of an even size keeps its first line there.
    """
    around = np.ones((5, 5), bool)
    around[2, 2] = False
    return ndimage.rank_filter(image, rank=-3, footprint=around, mode="wrap")


def _between(image: np.ndarray) -> np.ndarray:
    """Highest of ``min(a, b)`` over pairs of pixels opposite each other, one or two pixels away."""
    ny, nx = image.shape
    padded = np.pad(image, 2)
    best = np.zeros_like(image)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (2, 2), (2, -2)):
        one = padded[2 + dy : 2 + dy + ny, 2 + dx : 2 + dx + nx]
        other = padded[2 - dy : 2 - dy + ny, 2 - dx : 2 - dx + nx]
        best = np.maximum(best, np.minimum(one, other))
    return best


def saturation(survey: TiltSurvey) -> tuple[float, int]:
    """Level in electrons at which the detector clips and the pixels that reach it; ``(inf, 0)`` if none.

    The highest counts of a detector that does not clip are rare and all different; a clipped one piles them
    up at one value. The survey's bad pixels should have been mended.
    """
    levels, where = np.unique(survey.peak, return_inverse=True)
    hits = np.bincount(where.ravel(), survey.hits.ravel())
    above = hits[::-1].cumsum()[::-1] - hits
    unit = float(np.diff(levels, prepend=0.0)[levels > 0].min(initial=math.inf))
    for i in np.flatnonzero((hits >= 10) & (hits > 10 * above) & (levels >= 4 * unit))[::-1]:
        below = levels[i] - max(0.03 * levels[i], 1.5 * unit)
        if hits[i] > 3 * hits[:i][levels[:i] >= below].sum():
            return float(levels[i]), int((survey.peak >= levels[i]).sum())
    return math.inf, 0


@dataclass(frozen=True)
class Disk:
    """A bright-field disk.

    Parameters
    ----------
    centre : (float, float)
        Offset (y, x) from pixel ``n // 2``, in pixels.
    radius : float
        Relative to the nominal radius.
    stretch : float
        Height over width, both relative to the nominal ones.
    electrons : float
        Electrons within it.
    """

    centre: tuple[float, float]
    radius: float
    stretch: float
    electrons: float


def fit_disk(image: np.ndarray, radii: tuple[float, float], start: tuple[float, float] | None = None) -> Disk:
    """Centre and radius of the disk from its outline at half height.

    The pixels count by how far they rise from the level outside to the one inside, linear from a quarter to
    three quarters: their sum is the disk's area, whatever structure the inside, which is filled, has.

    Parameters
    ----------
    image : np.ndarray
        Summed pattern ``(ky, kx)``.
    radii : (float, float)
        Nominal radius along (y, x) in pixels.
    start : (float, float), optional
        First guess of the centre; by default where a disk of the nominal radius fits best.

    Raises
    ------
    ValueError
        If there is no disk to see.
    """
    ny, nx = image.shape
    y, x = (np.arange(n) - n // 2 for n in (ny, nx))
    y, x = y[:, None] / radii[0], x[None] / radii[1]
    centre = np.array(_best_place(image, y, x) if start is None else start) / radii
    radius, share = 1.0, np.zeros_like(image)
    for _ in range(20):
        distance = np.hypot(y - centre[0], x - centre[1]) / radius
        inside, outside = image[distance < 0.8], image[(distance > 1.15) & (distance < 1.4)]
        if not inside.size or not outside.size or not np.median(inside) > 1.5 * np.median(outside):
            raise ValueError("no bright-field disk stands out in the mean pattern")
        low, high = np.median(outside), np.median(inside)
        share = np.clip((image - low) / (high - low) * 2 - 0.5, 0, 1)
        share[distance > 1.3], share[distance < 0.7] = 0, 1
        new = np.array([(share * y).sum(), (share * x).sum()]) / share.sum()
        moved, centre = np.abs(new - centre).max(), new
        radius = math.sqrt(share.sum() / (math.pi * math.prod(radii)))
        if moved < 1e-4:
            break
    if not share.sum() > 0:
        raise ValueError("no bright-field disk stands out in the mean pattern")
    variance = [(share * (v - c) ** 2).sum() for v, c in ((y, centre[0]), (x, centre[1]))]
    if min(variance) <= 0:
        raise ValueError("the bright-field disk is a line of pixels")
    return Disk(
        centre=(float(centre[0] * radii[0]), float(centre[1] * radii[1])),
        radius=radius,
        stretch=math.sqrt(variance[0] / variance[1]),
        electrons=float((share * image).sum()),
    )


def _best_place(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Offset (y, x) in pixels at which a nominal disk holds most, brightest pixels clipped."""
    kernel = (np.hypot(y, x) <= 1).astype(float)
    clipped = np.minimum(image, np.quantile(image, 0.95))
    found = signal.fftconvolve(clipped, kernel[::-1, ::-1], mode="full")
    row, column = np.unravel_index(np.argmax(found), found.shape)
    return float(row - (image.shape[0] - 1)), float(column - (image.shape[1] - 1))


def descan_drift(
    survey: TiltSurvey, radii: tuple[float, float], disk: Disk
) -> tuple[np.ndarray, np.ndarray] | None:
    """How far the disk moves while the beam crosses the scan.

    Parameters
    ----------
    survey, disk : TiltSurvey, Disk
        Of the same tilt.
    radii : (float, float)
        Nominal radius along (y, x) in pixels.

    Returns
    -------
    (np.ndarray, np.ndarray) or None
        ``[i, j]``: pixels along detector axis i from one end of scan axis j to the other, both (y, x), and
        the standard error; None if the scan is too small or too dim.
    """
    if len(survey.sums) < 9:
        return None
    try:
        centres = np.array([fit_disk(image, radii, disk.centre).centre for image in survey.sums])
    except ValueError:
        return None
    design = np.column_stack([np.ones(len(centres)), survey.places])
    solution = np.linalg.lstsq(design, centres, rcond=None)[0]
    variance = ((centres - design @ solution) ** 2).sum(0) / (len(centres) - 3)
    error = np.sqrt(np.outer(variance, np.diag(np.linalg.inv(design.T @ design))[1:]))
    return solution[1:].T, error


def radial_profile(
    image: np.ndarray, radii: tuple[float, float], centre: tuple[float, float], rings: int = 24
) -> np.ndarray:
    """Share of the electrons in rings about the disk's centre, out to three disk radii, and beyond."""
    ny, nx = image.shape
    y, x = ((np.arange(n) - n // 2 - c) / r for n, c, r in zip((ny, nx), centre, radii, strict=True))
    ring = np.minimum(np.hypot(y[:, None], x[None]) / 3 * rings, rings).astype(int)
    return np.bincount(ring.ravel(), image.ravel(), rings + 1) / max(image.sum(), 1e-12)
