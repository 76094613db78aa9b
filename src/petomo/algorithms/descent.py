"""The minibatch solver of Algorithms 1 and 3: object, probes, positions and poses from patterns.

All patterns of a tilt at a time or minibatches of them, tilts in random order (Algorithm 1 has one tilt).
The object takes steps scaled by the known curvature of the model (the electron fluence), with momentum from
pass to pass, probes by theirs (the number of patterns), and positions and poses take Gauss-Newton steps at
the end of each visit to a tilt. The paper's plain gradient descent is the option ``solver="sgd"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from petomo.algorithms.descent_options import DescentOptions
from petomo.algorithms.descent_work import Work
from petomo.algorithms.refinement import refine_geometry
from petomo.algorithms.status import Status
from petomo.core.errors import UserError, WrongNumbers
from petomo.core.memory import patterns_at_once
from petomo.core.parallel import ALONE, Team
from petomo.core.pose import rotation_matrices
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.models.ptychography import Ptychography
from petomo.objectives.filters import DepthKernel
from petomo.objectives.losses import Amplitude, Poisson
from petomo.objectives.regularizers import (
    Filter,
    GradientFilter,
    Proximal,
    regularize_,
    regularize_gradient,
    separated,
)
from petomo.physics.multislice import Loss
from petomo.physics.probe import orthogonalise

Model = Ptychography | PtychoTomography

#: ``read(tilt, index) -> (k, ky, kx)`` electrons in FFT order on the model's device.
Reader = Callable[[int, Tensor], Tensor]


def reconstruct(
    model: Model,
    read: Reader,
    loss: Loss,
    options: DescentOptions,
    regularizers: Sequence | Callable[[int], Sequence] = (),
    state: dict | None = None,
    team: Team = ALONE,
) -> Iterator[Status]:
    """Run Algorithm 1 or 3 on ``model`` in place, yielding after every pass.

    Parameters
    ----------
    model : Ptychography or PtychoTomography
        Start values; holds the result.
    read : Reader
        Measured patterns, only the batch asked for.
    loss : Loss
        `petomo.objectives.losses`.
    options : DescentOptions
        Steps and schedules.
    regularizers : sequence, or callable of the pass number
        Objects of `petomo.objectives.regularizers`, applied in place: ``prox_`` after each volume step,
        ``filter_`` after each pass, ``filter_gradient`` before each volume step.
    state : dict, optional
        ``Status.state`` of an earlier pass: go on from there, to the same result as without the stop.
    team : Team
        Processes that share every batch, all called with the same model and options: they come to the same
        result, that of one process but for rounding.

    Raises
    ------
    UserError
        If there are more processes than a batch has patterns or the volume planes.
    WrongNumbers
        If plain gradient descent diverges.

    Yields
    ------
    Status
        ``loss`` is the mean per pattern over the pass, taken before each step. A pass that made it a
        tenth worse is undone, unless ``solver`` is ``"sgd"``, and all that follow take half the step
        (``extras["undone"]``).
    """
    _refuse_too_many(model, options, team)
    work = Work(model, options, state)
    for iteration in range(work.finished, options.iterations):
        work.begin()
        total, count = 0.0, 0
        terms = regularizers(iteration) if callable(regularizers) else regularizers
        for tilt in torch.randperm(len(model.positions), generator=work.generator).tolist():
            visit = _visit(model, read, loss, options, terms, work, iteration, tilt, team)
            total, count = total + visit, count + len(model.positions[tilt])
            if not math.isfinite(total):
                break
        if options.volume.active(iteration):
            _complete(model, team)
            _regularize_object(model, [r for r in terms if isinstance(r, Filter)])
        if options.probe.active(iteration) and math.isfinite(total):
            for probe in model.probes:
                probe.data.copy_(orthogonalise(probe.data))
        work.finished, extras = iteration + 1, {"step": work.scale(iteration)}
        if work.before is None and not math.isfinite(total):
            raise WrongNumbers(
                f"plain gradient descent diverged in pass {iteration + 1}; "
                "shorten the steps of volume and probe, or take the preconditioned solver"
            )
        if work.before is not None and work.rose(total / count):
            work.undo()
            extras["undone"] = 1.0
        # machines of different make round differently
        team.level_(*model.state_dict().values())
        yield Status(iteration + 1, total / count, extras, work.state())


def noise_floor(model: Model, loss: Amplitude | Poisson, sample: int = 16, team: Team = ALONE) -> float:
    """Mean loss per pattern that counting noise alone would leave if the model were right.

    Taken at ``sample`` positions spread over every tilt, each tilt by one process of the team.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.volume.device)
    for tilt in team.turns(len(model.positions)):
        positions = model.positions[tilt]
        index = torch.linspace(
            0, len(positions) - 1, min(sample, len(positions)), device=positions.device
        ).long()
        total += loss.noise_floor(model.predict(tilt, index))
    team.sum_(total)
    return float(total) / len(model.positions)


def _refuse_too_many(model: Model, options: DescentOptions, team: Team) -> None:
    scans = [len(positions) for positions in model.positions]
    batches = [count // options.batches(count) for count in scans]
    # a quarter of the positions is what the angles' curvature is measured at
    most = min(*model.volume.shape[1:], *batches, min(scans) // 4)
    if 1 < team.size > most:
        raise UserError(
            f"{team.size} processes are too many for batches of {min(batches)} patterns, scans of "
            f"{min(scans)} positions and a volume of {tuple(model.volume.shape)} voxels; start at most {most}"
        )


def _visit(model, read, loss, options, regularizers, work, iteration, tilt, team) -> float:
    """All batches of one tilt, then its geometry; returns the summed loss."""
    moves_angles = options.poses.active(iteration) and isinstance(model, PtychoTomography)
    _mark_moving(model, options, iteration, tilt, moves_angles)
    positions = model.positions[tilt]
    gradient = torch.zeros_like(positions)
    angle_gradient = torch.zeros(3, dtype=torch.float64, device=positions.device)
    order = torch.randperm(len(positions), generator=work.generator)
    # in the order of the scan, as they lie on the disk and in the field
    batches = [some.sort().values for some in order.tensor_split(options.batches(len(order)))]
    total = 0.0
    for number, index in enumerate(batches):
        value, electrons = _gradients(model, read, loss, tilt, index, team)
        total += value
        work.expect(total / len(index))
        if not math.isfinite(total):
            return total
        if positions.grad is not None:
            gradient += positions.grad
        if isinstance(model, PtychoTomography) and model.angles.grad is not None:
            angle_gradient += model.angles.grad[tilt]
        scale = work.scale(iteration, number / len(batches) / len(model.positions))
        with torch.no_grad():
            _step_object(model, options, regularizers, tilt, electrons, scale, loss.curvature, team)
            _step_probe(model, options, tilt, len(index), scale, loss.curvature)
    refine_geometry(
        model, options, iteration, tilt, work.curvature, loss.curvature, gradient, angle_gradient, team
    )
    return total


def _gradients(model, read, loss, tilt, index, team) -> tuple[float, float]:
    """Loss and electrons of a batch, and its gradients in the model.

    The volume is turned once for the batch, however many parts its patterns are read in. Every process of
    a team computes its share, and gets all gradients but that of the rows of the volume that others keep.
    """
    model.zero_grad(set_to_none=True)
    turned = model.phase(tilt, team)
    slices = tuple(None if s is None else s.detach().requires_grad_(s.requires_grad) for s in turned)
    sums = torch.zeros(2, dtype=torch.float64, device=model.volume.device)
    part = index[team.share(len(index))]
    for mine in part.split(patterns_at_once(model.probes[tilt][0].numel())):
        measured = read(tilt, mine)
        value = model(tilt, mine.to(sums.device), measured, loss, slices)
        if value.requires_grad:  # early on a schedule may hold everything
            value.backward()
        sums += torch.stack([value.detach(), measured.sum()])
    pairs = [(s, leaf.grad) for s, leaf in zip(turned, slices, strict=True) if leaf is not None]
    pairs = [(s, gradient) for s, gradient in pairs if gradient is not None]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))
    others = (model.probes[tilt], model.positions[tilt], getattr(model, "angles", None))
    team.sum_(sums, *(p.grad for p in others if p is not None and p.grad is not None))
    total, electrons = sums.tolist()
    return total, electrons


def _mark_moving(model, options, iteration, tilt, moves_angles):
    """Ask for gradients of what moves in this pass, and of nothing else."""
    model.requires_grad_(False)
    model.volume.requires_grad_(options.volume.active(iteration))
    if model.absorption is not None:
        model.absorption.requires_grad_(options.volume.active(iteration))
    model.probes[tilt].requires_grad_(options.probe.active(iteration))
    moves = moves_angles or options.positions.active(iteration) or options.affine.active(iteration)
    model.positions[tilt].requires_grad_(moves)
    if moves_angles:
        model.angles.requires_grad_(True)


def _step_object(model, options, regularizers, tilt, electrons, scale, curvature, team):
    """A step of the volume; each process of a team takes that of its own rows, whose gradient it has."""
    if model.volume.grad is None:
        return
    fluence = electrons / area_pixels(model, tilt)
    step, bound = options.volume.step * scale, model.lipschitz(fluence) * curvature / 2
    filters = [r for r in _along_beam(regularizers, model, tilt) if isinstance(r, GradientFilter)]
    for parameter in (model.volume, model.absorption):
        if parameter is None:
            continue
        rows, gradient = team.slab(parameter.data, dim=1), parameter.grad
        if options.solver == "sgd":
            rows.sub_(team.slab(gradient, dim=1), alpha=step)
            continue
        if filters:
            team.complete_(gradient, dim=1)
            gradient = regularize_gradient(filters, gradient)
        rows.sub_(team.slab(gradient, dim=1), alpha=step / bound)
    _regularize_object(model, [r for r in regularizers if isinstance(r, Proximal)], step, team)


def _along_beam(terms: Sequence, model: Model, tilt: int) -> list:
    """Terms with their depth direction along the beam of this tilt, seen from the specimen."""
    if not isinstance(model, PtychoTomography) or not any(isinstance(t, DepthKernel) for t in terms):
        return list(terms)
    beam = rotation_matrices(*model.angles.data[tilt])[2].tolist()
    return [replace(t, beam=tuple(beam)) if isinstance(t, DepthKernel) else t for t in terms]


def _regularize_object(model: Model, terms: Sequence, step: float = 1.0, team: Team = ALONE):
    """Apply ``terms`` to the volume, or to the complex volume whose imaginary part is the absorption.

    In a team each process does its own rows where that can be.
    """
    rows = (slice(None), team.share(model.volume.shape[1]))
    mine = separated(terms, rows)
    if mine is None:
        _complete(model, team)
        rows, mine = (), terms
    volume = model.volume.data[rows]
    if model.absorption is None:
        regularize_(mine, volume, step)
    elif mine:
        whole = torch.complex(volume, model.absorption.data[rows])
        regularize_(mine, whole, step)
        volume.copy_(whole.real)
        model.absorption.data[rows].copy_(whole.imag)


def _complete(model: Model, team: Team):
    """Put the volume together from the rows that the processes of a team have stepped."""
    for parameter in (model.volume, model.absorption):
        if parameter is not None:
            team.complete_(parameter.data, dim=1)


def _step_probe(model, options, tilt, patterns, scale, curvature):
    probe = model.probes[tilt]
    if probe.grad is None:
        return
    if options.solver == "sgd":
        probe.data.sub_(probe.grad, alpha=options.probe.step)
    else:
        # a specimen that only shifts phases is unitary: the loss bends the same in every pixel of the probe
        probe.data.sub_(probe.grad, alpha=options.probe.step * scale / (curvature * patterns))


def area_pixels(model: Model, tilt: int) -> float:
    """Scanned area of a tilt in pixels; a line scan counts as one pixel wide."""
    positions = model.positions[tilt].detach()
    extent = positions.amax(0) - positions.amin(0)
    # k positions span k - 1 steps: add one step to either side
    step = (extent.prod() / len(positions)).sqrt()
    return float(((extent + step) / model.pixel_size).clamp_min(1).prod())
