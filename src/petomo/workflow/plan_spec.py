"""What `petomo plan` is asked: an acquisition, alternatives to it, and how they are reconstructed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from petomo.core.errors import UserError
from petomo.io.settings import Section
from petomo.io.yaml import Document, apply_overrides, read_yaml, validate
from petomo.simulation.spec import BUILT_IN, ErrorSpec, PhononSpec, SimulationSpec, SpecimenSpec
from petomo.workflow.config import OTHER_NAMES, Config

MOST_CASES = 200

Tilts = Annotated[int, Field(ge=3, le=1000)]
Highest = Annotated[float, Field(gt=0, lt=90)]

SMALL = SimulationSpec(
    specimen=SpecimenSpec(edge_angstrom=8, core_angstrom=4),
    stage_tilt_degree=[-50, -37.5, -25, -12.5, 0, 12.5, 25, 37.5, 50],
    scan_shape=(9, 10),
    pattern_pixels=36,
    defocus_angstrom=40,
    phonons=PhononSpec(configurations=4),
    errors=ErrorSpec(shift_max_angstrom=1.0),
)
"""Some fifty atoms, a minute or two a case on one core."""


class CompareSpec(Section):
    """Alternatives to the acquisition under ``simulation``; every list is tried value by value."""

    dose_per_tilt: list[PositiveFloat] = Field(default=[], description="electrons per square angstrom")
    highest_tilt_degree: list[Highest] = Field(
        default=[], description="tilts then run evenly from minus to plus this"
    )
    tilts: list[Tilts] = Field(default=[], description="numbers of tilts, spread evenly over the range")
    scan_step_angstrom: list[PositiveFloat] = Field(
        default=[], description="steps both ways; the scanned field stays as large"
    )
    also: dict[str, dict[str, Any]] = Field(
        default={}, description="names of further alternatives, and the keys of `simulation` they change"
    )
    keep: Literal["dose_per_tilt", "total_dose"] = Field(
        default="dose_per_tilt", description="what stays the same where the number of tilts changes"
    )
    combine: bool = Field(default=False, description="true = all combinations, not one change at a time")


class PlanSpec(Section):
    """A plan."""

    simulation: SimulationSpec = Field(default=SMALL, description="the acquisition; see `petomo simulate`")
    compare: CompareSpec = CompareSpec()
    repeats: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="simulations of a case, each of other atoms, errors and counts; averaged"
    )
    full_scan_shape: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="[scan_y, scan_x] of the real acquisition, whose time is extrapolated to"
    )
    run: dict[str, Any] = Field(
        default={}, description="sections of a configuration that differ from the defaults; no `data`"
    )


@dataclass(frozen=True)
class Case:
    """One acquisition to try.

    Parameters
    ----------
    name : str
        What it changes, in words.
    changes : dict
        The values asked for, by key of `CompareSpec`.
    simulations : tuple of SimulationSpec
        One for each repeat.
    """

    name: str
    changes: dict[str, Any]
    simulations: tuple[SimulationSpec, ...] = field(repr=False)

    @property
    def acquisition(self) -> SimulationSpec:
        """What the repeats have in common."""
        return self.simulations[0]


def read_plan(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> PlanSpec:
    """Read a plan; a specimen file is looked for beside it.

    Raises
    ------
    UserError
        One sentence per mistake, with its line.
    """
    document = apply_overrides(read_yaml(path), overrides)
    plan = validate(document, PlanSpec)
    _refuse_bad_run(plan, document)
    specimen = plan.simulation.specimen
    if specimen.source in BUILT_IN:
        return plan
    specimen = specimen.model_copy(update={"source": str((Path(path).parent / specimen.source).resolve())})
    return plan.model_copy(update={"simulation": plan.simulation.model_copy(update={"specimen": specimen})})


def _refuse_bad_run(plan: PlanSpec, document: Document) -> None:
    """Mistakes in the sections of the configuration, told by the line they are in."""
    if "data" in plan.run:
        raise UserError(f"{document.source}: `run` has `data`, which the plan makes itself; leave it out")
    places = {at[1:]: place for at, place in document.places.items() if at[:1] == ("run",)}
    validate(Document(document.source, plan.run, places), Config, OTHER_NAMES)


def list_cases(plan: PlanSpec) -> list[Case]:
    """The acquisition itself, then its alternatives.

    Raises
    ------
    UserError
        If an alternative cannot be simulated, or there are too many.
    """
    compare = plan.compare
    asked = {
        key: list(dict.fromkeys(getattr(compare, key)))
        for key in ("dose_per_tilt", "highest_tilt_degree", "tilts", "scan_step_angstrom")
    }
    changes = list(_combinations(asked) if compare.combine else _single(asked))
    if len(changes) * plan.repeats > MOST_CASES:
        raise UserError(
            f"this plan has {len(changes)} cases of {plan.repeats} simulations each; "
            f"compare less than {MOST_CASES} in all"
        )
    wanted = [(_name(change), change, _changed(plan, change)) for change in changes]
    wanted += [(name, {"also": keys}, keys) for name, keys in compare.also.items()]
    out, seen = [], []
    for name, change, keys in wanted:
        first = _simulation(name, plan.simulation, keys)
        if first in seen:  # an alternative that is the base itself
            continue
        seen.append(first)
        repeats = tuple(first.model_copy(update={"seed": first.seed + i}) for i in range(plan.repeats))
        out.append(Case(name, change, repeats))
    return out


def _single(asked: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    yield {}
    for key, values in asked.items():
        for value in values:
            yield {key: value}


def _combinations(asked: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    given = {key: values for key, values in asked.items() if values}
    for values in itertools.product(*given.values()):
        yield dict(zip(given, values, strict=True))


def _name(change: Mapping[str, Any]) -> str:
    words = {
        "dose_per_tilt": "{:g} e/A^2",
        "highest_tilt_degree": "+-{:g} degrees",
        "tilts": "{} tilts",
        "scan_step_angstrom": "step {:g} A",
    }
    return ", ".join(words[key].format(value) for key, value in change.items()) or "as proposed"


def _changed(plan: PlanSpec, change: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the simulation that follow from a change."""
    base, out = plan.simulation, {}
    count = change.get("tilts", len(base.stage_tilt_degree))
    if "tilts" in change or "highest_tilt_degree" in change:
        low, high = min(base.stage_tilt_degree), max(base.stage_tilt_degree)
        if (highest := change.get("highest_tilt_degree")) is not None:
            low, high = -highest, highest
        step = (high - low) / max(count - 1, 1)
        out["stage_tilt_degree"] = [round(low + step * i, 3) for i in range(count)]
    dose = change.get("dose_per_tilt", base.dose_per_tilt)
    if plan.compare.keep == "total_dose":
        dose *= len(base.stage_tilt_degree) / count
    out["dose_per_tilt"] = dose
    if (step := change.get("scan_step_angstrom")) is not None:
        sizes = zip(base.scan_shape, base.scan_step_angstrom, strict=True)
        out["scan_shape"] = [max(2, round(n * old / step)) for n, old in sizes]
        out["scan_step_angstrom"] = step
    return out


def _simulation(name: str, base: SimulationSpec, keys: Mapping[str, Any]) -> SimulationSpec:
    return validate(Document(f"case {name!r}", base.model_dump() | dict(keys), {}), SimulationSpec)
