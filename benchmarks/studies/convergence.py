"""Passes over the data to the quality of 300 passes of the paper's gradient descent (Algorithm 3 as printed).

Both solvers start from nothing, with the poses, probes and scans that the pipeline found before, and refine
volume and probes. Plain descent takes five batches a tilt as the paper does, and the best of several steps,
judged by its loss after a few passes. It has the default's sparsity and sign, in proportion to its steps,
since it fits noise without; the default solver runs in several lengths, since its steps fall towards the end.

    python benchmarks/studies/convergence.py --quick --write
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import series
import study
import torch
from bench import BAND_NAME, Bench
from matplotlib.figure import Figure

from petomo.algorithms.descent import area_pixels
from petomo.algorithms.descent_options import Schedule
from petomo.analysis.panels import COLOURS, grid, label, title
from petomo.core.errors import WrongNumbers
from petomo.objectives.regularizers import L1Real, NonNegative

PASSES, TRIAL = 300, 8
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the inverse curvature
SPARSITY = 0.4  # volt a full step, the default
LENGTHS = (4, 8, 12, 24)
Curve = list[dict[str, float]]


class Descents(Bench):
    """The two solvers on one bench."""

    def plain(self, step: float, passes: int) -> Curve:
        """The paper's descent; ``step`` in units of the inverse curvature."""
        batch, model = round(np.mean(self.patterns) / 5), self.build()
        fluence = float(self.read(0, torch.arange(self.patterns[0])).sum()) / 5 / area_pixels(model, 0)
        bound = float(model.lipschitz(fluence))
        volume, probe = Schedule(step / bound), Schedule(0.25 / batch, start=1)
        options = replace(
            self.options, iterations=passes, batch_size=batch, solver="sgd", volume=volume, probe=probe
        )
        try:
            return list(self.curve(options, [L1Real(SPARSITY * bound), NonNegative()]))
        except WrongNumbers:
            return []

    def ours(self, passes: int) -> Curve:
        """The default solver, everything but the geometry as configured."""
        return list(self.curve(replace(self.options, iterations=passes), self.terms))


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
    header = ["solver", "loss a pattern", BAND_NAME, "FSC 0.5", "passes to plain descent's best"]
    return study.markdown(header, lines)


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
    base = study.core_shell_run(args.quick, work, args.so_far)
    bench = Descents(base.run, base.data)
    trials = {
        s: study.kept(work / f"convergence_trial_{s:g}.json", lambda s=s: bench.plain(s, TRIAL))
        for s in STEPS
    }
    step = min((s for s in STEPS if trials[s]), key=lambda s: trials[s][-1]["loss"])
    plain = study.kept(work / f"convergence_plain_{step:g}.json", lambda: bench.plain(step, PASSES))
    ours = {n: study.kept(work / f"convergence_{n}.json", lambda n=n: bench.ours(n)) for n in LENGTHS}
    text = f"{series.facts(base.spec, base.data)}\n\n{table(plain, step, ours)}"
    study.publish("convergence", args.quick, text, figure(plain, ours), args.write, work)


if __name__ == "__main__":
    main()
