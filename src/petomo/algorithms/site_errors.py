"""Standard errors of refined atoms, relative to each other, from what two halves of the tilts disagree on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from petomo.algorithms.atom_curvatures import Curvatures
from petomo.algorithms.atom_objective import AtomOptions, Objective, Reader
from petomo.algorithms.bundle_preconditioner import Arrow, Precisions, atom_sensitivity, lateral_motion
from petomo.algorithms.quasi_newton import Iterate, minimise
from petomo.core.least_squares import least_squares
from petomo.core.parallel import ALONE, Team
from petomo.models.atomic_tomography import AtomicTomography

#: Fewer tilts are not halved.
LEAST_TILTS = 4
_ROUNDING = 1e-9


class Halves:
    """The same specimen refined on every other tilt, and on the rest.

    Counting noise, what the model gets wrong from tilt to tilt, and what scans and stage have in common
    with the specimen all differ between the halves; what is wrong alike in all tilts does not show.

    Parameters
    ----------
    model : AtomicTomography
        At the minimum; left as it is.
    read, loss, nominal, options
        As for `petomo.algorithms.atom_objective.Objective`.
    curvatures : Curvatures
        Of the model where it stands.
    team : Team
        As for `petomo.algorithms.atom_objective.Objective`.
    """

    def __init__(
        self,
        model: AtomicTomography,
        read: Reader,
        loss,
        nominal: Tensor,
        options: AtomOptions,
        curvatures: Curvatures,
        team: Team = ALONE,
    ):
        count = len(nominal)
        self.models = [model.subset(range(first, count, 2)) for first in (0, 1)]
        self.solvers: list[Iterator[Iterate]] = []
        for first, part in enumerate(self.models):
            read_half = _every_other(read, first)
            objective = Objective(part, read_half, loss, nominal[first::2], options, team)
            self.solvers.append(
                minimise(
                    objective,
                    objective.point(),
                    objective.preconditioner(curvatures.every_other(first)),
                    objective.longest(),
                    objective.least(),
                )
            )
        self.now = [next(solver) for solver in self.solvers]

    @property
    def value(self) -> float:
        """Sum of the values of both."""
        return sum(now.value for now in self.now)

    def step(self) -> float:
        """One quasi-Newton iteration of each half; returns what it gained, for each unknown."""
        before = self.value
        self.now = [next(solver, now) for solver, now in zip(self.solvers, self.now, strict=True)]
        return (before - self.value) / sum(len(now.point) for now in self.now)

    def sites(self) -> tuple[Tensor, Tensor]:
        """Positions of the atoms in each half, ``(atom, 3)``."""
        first, second = (
            now.point[: 3 * len(m.numbers)].view(-1, 3) for now, m in zip(self.now, self.models, strict=True)
        )
        return first, second


def _every_other(read: Reader, first: int) -> Reader:
    return lambda tilt, index: read(2 * tilt + first, index)


def position_errors(
    model: AtomicTomography,
    curvatures: Curvatures,
    precisions: Precisions,
    halves: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Standard error of every coordinate ``(atom, 3)`` in angstrom, rigid motions taken out.

    The inverse Hessian of atoms and tilts says how the errors are distributed. For single atoms the halves
    say how large they are, pooled over those of an element: their difference has four times the variance
    of the whole. What a strain of the specimen would change, scans and angles can make up for, so that it
    is known as well as these are beforehand. How a strain shows within the probe is told by what the model
    leaves out rather than by counting noise, and is not counted on.

    Parameters
    ----------
    model : AtomicTomography
        At the minimum.
    curvatures : Curvatures
        There.
    precisions : Precisions
        Of the priors, as wide as what was found (`petomo.algorithms.atom_objective.adapted`).
    halves : (Tensor, Tensor), optional
        Positions from each half of the tilts ``(atom, 3)``; without them the Hessian is believed.
    """
    project = _without_rigid_motion(model.sites.detach())
    weight = curvatures.moves[:, None] * atom_sensitivity(model)[0]
    # not damped: what damping holds would seem to be known
    arrow = Arrow(weight, *lateral_motion(model), precisions.tilt, damping=(0.0, 0.0, _ROUNDING))
    own, shared = arrow.variance(project)
    if halves is not None:
        own = own * _disagreement(model, project((halves[0] - halves[1])[None])[0], own)
    return (own + shared).sqrt()


def _disagreement(model: AtomicTomography, difference: Tensor, own: Tensor) -> Tensor:
    """Variance of single atoms of each element over that of the Hessian, ``(atom, 1)``; 1 at least."""
    out = torch.ones(len(own), 1, dtype=own.dtype)
    design = torch.nn.functional.pad(model.sites.detach(), (0, 1), value=1.0)
    strain = design @ least_squares(design, difference)
    free = max(1.0, own.numel() - 3 * design.shape[1]) / own.numel()
    squares = ((difference - strain) / 2).square() / free
    for z in np.unique(model.numbers):
        members = torch.as_tensor(model.numbers == z)
        out[members] = squares[members].sum() / own[members].sum()
    return out.clamp_min(1.0)


def _without_rigid_motion(sites: Tensor):
    """Function that takes the best rigid motion out of fields of motion ``(field, atom, 3)``."""
    x, y, z = (sites - sites.mean(0)).unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rigid = torch.stack(
        [
            torch.stack(motion, dim=-1)
            for motion in (
                (one, zero, zero),
                (zero, one, zero),
                (zero, zero, one),
                (zero, -z, y),
                (z, zero, -x),
                (-y, x, zero),
            )
        ]
    ).flatten(1)
    basis, _ = torch.linalg.qr(rigid.T)

    def project(fields: Tensor) -> Tensor:
        flat = fields.flatten(1)
        return (flat - (flat @ basis) @ basis.T).view_as(fields)

    return project
