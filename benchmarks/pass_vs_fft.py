"""Forward + gradient of `multislice_loss` against its bare FFTs, in one run and on one thread.

The gradient includes phase, probe modes and sub-pixel positions. The floor is the 34 two-dimensional
FFTs per mode and pattern that a textbook pass of 8 slices takes (two a slice and one to the detector,
forward and back). Times are processor times, variants take turns, and the least of each counts.

    python benchmarks/pass_vs_fft.py          # 64 x 64, 3 modes, 8 slices
    python benchmarks/pass_vs_fft.py --all    # 128 and 256 as well
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.fft import fft2, ifft2

from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude
from petomo.physics import multislice
from petomo.physics.multislice import MultisliceOptics, multislice_loss
from petomo.physics.multislice_share import Bench
from petomo.physics.probe import hermite_modes, make_probe
from petomo.physics.propagation import fresnel

TARGET = 1.15
MODES, SLICES = 3, 8
#: side of the window, patterns a batch
CASES = ((64, 64), (128, 32), (256, 16))
LOSS = Amplitude()


@dataclass
class Case:
    """One batch: leaves that want a gradient, and the data."""

    phase: Tensor
    probe: Tensor
    positions: Tensor
    measured: Tensor
    optics: MultisliceOptics

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh copies of phase, probe and positions that want a gradient."""
        return tuple(x.detach().clone().requires_grad_() for x in (self.phase, self.probe, self.positions))  # pyright: ignore


def make_case(size: int, patterns: int) -> Case:
    """A scan of ``patterns`` places over a field half a window larger than the window."""
    torch.manual_seed(0)
    window = Grid((size, size), 0.25)
    probe = make_probe(window, 300e3, 20.0, {"C10": -100.0}, intensity=1e4)
    field = size + size // 2
    return Case(
        phase=0.2 * torch.rand(SLICES, field, field),
        probe=hermite_modes(probe, MODES, window).to(torch.complex64),
        positions=(torch.rand(patterns, 2) - 0.5) * (size // 2 - 2),
        measured=torch.poisson(torch.full((patterns, size, size), 1e4 / size**2)),
        optics=MultisliceOptics(window, 300e3, 10.0),
    )


def petomo_pass(case: Case) -> tuple[Tensor, ...]:
    leaves = case.leaves()
    phase, probe, positions = leaves
    multislice_loss(phase, None, probe, positions, case.measured, case.optics, LOSS).backward()
    return tuple(x.grad for x in leaves)  # pyright: ignore


def naive_pass(case: Case) -> tuple[Tensor, ...]:
    """What one would write first: exp(i V) on every patch, all waves of the batch on autograd's tape."""
    leaves = case.leaves()
    phase, probe, positions = leaves
    n, field = probe.shape[-1], phase.shape[-1]
    whole = torch.round(positions.detach())
    q = torch.fft.fftfreq(n)
    rest = positions - whole
    ramp = torch.exp(-2j * math.pi * (rest[:, 1, None, None] * q[:, None] + rest[:, 0, None, None] * q))
    lam, window = wavelength(case.optics.energy_ev), case.optics.window
    step = case.optics.thickness
    entrance = fresnel(window, lam, -(SLICES - 1) / 2 * step).to(torch.complex64)
    propagator = fresnel(window, lam, step).to(torch.complex64)
    wave = ifft2(fft2(probe) * entrance * ramp[:, None])
    corner = (whole + (field // 2 - n // 2)).int().tolist()
    patches = torch.stack([phase[:, y : y + n, x : x + n] for x, y in corner])
    for s in range(SLICES):
        wave = ifft2(fft2(wave * torch.exp(1j * patches[:, s])[:, None]) * propagator)
    intensity = (fft2(wave, norm="ortho").abs() ** 2).sum(1)
    LOSS(intensity, case.measured)[0].sum().backward()
    return tuple(x.grad for x in leaves)  # pyright: ignore


def bare_ffts(case: Case) -> None:
    """34 transforms a mode and pattern, in one batch."""
    wave = torch.zeros(len(case.positions), *case.probe.shape, dtype=torch.complex64) + case.probe
    for _ in range(2 * (2 * SLICES + 1)):
        fft2(wave)


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least processor time of each, the functions taking turns: other programs only ever add to it."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: min(t[1:]) for name, t in times.items()}


@contextmanager
def plain_torch() -> Iterator[None]:
    """As it is where nothing is compiled."""
    chosen, multislice.choose_bench = multislice.choose_bench, lambda *_: Bench
    try:
        yield
    finally:
        multislice.choose_bench = chosen


def plain_pass(case: Case) -> None:
    with plain_torch():
        petomo_pass(case)


def measure(size: int, patterns: int, rounds: int) -> dict[str, float]:
    """Processor ms per pattern of the FFTs alone, of petomo with and without numba, and of autograd."""
    case = make_case(size, patterns)
    for ours, theirs in zip(petomo_pass(case), naive_pass(case), strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        assert error < 1e-3, f"the gradients disagree by {error:.1e}"
    functions = {
        "bare FFTs": bare_ffts,
        "petomo": petomo_pass,
        "plain torch": plain_pass,
        "autograd": naive_pass,
    }
    times = interleaved({name: partial(f, case) for name, f in functions.items()}, rounds)
    return {name: 1e3 * t / patterns for name, t in times.items()}


def row(size: int, per: dict[str, float]) -> str:
    """One line for the terminal."""
    floor = per["bare FFTs"]
    cells = [f"{name} {ms:6.2f} ({ms / floor:.2f} x)" for name, ms in per.items()]
    return f"{size:4d} x {size:<4d} core-ms/pattern: " + ", ".join(cells)


def processor() -> str:
    """Its name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> str:
    """Processor, thread count and versions."""
    load = os.getloadavg()[0]
    return f"{processor()}, {os.cpu_count()} cpus, 1 thread used, torch {torch.__version__}, load {load:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="also 128 x 128 and 256 x 256")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"{MODES} modes, {SLICES} slices, sub-pixel shifts and position gradient included")
    met = True
    for size, patterns in CASES if args.all else CASES[:1]:
        per = measure(size, patterns, args.rounds)
        print(row(size, per), flush=True)
        met &= per["petomo"] <= TARGET * per["bare FFTs"]
    print(f"target {TARGET} x the bare FFTs: {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    main()
