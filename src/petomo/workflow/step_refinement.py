"""After the volume: its atoms, refined with poses and scans through the patterns."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from petomo.algorithms.atom_objective import AtomOptions
from petomo.algorithms.atom_refinement import Level, refine_atoms, restore
from petomo.algorithms.site_review import Candidates
from petomo.core.least_squares import least_squares
from petomo.core.pose import Poses, fit_gauge
from petomo.io.artefacts import (
    read_atoms,
    read_poses,
    read_positions,
    read_probes,
    write_atoms,
    write_poses,
    write_positions,
    write_probes,
)
from petomo.models.atomic_tomography import AtomicTomography, Sites
from petomo.physics.partial_coherence import ProbeModel
from petomo.physics.probe import orthogonalise
from petomo.workflow.context import RunContext
from petomo.workflow.grids import (
    Grids,
    PatternReader,
    complex_dtype,
    finer_grids,
    make_loss,
    plan_grids,
    tomography_geometry,
)
from petomo.workflow.step_analysis import count_elements, least_distance

STAGE = "refinement"
_SOURCE, _FOCAL, _VARIANCE = 0.1, 10.0, 0.01  # A, A, A^2: ordinary values to start from
_COARSE, _FINE = 8, 12  # coherent probes that stand for the blurred one


def refinement(context: RunContext) -> None:
    """Refine atoms, poses and scans; replaces ``atoms.xyz`` and the files of poses, positions and probes."""
    settings, elements = context.config.refinement, context.config.analysis.atoms.elements
    folder = context.inputs(STAGE, "atoms.xyz", "poses.json", "probes.h5", "positions.h5")
    atoms = read_atoms(folder / "atoms.xyz")
    if settings.rounds == 0 or not elements or len(atoms) == 0:
        why = "no atoms were traced" if elements else "analysis.atoms.elements does not say which there are"
        context.reporter.log(f"{STAGE}: left out, " + ("as asked" if settings.rounds == 0 else why))
        return
    grids = plan_grids(context.series, context.config)
    levels, options = refinement_levels(context, grids), atom_options(context)
    model, probes = _start(context, grids, atoms, levels[0])
    saved = context.restore(STAGE)
    state, total = saved, sum(level.rounds for level in levels) * options.iterations + options.half_iterations
    numbers = [atomic_numbers[e] for e in elements]
    nominal = context.series.stage_tilts
    solver = refine_atoms(model, probes, levels, nominal, numbers, options, saved, context.team)
    for status in solver:
        state = status.state
        # a round is done again from its beginning, so that only its end can be saved
        ended = status.iteration == total or status.iteration % options.iterations == 0
        keep = (lambda s=state: s) if ended else None
        context.iteration(STAGE, status.iteration, total, status.loss, keep, **status.extras)
        if ended:
            context.save(STAGE, state)
    assert state is not None  # rounds and iterations are positive
    restore(model, state)
    if context.team.main:
        _write(context, grids, model, [ProbeModel.from_dict(p) for p in state["probes"]], state["errors"])


def atom_options(context: RunContext) -> AtomOptions:
    """The solver's options from the configuration."""
    settings = context.config.refinement
    return AtomOptions(
        iterations=settings.iterations,
        half_iterations=settings.half_iterations,
        theta_width=math.radians(settings.theta_width_degree),
        affine_width=settings.affine_width,
        stray_width=settings.position_width_angstrom,
    )


def refinement_levels(context: RunContext, grids: Grids) -> list[Level]:
    """First the volume's voxels, then such as keep what is scattered far out from coming back."""
    settings, series = context.config.refinement, context.series
    apart, levels = least_distance(context), []
    fine = finer_grids(series, grids, settings.fine_voxel_angstrom)
    for level, members, rounds in ((grids, _COARSE, settings.rounds), (fine, _FINE, settings.fine_rounds)):
        levels.append(
            Level(
                tomography_geometry(series, context.config, level),
                PatternReader(series, level.window.shape, context.device),
                make_loss(context, level, "poisson"),
                members,
                rounds,
                Candidates(level.volume_shape, apart),
            )
        )
    return levels


def _start(
    context: RunContext, grids: Grids, atoms: Atoms, level: Level
) -> tuple[AtomicTomography, list[ProbeModel]]:
    series, folder, reader = context.series, context.inputs(STAGE), level.read
    assert isinstance(reader, PatternReader)  # as `refinement_levels` makes them
    energy, dtype = series[0].energy_ev, complex_dtype(context.config)
    poses, _ = read_poses(folder / "poses.json")
    positions, nominal = read_positions(folder / "positions.h5")
    distortion, strays, scale = distortions(positions, nominal)
    poses = poses.replace(tau=poses.tau * scale)
    scans = [p.double() * scale - own for p, own in zip(positions, strays, strict=True)]
    probes = [
        ProbeModel(
            tilt.semiangle_mrad,
            (_SOURCE**2, _SOURCE**2, 0.0),
            _FOCAL**2,
            {"C10": -defocus},
            float(reader.mean(number).double().sum()),
        )
        for number, (tilt, defocus) in enumerate(
            zip(series, read_probes(folder / "probes.h5").defocus, strict=True)
        )
    ]
    waves = [p.ensemble(grids.window, energy, level.members).to(context.device, dtype) for p in probes]
    many = len(atoms)
    sites = Sites(
        atoms.numbers,
        torch.as_tensor(atoms.positions) * scale,
        torch.ones(many, dtype=torch.float64),
        torch.full((many,), _VARIANCE, dtype=torch.float64),
    )
    model = AtomicTomography(sites, poses, waves, scans, level.geometry, distortion)
    for parameter, own in zip(model.stray, strays, strict=True):
        parameter.data.copy_(own)
    return model, probes


def distortions(positions: list[Tensor], nominal: list[Tensor]) -> tuple[Tensor, list[Tensor], float]:
    """Linear distortion of every scan ``(tilt, 2, 2)``, what single positions stray from it, and a scale.

    The volume's scale may drift with that of the scans; the scale, a factor on both, brings the distortions'
    mean back to none. Distortions and strays are those of the scaled positions.
    """
    maps, strays = [], []
    for p, start in zip(positions, nominal, strict=True):
        design = torch.cat([start.double(), torch.ones(len(start), 1, dtype=torch.float64)], dim=1)
        found = least_squares(design, p.double())
        maps.append(found[:2].T)
        strays.append(p.double() - design @ found)
    linear = torch.stack(maps)
    scale = 2 / float(linear.mean(0).trace())
    return linear * scale - torch.eye(2, dtype=torch.float64), [own * scale for own in strays], scale


def _write(
    context: RunContext, grids: Grids, model: AtomicTomography, probes: list[ProbeModel], errors: Tensor
) -> None:
    folder, series = context.folder, context.series
    sites, positions = model.current_sites(), [model.positions(t) for t in range(len(series))]
    begun, _ = read_poses(context.inputs(STAGE) / "poses.json")
    scans, initial = read_positions(context.inputs(STAGE) / "positions.h5")
    # patterns do not tell where the specimen is: atoms and poses go back to where the volume has it
    rotation, shift = fit_gauge(model.poses.seen_from(positions), begun.seen_from(scans))
    moved = sites.positions @ rotation.T + shift
    atoms = Atoms([chemical_symbols[z] for z in sites.numbers], positions=moved.numpy())
    atoms.set_array("occupancy", sites.occupancy.numpy())
    atoms.set_array("mean_square_displacement", sites.variance.numpy())
    atoms.set_array("position_error", np.asarray(errors))
    write_atoms(folder / "atoms.xyz", atoms)
    poses = model.poses.regauged(rotation, shift)
    # last bits of small decompositions hang on their place in memory; a resumed run is to be the same
    poses = Poses(*(v.round(decimals=9) for v in (poses.phi, poses.theta, poses.psi, poses.tau)))
    write_poses(folder / "poses.json", poses, [t.name for t in series])
    write_positions(folder / "positions.h5", positions, initial)
    energy, dtype = series[0].energy_ev, complex_dtype(context.config)
    modes = [orthogonalise(p.ensemble(grids.window, energy, _FINE)).to(dtype) for p in probes]
    defocus = [-p.aberrations["C10"] for p in probes]
    write_probes(folder / "probes.h5", modes, (grids.voxel, grids.voxel), energy, defocus)
    context.summarise(
        atoms=count_elements(atoms),
        source_angstrom=float(np.mean([np.mean(p.source[:2]) for p in probes])) ** 0.5,
        focal_spread_angstrom=float(np.mean([p.focal_variance for p in probes])) ** 0.5,
    )
