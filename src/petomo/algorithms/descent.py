"""The minibatch solver of Algorithms 1 and 3: object, probes, positions and poses from patterns.

Minibatches of scan positions, tilts in random order (Algorithm 1 has one tilt). The object takes
momentum steps scaled by the known curvature of the model (the electron fluence), probes by theirs (the
number of patterns), and positions and poses take Gauss-Newton steps at the end of each visit to a
tilt. The paper's plain gradient descent is the option ``solver="sgd"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from petomo.algorithms.refinement import (
    affine_basis,
    angle_curvature,
    damped_solve,
    pooled_step,
    position_curvature,
    single_steps,
    turn_scan,
)
from petomo.algorithms.status import Status
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.models.ptychography import Ptychography
from petomo.objectives.regularizers import (
    Filter,
    L1Imaginary,
    Proximal,
    regularize_,
    regularize_gradient,
    shrink_,
)
from petomo.physics.multislice import Loss
from petomo.physics.probe import orthogonalise

Model = Ptychography | PtychoTomography

#: ``read(tilt, index) -> (k, ky, kx)`` electrons in FFT order on the model's device.
Reader = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """When a variable moves, and how far.

    Parameters
    ----------
    step : float
        Fraction of the full (Lipschitz or Gauss-Newton) step; 0 holds the variable.
    start, stop : int
        First pass, and the pass at which it is held again.
    """

    step: float
    start: int = 0
    stop: int = 10**9

    def active(self, iteration: int) -> bool:
        """Whether the variable moves in this pass (counted from 0)."""
        return self.step > 0 and self.start <= iteration < self.stop


@dataclass(frozen=True)
class DescentOptions:
    """Settings of `reconstruct`.

    Parameters
    ----------
    iterations : int
        Passes over the data.
    batch_size : int
        Patterns per volume step.
    solver : {"preconditioned", "sgd"}
        Steps scaled by curvature with momentum, or the paper's plain gradient descent with
        ``volume.step`` and ``probe.step`` used as they are.
    volume, probe, positions, affine, poses : Schedule
        ``affine`` moves all positions of a tilt together (shift and linear distortion), ``positions``
        each by itself, ``poses`` the three angles.
    momentum : float
        Of the volume.
    final_step : float
        Volume and probe steps fall to this share of their start along a half cosine.
    prior_angstrom : float
        Standard deviation expected of single positions about the affine scan.
    curvature_every : int
        Passes between measurements of the geometry's curvature.
    seed : int
        Of the tilt and batch order.
    """

    iterations: int = 30
    batch_size: int = 128
    solver: str = "preconditioned"
    volume: Schedule = field(default_factory=lambda: Schedule(1.0))
    probe: Schedule = field(default_factory=lambda: Schedule(0.5, start=1))
    positions: Schedule = field(default_factory=lambda: Schedule(0.5, start=6))
    affine: Schedule = field(default_factory=lambda: Schedule(0.7, start=3))
    poses: Schedule = field(default_factory=lambda: Schedule(0.7, start=3))
    momentum: float = 0.9
    final_step: float = 0.05
    prior_angstrom: float = 0.1
    curvature_every: int = 4
    seed: int = 0


def reconstruct(
    model: Model,
    read: Reader,
    loss: Loss,
    options: DescentOptions,
    regularizers: Sequence | Callable[[int], Sequence] = (),
    state: dict | None = None,
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

    Yields
    ------
    Status
        ``loss`` is the mean per pattern over the pass, taken before each step.
    """
    work = _Work(model, options, state)
    for iteration in range(work.finished, options.iterations):
        total, count = 0.0, 0
        terms = regularizers(iteration) if callable(regularizers) else regularizers
        for tilt in torch.randperm(len(model.positions), generator=work.generator).tolist():
            visit = _visit(model, read, loss, options, terms, work, iteration, tilt)
            total, count = total + visit, count + len(model.positions[tilt])
        regularize_([r for r in terms if isinstance(r, Filter)], model.volume.data)
        if options.probe.active(iteration):
            for probe in model.probes:
                probe.data.copy_(orthogonalise(probe.data))
        work.finished = iteration + 1
        yield Status(iteration + 1, total / count, {"step": work.scale(iteration)}, work.state())


class _Work:
    """What the solver carries from pass to pass."""

    def __init__(self, model: Model, options: DescentOptions, state: dict | None):
        self.model, self.options = model, options
        self.generator = torch.Generator().manual_seed(options.seed)
        self.momentum = torch.zeros_like(model.volume.data)
        self.momentum_absorption = (
            None if model.absorption is None else torch.zeros_like(model.absorption.data)
        )
        self.curvature: dict[str, Tensor] = {}
        self.finished = 0
        if state is not None:
            self._load(state)

    def scale(self, iteration: int, part: float = 0.0) -> float:
        """Share of the full step at this point of the run."""
        if self.options.solver == "sgd":
            return 1.0
        low, x = self.options.final_step, (iteration + part) / self.options.iterations
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, x)))

    def state(self) -> dict:
        """Snapshot to resume from."""
        out = {
            "finished": self.finished,
            "model": {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()},
            "momentum": self.momentum.cpu().clone(),
            "generator": self.generator.get_state(),
            "curvature": {k: v.cpu().clone() for k, v in self.curvature.items()},
        }
        if self.momentum_absorption is not None:
            out["momentum_absorption"] = self.momentum_absorption.cpu().clone()
        return out

    def _load(self, state: dict):
        self.model.load_state_dict({k: torch.as_tensor(v) for k, v in state["model"].items()})
        device = self.momentum.device
        self.momentum.copy_(torch.as_tensor(state["momentum"]))
        if self.momentum_absorption is not None:
            self.momentum_absorption.copy_(torch.as_tensor(state["momentum_absorption"]))
        self.generator.set_state(torch.as_tensor(state["generator"]))
        self.finished = int(state["finished"])
        self.curvature = {k: torch.as_tensor(v).to(device) for k, v in state["curvature"].items()}


def _visit(model, read, loss, options, regularizers, work, iteration, tilt) -> float:
    """All batches of one tilt, then its geometry; returns the summed loss."""
    moves_positions = options.positions.active(iteration) or options.affine.active(iteration)
    moves_angles = options.poses.active(iteration) and isinstance(model, PtychoTomography)
    positions = model.positions[tilt]
    gradient = torch.zeros_like(positions)
    angle_gradient = torch.zeros(3, dtype=torch.float64, device=positions.device)
    model.requires_grad_(False)
    model.volume.requires_grad_(options.volume.active(iteration))
    model.probes[tilt].requires_grad_(options.probe.active(iteration))
    positions.requires_grad_(moves_positions or moves_angles)
    if moves_angles:
        model.angles.requires_grad_(True)
    if model.absorption is not None:
        model.absorption.requires_grad_(options.volume.active(iteration))
    order = torch.randperm(len(positions), generator=work.generator)
    batches = order.tensor_split(max(1, round(len(order) / options.batch_size)))
    total = 0.0
    for number, index in enumerate(batches):
        model.zero_grad(set_to_none=True)
        measured = read(tilt, index)
        value = model(tilt, index.to(positions.device), measured, loss)
        value.backward()
        total += float(value.detach())
        if positions.grad is not None:
            gradient += positions.grad
        if moves_angles:
            angle_gradient += model.angles.grad[tilt]
        scale = work.scale(iteration, number / len(batches) / len(model.positions))
        with torch.no_grad():
            _step_object(model, options, regularizers, work, tilt, measured, scale)
            _step_probe(model, options, tilt, len(index), scale)
    _step_geometry(model, loss, options, work, iteration, tilt, gradient, angle_gradient)
    return total


def _step_object(model, options, regularizers, work, tilt, measured, scale):
    fluence = float(measured.sum()) / _area_pixels(model, tilt)
    step = options.volume.step * scale
    pairs = [(model.volume, work.momentum)]
    if model.absorption is not None:
        pairs.append((model.absorption, work.momentum_absorption))
    for parameter, momentum in pairs:
        if parameter.grad is None:
            continue
        if options.solver == "sgd":
            parameter.data.sub_(parameter.grad, alpha=step)
        else:
            gradient = regularize_gradient(regularizers, parameter.grad)
            momentum.mul_(options.momentum).add_(
                gradient, alpha=(1 - options.momentum) / model.lipschitz(fluence)
            )
            parameter.data.sub_(momentum, alpha=step)
    if model.volume.grad is not None:
        regularize_([r for r in regularizers if isinstance(r, Proximal)], model.volume.data, step)
    if model.absorption is not None:
        for regularizer in regularizers:
            if isinstance(regularizer, L1Imaginary):
                shrink_(model.absorption.data, regularizer.weight * step)


def _step_probe(model, options, tilt, patterns, scale):
    probe = model.probes[tilt]
    if probe.grad is None:
        return
    if options.solver == "sgd":
        probe.data.sub_(probe.grad, alpha=options.probe.step)
    else:
        # a specimen that only shifts phases is unitary: the curvature is twice the number of patterns
        probe.data.sub_(probe.grad, alpha=options.probe.step * scale / (2 * patterns))


def _area_pixels(model: Model, tilt: int) -> float:
    """Scanned area of a tilt in pixels."""
    positions = model.positions[tilt].detach()
    extent = positions.amax(0) - positions.amin(0)
    # k positions span k - 1 steps: add one step to either side
    step = (extent.prod() / len(positions)).sqrt()
    return float((extent + step).prod()) / model.pixel_size**2


@torch.no_grad()
def _step_geometry(model, loss, options, work, iteration, tilt, gradient, angle_gradient):
    positions = model.positions[tilt].data
    again = iteration % options.curvature_every == 0
    if options.poses.active(iteration) and isinstance(model, PtychoTomography):
        key = f"angles_{tilt}"
        if key not in work.curvature or again:
            work.curvature[key] = angle_curvature(model, tilt, loss.curvature)
        arm = positions.double() - model.tau.data[tilt]
        angle_gradient = angle_gradient.clone()
        angle_gradient[2] += (gradient[:, 1] * arm[:, 0] - gradient[:, 0] * arm[:, 1]).sum()
        step = (
            -damped_solve(work.curvature[key], angle_gradient, 1e-2).clamp(-5e-3, 5e-3) * options.poses.step
        )
        model.angles.data[tilt] += step
        positions.copy_(turn_scan(positions, model.tau.data[tilt], step[2]))
    if not (options.affine.active(iteration) or options.positions.active(iteration)):
        return
    key = f"positions_{tilt}"
    if key not in work.curvature or again:
        work.curvature[key] = position_curvature(model, tilt, loss.curvature)
    known = work.curvature[key]
    if options.affine.active(iteration):
        basis = affine_basis(positions)
        shared = (basis.double() @ pooled_step(basis, known, gradient)).to(
            positions.dtype
        ) * options.affine.step
        shared = shared.clamp(-0.3, 0.3)
        gradient = gradient + (known @ shared[..., None])[..., 0]
        _move(model, tilt, shared)
    if options.positions.active(iteration):
        prior = loss.curvature / 4 / options.prior_angstrom**2
        _move(model, tilt, single_steps(known, gradient, prior).clamp(-0.1, 0.1) * options.positions.step)


def _move(model: Model, tilt: int, step: Tensor):
    """Move the positions of a tilt; what all share is the specimen's shift and goes into tau."""
    mean = step.mean(0)
    model.positions[tilt].data += step - mean
    if isinstance(model, PtychoTomography):
        model.tau.data[tilt] -= mean.double()
