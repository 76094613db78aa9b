"""The Hessian of atoms and tilts together, with atoms that overlap in the images.

As in `petomo.algorithms.bundle_preconditioner` an atom acts through the phase it adds, but two atoms that a
tilt shows at nearly the same place add to the same pixels. Where tilts do not reach far, neighbours along the
beam do so in every tilt, and what each of them is shows a hundred times less than what they are together.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from petomo.algorithms.atom_overlap import look_up, overlap_blocks, overlap_tables
from petomo.algorithms.bundle_preconditioner import (
    DAMPING,
    POSE_PARAMETERS,
    BundlePreconditioner,
    Precisions,
    atom_sensitivity,
    damped,
    lateral_motion,
)
from petomo.algorithms.conjugate_gradients import Blocks, conjugate_gradients
from petomo.models.atomic_tomography import AtomicTomography

_REACH = 4.0  # angstrom; of how far atoms overlap in an image
_MOST_PAIRS = 2_000_000  # 400 MB
_ITERATIONS, _TOLERANCE = 100, 1e-4


class OverlapHessian:
    """Gauss-Newton Hessian of the negative log-posterior, linearised where the model stands.

    Parameters
    ----------
    model, curvatures, precisions
        As for `petomo.algorithms.bundle_preconditioner.BundlePreconditioner`.
    """

    def __init__(self, model: AtomicTomography, curvatures, precisions: Precisions):
        self.bundle = BundlePreconditioner(model, curvatures, precisions)
        self.stiffness, self.scale_prior = curvatures.strain, precisions.scale
        self.pairs = _neighbours(model)
        self._sum_over_tilts(model, curvatures)
        own = torch.tensor([0.0, 0.0, 0.0, *precisions.shape], dtype=torch.float64)
        self.atoms = damped(self.atoms, DAMPING) + torch.diag(own)
        self.tilts = damped(self.tilts, 1e-3) + torch.diag(precisions.tilt)

    def _sum_over_tilts(self, model: AtomicTomography, curvatures) -> None:
        """Blocks of atoms, of pairs of them, of atoms with tilts, and of tilts."""
        (tables, place), (across, motion) = overlap_tables(model, _REACH), lateral_motion(model)
        i, j = self.pairs
        z, occupancy, (tilts, count) = model.numbers, model.occupancy.detach(), motion.shape[:2]
        couple = torch.tensor([place[a, b] for a, b in zip(z[i.numpy()], z[j.numpy()], strict=True)]).long()
        still = torch.zeros(count, 2, dtype=torch.float64)
        own = tables[torch.tensor([place[a, a] for a in z]), :, 0]
        single = overlap_blocks(own, still, occupancy, occupancy)
        self.atoms = torch.zeros(count, 5, 5, dtype=torch.float64)
        self.both = torch.zeros(len(i), 5, 5, dtype=torch.float64)
        self.coupling = torch.zeros(count, tilts, 5, POSE_PARAMETERS, dtype=torch.float64)
        self.tilts = torch.zeros(tilts, POSE_PARAMETERS, POSE_PARAMETERS, dtype=torch.float64)
        shift, shape = (total.sum(0) for total in atom_sensitivity(model))
        for t in range(tilts):
            lab = model.lab(t).detach()[:, :2]
            near = torch.nonzero((lab[j] - lab[i]).norm(dim=1) < _REACH)[:, 0]
            one, other = i[near], j[near]
            offset = lab[other] - lab[one]
            entries = look_up(tables, couple[near], offset.norm(dim=1))
            double = overlap_blocks(entries, offset, occupancy[one], occupancy[other])
            # curvatures were measured on atoms that move each its own way, and that grow together
            moves = curvatures.moves[t] * shift / single[:, 0, 0].sum()
            grows = curvatures.shapes[t] * shape[0, 0] / (single[:, 2, 2].sum() + 2 * double[:, 2, 2].sum())
            scale = torch.stack([moves, moves, grows, grows]).sqrt()
            scale = scale[:, None] * scale
            # from a step of an atom to that of its image
            turn = torch.zeros(4, 5, dtype=torch.float64)
            turn[:2, :3], turn[2, 3], turn[3, 4] = across[t], 1.0, 1.0
            alone, double = single * scale, double * scale
            self.atoms += turn.T @ alone @ turn
            self.both[near] += turn.T @ double @ turn
            moved = alone[:, :, :2] @ motion[t]
            moved.index_add_(0, one, double[:, :, :2] @ motion[t, other])
            moved.index_add_(0, other, double.mT[:, :, :2] @ motion[t, one])
            self.coupling[:, t] = turn.T @ moved
            self.tilts[t] = torch.einsum("nap,naq->pq", motion[t], moved[:, :2])

    def __call__(self, step: Blocks) -> Blocks:
        """Product with steps of atoms (x, y, z, occupancy, variance) ``(atom, 5)`` and of tilts."""
        (atoms, tilts), (i, j) = step, self.pairs
        out = torch.einsum("nij,nj->ni", self.atoms, atoms)
        out.index_add_(0, i, torch.einsum("nij,nj->ni", self.both, atoms[j]))
        out.index_add_(0, j, torch.einsum("nji,nj->ni", self.both, atoms[i]))
        out += torch.einsum("ntip,tp->ni", self.coupling, tilts)
        poses = torch.einsum("tpq,tq->tp", self.tilts, tilts)
        poses += torch.einsum("ntip,ni->tp", self.coupling, atoms)
        seen = self.bundle.functionals(atoms[:, :3], tilts)
        strains = torch.einsum("tkl,tl->tk", self.stiffness, seen[:-3].view(self.stiffness.shape[:2]))
        stiff = torch.cat([strains.flatten(), self.scale_prior * seen[-3:]])
        on_sites, on_tilts = self.bundle.adjoint_functionals(stiff)
        out[:, :3] += on_sites
        return out, poses + on_tilts

    def solve(self, gradient: Blocks) -> Blocks:
        """Steps of atoms and tilts that a gradient asks for."""
        step = conjugate_gradients(self, gradient, self._without_overlap, _ITERATIONS, _TOLERANCE)
        return step if step[0].any() else self._without_overlap(gradient)

    def _without_overlap(self, gradient: Blocks) -> Blocks:
        atoms, tilts = gradient
        sites, poses = self.bundle.sites_and_tilts(atoms[:, :3], tilts)
        return torch.cat([sites, self.bundle.shapes(atoms[:, 3:])], dim=1), poses


def _neighbours(model: AtomicTomography) -> tuple[Tensor, Tensor]:
    """Pairs of atoms that some tilt shows near each other; of too many those nearest in space.

    All of them, however far one behind the other: with some left out the Hessian is not positive.
    """
    count, codes = len(model.numbers), np.empty(0, dtype=np.int64)
    for tilt in range(len(model.angles)):
        image = model.lab(tilt).detach()[:, :2].numpy()
        pairs = KDTree(image).query_pairs(_REACH, output_type="ndarray").astype(np.int64)
        codes = np.union1d(codes, pairs.min(1) * count + pairs.max(1))
    one, other = torch.as_tensor(codes // count), torch.as_tensor(codes % count)
    if len(codes) > _MOST_PAIRS:
        places = model.sites.detach()
        nearest = (places[one] - places[other]).norm(dim=1).topk(_MOST_PAIRS, largest=False).indices
        one, other = one[nearest], other[nearest]
    return one, other
