"""Poses of a tilt series: joint rigid alignment and linear tomography (paper Algorithm 2).

The paper's two nested loops, with two changes. The poses move by Gauss-Newton steps taken jointly with
the volume (`petomo.algorithms.gauss_newton`) instead of by small gradient steps, and the volume lives
inside the specimen's outline (`petomo.algorithms.coarse_alignment.specimen_support`), without which it
could absorb most errors of the poses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from petomo.algorithms.coarse_alignment import coarse_poses, downsample, flatten_background, specimen_support
from petomo.algorithms.gauss_newton import joint_step
from petomo.algorithms.linear_tomography import TomographyOptions, operator_norm, reconstruct_linear
from petomo.algorithms.status import Status
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.models.projections import ProjectionGeometry

Refinement = Literal["shifts", "theta", "phi", "psi"]


@dataclass(frozen=True)
class AlignmentStage:
    """A number of outer iterations at one pixel size.

    Parameters
    ----------
    pixel : float
        The projections are averaged down to at most this pixel in angstrom.
    refine : tuple of {"shifts", "theta", "phi", "psi"}
        What moves. psi moves mostly in common: it is the direction of the tilt axis.
    iterations : int
        Outer iterations at most.
    """

    pixel: float
    refine: tuple[Refinement, ...]
    iterations: int


_STAGES = (
    AlignmentStage(1.2, ("shifts",), 3),
    AlignmentStage(0.6, ("shifts", "psi"), 4),
    AlignmentStage(0.45, ("shifts", "psi", "theta", "phi"), 3),
)


@dataclass(frozen=True)
class AlignmentOptions:
    """How `align` works.

    Parameters
    ----------
    stages : tuple of AlignmentStage
        From coarse to fine.
    inner_iterations, joint_iterations : int
        Tomography iterations, then conjugate gradient iterations of the joint step, per outer iteration.
    threshold : float
        Share of a projection's range below which it is background (outline of the specimen).
    margin, thickness : float
        Angstrom: widening of the specimen's outline, and its largest extent along the beam at zero tilt
        (None: as wide as the projections).
    axis_span : float
        Search the tilt axis within +- this angle in radian of y; 0 starts it on y.
    phi_width, theta_width, psi_width : float
        Radian: expected spread of each angle about its nominal value, a shift common to all tilts aside.
    correlation : float
        Angstrom: size of a patch of independent misfit, to weigh the data against these widths.
    tolerance : float
        Angstrom: a stage ends when the poses' movement (root mean square at the specimen's edge) is smaller.
    """

    stages: tuple[AlignmentStage, ...] = _STAGES
    inner_iterations: int = 8
    joint_iterations: int = 10
    threshold: float = 0.1
    margin: float = 1.5
    thickness: float | None = None
    axis_span: float = math.radians(6)
    phi_width: float = math.radians(0.1)
    theta_width: float = math.radians(0.2)
    psi_width: float = math.radians(0.1)
    correlation: float = 1.5
    tolerance: float = 0.005


@dataclass(frozen=True)
class _Problem:
    """What does not change: projections and their outline at full sampling, and nominal tilts."""

    images: Tensor
    weights: Tensor
    flat: Tensor
    tilts: Tensor
    pixel_size: float
    scale: float
    options: AlignmentOptions = field(repr=False)

    def level(self, pixel: float) -> tuple[Tensor, Tensor, Tensor, float]:
        """Images, weights and outline averaged down, and their pixel in angstrom."""
        factor = max(1, math.floor(pixel / self.pixel_size + 1e-6))
        weights = downsample(self.weights, factor)
        images = downsample(self.images * self.weights, factor) / weights.clamp_min(1e-6)
        covered = downsample((self.flat > 0).to(self.flat), factor) > 0.5
        return images, weights, downsample(self.flat, factor) * covered, self.pixel_size * factor


def align(
    projections: Tensor,
    weights: Tensor,
    tilts: Tensor,
    pixel_size: float,
    scale: float = 1.0,
    options: AlignmentOptions | None = None,
    initial: Poses | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Status]:
    """Find the poses of all tilts, one `Status` an outer iteration (paper Algorithm 2).

    What cannot be seen is fixed: the means of phi and of theta less its nominal values are zero, and the
    volume's centre of mass is at the origin at the start of every stage.

    Parameters
    ----------
    projections : Tensor
        Phases ``tilt y x`` in rad, each with a constant of its own.
    weights : Tensor
        ``tilt y x``, 1 where a projection is valid (inside the scan), 0 elsewhere.
    tilts : Tensor
        Nominal stage tilts in radian.
    pixel_size : float
        Angstrom.
    scale : float
        Interaction constant in rad / (V angstrom) for a volume in volts.
    options : AlignmentOptions, optional
        Settings.
    initial : Poses, optional
        Start here instead of from `petomo.algorithms.coarse_alignment.coarse_poses`.
    state : dict, optional
        A `Status.state` to continue from.

    Yields
    ------
    Status
        ``loss`` in rad^2 per pixel; ``extras`` has the stage, its pixel size and the movement of the poses in
        angstrom; ``state`` holds the poses (`Poses.from_dict`) and the working volume of the stage.
    """
    options = options or AlignmentOptions()
    tilts = torch.as_tensor(tilts, dtype=torch.float64, device="cpu")
    flat = flatten_background(projections, weights, pixel_size, options.threshold)
    problem = _Problem(projections, weights, flat, tilts, pixel_size, scale, options)
    if state is None:
        if initial is None:
            initial = coarse_poses(
                projections, weights, tilts, pixel_size, options.threshold, options.axis_span
            )
        state = {"iteration": 0, "stage": 0, "step": 0, **initial.to_dict()}
    # what was saved comes back on the processor
    large = {name: state[name].to(projections.device) for name in ("volume", "support") if name in state}
    state = {**state, **large}
    while state["stage"] < len(options.stages):
        if state["step"] == 0:
            state = _begin_stage(problem, state)
        status = _outer_iteration(problem, state)
        state = status.state
        yield status


def _begin_stage(problem: _Problem, state: dict[str, Any]) -> dict[str, Any]:
    """Centre the specimen, find where it can be, and start from an empty volume there."""
    options, poses = problem.options, Poses.from_dict(state)
    if "volume" in state:
        poses = _centred(poses, state["volume"], state["voxel"])
    images, weights, flat, pixel = problem.level(options.stages[state["stage"]].pixel)
    height, width = images.shape[-2:]
    depth = width if options.thickness is None else math.ceil(options.thickness / pixel)
    support = specimen_support(flat, weights, poses, Grid((depth, height, width), pixel), options.margin)
    support = _crop(support).to(images.device)
    geometry = ProjectionGeometry(Grid(tuple(support.shape), pixel), (height, width), problem.scale)
    return {
        **state,
        **poses.to_dict(),
        "voxel": pixel,
        "support": support,
        "volume": images.new_zeros(support.shape),
        "norm": operator_norm(weights, poses, geometry),
    }


def _outer_iteration(problem: _Problem, state: dict[str, Any]) -> Status:
    """Inner tomography, then one joint step of volume and poses."""
    options, stage, poses = problem.options, problem.options.stages[state["stage"]], Poses.from_dict(state)
    images, weights, _, pixel = problem.level(stage.pixel)
    geometry = ProjectionGeometry(
        Grid(tuple(state["volume"].shape), pixel), (images.shape[-2], images.shape[-1]), problem.scale
    )
    tomography = TomographyOptions(options.inner_iterations, fit_offsets=True, support=state["support"])
    begin = {"volume": state["volume"], "norm": state["norm"]}
    volume = reconstruct_linear(images, poses, geometry, tomography, weights, begin)
    step = joint_step(
        volume,
        poses,
        images,
        weights,
        geometry,
        active=_active(stage),
        deviation=_parameters(poses, problem.tilts),
        prior=_prior(options, pixel),
        norm=state["norm"],
        iterations=options.joint_iterations,
        support=state["support"],
    )
    moved, movement = _move(poses, step.poses.to("cpu", torch.float64), problem.tilts, pixel, volume)
    number = state["step"] + 1
    done = number >= stage.iterations or movement < options.tolerance
    following = {
        **state,
        **moved.to_dict(),
        "iteration": state["iteration"] + 1,
        "stage": state["stage"] + done,
        "step": 0 if done else number,
        "volume": (volume + step.volume).clamp_min(0),
    }
    extras = {"alignment_stage": float(state["stage"] + 1), "pixel": pixel, "movement": movement}
    return Status(following["iteration"], step.loss, extras, following)


def _active(stage: AlignmentStage) -> Tensor:
    shifts = "shifts" in stage.refine
    return torch.tensor([*(name in stage.refine for name in ("phi", "theta", "psi")), shifts, shifts])


def _prior(options: AlignmentOptions, pixel: float) -> Tensor:
    """Widths, narrowed as if only one pixel per patch of independent misfit had been counted."""
    widths = torch.tensor([options.phi_width, options.theta_width, options.psi_width, math.inf, math.inf])
    return widths / max(1.0, options.correlation / pixel)


def _parameters(poses: Poses, tilts: Tensor) -> Tensor:
    """``tilt parameter``: phi, theta less nominal, psi in radian, tau in angstrom."""
    return torch.cat([torch.stack([poses.phi, poses.theta - tilts, poses.psi], dim=1), poses.tau], dim=1)


def _move(poses: Poses, step: Tensor, tilts: Tensor, pixel: float, volume: Tensor) -> tuple[Poses, float]:
    """Poses after a step of limited length, in the gauge of `align`, and how far the edge moved."""
    radius = 0.5 * pixel * max(volume.shape)
    limits = torch.tensor([2 * pixel / radius] * 3 + [2 * pixel] * 2, dtype=torch.float64)
    step = step.clamp(-limits, limits)
    movement = torch.cat([step[:, :3] * radius, step[:, 3:]], dim=1).square().sum(1).mean().sqrt()
    moved = _parameters(poses, tilts) + step
    moved[:, :2] -= moved[:, :2].mean(0)
    phi, theta, psi = moved[:, :3].unbind(1)
    return Poses(phi, theta + tilts, psi, moved[:, 3:]), float(movement)


def _centred(poses: Poses, volume: Tensor, voxel: float) -> Poses:
    """Poses after the specimen's centre of mass has been moved to the origin."""
    grid = Grid(tuple(volume.shape), voxel)
    volume = volume.contiguous()  # sums round by the order in memory, which a checkpoint does not keep
    total = float(volume.sum())
    if total <= 0:
        return poses
    sums = [volume.sum([a for a in range(3) if a != axis]).cpu().double() for axis in (2, 1, 0)]
    coordinates = [grid.coordinates(axis, dtype=torch.float64) for axis in (2, 1, 0)]
    centre = torch.stack([(c * s).sum() / total for c, s in zip(coordinates, sums, strict=True)])
    return poses.replace(tau=poses.tau + (poses.matrices() @ centre)[:, :2])


def _crop(support: Tensor) -> Tensor:
    """Smallest box about the origin that holds the support, which keeps its ``n // 2`` at the origin."""
    for dim in range(3):
        n = support.shape[dim]
        inside = support.any(dim=tuple(d for d in range(3) if d != dim))
        reach = int((inside.nonzero() - n // 2).abs().max())
        before, after = min(reach, n // 2), min(reach, n - 1 - n // 2)
        support = support.narrow(dim, n // 2 - before, before + after + 1)
    return support
