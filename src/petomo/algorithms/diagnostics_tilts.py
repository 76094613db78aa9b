"""Which tilt of a series does not look like its neighbours: bright-field images compared across tilts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from petomo.algorithms.bright_field_stack import BrightFieldStack


def aligned_image(stack: BrightFieldStack, c10: float, rotation: float, mirrored: bool) -> np.ndarray:
    """Bright-field images laid on each other and added: finer square pixels, the scan's frame.

    Parameters
    ----------
    stack : BrightFieldStack
    c10 : float
        Angstrom.
    rotation : float
        Scan rotation in radian.
    mirrored : bool
        Whether the detector's axes have to be exchanged first.

    Returns
    -------
    np.ndarray
        ``(y, x)``, dimensionless.
    """
    stack = (stack.transpose() if mirrored else stack).turned(0.0)
    steps, shape = stack.geometry.scan_step, stack.geometry.scan_shape
    # finer than the aperture resolves, or than 128 pixels a side, only costs time
    upsample = tuple(
        max(1, min(4, math.ceil(2 * stack.cutoff * step - 1e-6), 128 // n))
        for n, step in zip(shape, steps, strict=True)
    )
    c, s = math.cos(rotation), math.sin(rotation)
    shift = -stack.wavelength * c10 * torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    q = stack.frequencies((upsample[0], upsample[1]))
    total = torch.zeros(q.shape[:2], dtype=torch.complex64)
    for spectrum, k, weight in zip(stack.spectrum, stack.q, stack.weights, strict=True):
        back = torch.exp(2j * math.pi * (q @ (shift @ k))).to(total.dtype)
        total += weight * back * spectrum.tile(*upsample)
    fine = torch.fft.ifft2(total).real.numpy()
    pixels = [step / u for step, u in zip(steps, upsample, strict=True)]
    pixel = min(pixels)
    zoom = [n * step / pixel / f for n, step, f in zip(shape, steps, fine.shape, strict=True)]
    return np.asarray(ndimage.zoom(fine, zoom, order=1, grid_mode=True, mode="nearest"))


def tilt_correlations(images: Sequence[np.ndarray], tilts: Sequence[float], rotation: float) -> np.ndarray:
    """Highest correlation of every two tilts' images, stretched across the axis by the ratio of cosines.

    Parameters
    ----------
    images : sequence of np.ndarray
        ``(y, x)`` in the scan's frame, square pixels.
    tilts : sequence of float
        Stage tilts in radian about the detector's y axis.
    rotation : float
        Scan rotation in radian.

    Returns
    -------
    np.ndarray
        Symmetric ``(tilt, tilt)``.
    """
    count, out = len(images), np.eye(len(images))
    shape = images[0].shape
    spectra = [_spectrum(image) for image in images]
    near = np.ix_(*(np.arange(-(n // 4), n // 4 + 1) for n in shape))
    for i in range(count):
        for j in range(i):
            ratio = math.cos(tilts[j]) / math.cos(tilts[i])
            wide, narrow = (i, j) if ratio < 1 else (j, i)
            moved = _spectrum(_stretched(images[narrow], min(ratio, 1 / ratio), rotation))
            cross = np.fft.irfft2(spectra[wide] * moved.conj(), [2 * n for n in shape])
            out[i, j] = out[j, i] = cross[near].max()
    return out


def _spectrum(image: np.ndarray) -> np.ndarray:
    """Zero-padded Fourier transform of the image less its mean, over its norm."""
    image = image - image.mean()
    norm = np.linalg.norm(image)
    return np.fft.rfft2(image / norm if norm > 0 else image, [2 * n for n in image.shape])


def _stretched(image: np.ndarray, ratio: float, rotation: float) -> np.ndarray:
    """Image that is 1 / ratio times as wide across the tilt axis."""
    s, c = math.sin(rotation), math.cos(rotation)
    across = np.array([-s, c])  # (y, x) of the detector's x axis in the scan's frame
    matrix = np.eye(2) + (ratio - 1) * np.outer(across, across)
    middle = (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(
        image,
        matrix,
        middle - matrix @ middle,  # pyright: ignore[reportArgumentType]
        order=1,
        mode="constant",
        cval=float(image.mean()),
    )


@dataclass(frozen=True)
class Misfit:
    """A tilt whose image is unlike those at neighbouring angles.

    Parameters
    ----------
    tilt : int
        Index in the series.
    here : float
        Its best correlation with a neighbour.
    expected : float
        What its neighbours have with each other, or what it has with the tilt ``like``.
    like : int or None
        Index of the tilt it is most like, if it fits well elsewhere.
    """

    tilt: int
    here: float
    expected: float
    like: int | None


def misfits(correlations: np.ndarray, tilts: Sequence[float], margin: float = 0.15) -> list[Misfit]:
    """Tilts out of place, the clearest first; each is left out before the next is sought.

    Parameters
    ----------
    correlations : np.ndarray
        From `tilt_correlations`.
    tilts : sequence of float
        Stage tilts in radian.
    margin : float
        How much better a tilt must fit elsewhere, or its neighbours with each other.
    """
    order = list(np.argsort(tilts, kind="stable"))
    found: list[Misfit] = []
    while len(order) >= 5 and len(found) < len(tilts) / 4:
        worst = max(
            (_misfit(correlations, order, i) for i in range(len(order))), key=lambda m: m.expected - m.here
        )
        if worst.expected - worst.here < margin:
            break
        found.append(worst)
        order.remove(worst.tilt)
    return found


def _misfit(correlations: np.ndarray, order: list, i: int) -> Misfit:
    c, n = correlations[np.ix_(order, order)], len(order)
    here = max(float(c[i, j]) for j in (i - 1, i + 1) if 0 <= j < n)
    elsewhere = {
        p: float(np.sort([c[i, j] for j in (p - 1, p, p + 1) if 0 <= j < n and j != i])[-2:].mean())
        for p in range(n)
        if abs(p - i) > 2
    }
    best = max(elsewhere, key=elsewhere.__getitem__) if elsewhere else i
    around = float(c[i - 1, i + 1]) if 0 < i < n - 1 else -math.inf
    if elsewhere and here < 0.75 * elsewhere[best]:
        like = max((j for j in (best - 1, best, best + 1) if 0 <= j < n and j != i), key=lambda j: c[i, j])
        return Misfit(int(order[i]), here, elsewhere[best], int(order[like]))
    return Misfit(int(order[i]), here, around if here < 0.5 * around else here, None)
