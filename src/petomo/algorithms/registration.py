"""Shifts between projections without a volume: each against its stretched neighbours, where both looked."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

_LEAST_OVERLAP = 0.4
_NEIGHBOURS = 2
#: Power of the overlap that favours shifts at which more is compared: a part of one image may be more like
#: another part of its neighbour than the whole is like the whole.
_FAVOUR = 0.1


def masked_spectra(values: Tensor, valid: Tensor) -> list[Tensor]:
    """Transforms, twice as wide, of a mask, of the values it allows and of their squares.

    Parameters
    ----------
    values : Tensor
        Image ``(y, x)``; values outside the mask do not matter.
    valid : Tensor
        1 where it is valid, 0 elsewhere.
    """
    values, valid, size = values.double(), valid.double(), [2 * n for n in values.shape]
    # a mean near zero, against cancellation
    values = (values - (values * valid).sum() / valid.sum().clamp_min(1)) * valid
    return [torch.fft.rfft2(v, s=size) for v in (valid, values, values * values)]


def masked_correlation(image: list[Tensor], reference: list[Tensor], favour: float = 0.0) -> Tensor:
    """Normalised cross-correlation of two images for every shift, over the pixels that both masks allow.

    Padfield (2012), "Masked object registration in the Fourier domain".

    Parameters
    ----------
    image, reference : list of Tensor
        `masked_spectra` of images of one shape ``(y, x)``.
    favour : float
        Power of the overlap, as a share of the largest, that correlations are multiplied by.

    Returns
    -------
    Tensor
        ``(2 y, 2 x)``: correlation of ``image(r + s)`` with ``reference(r)`` at shift ``s``, negative ones
        wrapped; -1 where the images share too little.
    """
    (m, a, a2), (n, b, b2) = image, (s.conj() for s in reference)
    size = [m.shape[0], 2 * (m.shape[1] - 1)]
    count, own, other, product, own2, other2 = (
        torch.fft.irfft2(s, s=size) for s in (m * n, a * n, m * b, a * b, a2 * n, m * b2)
    )
    count = count.clamp_min(1e-3)
    covariance = product - own * other / count
    powers = [second - first.square() / count for first, second in ((own, own2), (other, other2))]
    floors = [1e-9 * float(power.max()) + 1e-30 for power in powers]
    powers = [power.clamp_min(floor) for power, floor in zip(powers, floors, strict=True)]
    found = covariance / (powers[0] * powers[1]).sqrt()
    overlap = count / count.max()
    return torch.where(overlap < _LEAST_OVERLAP, -1.0, found.clamp(-1, 1) * overlap**favour)


def register_neighbours(images: Tensor, masks: Tensor, tilts: Tensor, pixel_size: float) -> Tensor:
    """Positions ``(tilt, 2)`` as (x, y) in angstrom of every projection, tilt axis along y.

    From the smallest tilt outwards each projection is registered to the one or two before it, stretched
    across the axis by the ratio of the cosines (Guckenberger 1982). Works for specimens that reach out of
    the scan.

    Parameters
    ----------
    images, masks : Tensor
        ``(tilt, y, x)``; masks are 1 where the scan looked.
    tilts : Tensor
        Radian.
    pixel_size : float
        Angstrom.
    """
    order = torch.argsort(tilts).tolist()
    start = min(range(len(order)), key=lambda p: abs(float(tilts[order[p]])))
    places = torch.zeros(len(tilts), 2, dtype=torch.float64)
    for way in (1, -1):
        stop = len(order) if way > 0 else -1
        for position in range(start + way, stop, way):
            here, total = order[position], 0.0
            own = masked_spectra(images[here], masks[here])
            for back in range(1, min(_NEIGHBOURS, abs(position - start)) + 1):
                there = order[position - way * back]
                ratio = float(torch.cos(tilts[here]) / torch.cos(tilts[there]))
                shift = (places[there] / pixel_size).flip(0).numpy()
                image, mask = (_stretched(v[there], ratio, shift) for v in (images, masks))
                total = total + masked_correlation(own, masked_spectra(image, mask > 0.9), _FAVOUR)
            assert isinstance(total, Tensor)  # there is a neighbour
            places[here] = _peak(total).flip(0) * pixel_size
    return places


def _stretched(image: Tensor, ratio: float, shift: np.ndarray) -> Tensor:
    """``out(y, x) = image(y + shift_y, x / ratio + shift_x)`` about ``n // 2``, zero outside."""
    centre = image.shape[1] // 2
    offset = shift + np.array([0.0, centre - centre / ratio])
    values = image.double().cpu().numpy()
    moved = scipy.ndimage.affine_transform(values, np.array([1.0, 1.0 / ratio]), offset.tolist(), order=1)
    return torch.from_numpy(moved)


def _peak(correlation: Tensor) -> Tensor:
    """Shift (y, x) of the highest value, to a part of a pixel by parabolas."""
    shape, index, place = correlation.shape, int(correlation.argmax()), []
    at = divmod(index, shape[1])
    for axis, n in enumerate(shape):
        line = correlation.select(1 - axis, at[1 - axis])
        low, top, high = (float(line[(at[axis] + k) % n]) for k in (-1, 0, 1))
        bend = low - 2 * top + high
        part = 0.5 * (low - high) / bend if low > -1 < high and bend < 0 else 0.0
        place.append((at[axis] + n // 2) % n - n // 2 + part)
    return torch.tensor(place, dtype=torch.float64)


def common_line_misfit(images: Tensor, masks: Tensor, along: Tensor, pixel_size: float) -> float:
    """How much the projections disagree once summed across the tilt axis, which lies along y.

    Summed so, all projections of a specimen are the same line (common lines).

    Parameters
    ----------
    images, masks : Tensor
        ``(tilt, y, x)``, background zero.
    along : Tensor
        Where each projection lies along y, angstrom ``(tilt,)``.
    pixel_size : float
        Angstrom.

    Returns
    -------
    float
        Power of the differences from the mean line over that of the mean line, on the stretch that all have
        seen; infinite where there is none.
    """
    lines, shifts = [], (along / pixel_size).tolist()
    for values in ((images * masks).sum(-1), masks.sum(-1)):
        rows = values.double().cpu().numpy()
        lines.append(
            np.stack([scipy.ndimage.shift(r, -s, order=1) for r, s in zip(rows, shifts, strict=True)])
        )
    seen = (lines[1] > 0.9 * lines[1].max()).all(0)
    if seen.sum() < 3:
        return float("inf")
    seen_lines = lines[0][:, seen] - lines[0][:, seen].mean(1, keepdims=True)
    mean = seen_lines.mean(0)
    return float(((seen_lines - mean) ** 2).mean() / max((mean**2).mean(), 1e-30))
