"""`petomo plan`: simulate an acquisition and its alternatives, reconstruct and score each of them."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from rich.console import Console

from petomo import __version__
from petomo.analysis.score import score_run
from petomo.analysis.truth import score_volumes
from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io.artefacts import read_json, to_json, write_json
from petomo.io.atomic import is_temporary, remove_temporaries, write_failure, write_text
from petomo.simulation.acquisition import simulate, tilt_generator
from petomo.simulation.spec import SimulationSpec
from petomo.simulation.specimen import build_specimen
from petomo.workflow import runner
from petomo.workflow.callbacks import Interrupted, Reporter
from petomo.workflow.config import Config
from petomo.workflow.describe import probe_diameter
from petomo.workflow.plan_spec import Case, PlanSpec, list_cases
from petomo.workflow.plan_table import table
from petomo.workflow.resume import locked

Told = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One simulation of a case: what to simulate, how to reconstruct it, and where."""

    simulation: SimulationSpec
    config: Config
    folder: Path


def plan(spec: PlanSpec, out_dir: str | Path, told: Told = lambda _: None) -> dict[str, Any]:
    """Work through a plan; what is finished already is only read.

    Parameters
    ----------
    spec : PlanSpec
        From `petomo.workflow.plan_spec.read_plan`.
    out_dir : path
        Gets ``plan.json``, ``plan.md`` and a folder below ``cases`` for every simulation.
    told : callable, optional
        Gets a line for people about every step.

    Returns
    -------
    dict
        Content of ``plan.json``: ``cases``, a row each, and ``machine``.

    Raises
    ------
    UserError
        If the plan or the folder cannot be used, or no case could be reconstructed.
    Interrupted
        If the user stopped it; the same call goes on.
    """
    out = Path(out_dir)
    cases = list_cases(spec)
    tasks = [[_task(spec, case, s, out) for s in case.simulations] for case in cases]
    if out.is_dir() and any(not _is_ours(path) for path in out.iterdir()):
        raise UserError(f"{out}: this folder holds something other than a plan; choose another with --out")
    try:
        (out / "cases").mkdir(parents=True, exist_ok=True)
        with locked(out):
            remove_temporaries(out)
            rows = _work(spec, cases, tasks, out, told)
    except KeyboardInterrupt:
        raise Interrupted("stopped in a simulation; the same command goes on") from None
    except OSError as error:
        raise write_failure(error.filename or out, error) or error from error
    if all("trouble" in row for row in rows):
        raise UserError(f"no case of the plan could be reconstructed: {rows[0]['trouble']}")
    return read_json(out / "plan.json")


def _is_ours(path: Path) -> bool:
    return path.name in ("cases", "plan.json", "plan.md", ".lock") or is_temporary(path)


def _task(spec: PlanSpec, case: Case, simulation: SimulationSpec, out: Path) -> Task:
    """Settings of a run: what is asked for, and what who planned the specimen knows of it."""
    atoms = build_specimen(simulation.specimen, tilt_generator(simulation.seed, -1))
    sections = {name: dict(keys or {}) for name, keys in spec.run.items() if isinstance(keys, dict | None)}
    rest = {name: value for name, value in spec.run.items() if name not in sections}
    volume, analysis = sections.setdefault("volume", {}), sections.setdefault("analysis", {})
    if not volume.keys() & {"thickness_angstrom", "shape"}:
        volume["thickness_angstrom"] = _thickness(atoms, simulation)
    symbols = sorted(set(atoms.get_chemical_symbols()), key=lambda s: -atomic_numbers[s])
    analysis["atoms"] = {"elements": symbols} | (analysis.get("atoms") or {})
    config = Config.model_validate(rest | sections)
    run = config.model_dump(mode="json", exclude={"name", "data", "compute"})
    wanted = {"petomo": __version__, "simulation": simulation.model_dump(mode="json"), "run": run}
    key = hashlib.sha256(to_json(wanted).encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9.]+", "_", case.name.lower()).strip("_.")[:40]
    folder = out / "cases" / f"{slug}-{key}"
    data = {"root": str((folder / "data").resolve()), "tilts": "tilt_*.h5"}
    named = config.model_dump() | {"name": folder.name, "data": data}
    return Task(simulation, Config.model_validate(named), folder)


def _thickness(atoms: Atoms, simulation: SimulationSpec) -> float:
    """Greatest extent along the beam in angstrom, and a little more."""
    poses = Poses.from_tilts(torch.deg2rad(torch.tensor(simulation.stage_tilt_degree, dtype=torch.float64)))
    z = poses.apply(torch.from_numpy(atoms.positions))[..., 2]
    return round(float((z.amax(1) - z.amin(1)).max()) + 2.0, 1)


def _work(
    spec: PlanSpec, cases: Sequence[Case], tasks: Sequence[Sequence[Task]], out: Path, told: Told
) -> list[dict[str, Any]]:
    """All tasks in order; the table grows with every case."""
    total, spent, rows = sum(map(len, tasks)), [], []
    number = 0
    for case, repeats in zip(cases, tasks, strict=True):
        results, trouble = [], None
        for task in repeats:
            number += 1
            start, finished = time.monotonic(), _finished(task)
            label = f"{number} of {total}, {case.name}"
            told(f"{label}: {'finished already' if finished else 'simulating'}")
            try:
                results.append(finished or _do(task, lambda what, label=label: told(f"{label}: {what}")))
            except UserError as error:
                trouble = str(error).splitlines()[0]
                told(f"{label}: failed, {trouble}")
                continue
            if finished is None:
                spent.append(time.monotonic() - start)
                if number < total:
                    told(f"about {np.mean(spent) * (total - number) / 60:.1f} minutes left")
        rows.append(_row(spec, case, results) if results else _facts(case) | {"trouble": trouble})
        _write(out, rows)
    return rows


def _finished(task: Task) -> dict[str, Any] | None:
    """The result, if it is there: the folder's name stands for all that it depends on."""
    path = task.folder / "result.json"
    return read_json(path) if path.exists() else None


def _do(task: Task, told: Told) -> dict[str, Any]:
    """Simulate, reconstruct and score; what an earlier attempt has left is used."""
    data, run, marker = task.folder / "data", task.folder / "run", task.folder / "simulated.json"
    task.folder.mkdir(exist_ok=True)
    if not marker.exists():
        start = time.monotonic()
        simulate(task.simulation, data, overwrite=True, on_start=told)
        write_json(marker, {"seconds": round(time.monotonic() - start, 1)})
    try:
        begun = (run / "state.json").exists()
        runner.run(task.config, run, begun, reporter=lambda folder: _Stages(folder, told), until="analysis")
    except Interrupted:
        raise Interrupted(f"stopped in {task.folder.name}; the same command goes on") from None
    result = score_run(run, data / "truth")
    still = task.simulation.phonons.configurations == 1
    vibration = 0.0 if still else task.simulation.phonons.displacement_rms_angstrom
    volumes = score_volumes(run, data / "truth", result, vibration, task.simulation.potential)
    result["resolution"] = volumes["volume.mrc"]
    result["stage_seconds"] = read_json(run / "summary.json")["stage_seconds"]
    write_json(task.folder / "result.json", result)
    return read_json(task.folder / "result.json")


class _Stages(Reporter):
    """Says which stage begins, and no more."""

    def __init__(self, folder: Path, told: Told):
        super().__init__(folder, Console(stderr=True, quiet=True))
        self._told = told

    def stage(self, name: str) -> None:
        super().stage(name)
        self._told(name.replace("_", " "))


def _facts(case: Case) -> dict[str, Any]:
    """What is asked of the microscope."""
    asked = case.acquisition
    tilts, step = asked.stage_tilt_degree, max(asked.scan_step_angstrom)
    diameter = probe_diameter(asked.defocus_angstrom, asked.semiangle_mrad, asked.energy_kev * 1e3)
    return {
        "name": case.name,
        "changes": case.changes,
        "dose_per_tilt_per_square_angstrom": asked.dose_per_tilt,
        "dose_total_per_square_angstrom": asked.dose_per_tilt * len(tilts),
        "tilts": len(tilts),
        "tilt_range_degree": [min(tilts), max(tilts)],
        "scan_step_angstrom": list(asked.scan_step_angstrom),
        "scan_shape": list(asked.scan_shape),
        "probe_overlap": 1 - step / diameter,
    }


def _row(spec: PlanSpec, case: Case, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the repeats, atoms counted together."""

    def mean(of: Callable[[dict[str, Any]], float | None]) -> float | None:
        values = [value for result in results if (value := of(result)) is not None]
        return float(np.mean(values)) if values else None

    atoms = [result["atoms"] for result in results]
    found = [a["found"] / max(a["true"], 1) for a in atoms]
    seconds = [sum(result["stage_seconds"].values()) for result in results]
    periods = {name: _period([r["resolution"][name] for r in results]) for name in ("all", "x", "y", "z")}
    sides = [period for period in (periods["x"], periods["y"]) if period is not None]
    return _facts(case) | {
        "repeats": len(results),
        "resolution_across_angstrom": max(sides) if len(sides) == 2 else None,
        "resolution_along_angstrom": periods["z"],
        "at_the_edge": [n for n in "xyz" if not all(r["resolution"]["reached"][n] for r in results)],
        "resolution_angstrom": periods,
        "atoms": sum(a["true"] for a in atoms),
        "recall": float(np.mean(found)),
        "recall_spread": [min(found), max(found)],
        "invented_share": sum(a["invented"] for a in atoms) / max(sum(a["traced"] for a in atoms), 1),
        "rmsd_angstrom": mean(lambda r: r["atoms"]["rmsd_angstrom"]),
        "elements": {symbol: _element(atoms, symbol) for symbol in _symbols(atoms)},
        "shift_median_angstrom": mean(lambda r: r["poses"]["shift_median_angstrom"]),
        "angle_rms_degree": mean(lambda r: r["poses"]["angle_rms_degree"]),
        "hours": float(np.mean(seconds)) / 3600,
        "hours_full": _hours_full(spec, case, float(np.mean(seconds))),
    }


def _period(periods: Sequence[float | None]) -> float | None:
    """Period of the mean frequency; None, as a single one may be, where nothing is resolved."""
    frequency = float(np.mean([1 / period if period else 0.0 for period in periods]))
    return 1 / frequency if frequency else None


def _hours_full(spec: PlanSpec, case: Case, seconds: float) -> float | None:
    """Hours for the real scan: all stages take their time in proportion to the number of positions."""
    if spec.full_scan_shape is None:
        return None
    steps = np.divide(spec.simulation.scan_step_angstrom, case.acquisition.scan_step_angstrom)
    positions = np.prod(spec.full_scan_shape) * np.prod(steps)
    return float(seconds * positions / np.prod(case.acquisition.scan_shape)) / 3600


def _symbols(atoms: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(symbol for part in atoms for symbol in part["elements"]))


def _element(atoms: Sequence[dict[str, Any]], symbol: str) -> dict[str, Any]:
    parts = [a["elements"][symbol] for a in atoms if symbol in a["elements"]]
    found, true = (sum(part[key] for part in parts) for key in ("found", "true"))
    square = sum(part["found"] * part["rmsd_angstrom"] ** 2 for part in parts if part["found"])
    return {
        "true": true,
        "found": found,
        "recall": found / max(true, 1),
        "wrong_element": sum(part["wrong_element"] for part in parts),
        "rmsd_angstrom": float(np.sqrt(square / found)) if found else None,
    }


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "device": device}
    write_json(out / "plan.json", {"petomo": __version__, "machine": machine, "cases": rows})
    write_text(out / "plan.md", "\n".join(table(rows)) + "\n")
