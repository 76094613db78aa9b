"""First poses from the projections alone: background, tilt axis, shifts, and where the specimen can be."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.physics.fourier import rotate_plane

_BACKGROUND_QUANTILE = 0.1
_PEAK_QUANTILE = 0.98
_TOUCHING = 0.15


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
    share = smooth(weights, 1 / pixel_size).clamp_min(1e-6)
    blurred = smooth(images * weights, 1 / pixel_size) / share
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


def register_lines(lines: Tensor, pixel_size: float, resolution: float) -> tuple[Tensor, float]:
    """Shifts that register 1D profiles to their common mean, and how much of them disagrees afterwards.

    Parameters
    ----------
    lines : Tensor
        ``tilt pixel``, zero outside the specimen or else on average.
    pixel_size, resolution : float
        Angstrom; finer detail than the resolution is ignored.

    Returns
    -------
    shifts : Tensor
        Angstrom, ``(tilt,)``, of each line against the mean.
    misfit : float
        Power of the differences from the mean over the power of the lines, 0 to 1, averaged over frequencies
        with their amplitude as weight: by power, the coarse ones would drown the rest.
    """
    count, n = lines.shape
    lines = lines.double()
    size = 2 * n
    spectrum = torch.fft.rfft(lines, n=size)
    q = torch.fft.rfftfreq(size, pixel_size, dtype=torch.float64)
    spectrum = spectrum * ((q > 0) & (q < 1 / resolution))
    fine = 8
    reference, shifts = spectrum[count // 2], torch.zeros(count, dtype=torch.float64)
    for _ in range(5):
        product = spectrum * reference.conj()
        correlation = torch.fft.irfft(product, n=fine * size)
        peak = correlation.argmax(1)
        rows = torch.arange(count)
        left, top, right = (correlation[rows, (peak + k) % (fine * size)] for k in (-1, 0, 1))
        offset = 0.5 * (left - right) / (left - 2 * top + right)
        position = peak + offset
        position = torch.where(position > fine * size / 2, position - fine * size, position)
        shifts = position * pixel_size / fine
        aligned = spectrum * torch.exp(2j * math.pi * q * shifts[:, None])
        reference = aligned.mean(0)
    amplitude = aligned.abs().square().sum(0).sqrt()
    misfit = (aligned - reference).abs().square().sum(0) / amplitude.clamp_min(1e-30)
    return shifts, float(misfit.sum() / amplitude.sum())


def find_tilt_axis(flat: Tensor, pixel_size: float, resolution: float, span: float) -> float:
    """Angle psi of the tilt axis in radian, the same for all projections (common lines).

    Summed across the tilt axis, all projections of a specimen are the same line up to a shift; the axis is
    where the lines agree best.
    """
    step = math.radians(0.5)
    angles = np.arange(-math.ceil(span / step), math.ceil(span / step) + 1) * step
    misfits = np.array([register_lines(derotate(flat, a).sum(-1), pixel_size, resolution)[1] for a in angles])
    best = int(misfits.argmin())
    near = slice(max(best - 4, 0), best + 5)
    curve = np.polyfit(angles[near] - angles[best], misfits[near], 2)
    if curve[0] <= 0:
        return float(angles[best])
    return float(angles[best] + np.clip(-curve[1] / (2 * curve[0]), -2 * step, 2 * step))


def centre_of_mass_x(flat: Tensor, pixel_size: float) -> Tensor:
    """Centre of mass along x in angstrom, ``(tilt,)``."""
    x = Grid(tuple(flat.shape[-2:]), pixel_size).coordinates(1, dtype=flat.dtype)
    return ((flat.sum(-2) * x).sum(-1) / flat.sum((-2, -1)).clamp_min(1e-12)).double()


def register_neighbours_x(images: Tensor, tilts: Tensor, pixel_size: float) -> Tensor:
    """Shifts along x in angstrom by cross-correlating each projection with its stretched neighbour.

    For specimens that fill the field. Starts at the smallest tilt; the neighbour is stretched along x by the
    ratio of the cosines (Guckenberger 1982).
    """
    order = torch.argsort(tilts)
    start = int(tilts[order].abs().argmin())
    shifts = torch.zeros(len(tilts), dtype=torch.float64)
    for steps in (range(start + 1, len(tilts)), range(start - 1, -1, -1)):
        for position in steps:
            here = int(order[position])
            there = int(order[position - 1 if position > start else position + 1])
            ratio = float(torch.cos(tilts[here]) / torch.cos(tilts[there]))
            neighbour = _stretch_x(images[there], ratio, float(shifts[there]) / pixel_size)
            shifts[here] = _shift_x(images[here], neighbour) * pixel_size
    return shifts


def _stretch_x(image: Tensor, ratio: float, shift: float) -> Tensor:
    """``out(x) = image(x / ratio + shift)`` by linear interpolation, x in pixels from ``n // 2``."""
    n = image.shape[-1]
    x = (np.arange(n) - n // 2) / ratio + shift + n // 2
    rows = [np.interp(x, np.arange(n), row) for row in image.double().cpu().numpy()]
    return torch.as_tensor(np.stack(rows), dtype=image.dtype)


def _shift_x(image: Tensor, reference: Tensor) -> float:
    """Pixels along x from the reference to the image, by cross-correlation at zero shift along y."""
    n = image.shape[-1]
    image, reference = (i.cpu() - i.mean().cpu() for i in (image, reference))
    product = torch.fft.rfft(image, n=2 * n) * torch.fft.rfft(reference, n=2 * n).conj()
    correlation = torch.fft.irfft(product.sum(0), n=16 * n)
    peak = int(correlation.argmax())
    return (peak - 16 * n if peak > 8 * n else peak) / 8


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

    The axis and the shifts along it come from common lines, the shifts across it from the centre of mass of
    an isolated specimen, which also puts its centre at the origin, or else from neighbouring projections.

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
        Finest detail of the common lines used, angstrom.
    """
    images, weights = images.cpu(), weights.cpu()
    flat = flatten_background(images, weights, pixel_size, threshold)
    isolated = is_isolated(flat, weights, pixel_size)
    vacuum = weights * (flat <= 0) if isolated else weights
    detail = (images - _means(images, vacuum)) * weights
    psi = find_tilt_axis(detail, pixel_size, resolution, axis_span) if axis_span > 0 else 0.0
    turned, outline = derotate(detail, psi), derotate(flat, psi)
    along, _ = register_lines(turned.sum(-1), pixel_size, resolution)
    if isolated:
        across = centre_of_mass_x(outline, pixel_size)
        height = centre_of_mass_x(outline.transpose(-2, -1), pixel_size)
        along = along - along.mean() + height.mean()
    else:
        across = register_neighbours_x(turned, tilts, pixel_size)
        along = along - along[tilts.abs().argmin()]
    cos, sin = math.cos(psi), math.sin(psi)
    poses = Poses.from_tilts(tilts)
    tau = torch.stack([cos * across - sin * along, sin * across + cos * along], dim=-1)
    return poses.replace(psi=torch.full_like(poses.psi, psi), tau=tau)


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
