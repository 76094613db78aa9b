"""Step 2b: poses of all tilts and a first volume from the phase projections (paper, Algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from petomo.algorithms.bundle_adjustment import BundleOptions, adjust, find_blobs, poses_of
from petomo.algorithms.linear_tomography import TomographyOptions, reconstruct_linear
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.io.artefacts import read_poses, read_positions, write_poses, write_positions
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
    names = [t.name for t in series]
    if config.alignment.poses is not None:
        poses = read_poses(config.alignment.poses)[0]
    else:
        poses = _align(context, grids, projections, weights)
        if config.alignment.bundle.rounds:
            poses = _bundle(context, grids, projections, weights, poses)
    volume = _linear_volume(grids, projections, weights, poses)
    write_mrc(folder / "volume_linear.mrc", volume.cpu().numpy(), grids.voxel)
    write_poses(folder / "poses.json", poses, names)


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


def _geometry(grids: Grids) -> ProjectionGeometry:
    return ProjectionGeometry(Grid(grids.volume_shape, grids.voxel), grids.field)


def _linear_volume(
    grids: Grids, projections: Tensor, weights: Tensor, poses: Poses, iterations: int = 20
) -> Tensor:
    options = TomographyOptions(iterations=iterations, fit_offsets=True)
    return reconstruct_linear(projections, poses, _geometry(grids), options, weights)


def _align(context: RunContext, grids: Grids, projections: Tensor, weights: Tensor) -> Poses:
    raise RuntimeError


def _bundle(context: RunContext, grids: Grids, projections: Tensor, weights: Tensor, poses: Poses) -> Poses:
    """Sharpen the poses with sparse blobs; scans are freed of the distortion found along."""
    settings = context.config.alignment.bundle
    options = BundleOptions(
        iterations=settings.iterations, width_angstrom=settings.width_angstrom, affine=settings.affine
    )
    saved = context.restore(STAGE) or {}
    begin, distortion = 0, torch.zeros(len(poses), 3, dtype=torch.float64)
    if saved.get("part") == "bundle":
        begin, distortion = saved["round"], saved["affine"]
        poses = Poses(*saved["angles"].unbind(-1), saved["tau"])
    total = settings.rounds * settings.iterations
    for number in range(begin, settings.rounds):
        volume = _linear_volume(grids, projections, weights, poses)
        Gaussian(grids.voxel, grids.voxel).filter_(volume)
        most = settings.blobs or 4000
        blobs, heights = find_blobs(volume, grids.voxel, most, 1.2, threshold=0.05 * float(volume.max()))
        state = {}
        for status in adjust(projections, weights, grids.voxel, blobs, poses, options):
            state = status.state
            if status.iteration % 25 == 0 or state:
                done = number * settings.iterations + status.iteration
                context.iteration(STAGE, done, total, status.loss, part="bundle", blobs=len(blobs))
        poses, distortion = poses_of(state), state["affine"]
        kept = {"part": "bundle", "round": number + 1, "affine": distortion, "tau": poses.tau,
                "angles": torch.stack([poses.phi, poses.theta, poses.psi], -1)}  # fmt: skip
        context.save(STAGE, kept)
    _undistort(context, distortion)
    return poses


def _undistort(context: RunContext, distortion: Tensor) -> None:
    """Scan positions from what the scan coils were told to where the beam was."""
    path = context.folder / "positions.h5"
    positions, initial = read_positions(path)
    out = []
    for p, (a, b, c) in zip(positions, distortion.double(), strict=True):
        matrix = torch.stack([torch.stack([1 + a, c]), torch.stack([c, 1 + b])])
        out.append(p.double() @ torch.linalg.inv(matrix).T)
    write_positions(path, out, initial)
