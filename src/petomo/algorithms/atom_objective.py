"""Negative log-posterior of atoms, poses and scans, and its preconditioner."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from petomo.algorithms.atom_curvatures import Curvatures
from petomo.algorithms.bundle_preconditioner import POSE_PARAMETERS, Precisions
from petomo.algorithms.overlap_hessian import OverlapHessian
from petomo.core.parallel import ALONE, Team
from petomo.models.atomic_tomography import AtomicTomography
from petomo.physics.multislice import Loss

Reader = Callable[[int, Tensor], Tensor]

#: angstrom, radian, square angstrom
_LONGEST = {"sites": 0.7, "tau": 0.7, "stray": 0.7, "angles": 0.05, "affine": 0.05}
_LONGEST |= {"occupancy": 1.0, "variance": 0.01}
_EXPECTED = 4  # values
_TRUST = 0.25  # see `AtomOptions.cautious`
_WIDTHS = ("phi_width", "theta_width", "psi_width", "affine_width")


@dataclass(frozen=True)
class AtomOptions:
    """What is expected of the unknowns, as standard deviations; they keep weakly seen ones in place.

    Parameters
    ----------
    iterations : int
        Most quasi-Newton iterations a round.
    tolerance : float
        A round ends when an iteration gains less than this for each unknown, as a logarithm of likelihood.
    half_iterations, half_tolerance : int, float
        The same of the halves of the tilts, for the standard errors, which have to come apart. With 0
        iterations the errors are those of counting noise.
    probe_patterns : int
        How many patterns of a tilt its probe is fitted to.
    least_occupancy : float
        Sites with less are dropped.
    most_occupancy : float
        Sites with more are made two, which may be of lighter elements.
    least_wanted : float
        Places where one Newton step asks for more of an atom become sites. A whole atom that is missing
        asks for about a quarter, because the curvature is that of atoms that all grow together.
    phi_width, theta_width, psi_width : float
        Radian; about the mean over the tilts, theta about the nominal stage tilt.
    affine_width : float
        Distortion of a scan.
    scale_width : float
        Mean distortion of all scans: the scan, not the detector, says how long an angstrom is. Small
        enough to hold against all patterns, which see the scale through what the model neglects too.
    stray_width : float
        Single scan positions, angstrom along one axis.
    occupancy_width : float
        Occupancy about 1.
    variance_width : float
        Mean squared displacement about its mean, square angstrom.
    """

    iterations: int = 6
    tolerance: float = 0.01
    half_iterations: int = 12
    half_tolerance: float = 0.001
    probe_patterns: int = 40
    least_occupancy: float = 0.4
    most_occupancy: float = 1.25
    least_wanted: float = 0.15
    phi_width: float = math.radians(0.3)
    theta_width: float = math.radians(0.3)
    psi_width: float = math.radians(0.3)
    affine_width: float = 0.01
    scale_width: float = 3e-5
    stray_width: float = 0.1
    occupancy_width: float = 0.3
    variance_width: float = 0.005

    def cautious(self) -> AtomOptions:
        """Priors of angles and distortions so narrow that the patterns count `_TRUST` as much against them.

        The likelihood reckons with counting noise, but what the model neglects moves angles twice as far, so
        that they would come out worse than what was expected of them.
        """
        return replace(self, **{name: getattr(self, name) * math.sqrt(_TRUST) for name in _WIDTHS})

    def precisions(self) -> Precisions:
        """Inverse variances."""
        widths = [self.phi_width, self.theta_width, self.psi_width, *[math.inf] * 2, *[self.affine_width] * 4]
        tilt = torch.tensor([w**-2 for w in widths], dtype=torch.float64)
        return Precisions(tilt, (self.occupancy_width**-2, self.variance_width**-2), self.scale_width**-2)


def adapted(options: AtomOptions, model: AtomicTomography, nominal: Tensor) -> AtomOptions:
    """Options with the widths of angles and scan distortions as found, at most as wide as they were.

    A strain of the specimen that scans and angles make up for is held by these widths and by little else
    (empirical Bayes).

    Parameters
    ----------
    options : AtomOptions
        What is expected beforehand; counts as much as `_EXPECTED` values found.
    model : AtomicTomography
        As found so far.
    nominal : Tensor
        Nominal stage tilts in radian ``(tilt,)``.
    """
    widths = {}
    for name, values in _deviations(model, nominal).items():
        # of angles, the mean is free
        width, count = getattr(options, name), values.numel() - (name != "affine_width")
        square = (_EXPECTED * width**2 + float(values.detach().square().sum())) / (_EXPECTED + count)
        widths[name] = min(width, math.sqrt(square))
    return replace(options, **widths)


def _deviations(model: AtomicTomography, nominal: Tensor) -> dict[str, Tensor]:
    """How far angles and scan distortions are from what is expected, by the name of the width."""
    phi, theta, psi = model.angles.unbind(-1)
    theta = theta - nominal
    angles = (angle - angle.mean() for angle in (phi, theta, psi))
    return dict(zip(_WIDTHS, (*angles, model.affine + model.get_buffer("start_affine")), strict=True))


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
    team : Team
        Processes that take some of the patterns each; all ask for the same points and get the same.
    """

    def __init__(
        self,
        model: AtomicTomography,
        read: Reader,
        loss: Loss,
        nominal: Tensor,
        options: AtomOptions,
        team: Team = ALONE,
    ):
        self.model, self.read, self.loss, self.nominal, self.options = model, read, loss, nominal, options
        self.team = team
        self.parameters = list(model.parameters())

    def point(self) -> Tensor:
        """Where the model stands."""
        return torch.cat([p.data.flatten() for p in self.parameters])

    def longest(self) -> Tensor:
        """How far each unknown may go in one step: where little is known, the curvature may be none."""
        return self._each(lambda name: _LONGEST[name])

    def least(self) -> Tensor:
        """What no unknown may fall below: an atom's mean squared displacement is at least 0."""
        return self._each(lambda name: 0.0 if name == "variance" else -math.inf)

    def _each(self, value: Callable[[str], float]) -> Tensor:
        """A point with one value for all unknowns of a name."""
        named = self.model.named_parameters()
        return torch.cat([torch.full_like(p.data, value(n.split(".")[0])).flatten() for n, p in named])

    def go(self, point: Tensor) -> None:
        """Bring the model to ``point``."""
        parts = point.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data.copy_(part.view_as(parameter))

    def __call__(self, point: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at ``point``."""
        self.go(point)
        total = self._likelihood()
        prior = self.prior()
        prior.backward()
        grads = [p.grad.flatten() for p in self.parameters if p.grad is not None]
        return total + float(prior.detach()), torch.cat(grads)

    def _likelihood(self) -> float:
        """Value where the model stands; leaves its gradient in the parameters."""
        model, total = self.model, torch.zeros((), dtype=torch.float64)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for tilt, part in self.team.portions([len(s) for s in model.stray]):
            phase = model.phase(tilt)
            leaf = phase.detach().requires_grad_()
            for index in model.parts(tilt, torch.arange(part.start, part.stop)):
                value = model(tilt, index, self.read(tilt, index), self.loss, leaf)
                value.backward()
                total += value.detach().cpu()
            phase.backward(leaf.grad)
        self.team.sum_(total, *(p.grad for p in self.parameters if p.grad is not None))
        return float(total)

    def of_atoms(self) -> tuple[Tensor, Tensor]:
        """Gradient of the likelihood where the model stands, in occupancies and sites."""
        self._likelihood()
        grown, moved = self.model.occupancy.grad, self.model.sites.grad
        assert grown is not None
        assert moved is not None
        return grown, moved

    def prior(self) -> Tensor:
        """Half the sum of squared deviations in standard deviations."""
        model, o, expected = self.model, self.options, _deviations(self.model, self.nominal)
        mean = expected["affine_width"].mean(0)
        deviations = [
            *(values / getattr(o, name) for name, values in expected.items()),
            mean[0, 0] / o.scale_width,
            mean[1, 1] / o.scale_width,
            (mean[0, 1] + mean[1, 0]) / (2 * o.scale_width),
            (model.occupancy - 1) / o.occupancy_width,
            (model.variance - model.variance.mean()) / o.variance_width,
            *(s / o.stray_width for s in model.stray),
        ]
        return 0.5 * sum((d**2).sum() for d in deviations)  # pyright: ignore[reportReturnType]

    def preconditioner(self, curvatures: Curvatures) -> Callable[[Tensor], Tensor]:
        """Approximate inverse Hessian where the model stands, for gradients as vectors."""
        o, sizes = self.options, [p.numel() for p in self.parameters]
        names = [name for name, _ in self.model.named_parameters()]
        hessian = OverlapHessian(self.model, curvatures, o.precisions())
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
            atoms = [parts["sites"].view(count, 3), parts["occupancy"][:, None], parts["variance"][:, None]]
            atoms, poses = hessian.solve((torch.cat(atoms, dim=1), torch.cat(poses, dim=1)))
            steps = {
                "sites": atoms[:, :3],
                "occupancy": atoms[:, 3],
                "variance": atoms[:, 4],
                "angles": poses[:, :3],
                "tau": poses[:, 3:5],
                "affine": poses[:, 5:POSE_PARAMETERS],
            }
            for tilt, inverse in enumerate(strays):
                own = parts[f"stray.{tilt}"].view(-1, 2)
                steps[f"stray.{tilt}"] = torch.einsum("kij,kj->ki", inverse, own)
            return torch.cat([steps[name].flatten() for name in names])

        return apply
