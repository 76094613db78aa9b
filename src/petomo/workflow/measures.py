"""What `petomo check` measures on a series, in one or two passes over the patterns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from petomo.algorithms.bright_field_stack import BrightFieldStack, bright_field_stack
from petomo.algorithms.diagnostics import (
    Disk,
    bad_pixels,
    descan_drift,
    fit_disk,
    radial_profile,
    saturation,
    survey_tilt,
)
from petomo.algorithms.diagnostics_orientation import Orientation, detrended, find_orientation
from petomo.algorithms.diagnostics_tilts import aligned_image, tilt_correlations
from petomo.core.bad_pixels import mend
from petomo.core.dataset import ArraySource, FourDSTEM, TiltSeries
from petomo.core.electron import mrad_to_inverse_angstrom, wavelength

#: A series up to this size is read once and held; a larger one is read twice.
_HELD_BYTES = 2**29
_BLOCK_BYTES = 2**25
_WINDOW = 96
"""Positions a side of the part of the scan from which orientation and images are found."""


@dataclass(frozen=True)
class TiltMeasures:
    """What one pass over a tilt gave; lengths in detector pixels, the disk relative to the nominal one."""

    name: str
    total: np.ndarray = field(repr=False)
    bad: np.ndarray = field(repr=False)
    disk: Disk | None
    drift: np.ndarray | None
    drift_error: np.ndarray | None
    saturation: tuple[float, int]
    profile: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Measures:
    """Everything measured on a series.

    Parameters
    ----------
    series : TiltSeries
    tilts : tuple of TiltMeasures
    hot, dead : np.ndarray
        ``(ky, kx)`` in the orientation of `FourDSTEM.patterns`.
    orientation : Orientation or None
    correlations : np.ndarray or None
        ``(tilt, tilt)``.
    trouble : str
        Why the bright field could not be used; empty if it could.
    seconds : float
    """

    series: TiltSeries
    tilts: tuple[TiltMeasures, ...]
    hot: np.ndarray
    dead: np.ndarray
    orientation: Orientation | None
    correlations: np.ndarray | None
    trouble: str
    seconds: float

    @property
    def radii(self) -> tuple[float, float]:
        """Nominal radius of the disk along (y, x) in pixels."""
        return nominal_radii(self.series[0])


def nominal_radii(tilt: FourDSTEM) -> tuple[float, float]:
    """Radius of the bright-field disk along (y, x) in pixels, as calibrated."""
    cutoff = mrad_to_inverse_angstrom(tilt.semiangle_mrad, tilt.energy_ev)
    return cutoff / tilt.detector_sampling[0], cutoff / tilt.detector_sampling[1]


@dataclass(frozen=True)
class _Part:
    """Patterns of a part of a scan, bad pixels mended, the disk moved to the middle by whole pixels."""

    tilt: FourDSTEM
    index: np.ndarray
    bad: np.ndarray
    roll: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.index), *self.tilt.pattern_shape)

    def read(self, indices: np.ndarray) -> np.ndarray:
        patterns = mend(self.tilt.patterns(self.index[indices]), self.bad)
        return np.roll(patterns, self.roll, axis=(1, 2)) if any(self.roll) else patterns


def _held(series: TiltSeries) -> TiltSeries:
    if 4 * sum(math.prod(tilt.source.shape) for tilt in series) > _HELD_BYTES:
        return series
    read = (replace(tilt, source=ArraySource(tilt.source.read(np.arange(len(tilt))))) for tilt in series)
    return TiltSeries(tuple(read), series.name)


def _measure_tilt(tilt: FourDSTEM) -> TiltMeasures:
    survey, radii = survey_tilt(tilt, block_bytes=_BLOCK_BYTES), nominal_radii(tilt)
    hot, dead = bad_pixels([survey.total])
    mended = survey.mended(hot | dead)
    try:
        disk = fit_disk(mended.total, radii)
    except ValueError:
        disk = None
    drift = None if disk is None else descan_drift(mended, radii, disk)
    return TiltMeasures(
        name=tilt.name,
        total=survey.total.astype(np.float32),
        bad=hot | dead,
        disk=disk,
        drift=drift[0] if drift else None,
        drift_error=drift[1] if drift else None,
        saturation=saturation(mended),
        profile=radial_profile(mended.total, radii, disk.centre if disk else (0.0, 0.0)),
    )


def _stack(tilt: FourDSTEM, bad: np.ndarray, disk: Disk | None) -> BrightFieldStack:
    """Bright field of the middle of the scan, detrended."""
    (ny, nx), rows = tilt.scan_shape, []
    for n in (ny, nx):
        start = max(0, (n - _WINDOW) // 2)
        rows.append(np.arange(start, min(n, start + _WINDOW)))
    index = (rows[0][:, None] * nx + rows[1]).ravel()
    centre = disk.centre if disk else (0.0, 0.0)
    part = replace(
        tilt,
        source=_Part(tilt, index, bad, (-round(centre[0]), -round(centre[1]))),
        scan_shape=(len(rows[0]), len(rows[1])),
        flip=(False, False, False),
        counts_per_electron=1.0,
        bad_pixels=(),
        unrecorded=None,
    )
    block = max(1, _BLOCK_BYTES // (4 * math.prod(tilt.pattern_shape)))
    return detrended(bright_field_stack(part, part, max_pixels=100, block=block))


def measure(series: TiltSeries, on_tilt: Callable[[int, int], None] | None = None) -> Measures:
    """Measure a series; memory stays bounded, since patterns are read in blocks and only sums are kept.

    Parameters
    ----------
    series : TiltSeries
        Opened series.
    on_tilt : callable, optional
        Called with (tilts done, tilts in all).
    """
    begin, given = time.perf_counter(), series
    series = _held(series)
    tilts: list[TiltMeasures] = []
    for number, tilt in enumerate(series):
        tilts.append(_measure_tilt(tilt))
        if on_tilt is not None:
            on_tilt(number + 1, len(series))
    hot, dead = bad_pixels([tilt.total for tilt in tilts])
    orientation = correlations = None
    trouble = ""
    if min(min(tilt.scan_shape) for tilt in series) < 8:
        trouble = "the scan has too few positions"
    elif not any(tilt.disk for tilt in tilts):
        trouble = "no bright-field disk stands out"
    else:
        try:
            stacks = [_stack(t, m.bad | hot | dead, m.disk) for t, m in zip(series, tilts, strict=True)]
        except ValueError as error:
            trouble = str(error)
        else:
            orientation = find_orientation(stacks)
            correlations = _correlations(series, stacks, orientation)
    return Measures(
        given, tuple(tilts), hot, dead, orientation, correlations, trouble, time.perf_counter() - begin
    )


def _correlations(
    series: TiltSeries, stacks: Sequence[BrightFieldStack], found: Orientation | None
) -> np.ndarray | None:
    first = series[0]
    alike = {(tilt.scan_shape, tilt.scan_step) for tilt in series}
    if len(series) < 5 or len(alike) > 1 or float(torch.cos(series.stage_tilts).min()) < 0.05:
        return None
    mirrored, rotation = (found.mirrored, found.rotation) if found else (False, first.scan_rotation)
    c10 = found.C10 if found else -(first.defocus or 0.0)
    if abs(c10) < 0.75 * wavelength(first.energy_ev) / (first.semiangle_mrad * 1e-3) ** 2:
        return None  # in focus the bright field shows little, and that not in proportion to the phase
    images = [aligned_image(stack, c10, rotation, mirrored) for stack in stacks]
    # the axis stays where it was said to be: quarter turns of the detector do not move it
    quarters = round((rotation - first.scan_rotation) / (math.pi / 2))
    axis = rotation - quarters * math.pi / 2
    return tilt_correlations(images, series.stage_tilts.tolist(), axis)
