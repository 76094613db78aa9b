"""Passes over the data to the quality of 300 passes of the paper's gradient descent (Algorithm 3 as printed).

Both solvers start from nothing, with the poses, probes and scans that the pipeline found before, and refine
volume and probes. Plain descent takes five batches a tilt as the paper does, and the best of several steps,
judged by its loss after a few passes. It has the default's sparsity and sign, in proportion to its steps,
since it fits noise without; the default solver runs in several lengths, since its steps fall towards the end.

    python benchmarks/studies/convergence.py --quick --write
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import series
import study
import torch
from matplotlib.figure import Figure
from rich.console import Console

from petomo.algorithms.descent import reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.analysis.panels import COLOURS, grid, label, title
from petomo.analysis.resolution import ShellCorrelation, fourier_shell_correlation
from petomo.core.errors import WrongNumbers
from petomo.io.artefacts import read_atoms
from petomo.objectives.regularizers import L1Real, NonNegative
from petomo.workflow.callbacks import Reporter
from petomo.workflow.config import load_config
from petomo.workflow.context import RunContext
from petomo.workflow.grids import PatternReader, make_loss, plan_grids
from petomo.workflow.runner import open_input
from petomo.workflow.step_end_to_end import build_model

PASSES, TRIAL = 300, 8
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the inverse curvature
SPARSITY = 0.3  # volt a full step, the default
LENGTHS = (4, 8, 16, 30)
BAND = (0.2, 1.25)  # 1/angstrom, over which the correlation with truth is averaged
HELD = DescentOptions(positions=Schedule(0.0), affine=Schedule(0.0), poses=Schedule(0.0))
Curve = list[dict[str, float]]


def band_mean(found: ShellCorrelation) -> float:
    """Mean correlation over `BAND`."""
    band = (found.frequency > BAND[0]) & (found.frequency < BAND[1])
    return float(found.correlation[band].mean())


class Bench:
    """The data, the start and the truth."""

    def __init__(self, run: Path, data: Path):
        config = load_config(run / "config.yaml")
        tilts, device = open_input(config)
        context = RunContext(config, run, tilts, device, Reporter(None, Console(quiet=True)))
        self.grids, self.settings = plan_grids(tilts, config), config.end_to_end
        self.loss = make_loss(context, self.grids, "amplitude")
        self.read = PatternReader(tilts, self.grids.window.shape, device)
        self.build = lambda: build_model(context, self.grids, run / "inputs" / "end_to_end")
        self.patterns = [len(tilt) for tilt in tilts]
        self.voxel = (self.grids.voxel,) * 3
        self.truth = study.truth_in_frame(
            run, data, read_atoms(run / "atoms.xyz"), self.grids.volume_shape, self.voxel
        )

    def curve(self, options: DescentOptions, terms: list[Any]) -> Iterator[dict[str, float]]:
        """Loss and agreement with the truth after every pass."""
        model = self.build()
        for status in reconstruct(model, self.read, self.loss, options, terms):
            found = fourier_shell_correlation(model.volume.detach().numpy(), self.truth, self.voxel)
            yield {
                "pass": status.iteration,
                "loss": status.loss,
                "correlation": band_mean(found),
                "resolution": study.resolution(found, 0.5),
            }

    def plain(self, step: float, passes: int) -> Curve:
        """The paper's descent; ``step`` in units of the inverse curvature."""
        batch, model = round(np.mean(self.patterns) / 5), self.build()
        fluence = float(self.read(0, torch.arange(self.patterns[0])).sum()) / 5 / _area(model)
        bound = float(model.lipschitz(fluence))
        volume, probe = Schedule(step / bound), Schedule(0.25 / batch, start=1)
        options = replace(HELD, iterations=passes, batch_size=batch, solver="sgd", volume=volume, probe=probe)
        try:
            return list(self.curve(options, [L1Real(SPARSITY * bound), NonNegative()]))
        except WrongNumbers:
            return []

    def ours(self, passes: int) -> Curve:
        """The default solver, everything but the geometry as configured."""
        options = replace(HELD, iterations=passes, batch_size=self.settings.batch_size, volume=Schedule(3.0))
        return list(self.curve(options, [L1Real(SPARSITY), NonNegative()]))


def _area(model: Any) -> float:
    """Scanned area of the first tilt in pixels."""
    positions = model.positions[0].detach() / model.pixel_size
    extent = positions.amax(0) - positions.amin(0)
    return float((extent + (extent.prod() / len(positions)).sqrt()).prod())


def table(plain: Curve, step: float, ours: dict[int, Curve]) -> str:
    """The end of every run, and when it passed the best that plain descent came to."""
    goal, lines = max(plain, key=lambda p: p["correlation"]), []
    rows = [(f"plain descent, step {step:g}", plain), *((f"default, {n} passes", c) for n, c in ours.items())]
    for name, curve in rows:
        end, reached = curve[-1], [p for p in curve if p["correlation"] >= goal["correlation"]]
        lines.append([
            name, f"{end['loss']:.2f}", f"{end['correlation']:.4f}", study.angstrom(end["resolution"]),
            f"{reached[0]['pass']:g}" if reached else "-",
        ])  # fmt: skip
    header = ["solver", "loss a pattern", f"correlation with truth, {BAND[0]:g} to {BAND[1]:g} 1/Å"]
    return study.markdown([*header, "FSC 0.5", "passes to plain descent's best"], lines)


def figure(plain: Curve, ours: dict[int, Curve]) -> Figure:
    drawn, axes = grid(2, columns=2, width=4.6, height=3.6)
    for axis, key, name in zip(
        axes, ("loss", "correlation"), ("loss a pattern", "correlation with truth"), strict=True
    ):
        axis.semilogx(
            [p["pass"] for p in plain], [p[key] for p in plain], color="black", label="plain descent"
        )
        for (n, curve), colour in zip(ours.items(), COLOURS, strict=False):
            axis.semilogx(
                [p["pass"] for p in curve],
                [p[key] for p in curve],
                color=colour,
                label=f"default, {n} passes",
            )
        label(axis, "pass over the data", name)
        title(axis, name)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=7, frameon=False)
    return drawn


def main() -> None:
    args = study.arguments(__doc__)
    work = study.work_folder(args)
    spec, settings = series.core_shell(args.quick), series.core_shell_settings(args.quick)
    data = series.simulate_once(spec, work / "core_shell")
    study.reconstruct_once(work / "core_shell_run", data, settings, so_far=args.so_far)
    bench = Bench(work / "core_shell_run", data)
    trials = {
        s: study.kept(work / f"convergence_trial_{s:g}.json", lambda s=s: bench.plain(s, TRIAL))
        for s in STEPS
    }
    step = min((s for s in STEPS if trials[s]), key=lambda s: trials[s][-1]["loss"])
    plain = study.kept(work / f"convergence_plain_{step:g}.json", lambda: bench.plain(step, PASSES))
    ours = {n: study.kept(work / f"convergence_{n}.json", lambda n=n: bench.ours(n)) for n in LENGTHS}
    text = f"{series.facts(spec, data)}\n\n{table(plain, step, ours)}"
    study.publish("convergence", args.quick, text, figure(plain, ours), args.write, work)


if __name__ == "__main__":
    main()
