"""Single-tilt multislice ptychography by petomo and by others, each in its own Python.

All see the same simulated scan (20 x 20 patterns of 64 x 64, 3 modes, 8 slices, batches of 64, single
precision) and refine object and probe; scan positions are held, the sub-pixel shift of the probe is
applied by those who have it. Every program runs in a process of its own on one thread; programs take
turns. Two things are told: processor time per pattern of one iteration, the least of all but each
process's first, which may compile; and processor time until the phase, summed over the slices, is as near
to the truth as another program ever comes, each with the best of several learning rates or momenta.

    python benchmarks/peers.py --peer ptyrad=ENV/bin/python --peer py4dstem=ENV/bin/python

with any of ptyrad, phaser, quantem, py4dstem, each environment holding that package and torch 2.13 for CPU
(``pip install ptyrad``, ``phaserEM[jax]``, ``quantem``, ``py4DSTEM``; PtyRAD 1.0 needs Python 3.12).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peer_programs import (
    DEFOCUS,
    MODES,
    PIXEL,
    PROGRAMS,
    SEMIANGLE,
    SIDE,
    SIZE,
    SLICES,
    STEP,
    THICKNESS,
    WAVELENGTH,
    Job,
)
from scipy.ndimage import fourier_shift
from scipy.optimize import minimize

RATES, LONG = (0.12, 0.25, 0.5, 1.0, 2.0, 4.0), 40
LENGTHS = (8, 16, LONG)  # petomo's steps fall towards the end of a run
MOMENTA = (0.5, 0.8)  # its default, and what patterns without noise allow


def simulate(folder: Path) -> None:
    """Random Gaussian atoms; centred patterns ``(scan y, scan x, ky, kx)`` as `patterns.npy`, `truth.npy`."""
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
    probe = np.fft.fftshift(np.fft.ifft2(aperture * np.exp(1j * np.pi * WAVELENGTH * q2 * DEFOCUS)))
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
    np.save(folder / "truth.npy", phase.sum(0))


class Curve(NamedTuple):
    """Processor seconds a pattern so far, and the error of the phase, after every iteration."""

    seconds: np.ndarray
    errors: np.ndarray

    def until(self, error: float) -> float:
        """Seconds until the error is no larger than this; infinite where it never is."""
        return float(min(self.seconds[self.errors <= error], default=np.inf))


def run(name: str, python: str, folder: Path, job: Job) -> tuple[np.ndarray, np.ndarray] | None:
    """Laps in processor seconds and phases of one process, or None and a word on what went wrong."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    result = folder / "log.npz"
    result.unlink(missing_ok=True)
    script = Path(__file__).resolve().with_name("peer_programs.py")
    options = [text for key, value in job._asdict().items() for text in (f"--{key}", str(value))]
    command = [python, str(script), name, *options]
    env = {**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        print(f"  {name} did not run: {last}", flush=True)
        return None
    with np.load(result, allow_pickle=False) as file:
        return file["laps"], file["phases"]


# ---------------------------------------------------------------------------------------- one iteration


def compare(pythons: dict[str, str], rounds: int) -> dict[str, float]:
    """Least processor ms per pattern of every program, over ``rounds`` turns."""
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        for _ in range(rounds):
            for program, python in pythons.items():
                found = run(program, python, folder, Job())
                if found is not None:
                    best[program] = min(1e3 * found[0][1:].min() / SIDE**2, best.get(program, np.inf))
    return best


def table(best: dict[str, float]) -> str:
    """Markdown: each program, its time and petomo's share of it."""
    lines = ["| program | core-ms per pattern | petomo takes |", "|---|---:|---:|"]
    lines += [f"| {name} | {ms:.2f} | {best['petomo'] / ms:.2f} x |" for name, ms in best.items()]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ equal error


def phase_error(phase: np.ndarray, truth: np.ndarray) -> float:
    """Rms error over the inner scanned field, as a share of the truth's own rms.

    Left free are what a scan cannot tell: a shift, a constant and a ramp.
    """
    n = SIDE * round(STEP / PIXEL) * 3 // 4
    inner = truth[tuple(slice((s - n) // 2, (s + n) // 2) for s in truth.shape)]
    place = _best_place(phase, inner)
    margin = tuple(slice(max(0, p - 8), p + n + 8) for p in place)
    patch, start = phase[margin], [p - m.start for p, m in zip(place, margin, strict=True)]
    y, x = np.mgrid[:n, :n] / n
    free = np.stack([np.ones_like(x), x, y], -1).reshape(-1, 3)
    cut = tuple(slice(s, s + n) for s in start)

    def misfit(shift: np.ndarray) -> float:
        moved = np.fft.ifft2(np.asarray(fourier_shift(np.fft.fft2(patch), shift))).real[cut]
        rest = (moved - inner).ravel()
        return float(np.std(rest - free @ np.linalg.lstsq(free, rest, rcond=None)[0]))

    return minimize(misfit, np.zeros(2), method="Nelder-Mead").fun / inner.std()


def _best_place(phase: np.ndarray, inner: np.ndarray) -> tuple[int, int]:
    """Corner in ``phase`` at which it correlates best with ``inner``, whole pixels."""
    shape = tuple(a + b for a, b in zip(phase.shape, inner.shape, strict=True))
    spectrum = np.fft.rfft2(phase - phase.mean(), shape) * np.fft.rfft2(inner - inner.mean(), shape).conj()
    room = tuple(slice(0, a - b + 1) for a, b in zip(phase.shape, inner.shape, strict=True))
    found = np.fft.irfft2(spectrum, shape)[room]
    y, x = np.unravel_index(found.argmax(), found.shape)
    return int(y), int(x)


def jobs(program: str) -> list[Job]:
    """Runs among which a program's best counts."""
    if program.startswith("petomo"):
        return [Job(iterations, momentum=momentum) for iterations in LENGTHS for momentum in MOMENTA]
    return [Job(LONG, rate) for rate in RATES]


def curves(pythons: dict[str, str]) -> Iterator[tuple[str, Job, Curve]]:
    """Error against time of every program and job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        truth = np.load(folder / "truth.npy")
        for program, python in pythons.items():
            for job in jobs(program):
                found = run(program, python, folder, job)
                if found is not None:
                    laps = np.minimum(found[0], 2 * np.median(found[0]))  # the first may compile
                    errors = np.array([phase_error(phase, truth) for phase in found[1]])
                    yield program, job, Curve(np.cumsum(laps) / SIDE**2, errors)


def equal_error(pythons: dict[str, str]) -> str:
    """Markdown: the least error of every program, when it was reached, and when petomo reached it."""
    found: dict[str, dict[Job, Curve]] = {}
    for program, job, curve in curves(pythons):
        print(f"  {program}, {job}: {curve.errors.min():.4f} after {curve.seconds[-1]:.3f} s", flush=True)
        found.setdefault(program, {})[job] = curve
    head = (
        "| program | its least error | learning rates x | core-ms per pattern until then | petomo | share |"
    )
    lines = [head, "|---|---:|---:|---:|---:|---:|"]
    for program, each in found.items():
        job, best = min(each.items(), key=lambda item: item[1].errors.min())
        error = best.errors.min()
        theirs = min(curve.until(error) for curve in each.values())
        ours = min(curve.until(error) for curve in found["petomo"].values())
        if program.startswith("petomo"):
            rate, compared = "-", "- | -"
        else:
            rate = f"{job.rate:g}"
            compared = f"{1e3 * ours:.1f} | {ours / theirs:.2f} x" if np.isfinite(ours) else "not reached | -"
        lines.append(f"| {program} | {error:.3f} | {rate} | {1e3 * theirs:.1f} | {compared} |")
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
    args = parser.parse_args()
    pythons = parse_peers(args.peer, parser)
    print(table(compare(pythons, args.rounds)))
    print(equal_error(pythons))


if __name__ == "__main__":
    main()
