"""What is wrong with the detector and the beam: one `Finding` each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from petomo.core.dataset import FourDSTEM, mirrored
from petomo.workflow.measures import Measures, TiltMeasures

_MOST_PIXELS = 20
"""Bad pixels that a sentence lists."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a series.

    Parameters
    ----------
    kind : str
        Which check found it.
    severity : str
        ``error``: no run is possible; ``warning``: a run would suffer; ``note``: worth knowing.
    sentence : str
        What is wrong.
    action : str
        What to do.
    keys : dict
        Configuration keys and what to set them to; empty if none helps.
    tilts : tuple of str
        Those concerned; empty if all.
    confidence : float or None
        0 to 1, where tilts voted.
    measured : dict
        Numbers behind it, units in the names.
    """

    kind: str
    severity: Literal["error", "warning", "note"]
    sentence: str
    action: str
    keys: dict[str, Any]
    tilts: tuple[str, ...] = ()
    confidence: float | None = None
    measured: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.severity}: {self.sentence}; {self.action}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names with commas, the rest counted."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unusable(found: Measures) -> list[Finding]:
    """A disk too small to hold a probe."""
    if min(found.radii) >= 1.5:
        return []
    return [
        Finding(
            "disk_too_small",
            "error",
            f"the bright-field disk has a radius of {min(found.radii):.2g} detector pixels by calibration, "
            "so no probe can be told from it",
            "check data.semiangle_mrad, data.energy_kev and data.dk_per_angstrom, or bin the patterns less",
            {},
        )
    ]


def _stored_pixels(mask: np.ndarray, tilt: FourDSTEM) -> list[list[int]]:
    """Where the pixels of a mask ``(ky, kx)`` lie in the file: `FourDSTEM.flip` and the window undone."""
    mask = mask.T if tilt.flip[2] else mask
    mask = mirrored(mask, 1) if tilt.flip[1] else mask
    mask = mirrored(mask, 0) if tilt.flip[0] else mask
    stored, centre = _stored_shape_and_centre(tilt)
    move = np.array(centre) - np.array(mask.shape) // 2
    places = np.argwhere(mask) + move
    return places[((places >= 0) & (places < stored)).all(1)].tolist()


def _stored_shape_and_centre(tilt: FourDSTEM) -> tuple[list[int], list[int]]:
    """Shape of the patterns in the file, and the pixel there that is read as the middle one."""
    window, stored = getattr(tilt.source, "window", None), getattr(tilt.source, "source", tilt.source)
    shape = list(stored.shape[1:])
    centre = getattr(window, "centre", None) or [n // 2 for n in shape]
    return shape, [math.floor(c + 0.5) for c in centre]


def bad_pixels(found: Measures) -> list[Finding]:
    """Hot and dead pixels, where they are in the files, and the key that leaves them out."""
    first, out = found.series[0], []
    known = first.bad_pixel_mask
    bad = found.hot | found.dead if known is None else found.hot | found.dead | known
    every = _stored_pixels(bad, first)
    shown = f": {every}" if len(every) <= _MOST_PIXELS else f" to the {len(every)} that --json lists"
    for kind, mask, words in (
        ("hot_pixels", found.hot, "are hot, more than twice as bright as what is around"),
        ("dead_pixels", found.dead, "are dead, dark between lit ones"),
    ):
        where = _stored_pixels(mask, first)
        if where:
            places = listed([f"[{y}, {x}]" for y, x in where])
            out.append(
                Finding(
                    kind,
                    "warning",
                    f"{len(where)} detector pixel(s) {words}: [ky, kx] as stored {places}",
                    f"set data.bad_pixels{shown}",
                    {"data.bad_pixels": every},
                    measured={"pixels": where},
                )
            )
    return out


def saturation(found: Measures) -> list[Finding]:
    """Tilts in which the detector clips."""
    clipped = [tilt for tilt in found.tilts if tilt.saturation[1]]
    if not clipped:
        return []
    worst = max(clipped, key=lambda tilt: tilt.saturation[1])
    level, pixels = worst.saturation
    return [
        Finding(
            "saturation",
            "warning",
            f"the detector clips at {level:.4g} electrons in {len(clipped)} of {len(found.tilts)} tilts, "
            f"{pixels} pixels of {worst.name} at worst",
            "leave these tilts out with data.exclude, or record them with less current or shorter dwell",
            {},
            tuple(tilt.name for tilt in clipped),
            measured={
                tilt.name: dict(zip(("level", "pixels"), tilt.saturation, strict=True)) for tilt in clipped
            },
        )
    ]


def disk(found: Measures) -> list[Finding]:
    """Radius and roundness of the disk against the calibration."""
    disks = [tilt.disk for tilt in found.tilts if tilt.disk]
    if not disks:
        return []
    first, pixels = found.series[0], min(found.radii)
    radius, stretch = (float(np.median([getattr(d, name) for d in disks])) for name in ("radius", "stretch"))
    out = []
    if abs(stretch - 1) > max(0.03, 0.5 / pixels):
        dk = first.detector_sampling[0] / math.sqrt(stretch), first.detector_sampling[1] * math.sqrt(stretch)
        dk = dk[::-1] if first.flip[2] else dk
        keys: dict[str, Any] = {"data.dk_per_angstrom": [float(f"{d:.4g}") for d in dk]}
        out.append(
            Finding(
                "detector_stretch",
                "warning",
                f"the bright-field disk is {abs(stretch - 1):.1%} {'higher' if stretch > 1 else 'wider'} "
                "than round by the calibration",
                f"set data.dk_per_angstrom: {keys['data.dk_per_angstrom']} unless the aperture is not round",
                keys,
                measured={"height_over_width": stretch},
            )
        )
    if abs(radius - 1) > max(0.025, 0.3 / pixels):
        angle = float(f"{first.semiangle_mrad * radius:.4g}")
        dk = tuple(d / radius for d in first.detector_sampling)
        out.append(
            Finding(
                "semiangle",
                "warning",
                f"the bright-field disk is {abs(radius - 1):.1%} {'larger' if radius > 1 else 'smaller'} "
                f"than {first.semiangle_mrad:.4g} mrad by the calibration",
                f"set data.semiangle_mrad: {angle:.4g}, or, if the semi-angle is sure, data.dk_per_angstrom: "
                f"[{', '.join(f'{d:.4g}' for d in (dk[::-1] if first.flip[2] else dk))}]",
                {"data.semiangle_mrad": angle},
                measured={"radius_over_nominal": radius},
            )
        )
    return out


def centre(found: Measures) -> list[Finding]:
    """Patterns that are not centred."""
    off = [(t.name, t.disk.centre) for t in found.tilts if t.disk and max(map(abs, t.disk.centre)) > 0.6]
    if not off:
        return []
    name, (y, x) = max(off, key=lambda item: math.hypot(*item[1]))
    middle = np.median([t.disk.centre for t in found.tilts if t.disk], axis=0)
    keys: dict[str, Any] = {}
    if len(off) == len(found.tilts) and all(np.abs(np.array(c) - middle).max() < 0.6 for _, c in off):
        keys = {"data.pattern_centre": _stored_centre(found.series[0], middle)}
        action = f"set data.pattern_centre: {keys['data.pattern_centre']}"
    else:
        action = "shift the patterns of these tilts so that the beam lies at pixel n // 2"
    return [
        Finding(
            "beam_centre",
            "warning",
            f"the bright-field disk lies off the middle pixel n // 2 in {len(off)} of {len(found.tilts)} "
            f"tilts, by ({y:+.1f}, {x:+.1f}) pixels (ky, kx) in {name}",
            action,
            keys,
            tuple(name for name, _ in off),
            measured={name: list(offset) for name, offset in off},
        )
    ]


def _stored_centre(tilt: FourDSTEM, offset: np.ndarray) -> list[int]:
    """``data.pattern_centre`` that brings a disk found at ``offset`` (y, x) to the middle."""
    y, x = offset[::-1] if tilt.flip[2] else offset
    moved = (-y if tilt.flip[0] else y, -x if tilt.flip[1] else x)
    _, now = _stored_shape_and_centre(tilt)
    return [math.floor(c + m + 0.5) for c, m in zip(now, moved, strict=True)]


def drift(found: Measures) -> list[Finding]:
    """Disks that move while the beam is scanned."""
    limit = max(0.3, 0.025 * min(found.radii))

    def drifts(tilt: TiltMeasures) -> bool:
        if tilt.drift is None or tilt.drift_error is None:
            return False
        return bool(((np.abs(tilt.drift) > limit) & (np.abs(tilt.drift) > 5 * tilt.drift_error)).any())

    moved = [tilt for tilt in found.tilts if drifts(tilt)]
    if not moved:
        return []
    worst = max(moved, key=lambda tilt: np.abs(np.asarray(tilt.drift)).max())
    along_y, along_x = np.linalg.norm(np.asarray(worst.drift), axis=0)
    return [
        Finding(
            "descan",
            "warning",
            f"the bright-field disk moves with the scan in {len(moved)} of {len(found.tilts)} tilts: by "
            f"{along_y:.1f} pixels from the first to the last scan row and {along_x:.1f} along a row "
            f"in {worst.name}",
            "correct the descan: shift every pattern back by the plane fitted to the disk's centre",
            {},
            tuple(tilt.name for tilt in moved),
            measured={tilt.name: tilt.drift.tolist() for tilt in moved if tilt.drift is not None},
        )
    ]
