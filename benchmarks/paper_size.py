"""How long the paper's experiment takes: 26 tilts of 220 x 220 patterns of 66 x 66, 296^3 voxels, 8 slices.

A pass of step 3 over some of the tilts, all their patterns included, is timed on patterns of noise in memory,
and multiplied up to 26 tilts and to the default number of passes; the paper reports 4 s a tilt, 300
passes and "roughly 8 hours" on one GPU with 24 GB. Steps 1 and 2, and reading, are not in it.

    python benchmarks/paper_size.py                     # the GPU if there is one, else the processors
    python benchmarks/paper_size.py --device cpu --threads 2 --tilts 1 --write
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import argparse
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from noise_series import Size, make_series
from pass_vs_fft import processor

from petomo.algorithms.descent import reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.objectives.losses import Amplitude
from petomo.objectives.regularizers import L1Real, NonNegative
from petomo.workflow.stage_settings import EndToEndSettings
from petomo.workflow.step_ptychography import common_options, to_schedule

sys.path.insert(0, str(Path(__file__).parent / "studies"))

from study import PAGES, write_block

TILTS, PAPER_SECONDS = 26, 8 * 3600
KINDS = ("volume and probes", "the scan too, its curvature measured", "the scan too")  # passes 1 to 3


def paper_size(tilts: int) -> Size:
    """The paper's demonstration but for the number of tilts: scan step and voxel alike, 11.8 nm."""
    voxel = 118 / 296
    return Size((296, 296, 296), (220, 220), tilts, 66, 8, 3, voxel, 80e3, 25.0, step=voxel)


def scheduled() -> tuple[DescentOptions, list[int]]:
    """Default options, set so that passes 1 to 3 are of the three kinds, and how many a run has of each."""
    settings = EndToEndSettings()
    options = DescentOptions(**common_options(settings), volume=to_schedule(settings.volume))
    many = [0, 0, 0]
    for number in range(options.iterations):
        moves = options.affine.active(number)
        again = number == options.affine.start or number % options.curvature_every == 0
        many[moves * (2 - again)] += 1
    early = replace(options, probe=Schedule(options.probe.step), affine=Schedule(options.affine.step, 2))
    assert options.curvature_every > len(KINDS)  # else pass 3 would measure again
    return early, many


def passes(size: Size, device: torch.device) -> tuple[list[float], float]:
    """Wall seconds of a pass of each of `KINDS`, and the most memory in GB."""
    model, patterns = make_series(size, electrons=24000 * size.voxel**2, device=device)
    options, _ = scheduled()
    if device.type == "cuda":
        patterns = patterns.pin_memory()
        torch.cuda.reset_peak_memory_stats()

    def read(_tilt: int, index: torch.Tensor) -> torch.Tensor:
        return patterns[index].to(device, torch.float32)

    solver = reconstruct(model, read, Amplitude(), options, [L1Real(0.4), NonNegative()])
    seconds = []
    for _ in range(1 + len(KINDS)):  # the first one also sets up
        start = time.perf_counter()
        next(solver)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        return seconds[1:], torch.cuda.max_memory_allocated() / 1e9
    return seconds[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def table(seconds: list[float], gigabytes: float, tilts: int, machine: str) -> str:
    """Markdown: what was measured, and what follows for the whole of step 3."""
    _, many = scheduled()
    visits = [s / tilts for s in seconds]
    whole = TILTS * sum(n * s for n, s in zip(many, visits, strict=True))
    lines = [
        f"{machine}; {tilts} of {TILTS} tilts timed, in memory.",
        "",
        "| | petomo | paper |",
        "|---|---:|---:|",
    ]
    for kind, number, one in zip(KINDS, many, visits, strict=True):
        ours, theirs = f"{one:.2f} s a tilt, {number} passes", "4 s a tilt, 300 passes"
        lines.append(f"| {kind} | {ours} | {theirs if kind == KINDS[0] else ''} |")
    lines += [
        f"| step 3, {TILTS} tilts | {whole / 60:.0f} min ({PAPER_SECONDS / whole:.1f} times as fast) | 8 h |",
        f"| most memory | {gigabytes:.1f} GB | 24 GB of the GPU |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tilts", type=int, help="default: all on a GPU, else 1")
    parser.add_argument("--write", action="store_true", help="into docs/studies/speed.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    tilts = args.tilts or (TILTS if device.type == "cuda" else 1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, {args.threads} threads"
    text = table(*passes(paper_size(tilts), device), tilts, f"{name}, torch {torch.__version__}")
    print(text)
    if args.write:
        write_block(PAGES / "speed.md", f"paper {device.type}", text)


if __name__ == "__main__":
    main()
