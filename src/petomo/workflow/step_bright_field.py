"""Step 1: phase images and first-order aberrations from the bright field."""

from __future__ import annotations

import math

from petomo.algorithms.bright_field import BrightFieldResult, fit_aberrations
from petomo.io.artefacts import write_bright_field
from petomo.workflow.context import RunContext
from petomo.workflow.guard import refuse_empty

STAGE = "bright_field"


def bright_field(context: RunContext) -> None:
    """Fit defocus (and astigmatism) of every tilt; leaves ``bright_field.h5``."""
    settings, series = context.config.bright_field, context.series
    refuse_empty(series, context.reporter.log)
    if settings.method == "none":
        (context.folder / "bright_field.h5").unlink(missing_ok=True)
        return
    done: list = [
        (entry["phase"], entry["attributes"]) for entry in (context.restore(STAGE) or {"tilts": []})["tilts"]
    ]
    for number in range(len(done), len(series)):
        tilt = series[number]
        guess = tilt.defocus or 0.0
        low, high = settings.defocus_range_angstrom
        result = fit_aberrations(
            tilt, tilt, fit=settings.fit, defocus_guess=guess, search=(low, high), method=settings.method
        )
        if result.warning:
            context.reporter.log(f"{tilt.name}: {result.warning}")
        if number == 0:
            context.reporter.log(f"bright field by {result.method}: {result.reason}")
        done.append((result.phase.cpu().numpy(), _attributes(result)))
        context.iteration(
            STAGE,
            number + 1,
            len(series),
            1 - result.contrast,
            lambda: {"tilts": [{"phase": p, "attributes": a} for p, a in done]},
            tilt=number,
        )
    write_bright_field(context.folder / "bright_field.h5", done)
    context.summarise(defocus_bright_field_angstrom=[a["defocus_angstrom"] for _, a in done])


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
