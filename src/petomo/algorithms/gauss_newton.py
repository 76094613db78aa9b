"""One Gauss-Newton step for the volume and the poses together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from petomo.algorithms.conjugate_gradients import Blocks, conjugate_gradients
from petomo.algorithms.linear_tomography import residuals
from petomo.core.pose import Poses
from petomo.models.projections import (
    ProjectionGeometry,
    back_project,
    pose_derivatives,
    project,
)


class Step(NamedTuple):
    """Updates of the volume ``z y x`` and the poses ``tilt parameter``, and the loss before them."""

    volume: Tensor
    poses: Tensor
    loss: float


def joint_step(
    volume: Tensor,
    poses: Poses,
    projections: Tensor,
    weights: Tensor,
    geometry: ProjectionGeometry,
    active: Tensor,
    deviation: Tensor,
    prior: Tensor,
    norm: float,
    iterations: int,
    support: Tensor | None = None,
) -> Step:
    """Solve the linearised alignment problem in the volume and the poses at once, by conjugate gradients.

    A volume fitted at wrong poses explains most of the error these poses make, so that updates of the
    poses alone creep. Here the poses see only what no change of the volume can explain (the Schur
    complement of the normal equations, as in bundle adjustment or variable projection, Golub and
    Pereyra 1973). Voxels that the non-negativity holds at zero stay out of the step.

    Parameters
    ----------
    volume, poses, projections, weights, geometry
        As in `petomo.algorithms.linear_tomography.linear_tomography`; one constant per tilt is free.
    active : Tensor
        Which of the five pose parameters may move, bool ``(5,)``.
    deviation : Tensor
        ``tilt parameter``: pose parameters less their nominal values.
    prior : Tensor
        ``(5,)``: expected spread of the deviation about its mean, radian or angstrom; inf for none.
    norm : float
        Largest eigenvalue of the tomography's normal operator, to balance the two blocks.
    iterations : int
        Conjugate gradient iterations.
    support : Tensor, optional
        Voxels that may be other than zero, bool ``z y x``.
    """
    model, slopes = pose_derivatives(volume, poses, geometry)
    residual = residuals(model, projections, weights, fit_offsets=True)
    loss = float((weights * residual**2).sum() / weights.sum())
    slopes = slopes * active.to(slopes)[:, None, None]
    slopes = residuals(slopes, torch.zeros_like(slopes), weights[:, None], fit_offsets=True)
    stiffness = (loss / prior**2).to(slopes)
    weighted = weights * residual
    gradient = back_project(weighted, poses, geometry)
    free = (volume > 0) | (gradient < 0)
    free = free if support is None else free & support
    pose_gradient = torch.einsum("tpyx,tyx->tp", slopes, weighted) + stiffness * _centred(
        deviation.to(slopes)
    )

    def normal(change: Blocks) -> Blocks:
        images = project(change[0], poses, geometry) + torch.einsum("tpyx,tp->tyx", slopes, change[1])
        images = weights * residuals(images, torch.zeros_like(images), weights, fit_offsets=True)
        back = free * back_project(images, poses, geometry)
        return back, torch.einsum("tpyx,tyx->tp", slopes, images) + stiffness * _centred(change[1])

    curvature = torch.einsum("tpyx,tyx,tqyx->tpq", slopes, weights, slopes)
    scale = curvature.diagonal(dim1=-2, dim2=-1)
    damping = 1e-3 * scale + stiffness + (scale <= 0)
    inverse = torch.linalg.inv(curvature + torch.diag_embed(damping))

    def precondition(gradient: Blocks) -> Blocks:
        return gradient[0] / norm, torch.einsum("tpq,tq->tp", inverse, gradient[1])

    down = -(free * gradient), -pose_gradient
    change, motion = conjugate_gradients(normal, down, precondition, iterations)
    return Step(change, motion, loss)


def _centred(parameters: Tensor) -> Tensor:
    return parameters - parameters.mean(0)
