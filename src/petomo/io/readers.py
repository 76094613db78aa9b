"""A tilt series of 4D-STEM files as one lazy `TiltSeries`, metadata from the files and the settings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from petomo.core.dataset import FourDSTEM, TiltSeries
from petomo.core.electron import mrad_to_inverse_angstrom
from petomo.core.errors import UserError
from petomo.io.angles import order_by_name, read_named_angles
from petomo.io.file_source import Source
from petomo.io.metadata import Metadata, as_text
from petomo.io.settings import DataSettings
from petomo.io.sources import open_source
from petomo.io.window import Window, windowed

Pair = tuple[float, float]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key by name in which tilt_2 comes before tilt_10."""
    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split("([0-9]+)", str(path))
    ]


def find_tilts(data: DataSettings) -> list[Path]:
    """Files of the series, sorted by name, before any is excluded."""
    root = Path(data.root or ".")
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; set data.root to the folder of the tilt series")
    if isinstance(data.tilts, str):
        paths = sorted(root.glob(data.tilts), key=_natural)
        if not paths:
            raise UserError(
                f"{root}: no file matches data.tilts `{data.tilts}`; correct the glob or data.root"
            )
    else:
        paths = sorted((root / name for name in data.tilts), key=_natural)
        if not paths:
            raise UserError("data.tilts is an empty list, but should name at least one file")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: there is no such file; correct data.tilts or data.root")
    return paths


def _stage_tilts(data: DataSettings, paths: list[Path]) -> list[float] | list[None]:
    given = data.stage_tilt_degree
    if given is None:
        return [None] * len(paths)
    angles, names = read_named_angles(Path(given)) if isinstance(given, str) else (list(given), None)
    order = order_by_name(names, [path.name for path in paths])
    if order is not None:
        return [angles[index] for index in order]
    if len(angles) != len(paths):
        raise UserError(
            f"data.stage_tilt_degree has {len(angles)} angles for {len(paths)} tilt files; "
            "give exactly one per file, those left out by data.exclude included"
        )
    return angles


def _detector_sampling(
    data: DataSettings, pattern: tuple[int, int], energy_ev: float
) -> tuple[str, Pair | None]:
    """The setting that gives the detector pixel, and its value in 1/angstrom along (ky, kx)."""
    if data.diffraction_step_mrad is not None:
        ky, kx = (mrad_to_inverse_angstrom(step, energy_ev) for step in data.diffraction_step_mrad)
        return "data.diffraction_step_mrad", (ky, kx)
    if data.real_pixel_angstrom is not None:
        ky, kx = (1 / (n * pixel) for n, pixel in zip(pattern, data.real_pixel_angstrom, strict=True))
        return "data.real_pixel_angstrom", (ky, kx)
    return "data.dk_per_angstrom", data.dk_per_angstrom


def _angle_to_frequency(known: Metadata, energy_ev: float) -> None:
    """A detector pixel that the file gives in mrad, in 1/angstrom."""
    angle, frequency = "detector_sampling_mrad", "detector_sampling_inv_angstrom"
    if angle in known.attributes and frequency not in known.attributes:
        per_mrad = mrad_to_inverse_angstrom(1.0, energy_ev)
        known.attributes[frequency] = np.asarray(known.attributes[angle], float) * per_mrad
        known.origins[frequency] = known.label(angle)


def _scan_shape(data: DataSettings, path: Path, source: Source) -> tuple[int, int]:
    stored, given, count = source.array_shape[:-2], data.scan_shape, source.shape[0]
    if len(stored) == 2:
        if given is not None and tuple(given) != tuple(stored):
            raise UserError(
                f"{path}: the scan is {stored[0]} x {stored[1]}, but data.scan_shape says "
                f"{given[0]} x {given[1]}; correct or remove data.scan_shape"
            )
        return stored[0], stored[1]
    if given is None:
        raise UserError(
            f"{path}: the file is a plain list of {count} patterns; give data.scan_shape [scan_y, scan_x]"
        )
    if given[0] * given[1] != count:
        raise UserError(
            f"{path}: {count} patterns do not fill the {given[0]} x {given[1]} positions of data.scan_shape; "
            "correct data.scan_shape"
        )
    return given


def open_tilt(path: Path, data: DataSettings, stage_tilt_degree: float | None) -> FourDSTEM:
    """One tilt; no pattern is read.

    Raises
    ------
    UserError
        If metadata is missing, or the file and the settings contradict each other.
    """
    source = open_source(path, data.dataset)
    if 0 in source.array_shape:
        raise UserError(f"{path}: the patterns have shape {source.array_shape}, so there is nothing in them")
    scan_shape = _scan_shape(data, path, source)
    known = Metadata(path, dict(source.attributes), dict(source.origins), source.remark, data.override)
    (energy_kev,) = known.need("energy_ev", "data.energy_kev", data.energy_kev, scale=1e-3)
    energy_ev = energy_kev * 1e3
    key, sampling = _detector_sampling(data, source.shape[1:], energy_ev)
    _angle_to_frequency(known, energy_ev)
    sampling = known.need("detector_sampling_inv_angstrom", key, sampling, count=2)
    (semiangle,) = known.need("semiangle_mrad", "data.semiangle_mrad", data.semiangle_mrad)
    step = known.need("scan_step_angstrom", "data.scan_step_angstrom", data.scan_step_angstrom, count=2)
    # an instrument's readout of the stage is never just what was asked for
    tolerance = 0.1 if "nominal_tilt_deg" in known.origins else 1e-3
    tilt = known.get("nominal_tilt_deg", "data.stage_tilt_degree", stage_tilt_degree, absolute=tolerance)
    if tilt is None:
        raise UserError(
            f"{path}: there is no attribute nominal_tilt_deg in the file; give data.stage_tilt_degree"
        )
    rotation = known.get(
        "scan_rotation_deg", "data.scan_rotation_degree", data.scan_rotation_degree, absolute=1e-3
    )
    defocus = known.get(
        "nominal_defocus_angstrom", "data.defocus_angstrom", data.defocus_angstrom, absolute=1e-3
    )
    window = Window(data.scan_window, data.pattern_centre, data.pattern_shape, data.zero_below_counts)
    part = windowed(path, source, scan_shape, window) if window else None
    unrecorded = (part or source).unrecorded
    if unrecorded is not None and unrecorded.all():
        raise UserError(
            f"{path}: the file's own mask hides every pixel of the window; correct data.pattern_centre or "
            "data.pattern_shape"
        )
    return FourDSTEM(
        source=part or source,
        energy_ev=energy_ev,
        semiangle_mrad=semiangle,
        scan_shape=part.scan if part else scan_shape,
        scan_step=(step[0], step[1]),
        detector_sampling=(sampling[1], sampling[0]) if data.flip[2] else (sampling[0], sampling[1]),
        stage_tilt=math.radians(tilt[0]),
        defocus=defocus[0] if defocus else None,
        scan_rotation=math.radians(rotation[0]) if rotation else 0.0,
        counts_per_electron=data.counts_per_electron,
        flip=data.flip,
        name=path.name,
        bad_pixels=_bad_pixels(data, path, source, part.shape if part else source.shape, unrecorded),
        unrecorded=unrecorded,
    )


def _bad_pixels(
    data: DataSettings,
    path: Path,
    source: Source,
    shape: tuple[int, ...],
    unrecorded: np.ndarray | None,
) -> tuple[tuple[int, int], ...]:
    """``data.bad_pixels`` where they lie in patterns cut to ``shape`` (k, ky, kx)."""
    stored, kept = source.shape[1:], []
    centre = data.pattern_centre or tuple(n // 2 for n in stored)
    for pixel in data.bad_pixels:
        if any(p >= n for p, n in zip(pixel, stored, strict=True)):
            raise UserError(
                f"{path}: data.bad_pixels names {list(pixel)}, but the patterns have {stored[0]} x "
                f"{stored[1]} pixels, counted from 0 as [ky, kx]; correct data.bad_pixels"
            )
        y, x = (p - math.floor(c + 0.5) + n // 2 for p, c, n in zip(pixel, centre, shape[1:], strict=True))
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            kept.append((y, x))
    every = math.prod(shape[1:]) - (0 if unrecorded is None else int(unrecorded.sum()))
    if 2 * len(set(kept)) > every:
        raise UserError(
            f"{path}: data.bad_pixels names {len(set(kept))} of {every} detector pixels, which leaves "
            "too little to reconstruct from; name only those that are broken"
        )
    return tuple(kept)


def open_tilt_series(data: DataSettings) -> TiltSeries:
    """Open a tilt series lazily: metadata only, no pattern is read.

    Parameters
    ----------
    data : DataSettings
        Files and what they do not say themselves.

    Returns
    -------
    TiltSeries
        Sorted by file name, excluded tilts left out.

    Raises
    ------
    UserError
        One sentence on the first thing that is wrong.
    """
    paths = find_tilts(data)
    angles = _stage_tilts(data, paths)
    if data.exclude and max(data.exclude) >= len(paths):
        raise UserError(
            f"data.exclude names tilt {max(data.exclude)}, but the tilts are 0 to {len(paths) - 1}"
        )
    kept = [index for index in range(len(paths)) if index not in data.exclude]
    if not kept:
        raise UserError("data.exclude leaves no tilt; keep at least one")
    tilts = tuple(open_tilt(paths[index], data, angles[index]) for index in kept)
    for attribute, words in (
        ("pattern_shape", "patterns of {} pixels"),
        ("energy_ev", "a beam energy of {} eV"),
        ("detector_sampling", "a detector pixel of {} 1/angstrom"),
    ):
        first = getattr(tilts[0], attribute)
        for tilt in tilts[1:]:
            if (value := getattr(tilt, attribute)) != first:
                raise UserError(
                    f"{tilt.name}: this tilt has {words.format(as_text(value))}, but "
                    f"{tilts[0].name} has {words.format(as_text(first))}; "
                    "all tilts need the same, or name it in data.exclude"
                )
    return TiltSeries(tilts, name=Path(data.root or ".").resolve().name)


def validate_counts(
    series: TiltSeries, block_bytes: int = 2**25, on_tilt: Callable[[int, int], None] | None = None
) -> list[float]:
    """Read every pattern once, in blocks, and refuse what no detector can have counted.

    Parameters
    ----------
    series : TiltSeries
        Opened series.
    block_bytes : int
        Memory for one block of float32 patterns.
    on_tilt : callable, optional
        Called with (tilts done, tilts in all).

    Returns
    -------
    list of float
        Electrons recorded in each tilt.

    Raises
    ------
    UserError
        On NaN, infinite or negative counts, or a tilt without any.
    """
    totals = []
    for number, tilt in enumerate(series):
        size = max(1, block_bytes // (4 * math.prod(tilt.pattern_shape)))
        total = 0.0
        for start in range(0, len(tilt), size):
            block = tilt.patterns(slice(start, start + size))
            sums = block.sum((1, 2), dtype=np.float64)
            bad = ~np.isfinite(sums) | (block.min((1, 2)) < 0)
            if bad.any():
                first = int(np.argmax(bad))
                wrong = (
                    "a negative count" if np.isfinite(sums[first]) else "a count that is not a finite number"
                )
                y, x = divmod(start + first, tilt.scan_shape[1])
                raise UserError(
                    f"{tilt.name}: the pattern at scan y {y}, x {x} holds {wrong}; "
                    "subtract the dark reference, mend dead pixels, and store counts of zero or more"
                )
            total += float(sums.sum())
        if total == 0:
            raise UserError(
                f"{tilt.name}: every count is zero; name this tilt in data.exclude or record it again"
            )
        totals.append(total)
        if on_tilt is not None:
            on_tilt(number + 1, len(series))
    return totals
