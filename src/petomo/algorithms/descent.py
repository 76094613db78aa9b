"""The minibatch solver of Algorithms 1 and 3: object, probes, positions and poses from patterns.

Minibatches of scan positions, tilts in random order (Algorithm 1 has one tilt). The object takes
momentum steps scaled by the known curvature of the model (the electron fluence), probes by theirs (the
number of patterns), and positions and poses take Gauss-Newton steps at the end of each visit to a
tilt. The paper's plain gradient descent is the option ``solver="sgd"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from petomo.algorithms.descent_options import DescentOptions
from petomo.algorithms.refinement import refine_geometry
from petomo.algorithms.status import Status
from petomo.core.errors import WrongNumbers
from petomo.core.pose import rotation_matrices
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.models.ptychography import Ptychography
from petomo.objectives.filters import DepthKernel
from petomo.objectives.losses import Amplitude, Poisson
from petomo.objectives.regularizers import Filter, Proximal, regularize_, regularize_gradient
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

    Raises
    ------
    WrongNumbers
        If plain gradient descent diverges.

    Yields
    ------
    Status
        ``loss`` is the mean per pattern over the pass, taken before each step. A pass that made it a
        tenth worse is undone, unless ``solver`` is ``"sgd"``, and all that follow take half the step
        (``extras["undone"]``).
    """
    work = _Work(model, options, state)
    for iteration in range(work.finished, options.iterations):
        before, total, count = work.snapshot(), 0.0, 0
        terms = regularizers(iteration) if callable(regularizers) else regularizers
        for tilt in torch.randperm(len(model.positions), generator=work.generator).tolist():
            visit = _visit(model, read, loss, options, terms, work, iteration, tilt)
            total, count = total + visit, count + len(model.positions[tilt])
            if not math.isfinite(total):
                break
        if options.volume.active(iteration):
            _regularize_object(model, [r for r in terms if isinstance(r, Filter)])
        if options.probe.active(iteration) and math.isfinite(total):
            for probe in model.probes:
                probe.data.copy_(orthogonalise(probe.data))
        work.finished, extras = iteration + 1, {"step": work.scale(iteration)}
        if before is None and not math.isfinite(total):
            raise WrongNumbers(
                f"plain gradient descent diverged in pass {iteration + 1}; "
                "shorten the steps of volume and probe, or take the preconditioned solver"
            )
        if before is not None and work.rose(total / count):
            work.undo(before)
            extras["undone"] = 1.0
        yield Status(iteration + 1, total / count, extras, work.state())


def noise_floor(model: Model, loss: Amplitude | Poisson, sample: int = 16) -> float:
    """Mean loss per pattern that counting noise alone would leave if the model were right.

    Taken at ``sample`` positions spread over every tilt.
    """
    floors = []
    for tilt, positions in enumerate(model.positions):
        index = torch.linspace(
            0, len(positions) - 1, min(sample, len(positions)), device=positions.device
        ).long()
        floors.append(loss.noise_floor(model.predict(tilt, index)))
    return float(torch.stack(floors).mean())


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
        self.finished, self.caution, self.last = 0, 1.0, math.inf
        if state is not None:
            self._load(state)

    def scale(self, iteration: int, part: float = 0.0) -> float:
        """Share of the full step at this point of the run."""
        if self.options.solver == "sgd":
            return 1.0
        low, x = self.options.final_step, (iteration + part) / self.options.iterations
        return self.caution * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))

    def snapshot(self) -> list[Tensor] | None:
        """Copies of all that `undo` brings back; None for plain descent, which is left to itself."""
        return None if self.options.solver == "sgd" else [t.clone() for t in self._moving()]

    def expect(self, loss: float):
        """Take the first loss of a run for a mark, with room to spare."""
        if self.finished == 0 and math.isinf(self.last):
            self.last = 1.5 * loss

    def rose(self, loss: float) -> bool:
        """Whether this pass was a failure: too long a step for a curvature that is known by its bound."""
        worse = not loss < 1.1 * self.last
        # after a failure the next pass sets the mark: what it starts from may be no better
        self.last = math.inf if worse else loss
        return worse

    def undo(self, before: list[Tensor]):
        """Back to a snapshot, without momentum, with half the step."""
        for tensor, kept in zip(self._moving(), before, strict=True):
            tensor.copy_(kept)
        for momentum in (self.momentum, self.momentum_absorption):
            if momentum is not None:
                momentum.zero_()
        self.caution /= 2

    def _moving(self) -> list[Tensor]:
        return list(self.model.state_dict().values())

    def state(self) -> dict:
        """What to resume from; the tensors are those the solver goes on with."""
        out = {
            "finished": self.finished,
            "caution": self.caution,
            "last": self.last,
            "model": dict(self.model.state_dict()),
            "momentum": self.momentum,
            "generator": self.generator.get_state(),
            "curvature": dict(self.curvature),
        }
        if self.momentum_absorption is not None:
            out["momentum_absorption"] = self.momentum_absorption
        return out

    def _load(self, state: dict):
        self.model.load_state_dict({k: torch.as_tensor(v) for k, v in state["model"].items()})
        device = self.momentum.device
        self.momentum.copy_(torch.as_tensor(state["momentum"]))
        if self.momentum_absorption is not None:
            self.momentum_absorption.copy_(torch.as_tensor(state["momentum_absorption"]))
        self.generator.set_state(torch.as_tensor(state["generator"]))
        self.finished, self.caution, self.last = (state[k] for k in ("finished", "caution", "last"))
        self.curvature = {k: torch.as_tensor(v).to(device) for k, v in state["curvature"].items()}


def _visit(model, read, loss, options, regularizers, work, iteration, tilt) -> float:
    """All batches of one tilt, then its geometry; returns the summed loss."""
    moves_angles = options.poses.active(iteration) and isinstance(model, PtychoTomography)
    _mark_moving(model, options, iteration, tilt, moves_angles)
    positions = model.positions[tilt]
    gradient = torch.zeros_like(positions)
    angle_gradient = torch.zeros(3, dtype=torch.float64, device=positions.device)
    order = torch.randperm(len(positions), generator=work.generator)
    batches = order.tensor_split(max(1, round(len(order) / options.batch_size)))
    total = 0.0
    for number, index in enumerate(batches):
        model.zero_grad(set_to_none=True)
        measured = read(tilt, index)
        value = model(tilt, index.to(positions.device), measured, loss)
        total += float(value.detach())
        work.expect(total / len(index))
        if not math.isfinite(total):
            return total
        if value.requires_grad:  # early on a schedule may hold everything
            value.backward()
        if positions.grad is not None:
            gradient += positions.grad
        if isinstance(model, PtychoTomography) and model.angles.grad is not None:
            angle_gradient += model.angles.grad[tilt]
        scale = work.scale(iteration, number / len(batches) / len(model.positions))
        with torch.no_grad():
            _step_object(model, options, regularizers, work, tilt, measured, scale, loss.curvature)
            _step_probe(model, options, tilt, len(index), scale, loss.curvature)
    refine_geometry(model, options, iteration, tilt, work.curvature, loss.curvature, gradient, angle_gradient)
    return total


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


def _step_object(model, options, regularizers, work, tilt, measured, scale, curvature):
    if model.volume.grad is None:
        return
    fluence = float(measured.sum()) / _area_pixels(model, tilt)
    step, bound = options.volume.step * scale, model.lipschitz(fluence) * curvature / 2
    pairs = [(model.volume, work.momentum)]
    if model.absorption is not None:
        pairs.append((model.absorption, work.momentum_absorption))
    for parameter, momentum in pairs:
        if options.solver == "sgd":
            parameter.data.sub_(parameter.grad, alpha=step)
        else:
            gradient = regularize_gradient(_along_beam(regularizers, model, tilt), parameter.grad)
            momentum.mul_(options.momentum).add_(gradient, alpha=(1 - options.momentum) / bound)
            parameter.data.sub_(momentum, alpha=step)
    _regularize_object(model, [r for r in regularizers if isinstance(r, Proximal)], step)


def _along_beam(terms: Sequence, model: Model, tilt: int) -> list:
    """Terms with their depth direction along the beam of this tilt, seen from the specimen."""
    if not isinstance(model, PtychoTomography):
        return list(terms)
    beam = rotation_matrices(*model.angles.data[tilt])[2].tolist()
    return [replace(t, beam=tuple(beam)) if isinstance(t, DepthKernel) else t for t in terms]


def _regularize_object(model: Model, terms: Sequence, step: float = 1.0):
    """Apply ``terms`` to the volume, or to the complex volume whose imaginary part is the absorption."""
    if model.absorption is None:
        regularize_(terms, model.volume.data, step)
    elif terms:
        whole = torch.complex(model.volume.data, model.absorption.data)
        regularize_(terms, whole, step)
        model.volume.data.copy_(whole.real)
        model.absorption.data.copy_(whole.imag)


def _step_probe(model, options, tilt, patterns, scale, curvature):
    probe = model.probes[tilt]
    if probe.grad is None:
        return
    if options.solver == "sgd":
        probe.data.sub_(probe.grad, alpha=options.probe.step)
    else:
        # a specimen that only shifts phases is unitary: the loss bends the same in every pixel of the probe
        probe.data.sub_(probe.grad, alpha=options.probe.step * scale / (curvature * patterns))


def _area_pixels(model: Model, tilt: int) -> float:
    """Scanned area of a tilt in pixels; a line scan counts as one pixel wide."""
    positions = model.positions[tilt].detach()
    extent = positions.amax(0) - positions.amin(0)
    # k positions span k - 1 steps: add one step to either side
    step = (extent.prod() / len(positions)).sqrt()
    return float(((extent + step) / model.pixel_size).clamp_min(1).prod())
