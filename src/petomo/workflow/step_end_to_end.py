"""Step 3: the end-to-end reconstruction (paper, Algorithm 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petomo.algorithms.descent import noise_floor, reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.analysis.report_patterns import choose_patterns
from petomo.io.artefacts import (
    read_poses,
    read_positions,
    read_probes,
    write_half_volumes,
    write_patterns,
    write_poses,
    write_positions,
    write_probes,
)
from petomo.io.volumes import write_mrc
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.objectives import regularizers as terms
from petomo.physics.detector import from_fft_order
from petomo.workflow.context import RunContext
from petomo.workflow.grids import (
    Grids,
    PatternReader,
    complex_dtype,
    make_loss,
    plan_grids,
    real_dtype,
    tomography_geometry,
)
from petomo.workflow.step_ptychography import common_options, defoci, to_schedule

STAGE = "end_to_end"


def end_to_end(context: RunContext) -> None:
    """Reconstruct the volume; leaves ``volume.mrc`` and the refined probes, positions and poses."""
    config, grids = context.config, plan_grids(context.series, context.config)
    loss = make_loss(context, grids, config.end_to_end.loss)
    reader = PatternReader(context.series, grids.window.shape, context.device)
    folder = context.inputs(STAGE, "poses.json", "probes.h5", "positions.h5")
    model = build_model(context, grids, folder)
    options, saved = descent_options(context), context.restore(STAGE) or {}
    whole = saved.get("whole")
    regularizers, team = _regularizers(context, grids, model), context.team
    for status in reconstruct(model, reader, loss, options, regularizers, whole, team):
        whole, extra = status.state, {"noise_floor": noise_floor(model, loss, team=team), **status.extras}
        context.iteration(
            STAGE, status.iteration, options.iterations, status.loss, lambda s=whole: {"whole": s}, **extra
        )
    halves = _half_volumes(context, model, reader, loss, grids, saved | {"whole": whole})
    if context.team.main:
        _write(context, grids, model, halves)
    _write_patterns(context, model, reader, loss)


def build_model(context: RunContext, grids: Grids, folder: Path) -> PtychoTomography:
    """Model with an empty volume and the poses, probes and positions in ``folder``."""
    config = context.config
    geometry = tomography_geometry(context.series, config, grids)
    poses, _ = read_poses(folder / "poses.json")
    probes = [p.to(complex_dtype(config)) for p in read_probes(folder / "probes.h5").modes]
    positions, scan = read_positions(folder / "positions.h5")
    volume = torch.zeros(grids.volume_shape, dtype=real_dtype(config))
    absorption = torch.zeros_like(volume) if config.end_to_end.absorption else None
    model = PtychoTomography(volume, poses, probes, positions, geometry, absorption, scan)
    return model.to(context.device)


def descent_options(context: RunContext) -> DescentOptions:
    """The solver's options from the configuration."""
    settings = context.config.end_to_end
    return DescentOptions(
        **common_options(settings),
        solver=settings.solver,
        volume=to_schedule(settings.volume),
        poses=to_schedule(settings.poses),
        seed=context.config.compute.seed,
    )


def volume_options(context: RunContext) -> DescentOptions:
    """`descent_options` that hold everything but the volume."""
    still = Schedule(0.0)
    return replace(descent_options(context), probe=still, positions=still, affine=still, poses=still)


def _regularizers(context: RunContext, grids: Grids, model: PtychoTomography):
    """The configured regularisers that act in a pass, as the solver asks for them."""
    return lambda iteration: active_regularizers(context, grids, model, iteration)


def active_regularizers(context: RunContext, grids: Grids, model: PtychoTomography, iteration: int) -> list:
    """The configured regularisers that act in one pass."""
    settings = context.config.end_to_end.regularizers
    now = [r for r in settings if r.start <= iteration < (r.stop or 10**9)]
    return [term for r in now if (term := _regularizer(r, grids.voxel, model)) is not None]


def _regularizer(r, voxel: float, model: PtychoTomography):
    match r.type:
        case "l1_imaginary":
            return terms.L1Imaginary(r.weight)
        case "l1_real":
            return terms.L1Real(r.weight)
        case "nonnegative":
            return terms.NonNegative()
        case "butterworth":
            return terms.Butterworth(r.cutoff_per_angstrom, r.order, voxel)
        case "depth_kernel":
            return terms.DepthKernel(r.weight, r.alpha, voxel)
        case "total_variation":
            return terms.TotalVariation3D(r.weight)
        case "gaussian":
            return terms.Gaussian(r.sigma_angstrom, voxel)
        case "support":
            volume = model.volume.detach()
            if not bool(volume.any()):
                return None  # nothing to outline yet
            return terms.Support(terms.specimen_support(volume, voxel, r.threshold, r.grow_angstrom))


def _write(context: RunContext, grids: Grids, model: PtychoTomography, halves: list[Tensor]) -> None:
    folder, series = context.folder, context.series
    for name, part in (("volume.mrc", model.volume), ("absorption.mrc", model.absorption)):
        if part is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_mrc(folder / name, part.detach().float().cpu().numpy(), grids.voxel)
    write_poses(folder / "poses.json", model.poses, [t.name for t in series])
    probes, pixel = [p.detach().cpu() for p in model.probes], (grids.voxel, grids.voxel)
    write_probes(folder / "probes.h5", probes, pixel, series[0].energy_ev, defoci(context, grids, probes))
    _, initial = read_positions(context.inputs(STAGE) / "positions.h5")
    write_positions(folder / "positions.h5", [p.detach().cpu() for p in model.positions], initial)
    if halves:
        voxel = (grids.voxel, grids.voxel, grids.voxel)
        write_half_volumes(folder / "half_volumes.h5", halves[0], halves[1], voxel)
    else:
        (folder / "half_volumes.h5").unlink(missing_ok=True)


@torch.no_grad()
def _write_patterns(context: RunContext, model: PtychoTomography, reader: PatternReader, loss) -> None:
    """The patterns that fit worst and in the middle and an even choice of each tilt, beside the model's."""
    series, team = context.series, context.team

    def misfit(tilt: int) -> np.ndarray:
        parts = torch.arange(len(series[tilt])).split(256)
        values = [loss(model.predict(tilt, part), reader(tilt, part))[0].cpu() for part in parts]
        return torch.cat(values).numpy()

    losses = team.each(len(series), misfit)
    if not team.main:
        return
    chosen, out = choose_patterns(losses, [t.scan_shape for t in series]), {}
    for tilt in range(len(series)):
        mine = {name: k for name, (number, k) in chosen.items() if number == tilt}
        index = list(mine.values())
        models = from_fft_order(model.predict(tilt, torch.tensor(index)), series[tilt].pattern_shape).cpu()
        for name, k, modelled, measured in zip(
            mine, index, models, series[tilt].patterns(index), strict=True
        ):
            value = float(losses[tilt][k])
            out[name] = {"measured": measured, "model": modelled, "tilt": tilt, "index": k, "loss": value}
    write_patterns(context.folder / "patterns.h5", out)


def checkerboard(scan_shape: Sequence[int], part: int) -> Tensor:
    """Indices of the scan positions on the black (0) or white (1) squares."""
    y, x = torch.meshgrid(torch.arange(scan_shape[0]), torch.arange(scan_shape[1]), indexing="ij")
    return torch.nonzero(((y + x) % 2 == part).flatten())[:, 0]


def _half_volumes(
    context: RunContext, model: PtychoTomography, reader: PatternReader, loss, grids: Grids, saved: dict
) -> list[Tensor]:
    """Volumes from either half of the positions, if asked for; ``saved`` is the stage's state so far."""
    if not context.config.analysis.fsc.half_sets:
        return []
    halves, inner = list(saved.get("halves", ())), saved.get("inner")
    options = volume_options(context)
    for part in range(len(halves), 2):
        chosen = [checkerboard(t.scan_shape, part) for t in context.series]
        half = _half_model(model, chosen)

        def read(tilt: int, index: Tensor, chosen=chosen) -> Tensor:
            return reader(tilt, chosen[tilt][index])

        regularizers = _regularizers(context, grids, half)
        for status in reconstruct(half, read, loss, options, regularizers, inner, context.team):
            state = {"whole": saved["whole"], "halves": halves, "inner": status.state}
            name = f"{STAGE}/half_{'ab'[part]}"
            context.iteration(name, status.iteration, options.iterations, status.loss, lambda s=state: s)
        halves.append(half.volume.detach().cpu())
        inner = None
    return halves


def _half_model(model: PtychoTomography, chosen: Sequence[Tensor]) -> PtychoTomography:
    """Empty volume with some of the positions, and the geometry and the probes of the whole."""
    positions = [p.detach()[c] for p, c in zip(model.positions, chosen, strict=True)]
    probes, empty = [p.detach() for p in model.probes], torch.zeros_like(model.volume.detach())
    absorption = None if model.absorption is None else empty
    half = PtychoTomography(empty, model.poses, probes, positions, model.geometry, absorption)
    return half.to(empty.device)
