"""What is wrong between scan and detector, and with single tilts: one `Finding` each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from petomo.algorithms.diagnostics_orientation import flip_matrix, suggest_flip
from petomo.algorithms.diagnostics_tilts import misfits
from petomo.core.dataset import FourDSTEM
from petomo.core.electron import defocus_in_words, wavelength
from petomo.workflow.findings import Finding, listed
from petomo.workflow.measures import Measures

SURE = 0.75
"""Share of the centre of mass' vote below which half a turn is left open."""


def _exclude(found: Measures, numbers: Sequence[int]) -> str:
    """How to leave tilts out: numbers count the files, of which some may be excluded already."""
    names = listed([found.tilts[number].name for number in numbers])
    return f"look at {names}, and name what is wrong in data.exclude"


def _lie(first: FourDSTEM, wanted: tuple[bool, bool, bool]) -> str:
    """How the patterns as read lie against those wanted."""
    change = (flip_matrix(wanted) @ flip_matrix(first.flip).T).tolist()
    names = {
        "mirrored left-right": [[-1, 0], [0, 1]],
        "mirrored up-down": [[1, 0], [0, -1]],
        "turned by 180 degrees": [[-1, 0], [0, -1]],
        "transposed": [[0, 1], [1, 0]],
        "transposed and turned by 180 degrees": [[0, -1], [-1, 0]],
        "turned by 90 degrees": [[0, -1], [1, 0]],
        "turned by 90 degrees the other way": [[0, 1], [-1, 0]],
    }
    return next((name for name, matrix in names.items() if matrix == change), "")


def orientation(found: Measures) -> list[Finding]:
    """Flips, transposes and rotations of the detector against the scan."""
    voted, first = found.orientation, found.series[0]
    if voted is None or voted.handedness_confidence < 0.3:
        return []
    if voted.turn_confidence < SURE and not voted.mirrored:
        # half a turn and the defocus' sign cannot be told apart here: believe the rotation given
        halves = round((voted.rotation - first.scan_rotation) / math.pi)
        voted = replace(voted, rotation=voted.rotation - halves * math.pi)
    flip, rotation = suggest_flip(voted, first.flip, first.scan_rotation)
    lie = _lie(first, flip)
    away = abs(math.remainder(rotation - first.scan_rotation, 2 * math.pi))
    turned = away > max(math.radians(5), 3 * voted.error)
    if not lie and not turned:
        return []
    confidence = voted.handedness_confidence * (voted.turn_confidence if lie else 1.0)
    keys: dict[str, Any] = {"data.flip": list(flip)} if lie else {}
    parts = [f"the patterns are {lie} against the scan"] if lie else []
    degrees = math.degrees(rotation)
    if turned:
        keys["data.scan_rotation_degree"] = round(degrees, 1)
        parts.append(
            f"the scan is turned by {degrees:.1f} degrees, not {math.degrees(first.scan_rotation):.1f}"
        )
    action = "set " + " and ".join(f"{key}: {str(value).lower()}" for key, value in keys.items())
    if lie and voted.turn_confidence < SURE:
        action += "; half a turn more with the other sign of the defocus fits as well"
    return [
        Finding(
            "orientation",
            "warning",
            f"{' and '.join(parts)} ({voted.votes} of {len(found.tilts)} tilts agree, "
            f"confidence {confidence:.0%})",
            action,
            keys,
            confidence=confidence,
            measured={
                "rotation_degree": math.degrees(voted.rotation),
                "rotation_error_degree": math.degrees(voted.error),
                "mirrored": voted.mirrored,
            },
        )
    ]


def defocus(found: Measures) -> list[Finding]:
    """Sign and rough size of the defocus, where it is well beyond the depth of field."""
    voted, first = found.orientation, found.series[0]
    depth = wavelength(first.energy_ev) / (first.semiangle_mrad * 1e-3) ** 2
    if voted is None or voted.turn_confidence < SURE or not abs(voted.C10) > depth:
        return []
    given, seen = first.defocus, -voted.C10
    # atoms are lenses that make the shifts some tens of angstrom too large: only the sign and the size count
    if given is not None and (abs(given) < depth / 2 or 0.3 < seen / given < 3):
        return []
    kind = "defocus_unknown" if given is None else "defocus_sign" if given * seen < 0 else "defocus"
    said = "no defocus is given" if given is None else f"{defocus_in_words(given)} is given"
    action = f"set data.defocus_angstrom: {round(seen, -1):.0f} (positive = underfocus)"
    return [
        Finding(
            kind,
            "note" if given is None else "warning",
            f"{said}, and the bright-field images move as at about {defocus_in_words(round(seen, -1))} "
            f"(confidence {voted.turn_confidence:.0%})",
            action,
            {"data.defocus_angstrom": float(round(seen, -1))},
            confidence=voted.turn_confidence,
            measured={"defocus_angstrom": seen},
        )
    ]


def _outliers(values: np.ndarray, least: float) -> list[int]:
    """Those further from the median than ``least`` and than 6 robust deviations."""
    away = np.abs(values - np.median(values))
    return np.flatnonzero(away > max(least, 6 * 1.4826 * float(np.median(away)))).tolist()


def dose(found: Measures, electrons: Sequence[float]) -> list[Finding]:
    """Tilts with another dose than the rest."""
    doses = np.array([count / tilt.scan_area for count, tilt in zip(electrons, found.series, strict=True)])
    odd = _outliers(np.log(doses), 0.2) if len(doses) >= 4 else []
    if not odd:
        return []
    worst = max(odd, key=lambda i: abs(math.log(doses[i] / np.median(doses))))
    return [
        Finding(
            "dose",
            "warning",
            f"{len(odd)} of {len(doses)} tilts have another dose than the rest: {found.tilts[worst].name} "
            f"{doses[worst]:.4g} e/A^2, the median {np.median(doses):.4g}",
            _exclude(found, odd),
            {},
            tuple(found.tilts[i].name for i in odd),
            measured={found.tilts[i].name: float(doses[i]) for i in odd},
        )
    ]


def profile(found: Measures) -> list[Finding]:
    """Radial profiles against those of the two tilts nearest in angle."""
    if len(found.tilts) < 5:
        return []
    angles = found.series.stage_tilts.numpy()
    profiles = np.array([tilt.profile for tilt in found.tilts])
    away = []
    for i, angle in enumerate(angles):
        near = np.argsort(np.abs(angles - angle), kind="stable")
        others = profiles[near[near != i][:4]]
        away.append(0.5 * np.abs(profiles[i] - np.median(others, axis=0)).sum())
    odd = [i for i in _outliers(np.array(away), 0.03) if away[i] > np.median(away)]
    return [
        Finding(
            "profile",
            "warning",
            f"{found.tilts[i].name} ({math.degrees(angles[i]):+.1f} degrees) scatters otherwise than the "
            f"tilts beside it: {away[i]:.1%} of its electrons lie at other angles",
            _exclude(found, [i]),
            {},
            (found.tilts[i].name,),
            measured={"share": float(away[i])},
        )
        for i in odd
    ]


def misplaced(found: Measures) -> list[Finding]:
    """Tilts whose image is unlike those at neighbouring angles."""
    if found.correlations is None:
        return []
    angles = [math.degrees(tilt.stage_tilt) for tilt in found.series]
    out = []
    for misfit in misfits(found.correlations, angles):
        tilt = found.tilts[misfit.tilt]
        sentence = (
            f"{tilt.name} does not look like the tilts beside its {angles[misfit.tilt]:+.1f} degrees "
            f"(correlation {misfit.here:.2f}"
        )
        if misfit.like is None:
            sentence += f", they with each other {misfit.expected:.2f})"
        else:
            sentence += f"), but like those near {angles[misfit.like]:+.1f} degrees ({misfit.expected:.2f})"
        out.append(
            Finding(
                "misplaced_tilt",
                "warning",
                sentence,
                "check its angle in data.stage_tilt_degree and what it shows, or name it in data.exclude",
                {},
                (tilt.name,),
                measured={"correlation": misfit.here, "expected": misfit.expected},
            )
        )
    return out
