"""Atoms, poses and scans refined together through the patterns (the paper's outlook).

Minimises the negative log-posterior of all patterns with a preconditioned quasi-Newton method. The
curvatures that scale the preconditioner are measured on the model itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petomo.algorithms.atom_curvatures import Curvatures
from petomo.algorithms.bundle_preconditioner import POSE_PARAMETERS, BundlePreconditioner
from petomo.algorithms.probe_fit import PARAMETERS, QUICK, fit_probe
from petomo.algorithms.quasi_newton import minimise
from petomo.algorithms.site_errors import position_errors
from petomo.algorithms.site_review import Candidates, add_missing, drop_weak, keep_sites, name_elements
from petomo.algorithms.status import Status
from petomo.models.atomic_tomography import AtomicTomography
from petomo.physics.multislice import Loss, diffract
from petomo.physics.partial_coherence import ProbeModel

Reader = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class AtomOptions:
    """What is expected of the unknowns, as standard deviations; they keep weakly seen ones in place.

    Parameters
    ----------
    rounds : int
        Rounds of `refine_atoms`.
    iterations : int
        Quasi-Newton iterations a round.
    probe_modes : int
        Modes of the partially coherent probe.
    probe_patterns : int
        How many patterns of a tilt its probe is fitted to.
    least_occupancy : float
        Sites with less are dropped.
    least_wanted : float
        Places where one Newton step asks for more of an atom become sites. A whole atom that is missing
        asks for about a quarter, because the curvature is that of atoms that all grow together.
    phi_width, theta_width, psi_width : float
        Radian; about the mean over the tilts, theta about the nominal stage tilt.
    affine_width : float
        Distortion of a scan.
    scale_width : float
        Mean distortion of all scans: the scan, not the detector, says how long an angstrom is.
    stray_width : float
        Single scan positions, angstrom along one axis.
    occupancy_width : float
        Occupancy about 1.
    variance_width : float
        Mean squared displacement about its mean, square angstrom.
    """

    rounds: int = 3
    iterations: int = 3
    probe_modes: int = 10
    probe_patterns: int = 40
    least_occupancy: float = 0.4
    least_wanted: float = 0.15
    phi_width: float = math.radians(0.3)
    theta_width: float = math.radians(0.3)
    psi_width: float = math.radians(0.3)
    affine_width: float = 0.01
    scale_width: float = 3e-4
    stray_width: float = 0.1
    occupancy_width: float = 0.3
    variance_width: float = 0.005


class Objective:
    """Negative log-posterior as a function of one vector.

    Parameters
    ----------
    model : AtomicTomography
        Holds the point last asked for.
    read : Reader
        Measured patterns.
    loss : Loss
        A negative log-likelihood.
    nominal : Tensor
        Nominal stage tilts in radian ``(tilt,)``.
    options : AtomOptions
        Widths of the priors.

    Attributes
    ----------
    slopes : Tensor
        Gradient in the sites of each tilt's patterns at the point last evaluated, ``(tilt, atom, 3)``.
    """

    def __init__(
        self, model: AtomicTomography, read: Reader, loss: Loss, nominal: Tensor, options: AtomOptions
    ):
        self.model, self.read, self.loss, self.nominal, self.options = model, read, loss, nominal, options
        self.parameters = list(model.parameters())
        self.slopes = torch.empty(0)

    def point(self) -> Tensor:
        """Where the model stands."""
        return torch.cat([p.data.flatten() for p in self.parameters])

    def go(self, point: Tensor) -> None:
        """Bring the model to ``point``."""
        parts = point.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data.copy_(part.view_as(parameter))

    def __call__(self, point: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at ``point``."""
        model = self.model
        self.go(point)
        model.zero_grad(set_to_none=True)
        total, sums = 0.0, [torch.zeros_like(model.sites.data)]
        for tilt in range(len(model.angles)):
            index = torch.arange(len(model.stray[tilt]))
            value = model(tilt, index, self.read(tilt, index), self.loss)
            value.backward()
            total += float(value.detach())
            sums.append(model.sites.grad.clone())  # pyright: ignore[reportOptionalMemberAccess]
        self.slopes = torch.stack(sums).diff(dim=0)
        prior = self.prior()
        prior.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return total + float(prior.detach()), torch.cat([g.flatten() for g in grads])

    def prior(self) -> Tensor:
        """Half the sum of squared deviations in standard deviations."""
        model, o = self.model, self.options
        phi, theta, psi = model.angles.unbind(-1)
        theta, affine = theta - self.nominal, model.affine + model.get_buffer("start_affine")
        mean = affine.mean(0)
        deviations = [
            (phi - phi.mean()) / o.phi_width,
            (theta - theta.mean()) / o.theta_width,
            (psi - psi.mean()) / o.psi_width,
            affine / o.affine_width,
            mean[0, 0] / o.scale_width,
            mean[1, 1] / o.scale_width,
            (mean[0, 1] + mean[1, 0]) / (2 * o.scale_width),
            (model.occupancy - 1) / o.occupancy_width,
            (model.variance - model.variance.mean()) / o.variance_width,
            *(s / o.stray_width for s in model.stray),
        ]
        return 0.5 * sum((d**2).sum() for d in deviations)  # pyright: ignore[reportReturnType]

    def bundle(self, curvatures: Curvatures) -> BundlePreconditioner:
        """Atoms and tilts linearised where the model stands."""
        o = self.options
        widths = [o.phi_width, o.theta_width, o.psi_width, math.inf, math.inf, *[o.affine_width] * 4]
        prior = torch.tensor([w**-2 for w in widths], dtype=torch.float64)
        return BundlePreconditioner(
            self.model, curvatures, prior, (o.occupancy_width**-2, o.variance_width**-2), o.scale_width**-2
        )

    def preconditioner(self, curvatures: Curvatures) -> Callable[[Tensor], Tensor]:
        """Approximate inverse Hessian where the model stands, for gradients as vectors."""
        o, sizes = self.options, [p.numel() for p in self.parameters]
        names, bundle = [name for name, _ in self.model.named_parameters()], self.bundle(curvatures)
        own = torch.eye(2, dtype=torch.float64) / o.stray_width**2
        strays = [torch.linalg.inv(h * 1.02 + own) for h in curvatures.positions]
        count, tilts = len(self.model.sites), len(self.model.angles)

        def apply(gradient: Tensor) -> Tensor:
            parts = dict(zip(names, gradient.split(sizes), strict=True))
            poses = [
                parts["angles"].view(tilts, 3),
                parts["tau"].view(tilts, 2),
                parts["affine"].view(tilts, 4),
            ]
            sites, poses = bundle.sites_and_tilts(parts["sites"].view(count, 3), torch.cat(poses, dim=1))
            shapes = bundle.shapes(torch.stack([parts["occupancy"], parts["variance"]], dim=1))
            steps = {
                "sites": sites,
                "occupancy": shapes[:, 0],
                "variance": shapes[:, 1],
                "angles": poses[:, :3],
                "tau": poses[:, 3:5],
                "affine": poses[:, 5:POSE_PARAMETERS],
            }
            for tilt, inverse in enumerate(strays):
                own = parts[f"stray.{tilt}"].view(-1, 2)
                steps[f"stray.{tilt}"] = torch.einsum("kij,kj->ki", inverse, own)
            return torch.cat([steps[name].flatten() for name in names])

        return apply


def refine_atoms(
    model: AtomicTomography,
    probes: Sequence[ProbeModel],
    read: Reader,
    loss,
    nominal: Tensor,
    elements: Sequence[int],
    options: AtomOptions,
    candidates: Candidates | None = None,
    state: dict | None = None,
) -> Iterator[Status]:
    """Refine atoms, poses and scans in rounds, yielding after every iteration.

    A round fits the probes with all else held, runs a quasi-Newton method on the rest, and then looks
    at the atoms again: their elements, those that are not there, those that are missing.

    Parameters
    ----------
    model : AtomicTomography
        Start values; holds the result.
    probes : sequence of ProbeModel
        Start values, one per tilt.
    read : Reader
        Measured patterns, only the batch asked for.
    loss : Loss
        A negative log-likelihood (`petomo.objectives.losses.Poisson`).
    nominal : Tensor
        Nominal stage tilts in radian ``(tilt,)``.
    elements : sequence of int
        Atomic numbers that occur.
    options : AtomOptions
        Rounds, iterations and priors.
    candidates : Candidates, optional
        Where to look for missing atoms; without it none is added.
    state : dict, optional
        ``Status.state`` of an earlier iteration: goes on from the beginning of its round.

    Yields
    ------
    Status
        ``loss`` is the mean per pattern, priors included; ``extras`` has the round and the number of atoms.
        The last one's ``state`` has ``errors``, the standard errors of the sites ``(atom, 3)``.
    """
    start, probes, first, positions = list(probes), list(probes), 0, None
    if state is not None:
        first, probes = int(state["round"]), [ProbeModel.from_dict(p) for p in state["probes"]]
        positions = [torch.as_tensor(p) for p in state["curvatures"]] or None
        restore(model, state)
        for tilt, known in enumerate(positions or ()):
            model.weigh_positions(tilt, known)
    patterns = sum(len(s) for s in model.stray)
    for number in range(first, options.rounds):
        begun = _state(model, probes, number, positions)
        for tilt, probe in enumerate(probes):
            probes[tilt] = _fit_one(model, probe, read, loss, options, tilt, start[tilt], number == 0)
        curvatures = Curvatures(model, loss.curvature, positions)
        positions = curvatures.positions
        for tilt, known in enumerate(positions):
            model.weigh_positions(tilt, known)
        objective = Objective(model, read, loss, nominal, options)
        solver = minimise(objective, objective.point(), objective.preconditioner(curvatures))
        now = next(solver)
        for step, now in enumerate(itertools.islice(solver, options.iterations), 1):
            extras = {"round": number + 1.0, "atoms": float(len(model.numbers)), "step": now.step}
            if step < options.iterations:
                yield Status(number * options.iterations + step, now.value / patterns, extras, begun)
        if not torch.equal(objective.point(), now.point):
            objective(now.point)  # the last trial led nowhere: back, slopes and all
        if number < options.rounds - 1:
            extras["renamed"] = float(name_elements(model, elements))
            extras["dropped"] = float(drop_weak(model, options.least_occupancy, 1.0))
            if candidates is not None:
                least = options.least_wanted
                added = add_missing(model, read, loss, min(elements), candidates, least, curvatures.shapes)
                extras["added"] = float(added)
            end = _state(model, probes, number + 1, positions)
        else:
            errors = position_errors(model, objective.bundle(curvatures), objective.slopes)
            there = torch.nonzero(model.occupancy.detach() >= options.least_occupancy)[:, 0]
            keep_sites(model, model.current_sites().select(there.numpy()))
            end = _state(model, probes, number + 1, positions) | {"errors": errors[there]}
        extras["atoms"] = float(len(model.numbers))
        yield Status((number + 1) * options.iterations, now.value / patterns, extras, end)


def _state(
    model: AtomicTomography, probes: Sequence[ProbeModel], finished: int, curvatures: list[Tensor] | None
) -> dict:
    fits = [p.to_dict() for p in probes]
    return {"round": finished, "probes": fits, "curvatures": curvatures or [], **snapshot(model)}


def _fit_one(model, probe, read, loss, options, tilt: int, start: ProbeModel, first: bool) -> ProbeModel:
    """Fit the probe of one tilt on some of its patterns, and put it into the model."""
    count, optics = len(model.stray[tilt]), model.geometry.optics
    index = torch.linspace(0, count - 1, min(count, options.probe_patterns)).long()
    phase = model.phase(tilt).detach()
    pixels = model.relative_scan(tilt).detach()[index] / model.pixel_size
    dtype = model.probe(tilt).dtype

    def predict(modes: Tensor) -> Tensor:
        return diffract(phase, None, modes.to(dtype), pixels, optics)

    measured = read(tilt, index)
    names, steps = (tuple(PARAMETERS), 2) if first else (QUICK, 1)
    fitted, _ = fit_probe(probe, predict, measured, loss, optics, options.probe_modes, steps, start, names)
    model.illuminate(tilt, fitted.modes(optics.window, optics.energy_ev, options.probe_modes).to(dtype))
    return fitted


def snapshot(model: AtomicTomography) -> dict:
    """All that `restore` needs, as tensors."""
    return {
        "numbers": torch.as_tensor(model.numbers),
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "illumination": [model.probe(t).clone() for t in range(len(model.stray))],
    }


def restore(model: AtomicTomography, state: dict) -> None:
    """Bring a model of the same tilts and scans to a `snapshot`."""
    model.numbers = torch.as_tensor(state["numbers"]).numpy()
    for name, value in state["parameters"].items():
        model.get_parameter(name).data = torch.as_tensor(value).clone()
    for tilt, probe in enumerate(state["illumination"]):
        model.illuminate(tilt, torch.as_tensor(probe))
