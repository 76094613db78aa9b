"""Gauss-Newton steps for the geometry of one tilt: angles, shift, scan distortion, single positions.

The curvature is measured by moving each parameter a little and looking at how the model amplitudes
move: for ``L = c/2 sum (a - a_meas)^2`` the Gauss-Newton matrix is ``c sum (da/dp)^2``. It changes
slowly, so it is kept for some passes while the exact gradients are taken in every one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petomo.algorithms.descent_options import DescentOptions
from petomo.core.least_squares import least_squares
from petomo.core.parallel import ALONE, Team
from petomo.core.scan import affine_basis, turn_scan
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.models.ptychography import Ptychography

Model = Ptychography | PtychoTomography

#: Finite moves that measure the curvature: small against the resolution, large against rounding.
_MOVE_ANGSTROM = 0.03
_MOVE_RADIAN = 2e-3
#: Patterns held at a time.
_BLOCK = 512
#: Every how many positions tell the curvature of what all share, where enough of them are left.
_SAMPLE, _ENOUGH = 4, 100


@torch.no_grad()
def refine_geometry(
    model: Model,
    options: DescentOptions,
    iteration: int,
    tilt: int,
    kept: dict[str, Tensor],
    curvature: float,
    gradient: Tensor,
    angle_gradient: Tensor,
    team: Team = ALONE,
) -> None:
    """Move the angles, the scan and the single positions of one tilt, whichever the schedules let go.

    Parameters
    ----------
    model : Ptychography or PtychoTomography
        Changed in place.
    options : DescentOptions
        Schedules, and how often curvatures are measured.
    iteration, tilt : int
        Pass and tilt.
    kept : dict
        Curvatures measured so far; new ones are put in.
    curvature : float
        Second derivative of the loss in the model amplitude.
    gradient, angle_gradient : Tensor
        ``(k, 2)`` per angstrom and ``(3,)`` per radian, of the loss summed over the tilt.
    team : Team
        Processes that share the measuring of curvatures.
    """
    again = iteration % options.curvature_every == 0
    if options.poses.active(iteration) and isinstance(model, PtychoTomography):
        key = f"angles_{tilt}"
        if key not in kept or again:
            kept[key] = angle_curvature(model, tilt, curvature, team=team)
        _turn(model, tilt, kept[key], gradient, angle_gradient, options.poses.step)
    if not (options.affine.active(iteration) or options.positions.active(iteration)):
        return
    key = f"positions_{tilt}"
    if key not in kept or again:
        # what all share is known well enough from some of them
        sample = 1 if options.positions.step > 0 else None
        kept[key] = position_curvature(model, tilt, curvature, sample, team)
    known = kept[key]
    if options.affine.active(iteration):
        basis = affine_basis(model.positions[tilt].data)
        shared = (basis.double() @ pooled_step(basis, known, gradient)).to(basis.dtype)
        shared = (shared * options.affine.step).clamp(-0.3, 0.3)
        gradient = gradient + (known @ shared[..., None])[..., 0]
        _move(model, tilt, shared)
    if options.positions.active(iteration):
        # a loss of curvature c is 2 / c times the log-likelihood of counts (amplitudes have variance 1/4)
        prior = curvature / 4 / options.prior_angstrom**2
        stray = stray_positions(model.positions[tilt].data, model.scan(tilt))
        step = single_steps(known, gradient + prior * stray, prior).clamp(-0.1, 0.1)
        _move(model, tilt, step * options.positions.step)


def _turn(model: PtychoTomography, tilt: int, known: Tensor, gradient: Tensor, angle_gradient: Tensor, step):
    """Gauss-Newton step of the three angles; psi takes the scan with it."""
    positions, tau = model.positions[tilt].data, model.tau.data[tilt]
    arm, slope = positions.double() - tau, angle_gradient.clone()
    slope[2] += (gradient[:, 1] * arm[:, 0] - gradient[:, 0] * arm[:, 1]).sum()
    angles = -damped_solve(known, slope, 1e-2).clamp(-5e-3, 5e-3) * step
    model.angles.data[tilt] += angles
    positions.copy_(turn_scan(positions, tau, angles[2]))


def _move(model: Model, tilt: int, step: Tensor):
    """Move the positions of a tilt; what all share is the specimen's shift and goes into tau."""
    mean = step.mean(0)
    model.positions[tilt].data += step - mean
    if isinstance(model, PtychoTomography):
        model.tau.data[tilt] -= mean.double()


@torch.no_grad()
def position_curvature(
    model: Model, tilt: int, curvature: float, sample: int | None = 1, team: Team = ALONE
) -> Tensor:
    """Gauss-Newton matrices ``(k, 2, 2)`` of the loss in the positions of one tilt, per square angstrom.

    Parameters
    ----------
    model : Ptychography or PtychoTomography
        Left as it was.
    tilt : int
        Which tilt.
    curvature : float
        Second derivative of the loss in the model amplitude (2 for `Amplitude`, 4 for `Poisson`).
    sample : int or None
        Every how many positions to look at; those between get the matrix of the one before. None looks at
        enough for what all of them share.
    team : Team
        Each of its processes looks at a part of the positions; all get all matrices.
    """
    positions, out = model.positions[tilt], []
    apart, phase = _apart(len(positions), sample), model.phase(tilt, team)
    every = torch.arange(0, len(positions), apart, device=positions.device)
    for index in every[team.share(len(every))].split(_BLOCK):
        base = model.predict(tilt, index, phase).sqrt()
        slopes = []
        for axis in (0, 1):
            kept = positions.data.clone()
            positions.data[:, axis] += _MOVE_ANGSTROM
            slopes.append((model.predict(tilt, index, phase).sqrt() - base) / _MOVE_ANGSTROM)
            positions.data.copy_(kept)
        jacobian = torch.stack(slopes, dim=1).flatten(2)
        out.append(curvature * jacobian @ jacobian.transpose(1, 2))
    matrices = team.join(torch.cat(out), len(every), dim=0)
    return matrices.repeat_interleave(apart, dim=0)[: len(positions)]


def _apart(count: int, sample: int | None) -> int:
    """Every how many of ``count`` positions to look at; by default enough for what all of them share."""
    return sample or max(1, min(_SAMPLE, count // _ENOUGH), count // _BLOCK)


@torch.no_grad()
def angle_curvature(
    model: PtychoTomography, tilt: int, curvature: float, sample: int | None = None, team: Team = ALONE
) -> Tensor:
    """Gauss-Newton matrix ``(3, 3)`` of the loss in (phi, theta, psi) of one tilt, per square radian.

    psi turns the specimen and the scan together (see `turn_scan`): turning the specimen alone is
    nearly the same as a turned scan, and the two would hold each other up.

    Parameters
    ----------
    sample : int, optional
        Every how many positions to look at, by default enough of them; the result is scaled to all of them.
    team : Team
        Each of its processes looks at a part of those; all get the same matrix.
    """
    positions, angles = model.positions[tilt], model.angles[tilt]
    every = torch.arange(0, len(positions), _apart(len(positions), sample), device=positions.device)
    index = every[team.share(len(every))]
    base = model.predict(tilt, index, model.phase(tilt, team)).sqrt()
    slopes = []
    for axis in range(3):
        kept, kept_positions = angles.data[axis].clone(), positions.data.clone()
        angles.data[axis] += _MOVE_RADIAN
        if axis == 2:
            positions.data.copy_(turn_scan(positions.data, model.tau.data[tilt], _MOVE_RADIAN))
        moved = model.predict(tilt, index, model.phase(tilt, team)).sqrt()
        slopes.append((moved - base) / _MOVE_RADIAN)
        angles.data[axis] = kept
        positions.data.copy_(kept_positions)
    jacobian = torch.stack(slopes).flatten(1).double()
    product = jacobian @ jacobian.T
    team.sum_(product)
    return curvature * product * (len(positions) / len(every))


def stray_positions(positions: Tensor, scan: Tensor) -> Tensor:
    """What is left of positions ``(k, 2)`` after the best affine map of the nominal scan."""
    basis = affine_basis(scan.double()).reshape(-1, 6)
    flat = positions.double().reshape(-1, 1)
    fit = basis @ least_squares(basis, flat)
    return (flat - fit).view(-1, 2).to(positions.dtype)


def pooled_step(basis: Tensor, curvature: Tensor, gradient: Tensor, damping: float = 1e-3) -> Tensor:
    """Least-squares motion shared by all positions of a tilt.

    Parameters
    ----------
    basis : Tensor
        ``(k, 2, p)``, positions per shared parameter.
    curvature, gradient : Tensor
        ``(k, 2, 2)`` and ``(k, 2)`` of the loss in the positions.

    Returns
    -------
    Tensor
        ``(p,)``.
    """
    basis, curvature, gradient = basis.double(), curvature.double(), gradient.double()
    normal = torch.einsum("kip,kij,kjq->pq", basis, curvature, basis)
    right = torch.einsum("kip,ki->p", basis, gradient)
    return -damped_solve(normal, right, damping)


def damped_solve(normal: Tensor, right: Tensor, damping: float) -> Tensor:
    """Levenberg-Marquardt step ``(H + damping diag H)^-1 g``, zero where nothing is known."""
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    floor = diagonal.amax(-1, keepdim=True).clamp_min(1e-20) * 1e-9
    return torch.linalg.solve(normal + torch.diag_embed(damping * diagonal + floor), right)


def single_steps(curvature: Tensor, gradient: Tensor, prior: float, damping: float = 0.05) -> Tensor:
    """Newton step ``(k, 2)`` of every position by itself.

    Parameters
    ----------
    prior : float
        Precision added to the curvature (loss units per square angstrom); its pull belongs into the
        gradient, and keeps positions that see only vacuum from wandering.
    """
    eye = torch.eye(2, dtype=curvature.dtype, device=curvature.device)
    typical = curvature.diagonal(dim1=-2, dim2=-1).mean()
    return -torch.linalg.solve(curvature * (1 + damping) + (prior + 1e-6 * typical) * eye, gradient)
