"""After the atoms: the volume again with the geometry they gave, and one that they complete.

Where no tilt looks (the missing wedge) patterns say nothing, but the atoms found from the same patterns do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from petomo.algorithms.descent import noise_floor, reconstruct
from petomo.core.grid import Grid
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import read_mrc, write_mrc
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.objectives import regularizers as terms
from petomo.physics.atomic_potential import atomic_volume
from petomo.workflow.context import RunContext
from petomo.workflow.grids import Grids, PatternReader, make_loss, plan_grids
from petomo.workflow.step_end_to_end import active_regularizers, build_model, volume_options

STAGE = "completion"
COMPLETED = "volume_completed.mrc"
PARTS = {"patterns": "volume.mrc", "atoms": COMPLETED}


def completion(context: RunContext) -> None:
    """Leaves ``volume.mrc`` from patterns alone and ``volume_completed.mrc``, which started as the atoms."""
    settings, team = context.config.completion, context.team
    names = ("atoms.xyz", "poses.json", "probes.h5", "positions.h5", "volume.mrc", "absorption.mrc")
    folder = context.inputs(STAGE, *names)
    atoms = read_atoms(folder / "atoms.xyz")
    if settings.iterations == 0 or "mean_square_displacement" not in atoms.arrays:
        if team.main:
            (context.folder / COMPLETED).unlink(missing_ok=True)
        why = "as asked" if settings.iterations == 0 else "the atoms were not refined"
        context.reporter.log(f"{STAGE}: left out, {why}")
        return
    grids, saved = plan_grids(context.series, context.config), context.restore(STAGE) or {}
    reader = PatternReader(context.series, grids.window.shape, context.device)
    loss = make_loss(context, grids, context.config.end_to_end.loss)
    done, inner = dict(saved.get("done", {})), saved.get("inner")
    for part in PARTS:
        if part not in done:
            done[part] = _reconstruct(context, grids, reader, loss, part, atoms, done, inner)
            inner = None
    if team.main:
        for part, file in PARTS.items():
            _write(context.folder / file, done[part]["volume"], grids)
        if "absorption" in done["patterns"]:
            _write(context.folder / "absorption.mrc", done["patterns"]["absorption"], grids)


def potential_of_sites(atoms: Atoms, grid: Grid) -> Tensor:
    """Potential in volts ``z y x`` of refined atoms, as ``atoms.xyz`` holds them."""
    arrays = atoms.arrays
    volume = atomic_volume(
        atoms.positions, arrays["occupancy"], arrays["mean_square_displacement"], atoms.numbers, grid
    )
    return torch.from_numpy(volume)


def _reconstruct(
    context: RunContext,
    grids: Grids,
    reader: PatternReader,
    loss: Any,
    part: str,
    atoms: Atoms,
    done: dict,
    inner: dict | None,
) -> dict[str, Tensor]:
    """Passes of Algorithm 3 that move nothing but the volume, from a start that is good already."""
    folder, settings, team = context.inputs(STAGE), context.config.end_to_end, context.team
    model = build_model(context, grids, folder)
    _start_from(model, folder, part, atoms, grids)
    options = replace(volume_options(context), iterations=context.config.completion.iterations)
    regularizers = active_regularizers(context, grids, model, settings.iterations - 1)
    if part == "atoms":
        regularizers = _about(model.volume.detach().clone(), regularizers)
    for status in reconstruct(model, reader, loss, options, regularizers, inner, team):
        state = {"done": done, "inner": status.state}
        extra = {"noise_floor": noise_floor(model, loss, team=team), **status.extras}
        name = f"{STAGE}/{part}"
        context.iteration(name, status.iteration, options.iterations, status.loss, lambda s=state: s, **extra)
    parts = {"volume": model.volume, "absorption": model.absorption}
    return {name: value.detach().cpu() for name, value in parts.items() if value is not None}


def _start_from(model: PtychoTomography, folder: Path, part: str, atoms: Atoms, grids: Grids) -> None:
    if part == "atoms":
        start = potential_of_sites(atoms, Grid(grids.volume_shape, (grids.voxel,) * 3))
    else:
        start = torch.from_numpy(read_mrc(folder / "volume.mrc")[0])
    model.volume.data.copy_(start)
    if model.absorption is not None:
        model.absorption.data.copy_(torch.from_numpy(read_mrc(folder / "absorption.mrc")[0]))


def _about(reference: Tensor, regularizers: Sequence) -> list:
    """The same regularisers, pulling towards the atoms where they pulled towards nothing.

    Filters are left out: they would blur the atoms.
    """
    kept = [r for r in regularizers if not isinstance(r, terms.Filter)]
    pulls = (terms.L1Real, terms.TotalVariation3D)
    return [terms.About(reference, r) if isinstance(r, pulls) else r for r in kept]


def _write(path: Path, volume: Tensor, grids: Grids) -> None:
    write_mrc(path, volume.float().numpy(), grids.voxel)
