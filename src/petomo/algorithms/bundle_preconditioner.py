"""Approximate inverse of the Hessian for atoms and poses together, as in bundle adjustment.

Every atom is taken to act on the patterns by itself, through the phase it adds, so that the Hessian has
the arrow shape of bundle adjustment: a small block per atom, a block per tilt, and the coupling of the
two. Atoms are eliminated, and a small dense system for the tilts remains (Triggs et al. 2000, section 6).
A stretch or rotation of the specimen that its scan follows moves no atom against the scan; it shows only
within the probe, so that this stiffness is measured and put in as an update of low rank. Overlap of
atoms is added by `petomo.algorithms.overlap_hessian`; what is left out (depth within one tilt, multiple
scattering) is left to the quasi-Newton updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from petomo.core.pose import rotation_matrices
from petomo.models.atomic_tomography import AtomicTomography
from petomo.physics.atomic_potential import half_plane, half_plane_weight, projected_factor

#: Per tilt: phi, theta, psi, tau x y, affine xx xy yx yy.
POSE_PARAMETERS = 9
DAMPING = 0.02


def atom_sensitivity(model: AtomicTomography) -> tuple[Tensor, Tensor]:
    """How strongly an atom's phase reacts to what describes it, integrated over the image.

    Returns
    -------
    Tensor, Tensor
        ``sum |d phase / dx|^2`` in 1/angstrom^2 ``(atom,)``, and the Gram matrices of the derivatives in
        occupancy and variance ``(atom, 2, 2)``.
    """
    (ny, nx), voxel = model.geometry.slices.shape, model.pixel_size
    q2 = half_plane((ny, nx), voxel)
    weight = model.sigma**2 * half_plane_weight((ny, nx), voxel)
    shift = torch.zeros(len(model.numbers), dtype=torch.float64)
    shape = torch.zeros(len(model.numbers), 2, 2, dtype=torch.float64)
    for z in np.unique(model.numbers):
        members = torch.as_tensor(model.numbers == z)
        occupancy, u2 = model.occupancy.data[members].cpu(), float(model.variance.data[members].mean())
        power = (
            projected_factor(int(z), (ny, nx), voxel) * torch.exp(-2 * math.pi**2 * u2 * q2)
        ) ** 2 * weight
        fade = -2 * math.pi**2 * q2  # d ln f / d u^2
        moments = [float((power * fade**n).sum()) for n in range(3)]
        scale = torch.stack([torch.ones_like(occupancy), occupancy], dim=-1)
        gram = torch.tensor([[moments[0], moments[1]], [moments[1], moments[2]]], dtype=torch.float64)
        shift[members] = occupancy**2 * float((power * 2 * math.pi**2 * q2).sum())
        shape[members] = gram * scale[:, :, None] * scale[:, None, :]
    return shift, shape


def lateral_motion(model: AtomicTomography) -> tuple[Tensor, Tensor]:
    """How atoms move across the beam, relative to the scan.

    Returns
    -------
    Tensor, Tensor
        Derivatives in the atom's own position ``(tilt, 2, 3)`` and in the tilt's parameters
        ``(tilt, atom, 2, POSE_PARAMETERS)``. psi turns the scan along and moves nothing.
    """
    angles, sites = model.angles.data.cpu(), model.sites.data.cpu()
    turned = rotation_matrices(*angles.unbind(-1))
    lab, step = torch.einsum("tij,nj->tni", turned, sites), 1e-6
    out = torch.zeros(len(angles), len(sites), 2, POSE_PARAMETERS, dtype=torch.float64)
    for axis in (0, 1):
        moved = angles.clone()
        moved[:, axis] += step
        ahead = torch.einsum("tij,nj->tni", rotation_matrices(*moved.unbind(-1)), sites)
        out[..., axis] = (ahead - lab)[..., :2] / step
    out[..., 0, 3] = out[..., 1, 4] = 1.0
    for tilt in range(len(angles)):
        centre = model.get_buffer(f"scan_{tilt}").mean(0).cpu()
        arm = lab[tilt, :, :2] - centre
        out[tilt, :, 0, 5:7] = -arm
        out[tilt, :, 1, 7:9] = -arm
    return turned[:, :2], out


class Precisions(NamedTuple):
    """Inverse variances of the priors.

    Parameters
    ----------
    tilt : Tensor
        Of the parameters of a tilt ``(POSE_PARAMETERS,)``.
    shape : (float, float)
        Of occupancy and variance.
    scale : float
        Of the mean distortion of all scans.
    """

    tilt: Tensor
    shape: tuple[float, float]
    scale: float


class Arrow:
    """Hessian of sites and tilts with the sites eliminated.

    Parameters
    ----------
    weight : Tensor
        Curvature of every atom's motion across the beam ``(tilt, atom)``.
    across, motion : Tensor
        As from `lateral_motion`.
    precision : Tensor
        Of the parameters of a tilt ``(POSE_PARAMETERS,)``.
    damping : (float, float, float)
        Shares by which the diagonals of sites, of tilts, and of tilts with the sites eliminated are made
        larger. What all atoms and tilts do together, and nothing but priors holds, is held by these too.

    Attributes
    ----------
    sites : Tensor
        Inverse blocks of the atoms ``(atom, 3, 3)``.
    eliminated : Tensor
        How far the atoms follow the tilts, with its sign turned, ``(atom, tilt, 3, POSE_PARAMETERS)``.
    tilts : Tensor
        Lower triangular factor of what remains for the tilts.
    """

    def __init__(
        self,
        weight: Tensor,
        across: Tensor,
        motion: Tensor,
        precision: Tensor,
        damping: tuple[float, float, float] = (DAMPING, 1e-3, 1e-6),
    ):
        sites = torch.einsum("tn,tai,taj->nij", weight, across, across)
        self.sites = torch.linalg.inv(damped(sites, damping[0]))
        coupling = torch.einsum("tn,tai,tnap->ntip", weight, across, motion)
        tilts = torch.einsum("tn,tnap,tnaq->tpq", weight, motion, motion)
        tilts = damped(tilts, damping[1]) + torch.diag(precision)
        self.eliminated = torch.einsum("nij,ntjp->ntip", self.sites, coupling)
        size = len(tilts) * POSE_PARAMETERS
        system = -torch.einsum("nsip,ntiq->sptq", coupling, self.eliminated)
        for tilt, block in enumerate(tilts):
            system[tilt, :, tilt] += block
        self.tilts = torch.linalg.cholesky(damped(system.reshape(size, size), damping[2]))

    def solve(self, sites: Tensor, tilts: Tensor) -> tuple[Tensor, Tensor]:
        """From gradients ``(atom, 3)`` and ``(tilt, POSE_PARAMETERS)`` to steps."""
        reduced = tilts - torch.einsum("ntip,ni->tp", self.eliminated, sites)
        poses = torch.cholesky_solve(reduced.reshape(-1, 1), self.tilts).view_as(tilts)
        own = torch.einsum("nij,nj->ni", self.sites, sites)
        return own - torch.einsum("ntip,tp->ni", self.eliminated, poses), poses

    def variance(self, project: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Variances of the sites ``(atom, 3)``: with the tilts known, and what not knowing these adds.

        Parameters
        ----------
        project : callable
            Takes what does not count, such as rigid motions, out of fields ``(field, atom, 3)``.
        """
        fields = project(self.eliminated.permute(1, 3, 0, 2).flatten(0, 1))
        spread = torch.linalg.solve_triangular(self.tilts, fields.flatten(1), upper=False)
        own = self.sites.diagonal(dim1=-2, dim2=-1)
        return own, spread.square().sum(0).view_as(own)


class BundlePreconditioner:
    """Applies the approximate inverse Hessian.

    Parameters
    ----------
    model : AtomicTomography
        Where to linearise.
    curvatures : object
        See `petomo.algorithms.atom_curvatures.Curvatures`.
    precisions : Precisions
        Of the priors.
    """

    def __init__(self, model: AtomicTomography, curvatures, precisions: Precisions):
        shift, shape = atom_sensitivity(model)
        across, motion = lateral_motion(model)
        self.arrow = Arrow(curvatures.moves[:, None] * shift, across, motion, precisions.tilt)
        self.strain = _strain_functionals(model, shift, across, motion)
        self._stiffen(curvatures.strain, precisions.scale)
        total = shape * curvatures.shapes.sum() + torch.diag(
            torch.tensor(precisions.shape, dtype=torch.float64)
        )
        self.shape = torch.linalg.inv(damped(total))

    def _stiffen(self, stiffness: Tensor, scale_prior: float) -> None:
        """Prepare the updates for strains and for the mean distortion (Woodbury identity)."""
        on_sites, on_tilts = self.strain
        tilts, kinds = stiffness.shape[:2]
        columns = []
        for tilt in range(tilts):
            for kind in range(kinds):
                poses = torch.zeros(tilts, POSE_PARAMETERS, dtype=torch.float64)
                poses[tilt] = on_tilts[tilt, kind]
                columns.append(self.arrow.solve(on_sites[tilt, kind], poses))
        nowhere = torch.zeros_like(on_sites[0, 0])
        for row in _mean_distortion(tilts):
            columns.append(self.arrow.solve(nowhere, row))
        self.answers = (torch.stack([c[0] for c in columns]), torch.stack([c[1] for c in columns]))
        inner = torch.stack([self.functionals(*c) for c in columns], dim=1)
        soft = torch.linalg.inv(damped(stiffness, 1e-3))
        inner += torch.block_diag(*soft, torch.eye(3, dtype=torch.float64) / scale_prior)
        self.inner = torch.linalg.inv(inner)

    def functionals(self, sites: Tensor, tilts: Tensor) -> Tensor:
        """Strains of all images and mean distortions of the scans, for steps of sites and tilts."""
        on_sites, on_tilts = self.strain
        strains = torch.einsum("tkni,ni->tk", on_sites, sites) + torch.einsum("tkp,tp->tk", on_tilts, tilts)
        means = torch.einsum("ctp,tp->c", _mean_distortion(len(tilts)), tilts)
        return torch.cat([strains.flatten(), means])

    def adjoint_functionals(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adjoint of `functionals`."""
        on_sites, on_tilts = self.strain
        tilts, kinds = on_tilts.shape[:2]
        strains, means = values[:-3].view(tilts, kinds), values[-3:]
        poses = torch.einsum("tkp,tk->tp", on_tilts, strains)
        poses = poses + torch.einsum("ctp,c->tp", _mean_distortion(tilts), means)
        return torch.einsum("tkni,tk->ni", on_sites, strains), poses

    def sites_and_tilts(self, sites: Tensor, tilts: Tensor) -> tuple[Tensor, Tensor]:
        """From gradients ``(atom, 3)`` and ``(tilt, POSE_PARAMETERS)`` to steps."""
        step = self.arrow.solve(sites, tilts)
        stiff = self.inner @ self.functionals(*step)
        return step[0] - torch.einsum("c,cni->ni", stiff, self.answers[0]), step[1] - torch.einsum(
            "c,ctp->tp", stiff, self.answers[1]
        )

    def shapes(self, gradient: Tensor) -> Tensor:
        """From gradients in occupancy and variance ``(atom, 2)`` to steps."""
        return torch.einsum("nij,nj->ni", self.shape, gradient)


def _mean_distortion(tilts: int) -> Tensor:
    """Mean stretch of the scans along x, y and in shear, as linear functions ``(3, tilt, parameter)``."""
    out = torch.zeros(3, tilts, POSE_PARAMETERS, dtype=torch.float64)
    out[0, :, 5], out[1, :, 8] = 1 / tilts, 1 / tilts
    out[2, :, 6:8] = 0.5 / tilts
    return out


def _strain_functionals(
    model: AtomicTomography, weight: Tensor, across: Tensor, motion: Tensor
) -> tuple[Tensor, Tensor]:
    """Strains xx, yy, xy and rotation of each tilt's image as linear functions of the parameters.

    The best linear map of the atoms' motion across the beam, without the scan's.

    Returns
    -------
    Tensor, Tensor
        ``(tilt, 4, atom, 3)`` for sites and ``(tilt, 4, POSE_PARAMETERS)`` for tilts.
    """
    arm = torch.stack([model.lab(tilt).detach()[:, :2] for tilt in range(len(across))])
    share = weight / weight.sum()
    arm = arm - torch.einsum("n,tni->ti", share, arm)[:, None]
    spread = torch.einsum("n,tni,tnj->tij", share, arm, arm)
    lever = torch.einsum("n,tni,tij->tnj", share, arm, torch.linalg.inv(damped(spread, 1e-9)))
    zero = torch.zeros_like(lever[..., 0])
    x, y = lever.unbind(-1)
    # strain kind by atom by component of its motion
    kinds = ([x, zero], [zero, y], [y / 2, x / 2], [-y / 2, x / 2])
    maps = torch.stack([torch.stack(kind, -1) for kind in kinds], dim=1)
    still = motion.clone()
    still[..., 5:] = 0  # the scan's own distortion
    on_tilts = torch.einsum("tkna,tnap->tkp", maps, still)
    on_tilts[:, 3, 2] = 1.0  # psi turns everything
    return torch.einsum("tkna,tai->tkni", maps, across), on_tilts


def damped(matrices: Tensor, damping: float = DAMPING) -> Tensor:
    """Matrices with their diagonals made larger by a share."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    floor = 1e-9 * diagonal.amax(-1, keepdim=True).clamp_min(1e-12)
    return matrices + torch.diag_embed(damping * diagonal + floor)
