"""Standard errors of refined atoms, relative to each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from petomo.algorithms.bundle_preconditioner import BundlePreconditioner
from petomo.models.atomic_tomography import AtomicTomography


def position_errors(model: AtomicTomography, bundle: BundlePreconditioner, slopes: Tensor) -> Tensor:
    """Standard error of every coordinate ``(atom, 3)`` in angstrom, rigid motions taken out.

    The inverse Hessian of atoms and poses, times how much more the gradients scatter from tilt to tilt
    than counting noise makes them: what the model gets wrong differs between tilts, and counts as noise
    of its own (the sandwich estimator of White 1982, pooled over the atoms of an element).

    Parameters
    ----------
    model : AtomicTomography
        At the minimum.
    bundle : BundlePreconditioner
        There.
    slopes : Tensor
        Gradients of the loss in the sites, tilt by tilt, ``(tilt, atom, 3)``.
    """
    centred = slopes - slopes.mean(0)
    tilts = len(slopes)
    excess = torch.einsum("tni,nij,tnj->n", centred, bundle.atoms, centred) / 3 * tilts / max(1, tilts - 1)
    inflation = torch.ones_like(excess)
    for z in np.unique(model.numbers):
        members = torch.as_tensor(model.numbers == z)
        inflation[members] = excess[members].mean().clamp_min(1.0)
    own = bundle.atoms.diagonal(dim1=-2, dim2=-1) * inflation[:, None]
    shared = bundle.shared_variance(_without_rigid_motion(model.sites.detach()))
    return (own + shared * excess.mean().clamp_min(1.0)).sqrt()


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
