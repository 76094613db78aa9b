"""Whether patterns that were held out choose the weight of the sparsity: their loss beside the truth's word.

A tenth of the patterns of every tilt takes no part in step 3; the volume from the others has to predict them.
Poses, probes and scans are those that the pipeline found.

    python benchmarks/studies/held_out.py --quick --write
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import series
import study
import torch
from bench import BAND_NAME, Bench, band_mean
from matplotlib.figure import Figure

from petomo.algorithms.descent import reconstruct
from petomo.analysis.panels import COLOURS, grid, label, title
from petomo.analysis.resolution import directional_correlations, fourier_shell_correlation
from petomo.objectives.regularizers import L1Real, NonNegative

WEIGHTS = (0.0, 0.03, 0.1, 0.3, 0.9, 2.7)
PASSES, SHARE = 16, 10


def measured(bench: Bench, weight: float) -> dict[str, Any]:
    """Losses a pattern of those that took part and of the others, and agreement with the truth."""
    generator, model = torch.Generator().manual_seed(0), bench.build()
    orders = [torch.randperm(n, generator=generator) for n in bench.patterns]
    held = [order[: len(order) // SHARE].sort().values for order in orders]
    part = [order[len(order) // SHARE :].sort().values for order in orders]
    whole = [positions.data for positions in model.positions]
    for positions, index in zip(model.positions, part, strict=True):
        positions.data = positions.data[index]
    options = replace(bench.options, iterations=PASSES)
    terms = [L1Real(weight), NonNegative()] if weight else [NonNegative()]
    *_, last = reconstruct(model, lambda t, i: bench.read(t, part[t][i]), bench.loss, options, terms)
    for positions, every in zip(model.positions, whole, strict=True):
        positions.data = every
    left = [bench.loss(model.predict(t, i), bench.read(t, i))[0] for t, i in enumerate(held)]
    volume = model.volume.detach().numpy()
    found = fourier_shell_correlation(volume, bench.truth, bench.voxel)
    cones = directional_correlations(volume, bench.truth, bench.voxel)
    return {
        "weight": weight,
        "part": last.loss,
        "held": float(torch.cat(left).mean()),
        "correlation": band_mean(found),
        "resolution": study.resolution(found, 0.5),
        "along": study.resolution(cones["z"], 0.5),
    }


def table(rows: list[dict[str, Any]]) -> str:
    header = ["weight of L1", "loss a pattern", "held-out patterns", BAND_NAME, "FSC 0.5", "along z"]
    return study.markdown(header, [
        [f"{r['weight']:g}", f"{r['part']:.2f}", f"{r['held']:.2f}", f"{r['correlation']:.3f}",
         study.angstrom(r["resolution"]), study.angstrom(r["along"])]
        for r in rows
    ])  # fmt: skip


def figure(rows: list[dict[str, Any]]) -> Figure:
    drawn, axes = grid(2, columns=2, width=4.6, height=3.4)
    weights = [max(r["weight"], 0.01) for r in rows]  # nothing has no place on this axis
    for axis, key, name in zip(axes, ("held", "correlation"), ("held-out loss", "correlation"), strict=True):
        axis.semilogx(weights, [r[key] for r in rows], "o-", color=COLOURS[0])
        label(axis, "weight of L1 (leftmost: none)", name)
        title(axis, name)
    return drawn


def main() -> None:
    args = study.arguments(__doc__)
    work = study.work_folder(args)
    base = study.core_shell_run(args.quick, work, args.so_far)
    bench = Bench(base.run, base.data)
    rows = [study.kept(work / f"held_out_{w:g}.json", lambda w=w: measured(bench, w)) for w in WEIGHTS]
    text = f"{series.facts(base.spec, base.data)}\n\n{table(rows)}"
    study.publish("held_out", args.quick, text, figure(rows), args.write, work)


if __name__ == "__main__":
    main()
