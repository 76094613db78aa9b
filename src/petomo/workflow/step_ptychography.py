"""Step 2a: one mixed-state multislice ptychography per tilt (paper, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from petomo.algorithms.descent import noise_floor, reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.io.artefacts import read_bright_field, write_positions, write_probes
from petomo.io.volumes import write_stack
from petomo.models.ptychography import Ptychography
from petomo.objectives.regularizers import L1Real, NonNegative
from petomo.physics.multislice import MultisliceOptics
from petomo.physics.probe import fit_defocus, hermite_modes, make_probe, probe_from_pattern
from petomo.workflow import stage_settings
from petomo.workflow.context import RunContext
from petomo.workflow.grids import Grids, PatternReader, complex_dtype, make_loss, plan_grids, real_dtype

STAGE = "ptychography"


def to_schedule(settings: stage_settings.Schedule) -> Schedule:
    """A configuration's schedule for the solver."""
    return Schedule(settings.step_size, settings.start, settings.stop or 10**9)


def common_options(settings: stage_settings.PtychographySettings | stage_settings.EndToEndSettings) -> dict:
    """Solver options that Algorithms 1 and 3 take alike."""
    schedules = {name: to_schedule(getattr(settings, name)) for name in ("probe", "positions", "affine")}
    names = ("iterations", "batch_size", "momentum")
    return {name: getattr(settings, name) for name in names} | schedules


def ptychography(context: RunContext) -> None:
    """Reconstruct every tilt; leaves ``projections.mrc``, ``probes.h5`` and ``positions.h5``."""
    grids = plan_grids(context.series, context.config)
    reader = PatternReader(context.series, grids.window.shape, context.device)
    saved = context.restore(STAGE) or {}
    done: list[dict] = list(saved.get("done", ()))
    begun: dict[int, dict] = dict(saved.get("begun", {}))
    while len(done) < len(context.series):
        done += _next_tilts(context, grids, reader, done, begun)
    if context.team.main:
        _write(context, grids, done)


def _next_tilts(
    context: RunContext, grids: Grids, reader: PatternReader, done: list[dict], begun: dict[int, dict]
) -> list[dict]:
    """Results of the next tilts, one for every process; ``begun`` are states of tilts to go on from."""
    team, count, total = context.team, len(context.series), context.config.ptychography.iterations
    tilts = range(len(done), min(len(done) + team.size, count))
    tilt, now = len(done) + team.rank, {"state": begun.get(len(done) + team.rank)}
    model = _start(context, grids, reader, tilt) if tilt in tilts else None
    passes = iter(()) if model is None else _passes(context, grids, reader, model, tilt, now)

    def state() -> dict:
        running = dict(zip(tilts, team.gather(now["state"]), strict=False))
        return {"done": done, "begun": {t: s for t, s in (begun | running).items() if s and t >= len(done)}}

    while said := [one for one in team.gather(next(passes, None)) if one is not None]:
        for one in said[:-1]:
            context.report(STAGE, one.pop("iteration"), count * total, **one)
        context.iteration(STAGE, said[-1].pop("iteration"), count * total, state=state, **said[-1])
    return team.gather(None if model is None else _result(model))[: len(tilts)]


def _passes(
    context: RunContext, grids: Grids, reader: PatternReader, model: Ptychography, tilt: int, now: dict
) -> Iterator[dict[str, Any]]:
    """Reconstruct a tilt from ``now["state"]``, and keep that up to date; gives the metrics of each pass."""
    settings = context.config.ptychography
    loss, terms = make_loss(context, grids, settings.loss), [L1Real(settings.sparsity), NonNegative()]
    for status in reconstruct(
        model, lambda _, i: reader(tilt, i), loss, _options(context, tilt), terms, now["state"]
    ):
        now["state"] = status.state
        number, floor = tilt * settings.iterations + status.iteration, noise_floor(model, loss)
        yield {"iteration": number, "loss": status.loss, "tilt": tilt, "noise_floor": floor}


def first_probe(context: RunContext, grids: Grids, reader: PatternReader, tilt: int, modes: int) -> Tensor:
    """Probe modes at the start: aberrations of the bright field, or the nominal defocus; Hermite modes."""
    data = context.series[tilt]
    path = context.folder / "bright_field.h5"
    coefficients = {"C10": -(data.defocus or 0.0)}
    if path.exists():
        found = read_bright_field(path)[tilt][1]
        coefficients = {
            "C10": -float(found["defocus_angstrom"]),
            "C12": float(found["C12_angstrom"]),
            "phi12": math.radians(float(found["phi12_degree"])),
        }
    mean = reader.mean(tilt).cpu()
    if context.config.ptychography.start_probe == "mean_pattern":
        centred = torch.fft.fftshift(mean)
        probe = probe_from_pattern(centred, grids.window, data.energy_ev, coefficients)
    else:
        dose = float(mean.double().sum())
        probe = make_probe(grids.window, data.energy_ev, data.semiangle_mrad, coefficients, dose)
    return hermite_modes(probe, modes, grids.window, power=context.config.ptychography.mode_power)


def _start(context: RunContext, grids: Grids, reader: PatternReader, tilt: int) -> Ptychography:
    settings, data = context.config.ptychography, context.series[tilt]
    probe = first_probe(context, grids, reader, tilt, settings.probe_modes)
    thickness = settings.slice_thickness_angstrom or grids.thickness / settings.slices
    optics = MultisliceOptics(grids.window, data.energy_ev, thickness)
    volume = torch.zeros(settings.slices, *grids.field, dtype=real_dtype(context.config))
    model = Ptychography(volume, probe.to(complex_dtype(context.config)), data.positions(), optics)
    return model.to(context.device)


def _options(context: RunContext, tilt: int) -> DescentOptions:
    settings = context.config.ptychography
    return DescentOptions(
        **common_options(settings),
        volume=to_schedule(settings.object),
        poses=Schedule(0.0),
        seed=context.config.compute.seed + tilt,
    )


def _result(model: Ptychography) -> dict:
    return {
        "projection": model.projection().cpu(),
        "probe": model.probes[0].detach().cpu().clone(),
        "positions": model.positions[0].detach().cpu().clone(),
    }


def _write(context: RunContext, grids: Grids, done: list[dict]) -> None:
    first, folder = context.series[0], context.folder
    write_stack(
        folder / "projections.mrc", torch.stack([d["projection"] for d in done]).float().numpy(), grids.voxel
    )
    probes = [d["probe"] for d in done]
    pixel = (grids.voxel, grids.voxel)
    write_probes(folder / "probes.h5", probes, pixel, first.energy_ev, defoci(context, grids, probes))
    nominal = [t.positions() for t in context.series]
    write_positions(folder / "positions.h5", [d["positions"] for d in done], nominal)


def defoci(context: RunContext, grids: Grids, probes: list[Tensor]) -> list[float]:
    """Defocus of each tilt's strongest mode in angstrom, positive = underfocus."""
    first = context.series[0]
    return [-fit_defocus(p[0], grids.window, first.energy_ev, first.semiangle_mrad)["C10"] for p in probes]
