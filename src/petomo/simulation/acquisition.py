"""An unaligned, noisy 4D-STEM tilt series from atoms, with the truth beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ase.io
import h5py
import numpy as np
import torch
from ase import Atoms
from scipy.fft import next_fast_len

from petomo.core.dataset import scan_positions
from petomo.core.errors import UserError
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.io.atomic import atomic_path, write_text
from petomo.simulation.needs import memory_parts, refuse_too_large, seconds_needed, sentence, sizes
from petomo.simulation.potentials import AtomicPotential
from petomo.simulation.scattering import Optics, diffraction_patterns
from petomo.simulation.spec import SimulationSpec
from petomo.simulation.specimen import build_specimen

#: How far (angstrom) the potential reaches beyond the outermost window: no tail of an atom wraps into one.
_MARGIN = 4.0


@dataclass(frozen=True)
class TiltTruth:
    """What really happened in one tilt.

    Parameters
    ----------
    angles : np.ndarray
        (phi, theta, psi) in radian.
    tau : np.ndarray
        Shift (x, y) in angstrom.
    positions : np.ndarray
        Scan positions ``(k, 2)`` as (x, y) in angstrom, the optical axis at the origin.
    defocus : float
        Angstrom, positive = underfocus.
    """

    angles: np.ndarray
    tau: np.ndarray
    positions: np.ndarray
    defocus: float

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Lab coordinates ``(atom, 3)`` of points in the sample frame."""
        phi, theta, psi = (torch.tensor([angle]) for angle in self.angles)
        poses = Poses(phi, theta, psi, torch.as_tensor(self.tau)[None])
        return poses.apply(torch.as_tensor(points))[0].numpy()


def tilt_generator(seed: int, tilt: int) -> np.random.Generator:
    """Random numbers of one tilt, whatever the other tilts drew; tilt -1 is the specimen."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(tilt + 1,)))


def draw_truth(spec: SimulationSpec, tilt: int, rng: np.random.Generator) -> TiltTruth:
    """Pose, scan and defocus of one tilt with the errors asked for."""
    errors = spec.errors
    nominal = scan_positions(spec.scan_shape, spec.scan_step_angstrom, np.deg2rad(spec.scan_rotation_degree))
    degrees = (
        rng.normal(errors.phi_mean_degree, errors.phi_rms_degree),
        rng.normal(spec.stage_tilt_degree[tilt], errors.stage_tilt_rms_degree),
        rng.normal(errors.psi_mean_degree, errors.psi_rms_degree),
    )
    tau = rng.uniform(-errors.shift_max_angstrom, errors.shift_max_angstrom, 2)
    affine = np.eye(2) + rng.normal(0, errors.scan_affine_rms, (2, 2))
    jitter = rng.normal(0, errors.scan_jitter_rms_angstrom, nominal.shape)
    defocus = rng.normal(spec.defocus_angstrom, errors.defocus_rms_angstrom)
    return TiltTruth(np.deg2rad(degrees), tau, nominal.numpy() @ affine.T + jitter, defocus)


def centred_normal(rng: np.random.Generator, rms: float, shape: tuple[int, ...]) -> np.ndarray:
    """Gaussian deviates whose mean over the first axis is exactly zero; zeros if that axis is 1 long."""
    draws = rng.normal(0, rms, shape)
    n = shape[0]
    return (draws - draws.mean(axis=0)) * np.sqrt(n / max(n - 1, 1))


def optics(spec: SimulationSpec) -> Optics:
    """Beam, wave window and detector."""
    window = Grid(
        tuple(n * spec.oversample for n in spec.pattern_shape),
        tuple(pixel / spec.oversample for pixel in spec.pixel_angstrom),
    )
    return Optics(spec.energy_kev * 1e3, spec.semiangle_mrad, window, spec.pattern_shape)


def _field_of_view(window: Grid, positions: np.ndarray) -> Grid:
    """Grid about the optical axis that holds the window around every position."""
    shape = []
    for n, pixel, reach in zip(
        window.shape, window.pixel_size, np.abs(positions).max(axis=0)[::-1], strict=True
    ):
        shape.append(next_fast_len(n + 2 * int(np.ceil((reach + _MARGIN) / pixel)), real=True))
    return Grid(tuple(shape), window.pixel_size)


def mean_patterns(
    spec: SimulationSpec,
    atoms: Atoms,
    truth: TiltTruth,
    rng: np.random.Generator,
    *,
    workers: int = 1,
    device: str = "cpu",
) -> np.ndarray:
    """Expected electrons ``(k, ky, kx)``, averaged over phonons, source positions and focus.

    Parameters
    ----------
    atoms : Atoms
        Sample frame.
    truth : TiltTruth
        Pose, scan and defocus.
    rng : np.random.Generator
        For the configurations.
    workers : int
        Configurations computed at the same time.
    """
    n = spec.phonons.configurations
    moves = centred_normal(rng, spec.phonons.displacement_rms_angstrom, (n, len(atoms), 3))
    source = centred_normal(rng, spec.coherence.source_rms_angstrom, (n, 2))
    focus = truth.defocus + centred_normal(rng, spec.coherence.focal_spread_rms_angstrom, (n,))
    setup = optics(spec)
    lab = truth.apply(atoms.positions)
    grid = _field_of_view(setup.window, np.abs(truth.positions) + np.abs(source).max(axis=0))
    potential = AtomicPotential.create(grid, spec.slice_angstrom, atoms.numbers, spec.potential, device)

    def configuration(i: int) -> torch.Tensor:
        sliced = potential.slices(lab + moves[i], atoms.numbers)
        return diffraction_patterns(sliced, setup, _aberrations(spec, focus[i]), truth.positions + source[i])

    total = torch.zeros(len(truth.positions), *spec.pattern_shape, device=device)
    with ThreadPoolExecutor(workers) as pool:
        for patterns in pool.map(configuration, range(n)):
            total += patterns
    electrons = spec.dose_per_tilt * spec.scan_step_angstrom[0] * spec.scan_step_angstrom[1]
    return total.cpu().numpy().astype(np.float64) * (electrons / n)


def _aberrations(spec: SimulationSpec, defocus: float) -> dict[str, float]:
    given = {
        name: np.deg2rad(value) if name.startswith("phi") else value
        for name, value in spec.aberrations.items()
    }
    return {"C10": -float(defocus), **given}


def write_tilt(path: Path, spec: SimulationSpec, tilt: int, counts: np.ndarray) -> None:
    """One HDF5 file: ``counts`` and, as attributes of the file, what a microscope's user would know.

    Parameters
    ----------
    counts : np.ndarray
        ``(k, ky, kx)``; stored as uint16 (uint32 if need be) ``(scan_y, scan_x, ky, kx)``.
    """
    counts = counts.reshape(*spec.scan_shape, *spec.pattern_shape)
    counts = counts.astype(np.uint16 if counts.max() < 2**16 else np.uint32)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_dataset("counts", data=counts, chunks=(1, *counts.shape[1:]), compression="gzip")
        data.attrs["dims"] = "scan_y scan_x ky kx"
        data.attrs["units"] = "electrons"
        file.attrs["energy_ev"] = spec.energy_kev * 1e3
        file.attrs["semiangle_mrad"] = spec.semiangle_mrad
        file.attrs["scan_step_angstrom"] = _number_or_pair(spec.scan_step_angstrom)
        file.attrs["scan_rotation_deg"] = spec.scan_rotation_degree
        file.attrs["detector_sampling_inv_angstrom"] = _number_or_pair(spec.detector_sampling)
        file.attrs["nominal_defocus_angstrom"] = spec.defocus_angstrom
        file.attrs["nominal_tilt_deg"] = float(spec.stage_tilt_degree[tilt])
        file.attrs["dose_e_per_A2"] = spec.dose_per_tilt


def _number_or_pair(pair: tuple[float, float]) -> float | tuple[float, float]:
    return pair[0] if pair[0] == pair[1] else pair


def write_truth(folder: Path, spec: SimulationSpec, atoms: Atoms, truths: list[TiltTruth]) -> None:
    """``atoms.xyz`` (sample frame), ``poses.npz`` and ``spec.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "atoms.xyz") as temporary:
        ase.io.write(temporary, atoms, format="xyz")
    with atomic_path(folder / "poses.npz") as temporary:
        np.savez_compressed(
            temporary,
            phi_theta_psi_rad=np.array([truth.angles for truth in truths]),
            tau_xy_angstrom=np.array([truth.tau for truth in truths]),
            scan_positions_xy_angstrom=np.array([truth.positions for truth in truths]),
            defocus_angstrom=np.array([truth.defocus for truth in truths]),
        )
    write_text(folder / "spec.json", spec.model_dump_json(indent=1) + "\n")


def simulate(
    spec: SimulationSpec,
    out_dir: str | Path,
    on_tilt: Callable[[int, int, float], None] | None = None,
    *,
    on_start: Callable[[str], None] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> None:
    """Simulate a tilt series into ``tilt_NN.h5`` and ``truth/``; the same seed gives the same series.

    Parameters
    ----------
    spec : SimulationSpec
        What to simulate.
    out_dir : path
        Created if need be.
    on_tilt : callable, optional
        Called with (tilts done, tilts in all, seconds this one took) after every tilt.
    on_start : callable, optional
        Called before the first tilt with a line on the memory and the time that it all takes.
    overwrite : bool
        Whether tilts already in the folder may be replaced.

    Raises
    ------
    UserError
        If the folder already holds tilts and may not be overwritten, cannot be written, the specimen
        cannot be read, or the machine has too little memory.
    """
    out_dir, n = Path(out_dir), len(spec.stage_tilt_degree)
    atoms = build_specimen(spec.specimen, tilt_generator(spec.seed, -1))
    expected = _expect(spec, atoms, torch.get_num_threads())
    if on_start is not None:
        on_start(expected())
    generators = [tilt_generator(spec.seed, i) for i in range(n)]
    truths = [draw_truth(spec, i, rng) for i, rng in enumerate(generators)]
    _prepare(out_dir, overwrite)
    write_truth(out_dir / "truth", spec, atoms, truths)
    with _single_threaded_torch() as workers:
        for i, (truth, rng) in enumerate(zip(truths, generators, strict=True)):
            start = time.perf_counter()
            mean = mean_patterns(spec, atoms, truth, rng, workers=workers, device=device)
            write_tilt(out_dir / f"tilt_{i:02d}.h5", spec, i, rng.poisson(mean))
            if on_tilt is not None:
                on_tilt(i + 1, n, time.perf_counter() - start)


def _expect(spec: SimulationSpec, atoms: Atoms, workers: int) -> Callable[[], str]:
    """Refuse what does not fit into memory; gives what the rest takes in words, found when asked for."""
    workers = min(workers, spec.phonons.configurations)
    try:
        setup = optics(spec)
        with np.errstate(over="raise"):
            found = sizes(spec, atoms, _field_of_view(setup.window, _reach(spec)))
    except (ArithmeticError, ValueError) as error:
        raise UserError(
            f"no grid follows from these numbers ({error}); look at scan_shape, scan_step_angstrom, "
            "pattern_pixels, pixel_angstrom and slice_angstrom"
        ) from error
    parts = memory_parts(spec, found, workers)
    refuse_too_large(parts)
    return lambda: sentence(parts, seconds_needed(spec, found, setup, workers))


def _reach(spec: SimulationSpec) -> np.ndarray:
    """How far scan and source wander from the optical axis along (x, y), as ``(1, 2)``: about the widest."""
    errors, angle = spec.errors, np.deg2rad(spec.scan_rotation_degree)
    y, x = (n // 2 * step for n, step in zip(spec.scan_shape, spec.scan_step_angstrom, strict=True))
    across, along = abs(np.cos(angle)), abs(np.sin(angle))
    turned = np.array([[across * x + along * y, along * x + across * y]])
    beyond = 3 * errors.scan_jitter_rms_angstrom + 2 * spec.coherence.source_rms_angstrom
    return turned * (1 + 2 * errors.scan_affine_rms) + beyond


@contextmanager
def _single_threaded_torch() -> Iterator[int]:
    """Yield torch's number of threads, to be spent on whole configurations: small FFTs share badly."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _prepare(folder: Path, overwrite: bool) -> None:
    """Make the folder; leave no tilt of another series in it."""
    old = sorted(folder.glob("tilt_*.h5"))
    if old and not overwrite:
        raise UserError(f"{folder}: there are {len(old)} tilts already; give an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in old:
            path.unlink()
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be written ({error.strerror}); give another") from error
