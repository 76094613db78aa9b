"""A_theta,tau and B_b, forward and gradient: against a 3D `grid_sample`, and against the pass they serve.

A visit of Algorithm 3 to a tilt turns and bins the volume once, forward and back. The share is that of
all patterns of a tilt: 18 x 24 of 64 x 64 (3 modes, 8 slices), and 220 x 220 of 66 x 66 for the paper's
size, at the time that 128 of them take in the same run.
Processor time on one thread, the least of several rounds in turns.

    python benchmarks/rotation.py            # the size of sim_ptal2o3_27
    python benchmarks/rotation.py --paper    # 296^3 as well, about a minute
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import argparse
import math
from collections.abc import Callable

import torch
from pass_vs_fft import SLICES, interleaved, make_case, petomo_pass
from torch import Tensor

from petomo.physics.interpolation import Interpolation
from petomo.physics.resample import SliceGeometry, rotate_and_bin, rotate_and_bin_reference
from petomo.physics.tilt import rows_last

VOXEL, BATCH = 0.3, 128  # patterns measured
ANGLES = {
    "theta": (0.0, 25.0, 0.0),
    "theta, psi": (0.0, 25.0, 0.7),
    "phi, theta, psi": (0.5, 25.0, 0.7),
}


def turn(
    volume: Tensor, degrees: tuple[float, float, float], refine: bool, kind: Interpolation | None = "spline"
) -> None:
    """Forward and gradient, with that of the non-zero angles if they are refined; None is `grid_sample`."""
    phi, theta, psi = (
        torch.tensor(math.radians(d), dtype=torch.float64, requires_grad=refine and d != 0) for d in degrees
    )
    depth, *lateral = volume.shape
    geometry = SliceGeometry(SLICES, depth * VOXEL / SLICES, (lateral[0], lateral[1]), VOXEL)
    leaf, still = volume.detach().requires_grad_(), torch.zeros(2, dtype=torch.float64)
    pose = phi, theta, psi, still
    if kind is None:
        out = rotate_and_bin_reference(leaf, *pose, geometry)
    else:
        out = rotate_and_bin(leaf, *pose, geometry, kind)
    out.backward(out.detach())


def compare(shape: tuple[int, int, int], window: int, visit: int, rounds: int) -> list[str]:
    """Rows of a Markdown table; ``visit`` is the number of patterns of a tilt."""
    torch.manual_seed(0)
    volume, case = rows_last(torch.rand(shape)), make_case(window, BATCH)
    functions: dict[str, Callable[[], object]] = {
        "pass": lambda: petomo_pass(case),
        "grid_sample": lambda: turn(volume, ANGLES["phi, theta, psi"], refine=False, kind=None),
    }
    for kind in ("linear", "cubic"):
        for name in ("theta", "phi, theta, psi"):
            functions[f"{name}, {kind}"] = lambda n=name, k=kind: turn(volume, ANGLES[n], False, k)
    for name, degrees in ANGLES.items():
        for refine in (False, True):
            key = f"{name}{', angles refined' if refine else ''}"
            functions[key] = lambda degrees=degrees, refine=refine: turn(volume, degrees, refine)
    times = {name: 1e3 * seconds for name, seconds in interleaved(functions, rounds).items()}
    size = " x ".join(map(str, shape))
    base, slow = times.pop("pass") * visit / BATCH, times["grid_sample"]
    rows = [
        f"| {size} | {name} | {ms:.0f} | 1/{slow / ms:.0f} | {ms / base:.1%} |" for name, ms in times.items()
    ]
    return [*rows, f"| {size} | the {visit} patterns of a tilt | {base:.0f} | | |"]


def table(rounds: int, paper: bool) -> str:
    lines = ["| volume | what | core-ms | of grid_sample | of a visit |", "|---|---|---:|---:|---:|"]
    lines += compare((108, 110, 140), 64, 18 * 24, rounds)
    if paper:
        lines += compare((296, 296, 296), 66, 220**2, 2)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paper", action="store_true", help="also 296^3 voxels")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(table(args.rounds, args.paper))


if __name__ == "__main__":
    main()
