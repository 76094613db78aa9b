"""The top of the report: name, how far the run is, and the few numbers one looks for first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ase.data import atomic_numbers

from petomo.core.electron import defocus_in_words
from petomo.core.errors import UserError
from petomo.io.artefacts import read_json
from petomo.io.metrics import read_metrics


@dataclass(frozen=True)
class Header:
    """What the page begins with."""

    title: str
    stages: list[tuple[str, str]]  # name and seconds of the finished ones
    now: str  # the iteration last written, while a stage is unfinished
    facts: list[tuple[str, str]]  # a number in words, and what it is


def header(run: Path) -> Header:
    """The header from ``summary.json``, ``state.json`` and ``metrics.jsonl``, as far as they are there."""
    summary, finished = _json(run / "summary.json"), _json(run / "state.json").get("finished")
    finished = finished if isinstance(finished, Mapping) else {}
    records = _records(run / "metrics.jsonl")
    last = records[-1] if records else {}
    unfinished = bool(last) and str(last.get("stage", "")).partition("/")[0] not in finished
    now = ""
    if unfinished:
        tilt = f", tilt {last['tilt']}" if "tilt" in last else ""
        now = f"{last.get('stage')}{tilt}: iteration {last.get('iteration')}, loss {_short(last.get('loss'))}"
    return Header(
        title=str(summary.get("name") or run.resolve().name),
        stages=[(str(name), _duration(seconds)) for name, seconds in finished.items()],
        now=now,
        facts=[*_facts(summary), *_fit(records)],
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (UserError, ValueError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return [record for record in read_metrics(path) if isinstance(record, dict)]
    except (ValueError, OSError):
        return []


def _facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = summary.get("input")
    given = given if isinstance(given, Mapping) else {}
    tilts, angles = given.get("tilts"), given.get("stage_tilt_degree")
    if tilts is not None:
        span = (
            f"tilts, {min(angles):g}° to {max(angles):g}°".replace("-", "−") if _numbers(angles) else "tilts"
        )
        yield str(tilts), span
    if isinstance(given.get("energy_kev"), (int, float)):
        angle = given.get("semiangle_mrad")
        yield f"{given['energy_kev']:g} keV", f"{angle:.4g} mrad semi-angle" if angle else "beam energy"
    if isinstance(given.get("defocus_angstrom"), (int, float)):
        yield defocus_in_words(given["defocus_angstrom"]), "as recorded"
    if isinstance(given.get("dose_total_per_square_angstrom"), (int, float)):
        dose = float(f"{given['dose_total_per_square_angstrom']:.3g}")
        yield f"{dose:,.15g} e/Å²".replace(",", "\u202f"), "dose in all"
    voxel, shape = given.get("voxel_angstrom"), given.get("volume_shape")
    if _numbers(voxel) and _numbers(shape) and len(voxel) == len(shape):
        field = " × ".join(f"{v * n:.3g}" for v, n in zip(voxel, shape, strict=True))
        yield f"{voxel[0]:.3g} Å", f"voxels; {field} Å (z y x)"
    atoms = summary.get("atoms")
    if isinstance(atoms, Mapping) and all(isinstance(n, int) for n in atoms.values()):
        names = sorted(atoms, key=lambda name: -atomic_numbers.get(name, 0))
        yield str(sum(atoms.values())), "atoms: " + ", ".join(f"{atoms[name]} {name}" for name in names)


def _fit(records: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    last = next((r for r in reversed(records) if r.get("stage") == "end_to_end"), None)
    if last is not None and _numbers([last.get("loss"), last.get("noise_floor")]) and last["noise_floor"] > 0:
        yield f"{last['loss'] / last['noise_floor']:.3f}", "loss / noise floor, end to end"


def _numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, (int, float)) for v in value)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, (int, float)) else "unknown"


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return ""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
