"""How wide must the tilt range be? The paper's figure 2d: equal dose a tilt, equal increment, fewer tilts.

One series within +-45 degrees is simulated; for every range all stages run on the tilts inside it, from
unaligned patterns. Quoted are the atoms found, and the errors and the resolution along the beam and across.

    python benchmarks/studies/tilt_range.py --quick --write
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import series
import study
from matplotlib.figure import Figure

from petomo.analysis.panels import COLOURS, grid, label, scale_bar, title
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import read_mrc

RANGES = (90, 80, 70, 60, 40, 30)
SHOWN = 4  # depth sections


def runs(quick: bool, work: Path, so_far: bool) -> tuple[dict[int, Any], Path, dict[str, Any]]:
    """A row for each tilt range, the series' folder, and its specification."""
    spec = series.core_shell(quick)
    data = series.simulate_once(spec, work / "core_shell")
    rows = {}
    for width in RANGES:
        tilts = [i for i, tilt in enumerate(spec["stage_tilt_degree"]) if abs(tilt) <= width / 2]
        whole = len(tilts) == len(spec["stage_tilt_degree"])
        kept = data if whole else series.subset(data, work / f"core_shell_{width}", tilts)
        folder = work / ("core_shell_run" if whole else f"tilt_range_{width}")
        settings = series.core_shell_settings(quick)
        with suppress(study.Unfinished):
            row = study.reconstruct_once(folder, kept, settings, so_far=so_far)
            rows[width] = row | {"folder": folder, "data": kept, "tilts": len(tilts)}
            rows[width]["refined"] = study.reconstruct_once(
                work / f"tilt_range_{width}_refined",
                kept,
                settings,
                folder,
                "refinement",
                so_far,
                "refinement",
            )
    return rows, data, spec


def table(rows: dict[int, Any]) -> str:
    header = ["tilt range", "tilts", "Pt found", "Al found", "O found", "invented", "rmsd"]
    header += ["z / across", "FSC 0.5 all", "along z", "along x", "angles", "processor"]
    lines = []
    for width, row in rows.items():
        lines.append([
            f"{width}°", str(row["tilts"]),
            *(f"{study.percent(row['found'][symbol])} %" for symbol in ("Pt", "Al", "O")),
            f"{study.percent(row['invented'])} %",
            *study.errors(row),
            study.angstrom(row["resolution"]), *(study.angstrom(row["cones"][axis]) for axis in "zx"),
            f"{row['angle']:.2f}°", f"{row['seconds']:.0f} s",
        ])  # fmt: skip
    refined = {width: row["refined"] for width, row in rows.items() if "refined" in row}
    return f"{study.markdown(header, lines)}\n\nRefined:\n\n{refined_table(refined)}"


def refined_table(rows: dict[int, Any]) -> str:
    """The atoms after the refinement, of those ranges whose were refined."""
    header = ["tilt range", "Pt found", "Al found", "O found", "invented", "named wrong", "rmsd"]
    header += ["z / across", "true / quoted", "angles", "processor"]
    lines = []
    for width, refined in rows.items():
        lines.append([
            f"{width}°", *(f"{study.percent(refined['found'][symbol])} %" for symbol in ("Pt", "Al", "O")),
            f"{study.percent(refined['invented'])} %", f"{study.percent(refined['wrong'])} %",
            *study.errors(refined), f"{refined['true_over_quoted']:.2f}",
            f"{refined['angle']:.2f}°", f"{refined['seconds']:.0f} s",
        ])  # fmt: skip
    return study.markdown(header, lines)


def figure(rows: dict[int, Any]) -> Figure:
    """Depth sections through the core, as in figure 2d, above atoms found and errors."""
    drawn, axes = grid(8, columns=4, width=2.6, height=2.5)
    widths = list(rows)
    shown = [widths[i] for i in np.unique(np.linspace(0, len(widths) - 1, SHOWN).round().astype(int))]
    sections = {width: depth_section(rows[width]["folder"], rows[width]["data"]) for width in shown}
    truth = sections[shown[0]][1]
    top = float(np.quantile(truth, 0.998))
    pictures = [("truth", truth)] + [(f"{width}°", sections[width][0]) for width in shown]
    voxel = sections[shown[0]][2]
    for axis, (name, picture) in zip(axes, pictures, strict=False):
        axis.imshow(np.sqrt(picture.clip(0, top)), cmap="gray", vmin=0, vmax=top**0.5, origin="lower")
        title(axis, f"{name}: root of the slab at y = 0")
        axis.set_xticks([])
        axis.set_yticks([])
        label(axis, "x", "z (beam)")
    scale_bar(axes[0], truth.shape[1], voxel)
    done = [width for width in widths if "refined" in rows[width]]
    for symbol, colour in zip(("Pt", "Al", "O"), COLOURS, strict=False):
        traced = [100 * rows[w]["found"][symbol] for w in widths]
        refined = [100 * rows[w]["refined"]["found"][symbol] for w in done]
        axes[5].plot(widths, traced, "o:", ms=3, color=colour)
        axes[5].plot(done, refined, "o-", color=colour, label=symbol)
    for name, colour in zip("xyz", COLOURS, strict=False):
        values = [(rows[w]["refined"]["rmsd_xyz"] or [np.nan] * 3)["xyz".index(name)] for w in done]
        axes[6].plot(done, values, "o-", ms=4, color=colour, label=name)
        axes[7].plot(
            widths, [rows[w]["cones"][name] or np.nan for w in widths], "o-", color=colour, label=name
        )
    words = (
        ("found (%)", "atoms refined (dotted: traced)"),
        ("rmsd (Å)", "error of the refined atoms"),
        ("Å", "FSC 0.5 with truth, cones"),
    )
    for axis, (unit, text) in zip(axes[5:], words, strict=True):
        label(axis, "tilt range (degrees)", unit)
        title(axis, text)
        axis.legend(fontsize=7, frameon=False)
        axis.set_ylim(bottom=0)
    return drawn


def depth_section(run: Path, data: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean over 1.5 angstrom about y = 0 of the volume and of the truth on its grid, cut to the middle."""
    volume, voxel = read_mrc(run / "volume.mrc")
    truth = study.truth_in_frame(run, data, read_atoms(run / "atoms.xyz"), volume.shape, voxel)
    half, middle = round(0.75 / voxel[1]), volume.shape[1] // 2
    reach = min(volume.shape[0], volume.shape[2]) // 2
    cut = (slice(None), slice(middle - half, middle + half + 1), slice(*_about(volume.shape[2] // 2, reach)))
    return volume[cut].mean(1), truth[cut].mean(1), voxel[2]


def _about(centre: int, reach: int) -> tuple[int, int]:
    return centre - reach, centre + reach


def main() -> None:
    args = study.arguments(__doc__)
    work = study.work_folder(args)
    rows, data, spec = runs(args.quick, work, args.so_far)
    text = f"{series.facts(spec, data)}\n\n{table(rows)}"
    study.publish("tilt_range", args.quick, text, figure(rows), args.write, work)


if __name__ == "__main__":
    main()
