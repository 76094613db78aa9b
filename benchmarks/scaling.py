"""One pass by several processes against one, one thread each, in turns within one run.

    python benchmarks/scaling.py                   # two processes, volume 108 x 110 x 140
    python benchmarks/scaling.py --processes 4 --volume 160 176 176 --batch 256

Wall time is what counts, but means something only while the machine has a processor for every process:
the load is printed, and beside it the processor time of the busiest process, which sees the communication
and all work done twice but not the waiting. The least of the rounds counts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from noise_series import Size, make_series

from petomo.algorithms.atom_objective import AtomOptions, Objective
from petomo.algorithms.descent import reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.core.parallel import ALONE, Team, assembled
from petomo.models.atomic_tomography import AtomicTomography, Sites
from petomo.models.ptychography import Ptychography
from petomo.objectives.losses import Amplitude, Poisson
from petomo.objectives.regularizers import L1Real, NonNegative

TARGET, ATOMS = 1.8, 800


def options(settings: argparse.Namespace, angles: bool) -> DescentOptions:
    """Everything is refined from the first pass."""
    moves = Schedule(0.5)
    return DescentOptions(
        10**6, settings.batch, volume=Schedule(1.0), probe=moves, positions=moves, affine=moves,
        poses=moves if angles else Schedule(0.0), curvature_every=settings.curvature_every,
    )  # fmt: skip


def size(settings: argparse.Namespace, angles: tuple[float, float]) -> Size:
    """The asked for volume and scan, all tilts with the given phi and psi."""
    return Size(tuple(settings.volume), tuple(settings.scan), settings.tilts, angles=angles)


def end_to_end(settings: argparse.Namespace, team: Team, angles: tuple[float, float], turned: bool):
    """Passes of Algorithm 3."""
    model, patterns = make_series(size(settings, angles))
    terms = [L1Real(0.01), NonNegative()]
    return reconstruct(
        model, lambda _, i: patterns[i].float(), Amplitude(), options(settings, turned), terms, None, team
    )


def single_tilts(settings: argparse.Namespace, team: Team):
    """Passes of Algorithm 1 over as many tilts as there are processes, each its share of them."""
    model, patterns = make_series(size(settings, (0.0, 0.0)))
    phase = model.phase(0)[0].detach()
    tilts = range(settings.processes)[team.share(settings.processes)]
    solvers = [
        reconstruct(
            Ptychography(phase, model.probes[0].detach(), model.positions[0].detach(), model.geometry.optics),
            lambda _, i: patterns[i].float(),
            Amplitude(),
            options(settings, False),
            [L1Real(0.01), NonNegative()],
        )
        for _ in tilts
    ]  # fmt: skip
    while True:
        for solver in solvers:
            next(solver)
        yield


def atoms(settings: argparse.Namespace, team: Team, device: str = "cpu"):
    """Evaluations of what the refinement of atoms minimises, with its gradient; eight probes a tilt."""
    series, patterns = make_series(replace(size(settings, (0.009, 0.012)), modes=8))
    half = torch.tensor(settings.volume[::-1]) * Size.voxel / 2 - 6  # of the field, less a margin
    ones = torch.ones(ATOMS, dtype=torch.float64)
    sites = Sites(np.full(ATOMS, 13), (2 * torch.rand(ATOMS, 3) - 1) * half, ones, 0.01 * ones)
    probes, scans = ([p.detach() for p in some] for some in (series.probes, series.positions))
    probes, patterns = [p.to(device) for p in probes], patterns.to(device)
    model = AtomicTomography(sites, series.poses, probes, scans, series.geometry)
    read, nominal = (lambda _, i: patterns[i].float()), model.angles.data[:, 1].clone()
    target = Objective(model, read, Poisson(), nominal, AtomOptions(), team)
    while True:
        target(target.point())
        yield


CASES: dict[str, Callable] = {
    "single tilts": single_tilts,
    "end to end": partial(end_to_end, angles=(0.0, 0.0), turned=False),
    "end to end, phi and psi": partial(end_to_end, angles=(0.009, 0.012), turned=False),
    "end to end, angles refined": partial(end_to_end, angles=(0.009, 0.012), turned=True),
    "refinement of atoms": atoms,
}


def timed(passes, count: int) -> tuple[float, float]:
    """Wall and processor seconds of ``count`` passes."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(passes)
    return time.perf_counter() - wall, time.process_time() - processor


def compare(make: Callable, settings: argparse.Namespace, team: Team) -> tuple[list[float], list[float]]:
    """Least wall and processor seconds of a pass, ``[by one, by all]`` each."""
    alone, together, count = make(settings, ALONE), make(settings, team), settings.curvature_every
    timed(together, 1)
    if team.main:
        timed(alone, 1)
    times = []
    for _ in range(settings.rounds):
        team.wait_for_main()
        one = timed(alone, count) if team.main else (0.0, 0.0)
        team.wait_for_main()
        everybody = team.gather((*timed(together, count), *one))
        times.append([max(values) / count for values in zip(*everybody, strict=True)])
    wall, processor, wall_alone, processor_alone = (min(column) for column in zip(*times, strict=True))
    return [wall_alone, wall], [processor_alone, processor]


def work(settings: argparse.Namespace) -> None:
    """What every process does; the first one prints the table."""
    torch.set_num_threads(1)
    with assembled() as team:
        if team.main:
            voxels = " x ".join(map(str, settings.volume))
            scan = " x ".join(map(str, settings.scan))
            tilts = f"{settings.tilts} tilts of {scan}"
            print(f"{team.size} processes on {os.cpu_count()} cpus; volume {voxels}, {tilts},")
            steps = f"batches of {settings.batch}" if settings.batch else "one step a tilt"
            print(
                f"{Size.window} x {Size.window} pixels, {Size.slices} slices, {Size.modes} modes, {steps}.\n"
            )
            print("| pass | one: s | all: s | faster | one: core-s | busiest: core-s | faster | load |")
            print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for name, make in CASES.items():
            if settings.case not in (None, name):
                continue
            wall, processor = compare(make, settings, team)
            if team.main:
                cells = [f"{a:.2f} | {b:.2f} | {a / b:.2f} x" for a, b in (wall, processor)]
                print(f"| {name} | {cells[0]} | {cells[1]} | {os.getloadavg()[0]:.1f} |", flush=True)
        if team.main:
            print(
                f"\nAim: {TARGET} x by two; with a load above the number of cpus wall time is not conclusive."
            )


def launch(processes: int) -> int:
    """Start this script once for every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, *sys.argv]
    team = [subprocess.Popen(command, env=common | {"RANK": str(rank)}) for rank in range(processes)]
    return max(process.wait() for process in team)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--volume", type=int, nargs=3, default=(108, 110, 140))
    parser.add_argument("--scan", type=int, nargs=2, default=(18, 24))
    parser.add_argument("--tilts", type=int, default=6, help="of the end-to-end passes")
    parser.add_argument("--batch", type=int, help="patterns a step; without it all of a tilt, as by default")
    parser.add_argument("--curvature-every", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), help="only this one")
    settings = parser.parse_args()
    if "RANK" not in os.environ:
        return launch(settings.processes)
    work(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
