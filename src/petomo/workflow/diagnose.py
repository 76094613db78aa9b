"""`petomo check`: what is wrong with a series, one sentence each, and which key mends it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from petomo.core.dataset import TiltSeries
from petomo.io.readers import validate_counts
from petomo.workflow import findings as beam
from petomo.workflow import findings_series as scan
from petomo.workflow.config import Config
from petomo.workflow.describe import (
    ATTRIBUTES,
    estimated_seconds,
    facts,
    sentences,
    tilt_lines,
    time_sentence,
)
from petomo.workflow.findings import Finding
from petomo.workflow.measures import Measures, measure
from petomo.workflow.runner import open_input


@dataclass(frozen=True)
class Diagnosis:
    """Findings, the worst first, and what was measured and found in order."""

    findings: tuple[Finding, ...]
    measured: tuple[str, ...]
    seconds: float


def diagnose(
    series: TiltSeries, electrons: Sequence[float], on_tilt: Callable[[int, int], None] | None = None
) -> Diagnosis:
    """Measure a series and judge it.

    Parameters
    ----------
    series : TiltSeries
        Opened series.
    electrons : sequence of float
        Electrons recorded per tilt, from `petomo.io.readers.validate_counts`.
    on_tilt : callable, optional
        Called with (tilts done, tilts in all).
    """
    found = measure(series, on_tilt)
    findings = [
        *beam.unusable(found),
        *scan.orientation(found),
        *scan.defocus(found),
        *beam.bad_pixels(found),
        *beam.saturation(found),
        *beam.disk(found),
        *beam.centre(found),
        *beam.drift(found),
        *scan.dose(found, electrons),
        *scan.misplaced(found),
        *scan.profile(found),
    ]
    findings = [_overriding(finding, series) for finding in findings]
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    return Diagnosis(tuple(findings), tuple(_measured(found)), found.seconds)


def _overriding(finding: Finding, series: TiltSeries) -> Finding:
    """Say so where a key contradicts what the files hold."""
    source = series[0].source
    stored = getattr(getattr(source, "source", source), "attributes", {})
    if not any(ATTRIBUTES.get(key) in stored for key in finding.keys):
        return finding
    action = f"{finding.action}; and data.override: true, since the files say otherwise"
    return replace(finding, action=action, keys=finding.keys | {"data.override": True})


def _measured(found: Measures) -> list[str]:
    """What was looked at, so that silence is not taken for an answer."""
    lines = []
    disks = [tilt.disk for tilt in found.tilts if tilt.disk]
    if disks:
        radius = np.median([disk.radius for disk in disks])
        furthest = max(max(map(abs, disk.centre)) for disk in disks)
        drifts = [np.abs(tilt.drift).max() for tilt in found.tilts if tilt.drift is not None]
        lines.append(
            f"bright-field disk seen at {radius:.1%} of the nominal radius, "
            f"at most {furthest:.2f} pixels off centre"
            + (f", moving {max(drifts):.2f} pixels across a scan" if drifts else "")
        )
    else:
        lines.append("no bright-field disk stands out: its size, centre and drift are not checked")
    voted = found.orientation
    if voted is None:
        why = found.trouble or "in focus, or nothing to see"
        lines.append(f"how the detector lies against the scan cannot be told from the data ({why})")
    else:
        lines.append(
            f"scan rotation {math.degrees(voted.rotation):.1f} +- {math.degrees(voted.error):.1f} degrees"
            + (" of the transposed patterns" if voted.mirrored else "")
            + f" by the data ({voted.votes} of {len(found.tilts)} tilts agree, handedness "
            f"{voted.handedness_confidence:.0%}, half turn {voted.turn_confidence:.0%} sure)"
        )
    if found.correlations is not None:
        order = np.argsort(found.series.stage_tilts.numpy())
        beside = np.median(np.diag(found.correlations[np.ix_(order, order)], 1))
        lines.append(f"images at neighbouring tilts correlate by {beside:.2f} (median)")
    return lines


@dataclass(frozen=True)
class Check:
    """What `petomo check` says."""

    numbers: dict[str, Any]
    tilts: tuple[str, ...]
    diagnosis: Diagnosis
    device: str

    @property
    def usable(self) -> bool:
        """Whether a run is possible."""
        return all(finding.severity != "error" for finding in self.diagnosis.findings)

    def lines(self) -> list[str]:
        """For people: the tilts, what follows, what was measured, what is wrong."""
        found = [str(finding) for finding in self.diagnosis.findings] or ["nothing wrong was found"]
        return [
            *self.tilts,
            *sentences(self.numbers),
            time_sentence(self.numbers["time_seconds"], self.device),
            *self.diagnosis.measured,
            *found,
            *([f"ready to run on {self.device}"] if self.usable else []),
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs: plain numbers, strings, lists and dictionaries."""
        return {
            "usable": self.usable,
            "device": self.device,
            "numbers": self.numbers,
            "findings": [asdict(finding) for finding in self.diagnosis.findings],
            "measured": list(self.diagnosis.measured),
            "check_seconds": round(self.diagnosis.seconds, 3),
        }


def check(config: Config) -> Check:
    """Open, validate and diagnose everything a configuration refers to.

    Raises
    ------
    UserError
        If something is missing, does not fit, or holds what no detector can have counted.
    """
    series, device = open_input(config)
    electrons = validate_counts(series)
    numbers = facts(series, config, electrons, device)
    numbers["time_seconds"] = estimated_seconds(series, config, device)
    return Check(numbers, tuple(tilt_lines(series, numbers)), diagnose(series, electrons), str(device))
