"""Atoms, poses and scans refined together through the patterns (the paper's outlook).

Minimises the negative log-posterior of all patterns with a preconditioned quasi-Newton method. The
curvatures that scale the preconditioner are measured on the model itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from petomo.algorithms.atom_curvatures import Curvatures
from petomo.algorithms.atom_objective import AtomOptions, Objective, Reader, adapted
from petomo.algorithms.probe_fit import DRIFTS, SPREADS, fit_probe, share
from petomo.algorithms.quasi_newton import minimise
from petomo.algorithms.site_errors import LEAST_TILTS, Halves, position_errors
from petomo.algorithms.site_review import (
    Candidates,
    add_missing,
    drop_weak,
    keep_sites,
    name_elements,
    order_pairs,
    split_heavy,
)
from petomo.algorithms.status import Status
from petomo.core.parallel import ALONE, Team
from petomo.models.atomic_tomography import AtomicTomography
from petomo.models.ptycho_tomography import TomographyGeometry
from petomo.physics.multislice import diffract
from petomo.physics.partial_coherence import ProbeModel


@dataclass(frozen=True)
class Level:
    """How finely patterns are modelled for some rounds of `refine_atoms`.

    Parameters
    ----------
    geometry : TomographyGeometry
        Slices and optics. The voxel decides how much of what is scattered far out comes back elsewhere on
        the detector; a recorded angle within two thirds of the window's is free of it.
    read : Reader
        Measured patterns in the window of ``geometry``.
    loss : Loss
        A negative log-likelihood (`petomo.objectives.losses.Poisson`) on that window.
    members : int
        Coherent probes that stand for partial coherence, see `ProbeModel.ensemble`.
    rounds : int
        Rounds on this level.
    candidates : Candidates, optional
        Where to look for missing atoms; without it none is added.
    """

    geometry: TomographyGeometry
    read: Reader
    loss: Any
    members: int
    rounds: int
    candidates: Candidates | None = None


def refine_atoms(
    model: AtomicTomography,
    probes: Sequence[ProbeModel],
    levels: Sequence[Level],
    nominal: Tensor,
    elements: Sequence[int],
    options: AtomOptions,
    state: dict | None = None,
    team: Team = ALONE,
) -> Iterator[Status]:
    """Refine atoms, poses and scans in rounds, yielding after every iteration.

    A round fits the probes with all else held, runs a quasi-Newton method on the rest, and then looks
    at the atoms again: their elements, those that are not there, those that are missing. At the end the
    halves of the tilts are refined apart, for the standard errors.

    Parameters
    ----------
    model : AtomicTomography
        Start values; holds the result.
    probes : sequence of ProbeModel
        Start values, one per tilt.
    levels : sequence of Level
        From coarse to fine.
    nominal : Tensor
        Nominal stage tilts in radian ``(tilt,)``.
    elements : sequence of int
        Atomic numbers that occur.
    options : AtomOptions
        Iterations and priors.
    state : dict, optional
        ``Status.state`` of an earlier iteration: goes on from the beginning of its round.
    team : Team
        Processes that share the work; all have the same arguments and come to the same.

    Yields
    ------
    Status
        ``loss`` is the mean per pattern, priors included; ``extras`` has the round and the number of atoms.
        The last one's ``state`` has ``errors``, the standard errors of the sites ``(atom, 3)``.
    """
    start, probes, first, positions, reached = list(probes), list(probes), 0, None, 0.0
    if state is not None:
        first, probes = int(state["round"]), [ProbeModel.from_dict(p) for p in state["probes"]]
        reached = float(state.get("value", 0.0))  # none in checkpoints of earlier versions
        positions = [torch.as_tensor(p) for p in state["curvatures"]] or None
        for tilt, known in enumerate(positions or ()):
            model.weigh_positions(tilt, known)
        restore(model, state)
    patterns = sum(len(s) for s in model.stray)
    schedule = [level for level in levels for _ in range(level.rounds)]
    for number in range(first, len(schedule)):
        level, last = schedule[number], number == len(schedule) - 1
        if team.size > 1:  # processors of different makes may differ where a threshold is met to the last bit
            restore(model, team.from_main(snapshot(model)))
        begun = _state(model, probes, number, positions, reached)
        model.geometry = level.geometry
        probes = fit_probes(model, probes, level, options, start, number == 0, team)
        curvatures = Curvatures(model, level.loss.curvature, positions, team)
        positions = curvatures.positions
        for tilt, known in enumerate(positions):
            model.weigh_positions(tilt, known)
        # what scans and angles are like before they were refined says little of how they are
        expected = adapted(options, model, nominal).cautious() if number else options
        objective = Objective(model, level.read, level.loss, nominal, expected, team)
        solver = minimise(
            objective,
            objective.point(),
            objective.preconditioner(curvatures),
            objective.longest(),
            objective.least(),
        )
        now, value = next(solver), math.inf
        extras = {"round": number + 1.0, "atoms": float(len(model.numbers)), "step": now.step}
        for step, now in enumerate(itertools.islice(solver, options.iterations), 1):
            extras["step"] = now.step
            if step == options.iterations or value - now.value < options.tolerance * len(now.point):
                break
            value = now.value
            yield Status(number * options.iterations + step, value / patterns, dict(extras), begun)
        objective.go(now.point)  # the last trial may have led nowhere
        extras["renamed"] = float(name_elements(model, elements))
        extras["exchanged"] = float(order_pairs(model, objective.of_atoms))
        if not last:
            extras |= _review(model, level, elements, options, curvatures.shapes, team)
        extras["atoms"] = float(len(model.numbers))
        reached = now.value
        end = _state(model, probes, number + 1, positions, reached)
        yield Status((number + 1) * options.iterations, reached / patterns, extras, end)
    if first <= len(schedule):
        yield from _compare_halves(model, probes, schedule, nominal, options, positions, reached, team)


def _compare_halves(
    model: AtomicTomography,
    probes: Sequence[ProbeModel],
    schedule: Sequence[Level],
    nominal: Tensor,
    options: AtomOptions,
    positions: list[Tensor] | None,
    value: float,
    team: Team,
) -> Iterator[Status]:
    """Refine each half of the tilts on its own, and get standard errors from their disagreement.

    ``value`` is what the refinement of all came to.
    """
    level, done = schedule[-1], len(schedule)
    model.geometry = level.geometry
    curvatures = Curvatures(model, level.loss.curvature, positions, team)
    expected = adapted(options, model, nominal)
    begun, patterns = _state(model, probes, done, positions, value), sum(len(s) for s in model.stray)
    halves = None
    if len(nominal) >= LEAST_TILTS and options.half_iterations:
        # not cautious: against half of the patterns that would hide what they disagree on
        halves = Halves(model, level.read, level.loss, nominal, expected, curvatures, team)
        for step in range(1, options.half_iterations + 1):
            gain, value = halves.step(), halves.value
            if gain < options.half_tolerance:
                break
            if step < options.half_iterations:
                count = {"halves": 2.0, "atoms": float(len(model.numbers))}
                yield Status(done * options.iterations + step, value / patterns, count, begun)
    apart = halves.sites() if halves else None
    errors = position_errors(model, curvatures, expected.precisions(), apart)
    there = torch.nonzero(model.occupancy.detach() >= options.least_occupancy)[:, 0]
    keep_sites(model, model.current_sites().select(there.numpy()))
    extras = {"halves": 2.0 if halves else 0.0, "atoms": float(len(model.numbers))}
    end = _state(model, probes, done + 1, positions, value) | {"errors": errors[there]}
    yield Status(done * options.iterations + options.half_iterations, value / patterns, extras, end)


def _review(
    model: AtomicTomography,
    level: Level,
    elements: Sequence[int],
    options: AtomOptions,
    shapes: Tensor,
    team: Team,
) -> dict[str, float]:
    """Look at the atoms again: how many were dropped, split, added."""
    found = {"dropped": float(drop_weak(model, options.least_occupancy, 1.0))}
    if level.candidates is not None:
        apart = level.candidates.min_distance
        found["split"] = float(split_heavy(model, options.most_occupancy, apart))
        least, lightest = options.least_wanted, min(elements)
        added = add_missing(model, level.read, level.loss, lightest, level.candidates, least, shapes, team)
        found["added"] = float(added)
    return found


def _state(
    model: AtomicTomography,
    probes: Sequence[ProbeModel],
    finished: int,
    curvatures: list[Tensor] | None,
    value: float,
) -> dict:
    fits = [p.to_dict() for p in probes]
    known = {"round": finished, "probes": fits, "curvatures": curvatures or [], "value": value}
    return known | snapshot(model)


def fit_probes(
    model: AtomicTomography,
    probes: Sequence[ProbeModel],
    level: Level,
    options: AtomOptions,
    start: Sequence[ProbeModel],
    first: bool,
    team: Team = ALONE,
) -> list[ProbeModel]:
    """Fit the probe of every tilt on some of its patterns, and put it into the model.

    The first time everything about them is fitted, and what they share is then averaged; after that only
    what changes from tilt to tilt.

    Parameters
    ----------
    model, level, options
        As for `refine_atoms`.
    probes, start : sequence of ProbeModel
        As they stand now, and as the refinement began; one per tilt.
    first : bool
        Whether this is the first time.
    team : Team
        As for `refine_atoms`.
    """
    optics, dtype = level.geometry.optics, model.probe(0).dtype
    centres = start if first else [_centred(p, s) for p, s in zip(share(probes), start, strict=True)]
    steps, spreads = (2, SPREADS) if first else (1, DRIFTS)

    def fit(tilt: int) -> ProbeModel:
        count = len(model.stray[tilt])
        index = torch.linspace(0, count - 1, min(count, options.probe_patterns)).long()
        phase = model.phase(tilt).detach()
        pixels = model.pixels(tilt, index).detach()

        def predict(members: Tensor) -> Tensor:
            return diffract(phase, None, members.to(model.device, dtype), pixels, optics)

        data = level.read(tilt, index), level.loss, optics, level.members
        return fit_probe(probes[tilt], predict, *data, steps, centres[tilt], spreads)[0]

    fitted = team.each(len(probes), fit)
    fitted = share(fitted) if first else fitted
    for tilt, probe in enumerate(fitted):
        model.illuminate(tilt, probe.ensemble(optics.window, optics.energy_ev, level.members).to(dtype))
    return fitted


def _centred(shared: ProbeModel, start: ProbeModel) -> ProbeModel:
    """What is expected of a tilt: the aberrations that all share, and its own start values."""
    aberrations = {**shared.aberrations, "C10": start.aberrations.get("C10", 0.0)}
    return replace(start, semiangle_mrad=shared.semiangle_mrad, aberrations=aberrations)


def snapshot(model: AtomicTomography) -> dict:
    """All that `restore` needs, as tensors on the processor."""
    return {
        "numbers": torch.as_tensor(model.numbers),
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "illumination": [model.probe(t).cpu().clone() for t in range(len(model.stray))],
    }


def restore(model: AtomicTomography, state: dict) -> None:
    """Bring a model of the same tilts and scans to a `snapshot`."""
    model.numbers = torch.as_tensor(state["numbers"]).numpy()
    for name, value in state["parameters"].items():
        model.get_parameter(name).data = torch.as_tensor(value).clone()
    for tilt, probe in enumerate(state["illumination"]):
        model.illuminate(tilt, torch.as_tensor(probe))
