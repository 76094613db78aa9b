"""Step 2b: poses of all tilts and a first volume from the phase projections (paper, Algorithm 2)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from petomo.algorithms.bundle_adjustment import BundleOptions, adjust, find_blobs, poses_of
from petomo.algorithms.linear_tomography import TomographyOptions, reconstruct_linear
from petomo.algorithms.tilt_alignment import AlignmentOptions, AlignmentStage, align
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.io.artefacts import read_positions, write_poses, write_positions
from petomo.io.poses import load_poses
from petomo.io.volumes import read_mrc, write_mrc
from petomo.models.projections import ProjectionGeometry
from petomo.objectives.filters import Gaussian
from petomo.workflow.context import RunContext
from petomo.workflow.grids import Grids, plan_grids

STAGE = "alignment"


def alignment(context: RunContext) -> None:
    """Find the poses; leaves ``poses.json``, ``volume_linear.mrc`` and scans without their distortion."""
    config, folder, series = context.config, context.folder, context.series
    grids = plan_grids(series, config)
    projections = torch.from_numpy(read_mrc(folder / "projections.mrc")[0]).to(context.device)
    weights = scan_weights(context, grids)
    positions, initial = read_positions(context.inputs(STAGE, "positions.h5") / "positions.h5")
    if config.alignment.poses is not None:
        poses, _ = load_poses(config.alignment.poses, [tilt.name for tilt in series])
    else:
        saved = context.restore(STAGE) or {}
        bundled = saved.get("bundle")
        start = Poses.from_tilts(series.stage_tilts)
        poses = start if bundled else _align(context, grids, projections, weights, saved.get("align"))
        poses, distortion = _bundle(context, grids, projections, weights, poses, bundled)
        write_positions(folder / "positions.h5", _undistort(positions, distortion), initial)
    volume = _linear_volume(grids, projections, weights, poses)
    write_mrc(folder / "volume_linear.mrc", volume.cpu().numpy(), grids.voxel)
    write_poses(folder / "poses.json", poses, [t.name for t in series])


def scan_weights(context: RunContext, grids: Grids) -> Tensor:
    """1 where the scan of a tilt looked, 0 elsewhere, ``(tilt, y, x)``."""
    field = Grid(grids.field, grids.voxel)
    y, x = (field.coordinates(axis, dtype=torch.float32) for axis in (0, 1))
    out = []
    for tilt in context.series:
        positions = tilt.positions()
        (x0, y0), (x1, y1) = positions.amin(0).tolist(), positions.amax(0).tolist()
        inside = ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None, :]
        out.append(inside.float())
    return torch.stack(out).to(context.device)


def _linear_volume(
    grids: Grids, projections: Tensor, weights: Tensor, poses: Poses, iterations: int = 20
) -> Tensor:
    geometry = ProjectionGeometry(Grid(grids.volume_shape, grids.voxel), grids.field)
    options = TomographyOptions(iterations=iterations, fit_offsets=True)
    return reconstruct_linear(projections, poses, geometry, options, weights)


def _align(
    context: RunContext, grids: Grids, projections: Tensor, weights: Tensor, saved: dict | None
) -> Poses:
    """Algorithm 2 from coarse to fine; goes on from ``saved``."""
    options = _alignment_options(context, grids)
    total = sum(stage.iterations for stage in options.stages)
    if total == 0:
        return Poses.from_tilts(context.series.stage_tilts)
    status = None
    solver = align(
        projections, weights, context.series.stage_tilts, grids.voxel, options=options, state=saved
    )
    for status in solver:
        context.iteration(
            STAGE,
            status.iteration,
            total,
            status.loss,
            lambda s=status: {"part": "align", "align": s.state},
            part="align",
            **status.extras,
        )
    state = saved if status is None else status.state
    assert state is not None  # a stage of the aligner yields at least once
    return Poses.from_dict(state)


def _alignment_options(context: RunContext, grids: Grids) -> AlignmentOptions:
    settings, finest = context.config.alignment, grids.voxel * context.config.alignment.downsample
    stages = tuple(
        AlignmentStage(
            max(stage.pixel, finest),
            tuple(name for name in stage.refine if name in settings.refine),
            min(stage.iterations, settings.iterations),
        )
        for stage in AlignmentOptions().stages
    )
    return AlignmentOptions(
        stages=stages,
        inner_iterations=settings.inner_iterations,
        threshold=settings.background_threshold,
        thickness=grids.thickness,
    )


def _bundle(
    context: RunContext, grids: Grids, projections: Tensor, weights: Tensor, poses: Poses, saved: dict | None
) -> tuple[Poses, Tensor]:
    """Sharpen the poses with sparse blobs; also gives the distortion of every scan, ``(tilt, 3)``."""
    settings = context.config.alignment.bundle
    sharp = BundleOptions(
        iterations=settings.iterations, width_angstrom=settings.width_angstrom, affine=settings.affine
    )
    begin, distortion = 0, torch.zeros(len(poses), 3, dtype=torch.float64)
    if saved:
        begin, distortion = saved["round"], torch.as_tensor(saved["affine"])
        poses = Poses.from_dict(saved)
    total, tilts = settings.rounds * settings.iterations, context.series.stage_tilts
    for number in range(begin, settings.rounds):
        options = sharp if number else replace(sharp, blur_angstrom=settings.blur_angstrom)
        # a start for blobs: phi is small, and costs most of the time of a projection
        level = poses.replace(phi=torch.zeros_like(poses.phi))
        volume = _linear_volume(grids, projections, weights, level)
        Gaussian(grids.voxel, grids.voxel).filter_(volume)
        least = settings.threshold * float(volume.max())
        blobs, _ = find_blobs(volume, grids.voxel, settings.blobs, settings.min_distance_angstrom, least)
        state = {}
        for status in adjust(projections, weights, grids.voxel, blobs, poses, tilts, options):
            state = status.state
            if status.iteration % 25 == 0:
                done = number * settings.iterations + status.iteration
                context.iteration(STAGE, done, total, status.loss, part="bundle", blobs=len(blobs))
        poses, distortion = poses_of(state), state["affine"]
        done = {"round": number + 1, "affine": distortion, **poses.to_dict()}
        context.save(STAGE, {"part": "bundle", "bundle": done})
    return poses, distortion


def _undistort(positions: list[Tensor], distortion: Tensor) -> list[Tensor]:
    """Scan positions from where the coils were told to go to where the beam was."""
    out = []
    for p, (a, b, c) in zip(positions, distortion.double(), strict=True):
        matrix = torch.stack([torch.stack([1 + a, c]), torch.stack([c, 1 + b])])
        out.append(p.double() @ torch.linalg.inv(matrix).T)
    return out
