"""What a simulation takes: memory counted from its arrays, time from small pieces of the work timed here."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from petomo.core.errors import UserError
from petomo.core.grid import Grid
from petomo.core.machine import duration_in_words, installed_memory
from petomo.core.pose import Poses
from petomo.simulation.scattering import BATCH, Optics
from petomo.simulation.spec import SimulationSpec

LOWER = {
    "patterns": "scan_shape or pattern_pixels",
    "positions": "scan_shape",
    "potential": "scan_shape, scan_step_angstrom, oversample or specimen.edge_angstrom, "
    "or raise slice_angstrom",
    "waves": "pattern_pixels or oversample",
    "atoms": "specimen.edge_angstrom or phonons.configurations",
}
"""Part of the memory to the keys that make it smaller."""


@dataclass(frozen=True)
class Sizes:
    """What memory and time follow from.

    Parameters
    ----------
    grid : Grid
        Of the potential, wide enough for the widest scan.
    slices : list of int
        Slices that hold atoms, of each tilt.
    atoms, elements : int
        Atoms, and different elements.
    """

    grid: Grid
    slices: list[int]
    atoms: int
    elements: int


def sizes(spec: SimulationSpec, atoms: Atoms, grid: Grid) -> Sizes:
    """Sizes of a simulation, from the nominal poses."""
    angles = torch.deg2rad(torch.tensor(spec.stage_tilt_degree, dtype=torch.float64))
    half, slices = np.array(grid.extent[::-1]) / 2, []
    for angle in angles:
        lab = Poses.from_tilts(angle[None]).apply(torch.as_tensor(atoms.positions))[0].numpy()
        z = lab[(np.abs(lab[:, :2]) <= half).all(axis=1), 2]
        planes = np.floor(z / spec.slice_angstrom)
        if (np.abs(planes) > 2**53).any():
            raise ValueError("a slice is thinner than a number can tell")
        slices.append(len(np.unique(planes)))
    return Sizes(grid, slices, len(atoms), len(np.unique(atoms.numbers)))


def memory_parts(spec: SimulationSpec, found: Sizes, workers: int) -> dict[str, float]:
    """Bytes at the peak by what they are spent on, see `LOWER`.

    Either the configurations that are computed at the same time take most, or, when they are gone, the counts
    of a tilt. Numbers of bytes are those of the arrays alive at once, and what the heap keeps of others.
    """
    pixels = math.prod(spec.scan_shape) * math.prod(spec.pattern_shape)
    grid, window = math.prod(found.grid.shape), math.prod(spec.pattern_shape) * spec.oversample**2
    slices = max(found.slices)
    # a slice has its potential, phase and transmission; the scattering factors are worked out in float64
    potential = workers * (16 * slices + 200) * grid + 2 * found.elements * grid
    waves = workers * (48 * min(BATCH, math.prod(spec.scan_shape)) + 8 * slices) * window
    rest = {
        "atoms": 50.0 * found.atoms * spec.phonons.configurations,
        "positions": 64.0 * math.prod(spec.scan_shape) * len(spec.stage_tilt_degree),
    }
    computing, after = 4.0 * (1 + 2 * workers) * pixels, 20.0 * pixels
    if computing + potential + waves > after:
        return rest | {"patterns": computing, "potential": float(potential), "waves": float(waves)}
    return rest | {"patterns": after}


def sentence(parts: dict[str, float], seconds: float) -> str:
    """Memory and time in words."""
    return (
        f"memory roughly {sum(parts.values()) / 2**30:.2g} GiB beside the program itself, "
        f"time roughly {duration_in_words(seconds)}"
    )


def refuse_too_large(parts: dict[str, float]) -> None:
    """Refuse what the machine cannot hold, before it is allocated.

    Raises
    ------
    UserError
        Saying how much is needed and there, and which key to lower.
    """
    need, there = sum(parts.values()), installed_memory()
    if not need <= there:
        raise UserError(
            f"this simulation needs about {need / 2**30:.3g} GiB of memory, and the machine has "
            f"{there / 2**30:.3g}; lower {LOWER[max(parts, key=lambda key: parts[key])]}"
        )


def seconds_needed(spec: SimulationSpec, found: Sizes, optics: Optics, workers: int) -> float:
    """Rough time, from a step of a few windows, an FFT of the potential's grid and a few counts, timed."""
    (ny, nx), tilts = optics.window.shape, len(spec.stage_tilt_degree)
    positions, batch = math.prod(spec.scan_shape), max(1, min(BATCH, 2**21 // (ny * nx)))
    wave = torch.zeros(batch, ny, nx, dtype=torch.complex64)
    wide = torch.zeros(found.grid.shape, dtype=torch.complex64)

    def step() -> None:
        inside = torch.fft.ifft2(wave)
        for one in inside:
            one *= wide[:ny, :nx]
        torch.fft.fft2(inside).mul_(wave[0])

    mean = spec.dose_per_tilt * math.prod(spec.scan_step_angstrom) / math.prod(spec.pattern_shape)
    pixels, rng = 2**14, np.random.default_rng(0)

    def counts() -> None:
        zlib.compress(rng.poisson(min(mean, 1e9), pixels).astype(np.uint16).tobytes(), 4)

    # the start of a probe and its detection cost about three steps; a slice, four FFTs of the whole grid
    passed = (sum(found.slices) + 3 * tilts) * positions / batch * _typical(step)
    sliced = sum(found.slices) * 4 * _typical(lambda: torch.fft.fft2(wide))
    sliced += tilts * found.atoms * _per_atom(found.grid)
    counted = tilts * positions * math.prod(spec.pattern_shape) / pixels * _typical(counts)
    return (passed + sliced) * math.ceil(spec.phonons.configurations / workers) + counted


def _per_atom(grid: Grid) -> float:
    """Seconds that an atom's structure factor takes: two ramps, and its share of their product."""
    count, (ny, nx) = 8, grid.shape
    phase = np.zeros((ny + nx // 2, count))

    def ramps() -> None:
        both = torch.from_numpy(np.exp(1j * phase).astype(np.complex64))
        torch.mm(both[:ny], both[ny:].T)

    return _typical(ramps) / count


def _typical(job: Callable[[], None]) -> float:
    """Seconds that a job takes once it is warm."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
