"""Curvatures of the likelihood in what describes atoms, poses and scans, measured by small moves."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from petomo.algorithms.bundle_preconditioner import atom_sensitivity
from petomo.core.parallel import ALONE, Team
from petomo.core.pose import rotation_matrices
from petomo.models.atomic_tomography import AtomicTomography

_MOVE_ANGSTROM, _GROWTH, _STRETCH = 0.02, 0.02, 5e-3
_BLOCK = 512
_SAMPLE = 64  # positions of a tilt, or a fifth where that is less, tell the curvatures of all


class Curvatures:
    """Second derivatives of the loss, measured by moving things a little.

    Parameters
    ----------
    model : AtomicTomography
        Left as it was.
    curvature : float
        Second derivative of the loss in the model amplitude.
    positions : list of Tensor, optional
        Curvatures of the scan positions measured before: they cost most and change least.
    team : Team
        Processes that take some of the tilts each; all have the same arguments and get the same.

    Attributes
    ----------
    positions : list of Tensor
        Of each scan position, ``(k, 2, 2)`` per square angstrom.
    strain : Tensor
        Of a stretch of the specimen that its scan follows, along x, along y and in shear,
        and of a rotation, ``(tilt, 4, 4)``.
    moves, shapes : Tensor
        Per square radian of phase in a pixel ``(tilt,)``: for atoms that move, each its own way, and for
        atoms that grow together, whose wide tails overlap.
    """

    def __init__(
        self,
        model: AtomicTomography,
        curvature: float,
        positions: list[Tensor] | None = None,
        team: Team = ALONE,
    ):
        tilts = len(model.angles)
        self.positions = positions or team.each(tilts, lambda t: curvature * position_gram(model, t))
        moves, shapes, strain = zip(*team.each(tilts, lambda t: _grams(model, t)), strict=True)
        self.moves, self.shapes = (curvature * torch.tensor(g, dtype=torch.float64) for g in (moves, shapes))
        self.strain = curvature * torch.stack(strain)

    def every_other(self, first: int) -> Curvatures:
        """The same for every other tilt from ``first`` on."""
        out = copy(self)
        for name, values in vars(self).items():
            setattr(out, name, values[first::2])
        return out


@torch.no_grad()
def position_gram(model: AtomicTomography, tilt: int) -> Tensor:
    """``sum (da/dr)(da/dr)^T`` for every scan position of a tilt, ``(k, 2, 2)`` per square angstrom."""
    tau, out, phase = model.tau, [], model.phase(tilt)  # tau moves the whole scan
    for index in torch.arange(len(model.stray[tilt])).split(_BLOCK):
        base, slopes = model.predict(tilt, index, phase).sqrt(), []
        for axis in (0, 1):
            tau.data[tilt, axis] -= _MOVE_ANGSTROM
            slopes.append((model.predict(tilt, index, phase).sqrt() - base).flatten(1) / _MOVE_ANGSTROM)
            tau.data[tilt, axis] += _MOVE_ANGSTROM
        jacobian = torch.stack(slopes, dim=1).double()
        out.append((jacobian @ jacobian.transpose(1, 2)).cpu())
    return torch.cat(out)


@torch.no_grad()
def _grams(model: AtomicTomography, tilt: int) -> tuple[float, float, Tensor]:
    """``sum (da/dp)^2`` for moving atoms, growing ones and strains, from some of the positions."""
    count = len(model.stray[tilt])
    index = torch.arange(0, count, max(5, count // _SAMPLE))
    base = model.predict(tilt, index).sqrt()

    def slope(*changes: tuple[Tensor, Tensor]) -> Tensor:
        kept = [parameter.data.clone() for parameter, _ in changes]
        for parameter, change in changes:
            parameter.data.add_(change)
        moved = model.predict(tilt, index).sqrt() - base
        for (parameter, _), old in zip(changes, kept, strict=True):
            parameter.data.copy_(old)
        return moved.flatten().double() * (count / len(index)) ** 0.5

    def gram(parameter: Tensor, change: Tensor) -> float:
        return float(slope((parameter, change)).square().sum())

    shift, shape = atom_sensitivity(model)
    generator = torch.Generator().manual_seed(tilt)
    across = torch.randn(len(shift), 2, generator=generator, dtype=torch.float64)
    across = _MOVE_ANGSTROM * across / across.norm(dim=1, keepdim=True)
    motion = torch.nn.functional.pad(across, (0, 1)) @ rotation_matrices(*model.angles.data[tilt])
    strains = torch.stack([slope(*_stretch(model, tilt, kind)) for kind in range(4)]) / _STRETCH
    return (
        gram(model.sites, motion) / float(shift.sum() * _MOVE_ANGSTROM**2),
        gram(model.occupancy, torch.full_like(shift, _GROWTH)) / float(shape[:, 0, 0].sum() * _GROWTH**2),
        (strains @ strains.T).cpu(),
    )


def _stretch(model: AtomicTomography, tilt: int, kind: int) -> list[tuple[Tensor, Tensor]]:
    """Changes of sites and scan that stretch both alike, along x, along y or in shear, or turn both."""
    if kind == 3:
        turn = torch.zeros_like(model.angles.data)
        turn[tilt, 2] = _STRETCH
        return [(model.angles, turn)]
    strain = torch.zeros(2, 2, dtype=torch.float64)
    strain.view(-1)[[[0], [3], [1, 2]][kind]] = _STRETCH
    lab, turned = model.lab(tilt).detach(), rotation_matrices(*model.angles.data[tilt])
    centre = model.get_buffer(f"scan_{tilt}").mean(0)
    across = (lab[:, :2] - centre) @ strain.T
    affine = torch.zeros_like(model.affine.data)
    affine[tilt] = strain
    return [
        (model.sites, torch.nn.functional.pad(across, (0, 1)) @ turned),
        (model.affine, affine),
    ]
