"""Grids and readers that all stages share, worked out once from the data and the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from petomo.core.dataset import FourDSTEM, TiltSeries
from petomo.core.electron import wavelength
from petomo.core.errors import UserError
from petomo.core.grid import Grid
from petomo.models.ptycho_tomography import TomographyGeometry
from petomo.objectives.losses import LOSSES
from petomo.physics.detector import detector_mask, to_fft_order
from petomo.physics.multislice import MultisliceOptics
from petomo.physics.resample import SliceGeometry
from petomo.workflow.config import Config
from petomo.workflow.context import RunContext

#: Counts of a series are kept in memory up to this size.
CACHE_BYTES = 2e9

#: More pixels along an axis no detector has, nor a finer voxel any use for.
MAX_DETECTOR = 2**15


@dataclass(frozen=True)
class Grids:
    """Window of the probe, voxel and extents.

    Parameters
    ----------
    window : Grid
        Probe grid ``y x``; its pixel is the voxel of all volumes.
    thickness : float
        Extent of the specimen along the beam in angstrom; its slices cover just that.
    depth : int
        Voxels of the volume along the beam.
    field : (int, int)
        Lateral shape ``y x`` that holds every scan position and a margin for the probe.
    """

    window: Grid
    thickness: float
    depth: int
    field: tuple[int, int]

    @property
    def voxel(self) -> float:
        """Angstrom."""
        return self.window.pixel_size[0]

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """``z y x``."""
        return (self.depth, *self.field)


def plan_grids(series: TiltSeries, config: Config) -> Grids:
    """Grids for a series.

    The voxel is the detector's real-space pixel, or finer if asked for (the detector is then extended
    virtually by whole pixels); square voxels are made from other detectors in the same way.

    Raises
    ------
    UserError
        If the voxel asked for is coarser than the detector allows.
    """
    first = series[0]
    shape = _detector_shape(first, config.volume.voxel_angstrom)
    voxel = 1 / (shape[0] * first.detector_sampling[0])
    extent = [max(2 * float(t.positions()[:, axis].abs().max()) for t in series) for axis in (1, 0)]
    if config.volume.shape is not None:
        depth, height, width = config.volume.shape
        return Grids(Grid(shape, voxel), depth * voxel, depth, (height, width))
    margin = 2 * _probe_radius(series) + 3.0
    height, width = (_voxels(length + margin, voxel) for length in extent)
    thickness = config.volume.thickness_angstrom or max(*extent, voxel)
    return Grids(Grid(shape, voxel), thickness, _voxels(thickness, voxel), (height, width))


def finer_grids(series: TiltSeries, grids: Grids, voxel: float | None = None) -> Grids:
    """The same extents in smaller voxels.

    Parameters
    ----------
    series : TiltSeries
        Of the detector that is extended virtually.
    grids : Grids
        What to refine; given back if it is fine enough.
    voxel : float, optional
        Angstrom, about. Default: such that the recorded angles are within two thirds of the model's, and
        nothing that is scattered beyond the window's edge comes back onto them (Kirkland 2020, chapter 6).
    """
    wanted = voxel or 2 / 3 * min(series[0].recorded_pixel_size)
    if wanted > 0.99 * grids.voxel:
        return grids
    shape = _detector_shape(series[0], wanted)
    fine = 1 / (shape[0] * series[0].detector_sampling[0])
    depth, height, width = (_voxels(n * grids.voxel, fine) for n in grids.volume_shape)
    return Grids(Grid(shape, fine), grids.thickness, depth, (height, width))


def _voxels(length: float, voxel: float) -> int:
    """About ``length / voxel``, a number that FFTs like."""
    return int(next_fast_len(max(1, round(length / voxel))))  # pyright: ignore[reportArgumentType]


def _detector_shape(tilt: FourDSTEM, voxel: float | None) -> tuple[int, int]:
    """Shape ``(ky, kx)`` of the model's detector: at least the recorded one, and the same pixel both ways."""
    (dy, dx), recorded = tilt.detector_sampling, tilt.pattern_shape
    wanted = 1 / (voxel or min(tilt.pixel_size))  # width of the detector in 1/angstrom
    if any(round(wanted / d) < n for d, n in zip((dy, dx), recorded, strict=True)):
        raise UserError(
            f"volume.voxel_angstrom is {voxel:g}, coarser than the detector's real-space pixel of "
            f"{min(tilt.pixel_size):.4g} angstrom; leave it out, or give a smaller one"
        )

    if wanted / min(dy, dx) > MAX_DETECTOR:
        raise UserError(
            f"volume.voxel_angstrom is {voxel or min(tilt.pixel_size):.3g}, which takes a detector of "
            f"{wanted / min(dy, dx):.3g} pixels; give at least {1 / (MAX_DETECTOR * min(dy, dx)):.2g}"
        )

    def thousandths_off(n: int) -> int:
        return max(1, round(1e3 * abs(round(n * dy / dx) * dx / (n * dy) - 1)))

    # detector pixels that are not square seldom fit at once: the least extension that fits best
    start = round(wanted / dy)
    rows = [n for n in range(start, 2 * start + 1) if round(n * dy / dx) >= recorded[1]]
    best = min(rows, key=lambda n: (thousandths_off(n), n))
    return best, round(best * dy / dx)


def slicing(series: TiltSeries, config: Config, grids: Grids) -> tuple[int, float]:
    """Count and thickness of the slices of the end-to-end model.

    Without a setting a slice is a third of ``1 / (lambda k_max^2)``, the depth over which the highest
    recorded frequency dephases.
    """
    settings, data = config.end_to_end, series[0]
    k_max = max(0.5 / p for p in data.recorded_pixel_size)
    wanted = settings.slice_thickness_angstrom or 1 / (3 * wavelength(data.energy_ev) * k_max**2)
    count = settings.slices or max(1, math.ceil(grids.thickness / wanted))
    return count, grids.thickness / count


def tomography_geometry(series: TiltSeries, config: Config, grids: Grids) -> TomographyGeometry:
    """Slices and optics of the end-to-end model, see `slicing`."""
    count, thickness = slicing(series, config, grids)
    return TomographyGeometry(
        SliceGeometry(count, thickness, grids.field, grids.voxel),
        MultisliceOptics(grids.window, series[0].energy_ev, thickness),
        config.end_to_end.interpolation,
    )


def _probe_radius(series: TiltSeries) -> float:
    alpha = series[0].semiangle_mrad * 1e-3
    blur = max(abs(t.defocus or 0.0) for t in series) * alpha
    return 0.61 * wavelength(series[0].energy_ev) / alpha + blur


class PatternReader:
    """Patterns of a series in the model's detector, FFT order, on the device; nothing is kept but a cache.

    A tilt's counts are kept while they fit ``cache_bytes``, since the solvers come back to them.
    """

    def __init__(
        self,
        series: TiltSeries,
        window: tuple[int, ...],
        device: torch.device,
        cache_bytes: float = CACHE_BYTES,
    ):
        self.series, self.window, self.device = series, (window[0], window[1]), device
        size = sum(len(t) * window[0] * window[1] * 4 for t in series)
        self._kept: dict[int, Tensor] | None = {} if size <= cache_bytes else None

    def __call__(self, tilt: int, index: Tensor) -> Tensor:
        """Electrons ``(k, ky, kx)``."""
        if self._kept is None:
            return self._read(tilt, index.cpu().numpy())
        if tilt not in self._kept:
            self._kept[tilt] = self._read(tilt, None)
        return self._kept[tilt][index]

    def _read(self, tilt: int, index: np.ndarray | None) -> Tensor:
        patterns = torch.from_numpy(self.series[tilt].patterns(index)).to(self.device)
        return to_fft_order(patterns, self.window)

    def mean(self, tilt: int) -> Tensor:
        """Mean pattern ``(ky, kx)`` of a tilt; its sum is the dose per pattern."""
        every = torch.arange(len(self.series[tilt]))
        return torch.stack([self(tilt, part).sum(0) for part in every.split(512)]).sum(0) / len(every)


def make_loss(context: RunContext, grids: Grids, name: str):
    """The loss a stage's configuration names, blind to whatever was not measured.

    That is what lies beyond the recorded detector, padding of the patterns included, and bad pixels; what one
    tilt lacks is left out of all, so that their losses can be compared.
    """
    shape, recorded = grids.window.shape, context.series[0].pattern_shape
    lacking = [m for tilt in context.series if (m := tilt.unmeasured_mask) is not None]
    mask = None
    if lacking or recorded != tuple(shape):
        pixels = torch.from_numpy(np.any(lacking, axis=0)) if lacking else None
        mask = detector_mask(recorded, (shape[0], shape[1]), pixels).to(context.device)
    return LOSSES[name](mask=mask)


def real_dtype(config: Config) -> torch.dtype:
    """float32 or float64."""
    return getattr(torch, config.compute.precision)


def complex_dtype(config: Config) -> torch.dtype:
    """Complex partner of `real_dtype`."""
    return torch.complex128 if config.compute.precision == "float64" else torch.complex64
