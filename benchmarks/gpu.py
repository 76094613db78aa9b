"""What needs a GPU, in one go: the tests marked `gpu`, timings beside the processor's, the paper's size.

python benchmarks/gpu.py    # the paper's size goes into docs/studies/speed.md as well
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pass_vs_fft import LOSS, MODES, SLICES, bare_ffts, make_case, plain_torch
from scaling import atoms

from petomo.core.parallel import ALONE
from petomo.physics.multislice import multislice_loss
from petomo.physics.resample import SliceGeometry, rotate_and_bin

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def seconds(function: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Median wall time, with the device's queue empty before and after."""
    times = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def multislice_times(size: int, patterns: int, chunks: tuple[int, ...], device: torch.device) -> None:
    """Forward + gradient per pattern for several chunk sizes, beside the bare FFTs on the same device."""
    case = make_case(size, patterns)
    for name in ("phase", "probe", "positions", "measured"):
        setattr(case, name, getattr(case, name).to(device))

    def one_pass(chunk: int | None) -> None:
        phase, probe, positions = case.leaves()
        multislice_loss(phase, None, probe, positions, case.measured, case.optics, LOSS, chunk).backward()

    floor = seconds(lambda: bare_ffts(case), device) / patterns * 1e3
    print(f"  {size} x {size}, {patterns} patterns: bare FFTs {floor:.3f} ms/pattern", flush=True)
    for chunk in chunks:
        spent = seconds(lambda chunk=chunk: one_pass(chunk), device) / patterns * 1e3
        print(f"    chunk {chunk:4d}: {spent:.3f} ms/pattern, {spent / floor:.2f} x bare FFTs", flush=True)
    with plain_torch():
        spent = seconds(lambda: one_pass(None), device) / patterns * 1e3
    print(f"    plain torch: {spent:.3f} ms/pattern, {spent / floor:.2f} x bare FFTs", flush=True)


def rotation_times(size: int, device: torch.device) -> None:
    """Forward + gradient of turning and binning, each kernel, angles fixed and under refinement."""
    volume = torch.randn(size, size, size, device=device)
    geometry = SliceGeometry(SLICES, size * 0.3 / SLICES, (size, size), 0.3)
    zero, tau = torch.tensor(0.0), torch.zeros(2)
    for kernel in ("linear", "cubic", "spline"):
        for refine in (False, True):
            theta = torch.tensor(0.5, requires_grad=refine)

            def one_pass(kernel=kernel, theta=theta) -> None:
                leaf = volume.clone().requires_grad_()
                rotate_and_bin(leaf, zero, theta, zero, tau, geometry, kernel).square().sum().backward()

            what = "with its angle" if refine else "angle fixed"
            print(f"  {size}^3 {kernel:6s} {what:14s}: {seconds(one_pass, device) * 1e3:8.1f} ms", flush=True)


def refinement_time(device: torch.device) -> None:
    """What the refinement of atoms minimises, with its gradient, for one tilt."""
    size = argparse.Namespace(volume=(108, 110, 140), scan=(48, 48), tilts=1)
    evaluations = atoms(size, ALONE, device.type)
    spent = seconds(lambda: next(evaluations), device, 3) * 1e3
    print(f"  refinement of atoms: {spent:.1f} ms a tilt of 2304 patterns", flush=True)


def main() -> int:
    if not torch.cuda.is_available():
        print("No CUDA device here, so there is nothing to test or time on a GPU.")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q"], cwd=ROOT, check=False)
    for device in (CPU, CUDA):
        patterns, chunks = (64, (16, 32)) if device is CPU else (1024, (16, 64, 256, 1024))
        print(f"{device.type}: multislice, {MODES} modes, {SLICES} slices, forward + gradient")
        multislice_times(64, patterns, chunks, device)
        print(f"{device.type}: turn and bin, forward + gradient")
        rotation_times(128, device)
        print(f"{device.type}: atoms")
        refinement_time(device)
    multislice_times(256, 64, (4, 16, 64), CUDA)
    rotation_times(256, CUDA)
    size = ["--device", "cuda", "--tilts", "4", "--write"]
    paper = subprocess.run([sys.executable, "benchmarks/paper_size.py", *size], cwd=ROOT, check=False)
    return tests.returncode or paper.returncode


if __name__ == "__main__":
    sys.exit(main())
