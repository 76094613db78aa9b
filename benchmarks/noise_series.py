"""Tilt series of noise, of any size: for timings, which do not depend on what the patterns show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from petomo.core.dataset import scan_positions
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.models.ptycho_tomography import PtychoTomography, TomographyGeometry
from petomo.physics.multislice import MultisliceOptics
from petomo.physics.probe import hermite_modes, make_probe
from petomo.physics.resample import SliceGeometry


@dataclass(frozen=True)
class Size:
    """What decides on time and memory.

    Parameters
    ----------
    volume : (int, int, int)
        Voxels, ``z y x``.
    scan : (int, int)
        Positions ``y x``.
    tilts, window, slices, modes : int
        Number of tilts, side of the patterns in pixels, slices, probe modes.
    voxel : float
        Angstrom.
    energy_ev, semiangle_mrad : float
        Beam.
    step : float, optional
        Scan step in angstrom; without it the scan fills the field but for 24 voxels.
    angles : (float, float)
        phi and psi of all tilts in radian.
    """

    volume: tuple[int, int, int]
    scan: tuple[int, int]
    tilts: int
    window: int = 64
    slices: int = 8
    modes: int = 3
    voxel: float = 0.25
    energy_ev: float = 3e5
    semiangle_mrad: float = 20.0
    step: float | None = None
    angles: tuple[float, float] = (0.0, 0.0)

    @property
    def positions(self) -> int:
        """Of one tilt."""
        return self.scan[0] * self.scan[1]


def make_series(
    size: Size, electrons: float = 1e4, device: str | torch.device = "cpu"
) -> tuple[PtychoTomography, Tensor]:
    """Model and the patterns that all its tilts share, ``(k, ky, kx)`` as bytes where they fit."""
    torch.manual_seed(0)
    grid, thickness = Grid((size.window, size.window), size.voxel), size.volume[0] * size.voxel / size.slices
    optics = MultisliceOptics(grid, size.energy_ev, thickness)
    slices = SliceGeometry(size.slices, thickness, size.volume[1:], size.voxel)
    geometry = TomographyGeometry(slices, optics)
    probe = make_probe(grid, size.energy_ev, size.semiangle_mrad, {"C10": -100.0}, electrons)
    probe = hermite_modes(probe, size.modes, grid).to(torch.complex64)
    theta = torch.linspace(-0.4, 0.5, size.tilts, dtype=torch.float64)
    poses = Poses(torch.full_like(theta, size.angles[0]), theta, torch.full_like(theta, size.angles[1]),
                  torch.zeros(len(theta), 2, dtype=torch.float64))  # fmt: skip
    filling = [(n - 24) * size.voxel / k for n, k in zip(size.volume[1:], size.scan, strict=True)]
    positions = scan_positions(size.scan, (size.step, size.step) if size.step else tuple(filling))
    mean = electrons / size.window**2
    patterns = torch.empty(
        size.positions, size.window, size.window, dtype=torch.uint8 if mean < 100 else torch.float32
    )
    for part in patterns.split(1024):
        part.copy_(torch.poisson(torch.full(part.shape, mean)))
    volume = 20 * torch.rand(size.volume)
    model = PtychoTomography(volume, poses, [probe] * size.tilts, [positions] * size.tilts, geometry)
    return model.to(device), patterns
