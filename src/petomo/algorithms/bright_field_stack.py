"""The bright-field disk of a scan as a stack of images, one per (binned) detector pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from petomo.core.dataset import FourDSTEM
from petomo.core.electron import mrad_to_inverse_angstrom, wavelength


class ScanGeometry(Protocol):
    """What has to be known of a scan; `petomo.core.dataset.FourDSTEM` is one."""

    @property
    def energy_ev(self) -> float:
        """Beam energy."""
        ...

    @property
    def semiangle_mrad(self) -> float:
        """Convergence semi-angle."""
        ...

    @property
    def scan_shape(self) -> tuple[int, int]:
        """(scan_y, scan_x)."""
        ...

    @property
    def scan_step(self) -> tuple[float, float]:
        """Step along (y, x) in angstrom."""
        ...

    @property
    def detector_sampling(self) -> tuple[float, float]:
        """Detector pixel along (ky, kx) in 1/angstrom."""
        ...

    @property
    def scan_rotation(self) -> float:
        """Radian from the scan's fast axis to the detector's x axis."""
        ...


@dataclass(frozen=True)
class BrightFieldStack:
    """Relative bright-field images and the mean diffraction vector at every scan position.

    Parameters
    ----------
    images : Tensor
        ``(pixel, scan_y, scan_x)``, float32, each divided by its scan mean, less one.
    q : Tensor
        Detector frequency of each image, ``(pixel, 2)`` as (x, y) in 1/angstrom.
    weights : Tensor
        Mean electrons of each image over the largest one's ``(pixel,)``: Poisson variances are their inverse.
    com : Tensor
        Centre of mass of the whole pattern, ``(scan_y, scan_x, 2)`` as (x, y) in 1/angstrom.
    geometry : ScanGeometry
    edge : (float, float)
        Width of the aperture's edge along (y, x) in 1/angstrom, the detector pixel.
    rotation : float
        Scan rotation in radian, first taken from the geometry.
    transposed : bool
        Detector axes exchanged with respect to the data given.
    """

    images: Tensor
    q: Tensor
    weights: Tensor
    com: Tensor
    geometry: ScanGeometry
    edge: tuple[float, float]
    rotation: float
    transposed: bool = False

    @property
    def wavelength(self) -> float:
        """Angstrom."""
        return wavelength(self.geometry.energy_ev)

    @property
    def cutoff(self) -> float:
        """Aperture radius semi-angle / wavelength in 1/angstrom."""
        return mrad_to_inverse_angstrom(self.geometry.semiangle_mrad, self.geometry.energy_ev)

    @property
    def spectrum(self) -> Tensor:
        """Fourier transform of the images over the scan, ``(pixel, scan_y, scan_x)`` in FFT order."""
        return torch.fft.fft2(self.images)

    def turned(self, rotation: float) -> BrightFieldStack:
        """Same data under another scan rotation."""
        return replace(self, rotation=rotation)

    def transpose(self) -> BrightFieldStack:
        """Same data with the detector's axes exchanged."""
        return replace(
            self,
            q=self.q.flip(-1),
            com=self.com.flip(-1),
            edge=self.edge[::-1],
            transposed=not self.transposed,
        )

    def thinned(self, max_pixels: int) -> BrightFieldStack:
        """At most ``max_pixels`` images, drawn at random from the disk, the same ones every time."""
        if len(self.q) <= max_pixels:
            return self
        keep = (
            torch.randperm(len(self.q), generator=torch.Generator().manual_seed(0))[:max_pixels].sort().values
        )
        return replace(self, images=self.images[keep], q=self.q[keep], weights=self.weights[keep])

    def frequencies(self, upsample: tuple[int, int] = (1, 1)) -> Tensor:
        """Scan frequencies in the detector's frame, ``(Y, X, 2)`` as (x, y) in 1/angstrom, in FFT order.

        ``upsample`` refines the grid, so that frequencies beyond the scan's Nyquist limit appear.
        """
        y, x = (
            torch.fft.fftfreq(n * u, step / u, dtype=torch.float64)
            for n, u, step in zip(self.geometry.scan_shape, upsample, self.geometry.scan_step, strict=True)
        )
        qy, qx = torch.meshgrid(y, x, indexing="ij")
        c, s = math.cos(self.rotation), math.sin(self.rotation)
        return torch.stack([c * qx - s * qy, s * qx + c * qy], dim=-1)


def bright_field_stack(
    patterns: Tensor | FourDSTEM, geometry: ScanGeometry, max_pixels: int = 1024, block: int = 2048
) -> BrightFieldStack:
    """Read a scan once and keep its bright-field disk, binned to at most ``max_pixels`` images.

    Parameters
    ----------
    patterns : Tensor or FourDSTEM
        Electrons ``(scan_y, scan_x, ky, kx)``, zero frequency at ``n // 2``; a dataset is read in blocks.
    geometry : ScanGeometry
        Calibration; a `FourDSTEM` serves as both arguments.
    max_pixels : int
        Neighbouring detector pixels are binned until the disk has no more; and further, down to 64, until the
        stack has no more than 2^27 numbers.
    block : int
        Patterns held at once.
    """
    count = math.prod(geometry.scan_shape)
    max_pixels = min(max_pixels, max(64, (1 << 27) // count))
    shape = patterns.pattern_shape if isinstance(patterns, FourDSTEM) else tuple(patterns.shape[-2:])
    q = _detector_frequencies(shape, geometry.detector_sampling)
    cutoff = mrad_to_inverse_angstrom(geometry.semiangle_mrad, geometry.energy_ev)
    inside, bins = _bins(q, cutoff, geometry.detector_sampling, max_pixels)
    total = int(bins.max()) + 1
    images, com = torch.empty(total, count), torch.empty(count, 2)
    for start, batch in _blocks(patterns, count, block):
        part = slice(start, start + len(batch))
        images[:, part] = torch.zeros(total, len(batch)).index_add_(0, bins, batch[:, inside].T)
        mass = batch.sum(1, keepdim=True).clamp_min(1e-12)
        com[part] = batch @ q.reshape(-1, 2).float() / mass
    mean = images.mean(1)
    if not (mean > 0).any():
        raise ValueError(
            "the bright-field disk holds no electrons: check the centre of the patterns and the dose"
        )
    lit = mean > 0.1 * mean.median()
    members = torch.bincount(bins, minlength=total)
    centre = torch.zeros(total, 2, dtype=torch.float64).index_add_(0, bins, q.reshape(-1, 2)[inside])
    relative = images[lit] / mean[lit, None] - 1
    return BrightFieldStack(
        images=relative.reshape(-1, *geometry.scan_shape),
        q=(centre / members[:, None])[lit],
        weights=mean[lit] / mean.max(),
        com=com.reshape(*geometry.scan_shape, 2),
        geometry=geometry,
        edge=geometry.detector_sampling,
        rotation=geometry.scan_rotation,
    )


def _detector_frequencies(shape: tuple[int, ...], sampling: tuple[float, float]) -> Tensor:
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) * d for n, d in zip(shape, sampling, strict=True))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def _bins(q: Tensor, cutoff: float, sampling: tuple[float, float], max_pixels: int) -> tuple[Tensor, Tensor]:
    """Indices of the disk's pixels in the flattened pattern, and the bin each belongs to."""
    # pixels cut by the aperture's edge carry less than they promise; they stay out
    radius = cutoff - 0.25 * max(sampling)
    disk = q.norm(dim=-1) <= radius
    if disk.sum() < 3:
        raise ValueError(
            f"the bright-field disk (radius {cutoff:.3g} 1/angstrom) covers {int(disk.sum())} detector "
            f"pixels of {sampling} 1/angstrom; check semiangle, energy and detector sampling"
        )
    inside = disk.flatten().nonzero()[:, 0]
    index = torch.stack([inside // q.shape[1], inside % q.shape[1]])
    factor = 1
    while True:
        cell = (index - torch.tensor(q.shape[:2])[:, None] // 2).div(factor, rounding_mode="floor")
        cell = cell - cell.amin(1, keepdim=True)
        _, bins = torch.unique(cell[0] * (cell[1].max() + 1) + cell[1], return_inverse=True)
        if int(bins.max()) < max_pixels:
            return inside, bins
        factor += 1


def _blocks(patterns: Tensor | FourDSTEM, count: int, block: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, count, block):
        stop = min(start + block, count)
        if isinstance(patterns, FourDSTEM):
            batch = torch.from_numpy(patterns.patterns(np.arange(start, stop)))
        else:
            batch = patterns.reshape(count, -1)[start:stop].float().cpu()
        yield start, batch.reshape(stop - start, -1)
