"""First poses from the projections alone: background, tilt axis, shifts, and where the specimen can be."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from petomo.algorithms.registration import common_line_misfit, register_neighbours
from petomo.core.grid import Grid
from petomo.core.least_squares import least_squares
from petomo.core.pose import Poses
from petomo.physics.fourier import rotate_plane

_BACKGROUND_QUANTILE = 0.1
_PEAK_QUANTILE = 0.98
_TOUCHING = 0.15
_AXIS_PIXELS = 200  # a side is enough to tell the tilt axis to a degree


def downsample(images: Tensor, factor: int) -> Tensor:
    """Average blocks of ``factor`` x ``factor`` pixels so that the origin stays at ``n // 2``.

    Blocks are centred on the origin, which for an even factor needs half weights at both rims of a block.

    Parameters
    ----------
    images : Tensor
        ``tilt y x``.
    factor : int
        Pixels per block edge.
    """
    if factor == 1:
        return images
    for dim in (-2, -1):
        n = images.shape[dim]
        half = n // 2 // factor  # whole blocks before the origin's block
        after = (n - 1 - n // 2) // factor
        count = 2 * min(half, after) + 1
        centres = (torch.arange(count, device=images.device) - count // 2) * factor + n // 2
        blocks = []
        for tap in range(-(factor // 2), factor // 2 + 1):
            rim = factor % 2 == 0 and abs(tap) == factor // 2
            part = images.index_select(dim, (centres + tap).clamp(0, n - 1))
            blocks.append(0.5 * part if rim else part)
        images = torch.stack(blocks).sum(0) / factor
    return images


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur over the last two axes, sigma in pixels."""
    blurred = scipy.ndimage.gaussian_filter(images.cpu().numpy(), (0, sigma, sigma), mode="nearest")
    return torch.as_tensor(blurred, dtype=images.dtype, device=images.device)


def smooth_seen(images: Tensor, weights: Tensor, sigma: float, least: float = 1e-6) -> Tensor:
    """Gaussian blur of what ``weights`` allow alone; falls to zero where less than ``least`` of it is."""
    return smooth(images * weights, sigma) / smooth(weights, sigma).clamp_min(least)


def flatten_background(images: Tensor, weights: Tensor, pixel_size: float, threshold: float) -> Tensor:
    """Projections less their background, zero below a fraction of their range: the specimen's outline.

    Parameters
    ----------
    images, weights : Tensor
        ``tilt y x`` in rad, and their validity >= 0.
    pixel_size : float
        Angstrom.
    threshold : float
        Fraction of the range from the background to the brightest parts below which a pixel is background.

    Returns
    -------
    Tensor
        ``tilt y x``, smoothed to 1 angstrom, zero where the weight is zero.
    """
    valid = weights > 0
    blurred = smooth_seen(images, weights, 1 / pixel_size)
    flat = torch.zeros_like(images)
    for tilt in range(len(images)):
        values = blurred[tilt][valid[tilt]]
        low, high = torch.quantile(values, _BACKGROUND_QUANTILE), torch.quantile(values, _PEAK_QUANTILE)
        raised = blurred[tilt] - low
        flat[tilt] = torch.where(valid[tilt] & (raised > threshold * (high - low)), raised, 0.0)
    return flat


def is_isolated(flat: Tensor, weights: Tensor, pixel_size: float) -> bool:
    """Whether vacuum surrounds the specimen in every projection, from `flatten_background`'s result.

    Looks at the outermost angstrom of the valid area.
    """
    for image, weight in zip(flat.cpu().numpy(), weights.cpu().numpy(), strict=True):
        valid = weight > 0
        inner = scipy.ndimage.binary_erosion(valid, iterations=max(1, round(1 / pixel_size)))
        rim = valid & np.logical_not(inner)
        if (image > 0)[rim].mean() > _TOUCHING:
            return False
    return True


def derotate(images: Tensor, psi: float) -> Tensor:
    """Projections with the tilt axis turned back onto y."""
    return rotate_plane(images, torch.tensor(-psi, dtype=images.dtype))


def find_tilt_axis(
    detail: Tensor, views: Tensor, masks: Tensor, tilts: Tensor, pixel_size: float, span: float
) -> float:
    """Angle psi of the tilt axis in radian, the same for all projections, by common lines.

    Parameters
    ----------
    detail : Tensor
        Projections less their background, ``(tilt, y, x)``.
    views, masks, tilts : Tensor
        What `petomo.algorithms.registration.register_neighbours` takes.
    pixel_size : float
        Angstrom.
    span : float
        Search within +- this angle.
    """
    step = math.radians(1.0)
    angles = np.arange(-math.ceil(span / step), math.ceil(span / step) + 1) * step
    misfits = []
    for angle in angles:
        valid = derotate(masks, angle) > 0.5
        along = register_neighbours(derotate(views, angle), valid, tilts, pixel_size)[:, 1]
        misfits.append(common_line_misfit(derotate(detail, angle), valid, along, pixel_size))
    misfits = np.array(misfits)
    if not np.isfinite(misfits).all():
        return 0.0
    best = int(misfits.argmin())
    # single misfits scatter by how well the lines were registered
    near = slice(max(best - 3, 0), best + 4)
    curve = np.polyfit(angles[near], np.log(misfits[near].clip(1e-12)), 2)
    if curve[0] <= 0:
        return float(angles[best])
    return float(np.clip(-curve[1] / (2 * curve[0]), angles[near][0], angles[near][-1]))


def centres_of_mass(flat: Tensor, pixel_size: float) -> Tensor:
    """Centre of mass of every projection as (x, y) in angstrom, ``(tilt, 2)``."""
    grid = Grid(tuple(flat.shape[-2:]), pixel_size)
    total = flat.sum((-2, -1)).clamp_min(1e-12)
    sums = [(flat.sum(-1 - axis) * grid.coordinates(axis, dtype=flat.dtype)).sum(-1) for axis in (1, 0)]
    return torch.stack([s / total for s in sums], dim=-1).double()


def coarse_poses(
    images: Tensor,
    weights: Tensor,
    tilts: Tensor,
    pixel_size: float,
    threshold: float = 0.1,
    axis_span: float = math.radians(6),
    resolution: float = 1.0,
) -> Poses:
    """Tilt axis and shifts without a volume.

    Shifts come from neighbouring projections, the axis from common lines. The centre of mass of an isolated
    specimen is then put at the origin.

    Parameters
    ----------
    images, weights : Tensor
        ``tilt y x`` in rad and their validity.
    tilts : Tensor
        Nominal stage tilts in radian.
    pixel_size : float
        Angstrom.
    threshold : float
        See `flatten_background`.
    axis_span : float
        Search the tilt axis within +- this angle in radian; 0 keeps it on y.
    resolution : float
        Finer detail is blurred, angstrom.
    """
    images, weights, tilts = images.cpu(), weights.cpu(), tilts.cpu()
    flat = flatten_background(images, weights, pixel_size, threshold)
    isolated = is_isolated(flat, weights, pixel_size)
    vacuum = weights * (flat <= 0) if isolated else weights
    raised = images - _means(images, vacuum)
    sigma, factor = resolution / pixel_size, max(1, math.floor(0.8 * resolution / pixel_size + 1e-6))
    detail, views = raised * weights, smooth_seen(raised, weights, sigma, least=0.3)
    psi = 0.0
    if axis_span > 0:
        coarse = max(factor, math.ceil(max(images.shape[-2:]) / _AXIS_PIXELS))
        lines, small, seen = (downsample(v, coarse) for v in (detail, views, weights))
        psi = find_tilt_axis(lines, small, seen, tilts, pixel_size * coarse, axis_span)
    views, masks = (derotate(downsample(v, factor), psi) for v in (views, weights))
    across, along = register_neighbours(views, masks > 0.5, tilts, pixel_size * factor).unbind(-1)
    cos, sin = math.cos(psi), math.sin(psi)
    poses = Poses.from_tilts(tilts)
    poses = poses.replace(
        psi=torch.full_like(poses.psi, psi),
        tau=torch.stack([cos * across - sin * along, sin * across + cos * along], dim=-1),
    )
    return _with_centre(poses, centres_of_mass(flat, pixel_size)) if isolated else poses


def _with_centre(poses: Poses, centres: Tensor) -> Poses:
    """The same poses about the point whose projections ``(tilt, 2)`` are closest to ``centres``."""
    rows = poses.matrices()[:, :2].reshape(-1, 3)
    point = least_squares(rows, (centres - poses.tau).reshape(-1, 1))
    return poses.replace(tau=poses.tau + (rows @ point).view(-1, 2))


def _means(images: Tensor, weights: Tensor) -> Tensor:
    """Weighted means per tilt, ``tilt 1 1``."""
    sums = (images * weights).sum((-2, -1)) / weights.sum((-2, -1)).clamp_min(1e-6)
    return sums[:, None, None]


def specimen_support(flat: Tensor, weights: Tensor, poses: Poses, volume: Grid, margin: float) -> Tensor:
    """Voxels that lie inside the specimen's outline in every projection, bool ``z y x``.

    Without it the volume has more freedom than the projections have data, and could explain away most
    errors of the poses. All true unless the specimen is isolated.

    Parameters
    ----------
    flat, weights : Tensor
        From `flatten_background`, and validity.
    poses : Poses
        Coarse poses.
    volume : Grid
        Where to look.
    margin : float
        The outline is widened by this many angstrom.
    """
    support = torch.ones(volume.shape, dtype=torch.bool)
    if not is_isolated(flat, weights, volume.pixel_size[0]):
        return support
    pixel, (ny, nx) = volume.pixel_size[0], flat.shape[-2:]
    grids = torch.meshgrid(*(volume.coordinates(a, dtype=torch.float64) for a in range(3)), indexing="ij")
    points = torch.stack(grids[::-1], dim=-1).reshape(-1, 3)
    disk = np.hypot(*np.ogrid[-20:21, -20:21]) <= max(1, min(20, margin / pixel))
    for tilt, lab in enumerate(poses.apply(points)):
        outline = scipy.ndimage.binary_fill_holes((flat[tilt] > 0).cpu().numpy())
        outline = scipy.ndimage.binary_dilation(outline, disk)
        x, y = (torch.round(lab[:, a] / pixel).long() + n // 2 for a, n in ((0, nx), (1, ny)))
        outside = (x < 0) | (x >= nx) | (y < 0) | (y >= ny)
        seen = torch.as_tensor(outline)[y.clamp(0, ny - 1), x.clamp(0, nx - 1)] & ~outside
        support &= seen.view(volume.shape)
    return support if support.any() else torch.ones_like(support)
