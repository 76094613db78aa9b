"""What `peers.py` runs: one function a program, called by that program's own Python in a process of its own.

Every function reconstructs the same patterns and writes into a `Log`: processor seconds of each
iteration, and what it has of the specimen's phase after it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIDE, SIZE, SLICES, MODES, BATCH = 20, 64, 8, 3, 64
ENERGY, WAVELENGTH, SEMIANGLE, DEFOCUS = 300e3, 0.0196875, 20.0, 100.0
PIXEL, STEP, THICKNESS = 0.25, 1.0, 10.0
RECIPROCAL = 1 / (SIZE * PIXEL)


class Job(NamedTuple):
    """Passes over the data, a factor on the learning rates of programs that have them, petomo's momentum."""

    iterations: int = 5
    rate: float = 1.0
    momentum: float = 0.5


class Log:
    """Processor seconds and phase images, one of each an iteration."""

    def __init__(self):
        self.laps: list[float] = []
        self.phases: list[np.ndarray] = []

    @contextlib.contextmanager
    def lap(self) -> Iterator[None]:
        """Time the block."""
        start = time.process_time()
        yield
        self.laps.append(time.process_time() - start)

    def phase(self, slices: np.ndarray) -> None:
        """Keep the sum of slices of phase, or of complex transmission, ``(slice, y, x)``."""
        real = np.angle(slices) if np.iscomplexobj(slices) else slices
        self.phases.append(real.astype(np.float32).sum(0))

    def write(self, path: Path) -> None:
        """Both into one npz file."""
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, laps=self.laps, phases=self.phases)
        os.replace(path.with_suffix(".part"), path)


def run_petomo(patterns: np.ndarray, job: Job, positions: bool = False) -> Log:
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
        job.iterations,
        BATCH,
        volume=Schedule(1.5),
        momentum=job.momentum,
        probe=Schedule(0.5),
        positions=move,
        affine=move,
        poses=Schedule(0.0),
    )
    log, passes = Log(), reconstruct(model, lambda _, index: data[index], Amplitude(), options)
    for _ in range(job.iterations):
        with log.lap():
            next(passes)
        log.phase(model.volume.detach().numpy())
    return log


def run_ptyrad(patterns: np.ndarray, job: Job) -> Log:
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
                "objp": {"start_iter": 1, "lr": 5e-4 * job.rate},
                "probe": {"start_iter": 1, "lr": 1e-4 * job.rate},
            }
        },
        "recon_params": {
            "NITER": job.iterations,
            "BATCH_SIZE": {"size": BATCH, "grad_accumulation": 1},
            "SAVE_ITERS": None,
            "output_dir": "ptyrad/",
            "copy_params": False,
            "compiler_configs": {"enable": False},
        },
    }
    Path("ptyrad.yaml").write_text(yaml.safe_dump(params))
    log, step = Log(), reconstruction.recon_step

    def timed_step(batches, grad_accumulation, model, *args, **kwargs):
        with log.lap():
            out = step(batches, grad_accumulation, model, *args, **kwargs)
        log.phase(model.opt_objp.detach()[0].numpy())
        return out

    reconstruction.recon_step = timed_step
    loaded = load_params("ptyrad.yaml", validate=True)
    loaded["recon_params"]["compiler_configs"] = {"disable": True}
    PtyRADSolver(loaded, device="cpu", seed=42).run()
    return log


def run_phaser(patterns: np.ndarray, job: Job) -> Log:
    import torch
    from phaser.execute import execute_plan
    from phaser.observer import Observer
    from phaser.plan import ReconsPlan

    torch.set_num_threads(1)
    np.save("phaser.npy", patterns)
    engine = {
        "type": "gradient",
        "probe_modes": MODES,
        "niter": job.iterations,
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
            "object": {"type": "adam", "learning_rate": 5e-3 * job.rate},
            "probe": {"type": "adam", "learning_rate": 1e-2 * job.rate},
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
            "probe": {"type": "focused", "conv_angle": SEMIANGLE, "defocus": -DEFOCUS},
            "scan": {"type": "raster", "shape": [SIDE, SIDE], "step_size": STEP},
            "object": {"type": "random"},
        },
        "slices": {"n": SLICES, "total_thickness": SLICES * THICKNESS},
        "engines": [engine],
    }
    log = Log()

    class Clock(Observer):
        def start_engine(self, *_):
            self.start = time.process_time()

        def update_iteration(self, state, *_):
            log.laps.append(time.process_time() - self.start)
            log.phase(state.object.data.numpy())
            self.start = time.process_time()

    execute_plan(ReconsPlan.from_data(plan), observers=Clock())
    return log


def run_quantem(patterns: np.ndarray, job: Job) -> Log:
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
    rates = {"object": 5e-3 * job.rate, "probe": 1e-3 * job.rate}
    adam = {name: {"type": "adam", "lr": rate} for name, rate in rates.items()}
    log = Log()
    for i in range(job.iterations):
        start = {"optimizer_params": adam} if i == 0 else {}
        with log.lap():
            solver.reconstruct(num_iters=1, reset=i == 0, batch_size=BATCH, device="cpu", **start)
        log.phase(solver.obj)
    return log


def run_py4dstem(patterns: np.ndarray, job: Job) -> Log:
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
    log = Log()
    for i in range(job.iterations):
        with log.lap():
            solver.reconstruct(
                num_iter=1,
                max_batch_size=BATCH,
                step_size=0.5 * job.rate,
                reset=i == 0,
                **dict.fromkeys(off.split(), False),
            )
        log.phase(np.asarray(solver._object))
    return log


PROGRAMS: dict[str, Callable[[np.ndarray, Job], Log]] = {
    "petomo": run_petomo,
    "petomo, positions too": lambda patterns, job: run_petomo(patterns, job, positions=True),
    "ptyrad": run_ptyrad,
    "phaser": run_phaser,
    "quantem": run_quantem,
    "py4dstem": run_py4dstem,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--iterations", type=int, default=Job().iterations)
    parser.add_argument("--rate", type=float, default=Job().rate)
    parser.add_argument("--momentum", type=float, default=Job().momentum)
    args = parser.parse_args()
    job = Job(args.iterations, args.rate, args.momentum)
    PROGRAMS[args.program](np.load("patterns.npy"), job).write(Path("log.npz"))


if __name__ == "__main__":
    main()
