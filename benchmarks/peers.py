"""One iteration of single-tilt multislice ptychography: petomo against others, each in its own Python.

All see the same simulated scan (20 x 20 patterns of 64 x 64, 3 modes, 8 slices, batches of 64, single
precision) and refine object and probe; scan positions are held, the sub-pixel shift of the probe is
applied by those who have it. Every program runs in a process of its own on one thread; programs take
turns. Processor time per pattern, the least of all iterations but each process's first, which may compile.

    python benchmarks/peers.py --peer ptyrad=ENV/bin/python --peer py4dstem=ENV/bin/python

with any of ptyrad, phaser, quantem, py4dstem, each environment holding that package and torch 2.13 for CPU
(``pip install ptyrad``, ``phaserEM[jax]``, ``quantem``, ``py4DSTEM``; PtyRAD 1.0 needs Python 3.12).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SIDE, SIZE, SLICES, MODES, BATCH, ITERATIONS = 20, 64, 8, 3, 64, 5
ENERGY, WAVELENGTH, SEMIANGLE, DEFOCUS = 300e3, 0.0196875, 20.0, 100.0
PIXEL, STEP, THICKNESS = 0.25, 1.0, 10.0
RECIPROCAL = 1 / (SIZE * PIXEL)
Laps = list[float]


def simulate(folder: Path) -> None:
    """Random Gaussian atoms; centred patterns ``(scan y, scan x, ky, kx)`` as `patterns.npy`."""
    rng, step = np.random.default_rng(0), round(STEP / PIXEL)
    field = SIZE + SIDE * step
    yy, xx = np.mgrid[:field, :field]
    phase = np.zeros((SLICES, field, field))
    for layer in phase:
        for y, x in rng.uniform(0, field, (60, 2)):
            layer += 0.12 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 8)
    q = np.fft.fftfreq(SIZE, PIXEL)
    q2 = q[:, None] ** 2 + q**2
    aperture = np.sqrt(q2) * WAVELENGTH < SEMIANGLE * 1e-3
    probe = np.fft.fftshift(np.fft.ifft2(aperture * np.exp(-1j * np.pi * WAVELENGTH * q2 * DEFOCUS)))
    modes = np.array([probe, *(0.3 * np.roll(probe, (m, -m), (0, 1)) for m in range(1, MODES))])
    modes /= np.sqrt((abs(modes) ** 2).sum())
    propagator = np.exp(-1j * np.pi * WAVELENGTH * q2 * THICKNESS)
    patterns = np.empty((SIDE, SIDE, SIZE, SIZE), np.float32)
    for i, j in np.ndindex(SIDE, SIDE):
        cut = np.s_[i * step : i * step + SIZE, j * step : j * step + SIZE]
        wave = modes
        for layer in phase:
            wave = np.fft.ifft2(np.fft.fft2(wave * np.exp(1j * layer[cut])) * propagator)
        far = np.fft.fft2(wave, norm="ortho")
        patterns[i, j] = 1e5 * np.fft.fftshift((abs(far) ** 2).sum(0))
    np.save(folder / "patterns.npy", patterns)


@contextlib.contextmanager
def lap(laps: Laps) -> Iterator[None]:
    """Append the processor time of the block."""
    start = time.process_time()
    yield
    laps.append(time.process_time() - start)


# ------------------------------------------------------------- one function a program, run by its Python


def run_petomo(patterns: np.ndarray, positions: bool = False) -> Laps:
    import torch

    from petomo.algorithms.descent import reconstruct
    from petomo.algorithms.descent_options import DescentOptions, Schedule
    from petomo.core.grid import Grid
    from petomo.models.ptychography import Ptychography
    from petomo.objectives.losses import Amplitude
    from petomo.physics.multislice import MultisliceOptics
    from petomo.physics.probe import hermite_modes, make_probe

    data = torch.as_tensor(np.fft.ifftshift(patterns, (-2, -1)).reshape(-1, SIZE, SIZE))
    window = Grid((SIZE, SIZE), PIXEL)
    probe = make_probe(window, ENERGY, SEMIANGLE, {"C10": -DEFOCUS}, float(data[0].sum()))
    line = (torch.arange(SIDE) - (SIDE - 1) / 2) * STEP
    scan = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    model = Ptychography(
        torch.zeros(SLICES, *[SIZE + round(SIDE * STEP / PIXEL)] * 2),
        hermite_modes(probe, MODES, window).to(torch.complex64),
        scan,
        MultisliceOptics(window, ENERGY, THICKNESS),
    )
    move = Schedule(0.5 if positions else 0.0)
    options = DescentOptions(
        ITERATIONS, BATCH, probe=Schedule(0.5), positions=move, affine=move, poses=Schedule(0.0)
    )
    laps: Laps = []
    passes = reconstruct(model, lambda _, index: data[index], Amplitude(), options)
    for _ in range(ITERATIONS):
        with lap(laps):
            next(passes)
    return laps


def run_ptyrad(patterns: np.ndarray) -> Laps:
    import types

    import torch
    import yaml

    try:
        import torchvision  # noqa: F401
    except Exception:  # PyPI's build is for CUDA; one function of it is imported, and not needed here
        functional = types.ModuleType("torchvision.transforms.functional")
        functional.gaussian_blur = lambda image, *_, **__: image  # pyright: ignore[reportAttributeAccessIssue]
        for name in ("torchvision", "torchvision.transforms"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[functional.__name__] = functional
    from ptyrad.params import load_params
    from ptyrad.solver import PtyRADSolver, reconstruction

    torch.set_num_threads(1)
    np.save("flat.npy", patterns.reshape(-1, SIZE, SIZE))
    held = {"start_iter": None, "lr": 0.0}
    names = ("obja", "obj_tilts", "slice_thickness", "probe_pos_shifts")
    params = {
        "init_params": {
            "probe_kv": ENERGY / 1e3,
            "probe_conv_angle": SEMIANGLE,
            "probe_aberrations": {"C10": -DEFOCUS},
            "probe_pmode_max": MODES,
            "meas_Npix": SIZE,
            "meas_calibration": {"mode": "dx", "value": PIXEL},
            "meas_params": {"path": "flat.npy", "key": None},
            "pos_N_scan_slow": SIDE,
            "pos_N_scan_fast": SIDE,
            "pos_scan_step_size": STEP,
            "obj_Nlayer": SLICES,
            "obj_slice_thickness": THICKNESS,
        },
        "model_params": {
            "update_params": {
                **dict.fromkeys(names, held),
                "objp": {"start_iter": 1, "lr": 5e-4},
                "probe": {"start_iter": 1, "lr": 1e-4},
            }
        },
        "recon_params": {
            "NITER": ITERATIONS,
            "BATCH_SIZE": {"size": BATCH, "grad_accumulation": 1},
            "SAVE_ITERS": None,
            "output_dir": "ptyrad/",
            "copy_params": False,
            "compiler_configs": {"enable": False},
        },
    }
    Path("ptyrad.yaml").write_text(yaml.safe_dump(params))
    laps, step = [], reconstruction.recon_step

    def timed_step(*args, **kwargs):
        with lap(laps):
            return step(*args, **kwargs)

    reconstruction.recon_step = timed_step
    loaded = load_params("ptyrad.yaml", validate=True)
    loaded["recon_params"]["compiler_configs"] = {"disable": True}
    PtyRADSolver(loaded, device="cpu", seed=42).run()
    return laps


def run_phaser(patterns: np.ndarray) -> Laps:
    import torch
    from phaser.execute import execute_plan
    from phaser.observer import Observer
    from phaser.plan import ReconsPlan

    torch.set_num_threads(1)
    np.save("phaser.npy", patterns)
    engine = {
        "type": "gradient",
        "probe_modes": MODES,
        "niter": ITERATIONS,
        "grouping": BATCH,
        "bwlim_frac": None,
        "noise_model": {"type": "amplitude", "eps": 1e-3},
        "update_probe": True,
        "update_object": True,
        "update_positions": False,
        "save": False,
        "save_images": False,
        "calc_error": False,
        "iter_constraints": [],
        "group_constraints": [],
        "regularizers": [],
        "solvers": {
            "object": {"type": "adam", "learning_rate": 5e-3},
            "probe": {"type": "adam", "learning_rate": 1e-2},
        },
    }
    plan = {
        "name": "peers",
        "backend": "torch",
        "device": "cpu",
        "dtype": "float32",
        "raw_data": {
            "type": "manual",
            "path": "phaser.npy",
            "diff_step": WAVELENGTH * RECIPROCAL * 1e3,
            "kv": ENERGY / 1e3,
        },
        "init": {
            "probe": {"type": "focused", "conv_angle": SEMIANGLE, "defocus": DEFOCUS},
            "scan": {"type": "raster", "shape": [SIDE, SIDE], "step_size": STEP},
            "object": {"type": "random"},
        },
        "slices": {"n": SLICES, "total_thickness": SLICES * THICKNESS},
        "engines": [engine],
    }
    laps: Laps = []

    class Clock(Observer):
        def start_engine(self, *_):
            self.start = time.process_time()

        def update_iteration(self, *_):
            now = time.process_time()
            laps.append(now - self.start)
            self.start = now

    execute_plan(ReconsPlan.from_data(plan), observers=Clock())
    return laps


def run_quantem(patterns: np.ndarray) -> Laps:
    import matplotlib
    import torch

    matplotlib.use("Agg")
    from quantem.core.datastructures.dataset4dstem import Dataset4dstem
    from quantem.diffractive_imaging.dataset_models import PtychographyDatasetRaster
    from quantem.diffractive_imaging.detector_models import DetectorPixelated
    from quantem.diffractive_imaging.object_models import ObjectPixelated
    from quantem.diffractive_imaging.probe_models import ProbePixelated
    from quantem.diffractive_imaging.ptychography import Ptychography

    torch.set_num_threads(1)
    sampling, units = (STEP, STEP, RECIPROCAL, RECIPROCAL), ("A", "A", "A^-1", "A^-1")
    cube = Dataset4dstem.from_array(array=patterns, sampling=sampling, units=units)
    data = PtychographyDatasetRaster.from_dataset4dstem(cube)
    quiet = {"plot_rotation": False, "plot_com": False, "force_com_rotation": 0, "force_com_transpose": False}
    data.preprocess(com_fit_function="constant", probe_energy=ENERGY, **quiet)
    aim = {"energy": ENERGY, "defocus": DEFOCUS, "semiangle_cutoff": SEMIANGLE}
    solver = Ptychography.from_models(
        dset=data,
        obj_model=ObjectPixelated.from_uniform(
            num_slices=SLICES, slice_thicknesses=THICKNESS, obj_type="potential"
        ),
        probe_model=ProbePixelated.from_params(num_probes=MODES, probe_params=aim),
        detector_model=DetectorPixelated(),
        rng=42,
        verbose=False,
    )
    solver.preprocess(obj_padding_px=(16, 16))
    adam = {"object": {"type": "adam", "lr": 5e-3}, "probe": {"type": "adam", "lr": 1e-3}}
    laps: Laps = []
    for i in range(ITERATIONS):
        start = {"optimizer_params": adam} if i == 0 else {}
        with lap(laps):
            solver.reconstruct(num_iters=1, reset=i == 0, batch_size=BATCH, device="cpu", **start)
    return laps


def run_py4dstem(patterns: np.ndarray) -> Laps:
    import matplotlib

    matplotlib.use("Agg")
    import py4DSTEM

    cube = py4DSTEM.DataCube(patterns)
    cube.calibration.set_R_pixel_size(STEP)
    cube.calibration.set_R_pixel_units("A")
    cube.calibration.set_Q_pixel_size(RECIPROCAL)
    cube.calibration.set_Q_pixel_units("A^-1")
    solver = py4DSTEM.process.phase.MixedstateMultislicePtychography(
        datacube=cube,
        energy=ENERGY,
        num_probes=MODES,
        num_slices=SLICES,
        slice_thicknesses=THICKNESS,
        semiangle_cutoff=SEMIANGLE,
        defocus=DEFOCUS,
        object_type="potential",
        object_padding_px=(16, 16),
        device="cpu",
        verbose=False,
    )
    plots = dict.fromkeys(("plot_center_of_mass", "plot_rotation", "plot_probe_overlaps"), False)
    solver.preprocess(force_com_rotation=0, force_com_transpose=False, **plots)
    off = (
        "progress_bar gaussian_filter butterworth_filter kz_regularization_filter tv_denoise "
        "tv_denoise_chambolle identical_slices orthogonalize_probe fix_probe_com object_positivity "
        "fix_potential_baseline"
    )
    laps: Laps = []
    for i in range(ITERATIONS):
        with lap(laps):
            solver.reconstruct(
                num_iter=1,
                max_batch_size=BATCH,
                step_size=0.5,
                reset=i == 0,
                **dict.fromkeys(off.split(), False),
            )
    return laps


PROGRAMS: dict[str, Callable[[np.ndarray], Laps]] = {
    "petomo": run_petomo,
    "petomo, positions too": lambda patterns: run_petomo(patterns, positions=True),
    "ptyrad": run_ptyrad,
    "phaser": run_phaser,
    "quantem": run_quantem,
    "py4dstem": run_py4dstem,
}


# ------------------------------------------------------------------------------------- taking turns


def measure(name: str, python: str, folder: Path) -> float | None:
    """Processor ms per pattern of the best iteration, or None and a word on what went wrong."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    result = folder / "laps.json"
    result.unlink(missing_ok=True)
    command = [python, str(Path(__file__).resolve()), "--run", name]
    env = {**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        print(f"  {name} did not run: {last}", flush=True)
        return None
    return 1e3 * min(json.loads(result.read_text())[1:]) / SIDE**2


def compare(pythons: dict[str, str], rounds: int) -> dict[str, float]:
    """Least processor ms per pattern of every program, over ``rounds`` turns."""
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        for _ in range(rounds):
            for program, python in pythons.items():
                found = measure(program, python, folder)
                if found is not None:
                    best[program] = min(found, best.get(program, np.inf))
    return best


def table(best: dict[str, float]) -> str:
    """Markdown: each program, its time and petomo's share of it."""
    lines = ["| program | core-ms per pattern | petomo takes |", "|---|---:|---:|"]
    lines += [f"| {name} | {ms:.2f} | {best['petomo'] / ms:.2f} x |" for name, ms in best.items()]
    return "\n".join(lines)


def parse_peers(peers: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """The Python of each program; petomo's are this one."""
    pythons = dict.fromkeys([n for n in PROGRAMS if n.startswith("petomo")], sys.executable)
    for peer in peers:
        name, _, python = peer.partition("=")
        if name not in PROGRAMS or not python:
            parser.error(f"--peer takes NAME=PYTHON with a NAME among {', '.join(PROGRAMS)}, not {peer}")
        pythons[name] = os.path.abspath(python)
    return pythons


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", choices=PROGRAMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        laps = PROGRAMS[args.run](np.load("patterns.npy"))
        Path("laps.json").write_text(json.dumps(laps))
        return
    print(table(compare(parse_peers(args.peer, parser), args.rounds)))


if __name__ == "__main__":
    main()
