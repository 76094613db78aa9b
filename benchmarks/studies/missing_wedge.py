"""What is recovered in the missing wedge: the paper's figure 3c with figures, beside linear tomography.

No projection of a tilt series holds the wedge beyond its last tilts; multislice sees some of it, since the
beam spreads and scatters more than once inside the specimen. Compared with the truth, both from the same run
and the same unaligned patterns: the end-to-end volume (Algorithm 3) and the volume of linear tomography from
the aligned phase projections (Algorithm 2). Without L1 and sign, or with one slice, less is recovered: that
tells how much is owed to prior knowledge and how much to multislice.

    python benchmarks/studies/missing_wedge.py --quick --write
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import series
import study
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from petomo.analysis.atoms import trace_atoms
from petomo.analysis.panels import COLOURS, grid, label, title
from petomo.analysis.resolution import fourier_shell_correlation, missing_wedge, power_in_region
from petomo.analysis.score import score_atoms
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import read_mrc

BANDS = ((0.25, 0.5), (0.5, 1.0), (1.0, 1.6))  # 1/angstrom
DRAWN = ("end-to-end", "linear tomography")
#: variants of the ablation that tell physics from prior: part and setting there, name here
VARIANTS = {
    ("L1, sign", "neither L1 nor sign"): "end-to-end, no L1, any sign",
    ("slices", "1"): "end-to-end, one slice",
}


def runs(quick: bool, work: Path, so_far: bool) -> tuple[dict[str, tuple[Path, str]], Path, dict[str, Any]]:
    """Name, run folder and file of every volume; the series' folder, and its specification."""
    run, data, spec, settings, _ = study.core_shell_run(quick, work, so_far)
    found = {"end-to-end": (run, "volume.mrc")}
    for number, (part, name, stage, changes) in enumerate(ablation.ROWS):
        if (part, name) in VARIANTS:
            folder = work / f"ablation_{number:02d}"
            with suppress(study.Unfinished):
                study.reconstruct_once(folder, data, study.merged(settings, changes), run, stage, so_far)
                found[VARIANTS[part, name]] = folder, "volume.mrc"
    return found | {"linear tomography": (run, "volume_linear.mrc")}, data, spec


def volumes(places: dict[str, tuple[Path, str]], data: Path) -> dict[str, dict[str, Any]]:
    """The volumes, each with the truth moved to where its own atoms are."""
    out = {}
    for name, (run, file) in places.items():
        volume, voxel = read_mrc(run / file)
        traced = trace_atoms(volume, voxel, ["Pt", "Al", "O"], min_distance=1.5)
        truth = study.truth_in_frame(run, data, traced, volume.shape, voxel)
        score = score_atoms(traced, read_atoms(data / "truth" / "atoms.xyz"), start=study.gauge(run, data))
        out[name] = {"volume": volume, "voxel": voxel, "truth": truth, "score": score}
    return out


def wedge(spec: dict[str, Any], volume: np.ndarray, voxel: Any) -> tuple[np.ndarray, float]:
    """Coefficients of the missing wedge, clear of the blur of the measured planes, and that margin."""
    tilts = np.deg2rad(spec["stage_tilt_degree"])
    margin = 1 / spec["specimen"]["edge_angstrom"]
    return missing_wedge(volume.shape, voxel, tilts.min(), tilts.max(), margin), margin


def table(found: dict[str, dict[str, Any]], spec: dict[str, Any]) -> str:
    header = ["volume", "band", "truth's power in the wedge", "filled", "recovered there", "elsewhere"]
    lines = []
    for name, part in found.items():
        region, margin = wedge(spec, part["volume"], part["voxel"])
        for band in BANDS:
            power = power_in_region(part["volume"], part["truth"], part["voxel"], region, band)
            shares = (power.truth_share, power.filled, power.recovered, power.elsewhere)
            period = f"{1 / band[0]:.2g} to {1 / band[1]:.2g} Å"
            lines.append([name, period, *(f"{study.percent(share)} %" for share in shares)])
    atoms = ["volume", "Pt found", "Al found", "O found", "invented", "rmsd x", "y", "z"]
    rows = []
    for name, part in found.items():
        score = part["score"]
        shares = [part["found_share"] for part in score["elements"].values()] + [score["invented_share"]]
        errors = [f"{value:.3f} Å" for value in score["rmsd_xyz_angstrom"]]
        rows.append([name, *(f"{study.percent(share)} %" for share in shares), *errors])
    words = f"Margin to the measured planes: {margin:.2g} 1/Å."
    return f"{study.markdown(header, lines)}\n\n{words}\n\n{study.markdown(atoms, rows)}"


def figure(found: dict[str, dict[str, Any]], spec: dict[str, Any]) -> Figure:
    """Power in the plane (q_z, q_x) with the wedge drawn, and the correlation with truth inside it."""
    drawn, axes = grid(6, columns=3, width=3.4, height=3.2)
    first = next(iter(found.values()))
    pictures = {"truth": first["truth"]} | {
        name: part["volume"] for name, part in found.items() if name in DRAWN
    }
    for axis, (name, volume) in zip(axes, pictures.items(), strict=False):
        spectrum_plane(axis, volume, first["voxel"], spec["stage_tilt_degree"])
        title(axis, name)
    for axis, where in zip(axes[3:5], ("inside the wedge", "everywhere else"), strict=True):
        for (name, part), colour in zip(found.items(), COLOURS, strict=False):
            region, _ = wedge(spec, part["volume"], part["voxel"])
            region = region if where.startswith("inside") else ~region
            curve = fourier_shell_correlation(part["volume"], part["truth"], part["voxel"], region=region)
            kept = curve.count > 20
            axis.plot(curve.frequency[kept], curve.correlation[kept], color=colour, label=name)
        axis.set_ylim(-0.1, 1.05)
        axis.set_xlim(0, 1.7)
        axis.axhline(0, color="0.6", lw=0.6)
        label(axis, "q (1/Å)", "correlation with truth")
        title(axis, where)
        axis.legend(fontsize=7, frameon=False, loc="lower left")
    radial_shares(axes[5], found, spec)
    return drawn


def spectrum_plane(axis: Axes, volume: np.ndarray, voxel: Any, tilts: list[float]) -> None:
    """Power at q_y = 0, logarithmic, four decades, with the wedge's edges."""
    projection = volume.sum(axis=1, dtype=float)
    power = np.abs(np.fft.fftshift(np.fft.fft2(projection - projection.mean()))) ** 2
    logarithm = np.log10(power / power.max() + 1e-9)
    limit = [0.5 / voxel[0], 0.5 / voxel[2]]
    extent = (-limit[1], limit[1], -limit[0], limit[0])
    axis.imshow(logarithm, cmap="magma", vmin=-4, vmax=0, origin="lower", extent=extent, aspect="equal")
    for tilt in (min(tilts), max(tilts)):
        x, z = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
        axis.plot([-9 * x, 9 * x], [-9 * z, 9 * z], color="#3ddc84", lw=0.8)
    reach = min(1.7, *limit)
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    label(axis, "q$_x$ (1/Å)", "q$_z$, along the beam (1/Å)")


def radial_shares(axis: Axes, found: dict[str, dict[str, Any]], spec: dict[str, Any]) -> None:
    """Power in the wedge relative to elsewhere, as a multiple of the truth's, against q."""
    edges = np.arange(0.2, 1.65, 0.1)
    for (name, part), colour in zip(found.items(), COLOURS, strict=False):
        region, _ = wedge(spec, part["volume"], part["voxel"])
        filled = [
            power_in_region(part["volume"], part["truth"], part["voxel"], region, (low, high)).filled
            for low, high in pairwise(edges)
        ]
        axis.plot((edges[:-1] + edges[1:]) / 2, filled, "o-", ms=3, color=colour, label=name)
    axis.axhline(1, color="0.6", lw=0.6)
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, 1.7)
    label(axis, "q (1/Å)", "multiple of the truth's")
    title(axis, "power in the wedge / power elsewhere")
    axis.legend(fontsize=7, frameon=False)


def main() -> None:
    args = study.arguments(__doc__)
    work = study.work_folder(args)
    places, data, spec = runs(args.quick, work, args.so_far)
    found = volumes(places, data)
    text = f"{series.facts(spec, data)}\n\n{table(found, spec)}"
    study.publish("missing_wedge", args.quick, text, figure(found, spec), args.write, work)


if __name__ == "__main__":
    main()
