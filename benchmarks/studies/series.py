"""Simulated series for the studies, parts of them, and their truth as a volume."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from petomo.analysis.truth import potential_of_atoms
from petomo.core.grid import Grid
from petomo.io.artefacts import read_atoms, read_json, write_json
from petomo.simulation.acquisition import simulate
from petomo.simulation.spec import SimulationSpec

PHONON_RMS = 0.07  # angstrom an axis, as simulated
DONE = "complete.json"  # what a folder of data was made from, once it is whole
KEYS = ("phi_theta_psi_rad", "tau_xy_angstrom", "scan_positions_xy_angstrom", "defocus_angstrom")


def core_shell(quick: bool) -> dict[str, Any]:
    """The paper's benchmark: Pt in alumina, 1.9e4 electrons per square angstrom and tilt, +-45 degrees."""
    if quick:
        return {
            "seed": 21,
            "specimen": {"source": "ptal2o3", "edge_angstrom": 10, "core_angstrom": 6},
            "stage_tilt_degree": list(range(-45, 46, 5)),
            "scan_shape": (12, 13),
            "pattern_pixels": 40,
            "phonons": {"configurations": 4},
            "errors": {"shift_max_angstrom": 1.5},
        }
    return {
        "seed": 21,
        "specimen": {"source": "ptal2o3", "edge_angstrom": 20, "core_angstrom": 10},
        "stage_tilt_degree": [2.5 * i for i in range(-18, 19)],
        "scan_shape": (24, 25),
        "pattern_pixels": 64,
        "errors": {"shift_max_angstrom": 3.4},
    }


def core_shell_settings(quick: bool) -> dict[str, Any]:
    """Settings for the series of `core_shell`; nothing but its size differs from the defaults."""
    return {
        "volume": {"thickness_angstrom": 18 if quick else 35},
        "analysis": {"atoms": {"elements": ["Pt", "Al", "O"]}},
        "compute": {"threads": 1},
    }


def simulate_once(spec: Mapping[str, Any], folder: Path) -> Path:
    """Simulate into ``folder`` unless that is done already; returns the folder."""
    done = folder / DONE
    wanted = SimulationSpec.model_validate(spec).model_dump(mode="json")
    if done.exists() and read_json(done) == wanted:
        return folder
    done.unlink(missing_ok=True)
    print(f"simulating {folder}", flush=True)
    with processor_time(folder.parent / f"{folder.name}_seconds.json"):
        simulate(SimulationSpec.model_validate(spec), folder, overwrite=True)
    write_json(done, wanted)
    return folder


def subset(data: Path, folder: Path, tilts: Sequence[int], stride: tuple[int, int] = (1, 1)) -> Path:
    """Part of a series, its truth with it: some tilts, and every so many scan positions along (y, x).

    Patterns left out are gone, so that nothing of them gets into any step of a reconstruction.
    """
    origin = {"whole": read_json(data / DONE), "tilts": list(tilts), "stride": list(stride)}
    if (folder / DONE).exists() and read_json(folder / DONE) == origin:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with np.load(data / "truth" / "poses.npz", allow_pickle=False) as file:
        truth = {key: np.asarray(file[key])[list(tilts)] for key in KEYS}
    with whole_folder(folder) as temporary:
        shape = (0, 0)
        for tilt in tilts:
            shape = _thinned(data / f"tilt_{tilt:02d}.h5", temporary / f"tilt_{tilt:02d}.h5", stride)
        (temporary / "truth").mkdir()
        scans = truth["scan_positions_xy_angstrom"].reshape(len(tilts), *shape, 2)
        scans = scans[:, :: stride[0], :: stride[1]].reshape(len(tilts), -1, 2)
        np.savez_compressed(
            temporary / "truth" / "poses.npz", **(truth | {"scan_positions_xy_angstrom": scans})
        )
        shutil.copy(data / "truth" / "atoms.xyz", temporary / "truth" / "atoms.xyz")
        write_json(temporary / DONE, origin)
    return folder


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``path``, which must not exist, once the block succeeds."""
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    temporary.rename(path)


def _thinned(source: Path, target: Path, stride: tuple[int, int]) -> tuple[int, int]:
    """Copy every so many patterns of a tilt; gives the scan's shape before."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        counts = old["counts"]
        new.attrs.update(old.attrs)
        new.attrs["scan_step_angstrom"] = np.broadcast_to(old.attrs["scan_step_angstrom"], 2) * stride
        kept = new.create_dataset("counts", data=counts[:: stride[0], :: stride[1]], compression="gzip")
        kept.attrs.update(counts.attrs)
        return counts.shape[:2]


@contextmanager
def processor_time(path: Path) -> Iterator[None]:
    """Add the processor seconds of the block to those in ``path``, also when it is interrupted."""
    before = read_json(path)["processor"] if path.exists() else 0.0
    start = time.process_time()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"processor": before + time.process_time() - start})


def potential(
    numbers: np.ndarray, places: np.ndarray, shape: Sequence[int], voxel: Sequence[float]
) -> np.ndarray:
    """Electrostatic potential in volts ``z y x`` of atoms that vibrate by `PHONON_RMS`, band limited.

    Parameters
    ----------
    numbers, places
        Atomic numbers ``(atom,)`` and positions ``(atom, 3)`` as (x, y, z), origin at voxel ``n // 2``.
    shape, voxel
        Grid ``z y x`` and its voxel in angstrom.
    """
    grid = Grid(tuple(shape), tuple(float(v) for v in voxel))
    return potential_of_atoms(Atoms(numbers, positions=places), grid, PHONON_RMS)


def facts(spec: Mapping[str, Any], data: Path) -> str:
    """One sentence on a series: specimen, tilts, patterns, dose, seed."""
    full = SimulationSpec.model_validate(spec)
    tilts, (ny, nx), (ky, kx) = full.stage_tilt_degree, full.scan_shape, full.pattern_shape
    atoms = read_atoms(data / "truth" / "atoms.xyz").get_chemical_symbols()
    counts = ", ".join(f"{atoms.count(s)} {s}" for s in sorted(set(atoms), key=lambda s: -atomic_numbers[s]))
    return (
        f"Simulated: {counts}; {len(tilts)} tilts from {min(tilts):g} to {max(tilts):g}°, {ny} × {nx} "
        f"positions {full.scan_step_angstrom[0]:g} Å apart, {ky} × {kx} pixels, {full.energy_kev:g} keV, "
        f"{full.semiangle_mrad:g} mrad, {full.dose_per_tilt:g} e/Å² a tilt, "
        f"{full.phonons.configurations} phonon configurations, seed {full.seed}. "
        f"Voxel {full.pixel_angstrom[0]:g} Å."
    )
