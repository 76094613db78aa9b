"""Small end-to-end problems with known truth, on odd and non-square grids."""

from __future__ import annotations

import torch
from torch import Tensor

from petomo.core.dataset import scan_positions
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.models.ptycho_tomography import PtychoTomography, TomographyGeometry
from petomo.models.ptychography import Ptychography
from petomo.physics.multislice import MultisliceOptics
from petomo.physics.probe import hermite_modes, make_probe
from petomo.physics.resample import SliceGeometry

VOXEL, ENERGY = 0.4, 2e5
ATOMS = torch.tensor(
    [
        [-1.3, 0.6, 0.9],
        [1.1, -0.8, -1.0],
        [0.3, 1.2, -0.4],
        [-0.7, -1.1, 0.2],
        [1.5, 0.9, 1.1],
        [0.1, 0.0, -1.5],
    ]
)


def gaussian_atoms(
    shape: tuple[int, int, int], points: Tensor = ATOMS, height: float = 300.0, width=0.5
) -> Tensor:
    """Potential ``z y x`` in volts of Gaussian atoms at points (x, y, z) in angstrom, float64."""
    grid = Grid(shape, VOXEL)
    z, y, x = (grid.coordinates(axis, dtype=torch.float64) for axis in range(3))
    distance = (
        (z[:, None, None, None] - points[:, 2]) ** 2
        + (y[:, None, None] - points[:, 1]) ** 2
        + (x[:, None] - points[:, 0]) ** 2
    )
    return height * torch.exp(-0.5 * distance / width**2).sum(-1)


def probes(window: Grid, tilts: int, modes: int, dose: float) -> Tensor:
    """``(tilt, mode, y, x)``, each tilt with a defocus of its own."""
    return torch.stack(
        [
            hermite_modes(make_probe(window, ENERGY, 28.0, {"C10": -25.0 - 5 * t}, dose), modes, window, 0.1)
            for t in range(tilts)
        ]
    )


def end_to_end_problem(
    dtype: torch.dtype = torch.float64,
    *,
    shape: tuple[int, int, int] = (13, 15, 16),
    field: tuple[int, int] = (23, 26),
    window: tuple[int, int] = (16, 20),
    scan: tuple[int, int] = (5, 6),
    step: tuple[float, float] = (0.8, 0.9),
    tilts: tuple[float, ...] = (-0.4, 0.3),
    slices: int = 3,
    modes: int = 1,
    dose: float = 3000.0,
    absorption: bool = False,
) -> PtychoTomography:
    """A model that holds the truth: a few atoms, poses with every angle and shift."""
    count = len(tilts)
    theta = torch.tensor(tilts, dtype=torch.float64)
    poses = Poses(
        0.02 * torch.cos(3 * theta), theta, 0.05 + 0.1 * theta, torch.stack([0.3 * theta, 0.27 - theta], -1)
    )
    grid = Grid(window, VOXEL)
    geometry = TomographyGeometry(
        SliceGeometry(slices, shape[0] * VOXEL / slices, field, VOXEL),
        MultisliceOptics(grid, ENERGY, shape[0] * VOXEL / slices),
    )
    volume = gaussian_atoms(shape).to(dtype)
    number = torch.complex128 if dtype == torch.float64 else torch.complex64
    positions = [scan_positions(scan, step, rotation=0.1 * t) for t in range(count)]
    wave = probes(grid, count, modes, dose).to(number)
    return PtychoTomography(volume, poses, wave, positions, geometry, 0.05 * volume if absorption else None)


def one_tilt_problem(dtype: torch.dtype = torch.float64, slices: int = 2, modes: int = 1) -> Ptychography:
    """A model of one tilt that holds the truth."""
    whole = end_to_end_problem(dtype, slices=slices, modes=modes, tilts=(0.0,))
    phase, _ = whole.phase(0)
    optics = whole.geometry.optics
    return Ptychography(phase.detach(), whole.probes[0].detach(), whole.positions[0].detach(), optics)


def patterns_of(model) -> list[Tensor]:
    """Noise-free patterns of every tilt, FFT order."""
    return [model.predict(t, torch.arange(len(p))) for t, p in enumerate(model.positions)]


def reader_of(patterns: list[Tensor]):
    """The solver's reader of patterns in memory."""
    return lambda tilt, index: patterns[tilt][index]
