"""Step 1: phase images and first-order aberrations from the bright field."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from petomo.algorithms.bright_field import BrightFieldResult, Method, fit_aberrations
from petomo.io.artefacts import write_bright_field
from petomo.workflow.context import RunContext
from petomo.workflow.guard import refuse_empty

STAGE = "bright_field"


def bright_field(context: RunContext) -> None:
    """Fit defocus (and astigmatism) of every tilt; leaves ``bright_field.h5``."""
    method, series = context.config.bright_field.method, context.series
    refuse_empty(series, context.reporter.log)
    if method == "none":
        if context.team.main:
            (context.folder / "bright_field.h5").unlink(missing_ok=True)
        return
    done: list = [
        (entry["phase"], entry["attributes"]) for entry in (context.restore(STAGE) or {"tilts": []})["tilts"]
    ]
    team = context.team
    for first in range(len(done), len(series), team.size):
        tilts = range(first, min(first + team.size, len(series)))
        mine = _fit(context, tilts[team.rank], method) if team.rank < len(tilts) else None
        for number, (phase, found) in zip(tilts, team.gather(mine), strict=False):
            if found["warning"]:
                context.reporter.log(f"{series[number].name}: {found['warning']}")
            if number == 0:
                context.reporter.log(f"bright field by {found['method']}: {found['reason']}")
            done.append((phase, found))
            if number != tilts[-1]:
                context.report(STAGE, number + 1, len(series), 1 - found["contrast"], tilt=number)
        context.iteration(
            STAGE,
            len(done),
            len(series),
            1 - done[-1][1]["contrast"],
            lambda: {"tilts": [{"phase": p, "attributes": a} for p, a in done]},
            tilt=tilts[-1],
        )
    if not team.main:
        return
    write_bright_field(context.folder / "bright_field.h5", done)
    context.summarise(defocus_bright_field_angstrom=[a["defocus_angstrom"] for _, a in done])


def _fit(context: RunContext, number: int, method: Literal["auto"] | Method) -> tuple[np.ndarray, dict]:
    """Phase image and attributes of one tilt."""
    settings, tilt = context.config.bright_field, context.series[number]
    result = fit_aberrations(
        tilt,
        tilt,
        fit=settings.fit,
        defocus_guess=tilt.defocus or 0.0,
        search=settings.defocus_range_angstrom,
        method=method,
    )
    return result.phase.cpu().numpy(), _attributes(result)


def _attributes(result: BrightFieldResult) -> dict:
    return {
        "method": result.method,
        "reason": result.reason,
        "defocus_angstrom": result.defocus,
        "C12_angstrom": result.C12,
        "phi12_degree": math.degrees(result.phi12),
        "scan_rotation_degree": math.degrees(result.scan_rotation),
        "contrast": result.contrast,
        "sampling_angstrom": list(result.sampling),
        "warning": result.warning,
    }
