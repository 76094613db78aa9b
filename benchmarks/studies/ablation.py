"""What each part of the reconstruction is worth: the paper's figure 3d, scored against truth.

One part at a time is changed; everything before it is taken over from the run with the defaults, everything
after it is done again, from the same unaligned patterns. The paper judges by the power spectrum alone, which
is drawn too; here the atoms and the Fourier shell correlation with the truth decide.

    python benchmarks/studies/ablation.py --quick --write
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import series
import study
from matplotlib.figure import Figure

from petomo.analysis.panels import COLOURS, grid, label, title
from petomo.analysis.resolution import radial_power_spectrum
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import read_mrc

L1 = {"type": "l1_real", "weight": 0.4}
NONNEGATIVE = {"type": "nonnegative"}
DEFAULTS = [L1, NONNEGATIVE]
STILL = {"step_size": 0.0}


def _regularizers(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"end_to_end": {"regularizers": list(terms)}}


def _end_to_end(**keys: Any) -> dict[str, Any]:
    return {"end_to_end": keys}


#: group, name, stage from which it is redone, and what changes
ROWS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("filter", "Butterworth 1.51 1/Å, order 2 (paper, relaxed)", "end_to_end",
     _regularizers(*DEFAULTS, {"type": "butterworth", "cutoff_per_angstrom": 1.51, "order": 2})),
    ("filter", "Butterworth 0.49 1/Å, order 8 (paper, strict)", "end_to_end",
     _regularizers(*DEFAULTS, {"type": "butterworth", "cutoff_per_angstrom": 0.49, "order": 8})),
    ("depth kernel", "weight 1", "end_to_end",
     _regularizers(*DEFAULTS, {"type": "depth_kernel", "weight": 1, "alpha": 0})),
    ("depth kernel", "weight 90 (paper)", "end_to_end",
     _regularizers(*DEFAULTS, {"type": "depth_kernel", "weight": 90, "alpha": 0})),
    ("slices", "1", "end_to_end", _end_to_end(slices=1)),
    ("slices", "4", "end_to_end", _end_to_end(slices=4)),
    ("slices", "8", "end_to_end", _end_to_end(slices=8)),
    ("L1, sign", "no L1", "end_to_end", _regularizers(NONNEGATIVE)),
    ("L1, sign", "L1 three times as strong", "end_to_end",
     _regularizers({"type": "l1_real", "weight": 1.2}, NONNEGATIVE)),
    ("L1, sign", "negative values allowed", "end_to_end", _regularizers(L1)),
    ("L1, sign", "neither L1 nor sign", "end_to_end", _regularizers()),
    ("momentum", "none", "end_to_end", _end_to_end(momentum=0)),
    ("steps", "64 patterns each", "end_to_end", _end_to_end(batch_size=64)),
    ("modes", "1", "ptychography", {"ptychography": {"probe_modes": 1}}),
    ("modes", "2", "ptychography", {"ptychography": {"probe_modes": 2}}),
    ("probe", "not refined end-to-end", "end_to_end", _end_to_end(probe=STILL)),
    ("positions", "none refined, no affine map", "ptychography",
     {"ptychography": {"positions": STILL}, "alignment": {"bundle": {"affine": False}},
      "end_to_end": {"affine": STILL}}),
    ("positions", "each one end-to-end too", "end_to_end",
     _end_to_end(positions={"step_size": 0.5, "start": 8})),
    ("poses", "as the stage says, not aligned", "alignment",
     {"alignment": {"iterations": 0, "bundle": {"rounds": 0}}}),
    ("poses", "Algorithm 2 alone (no blobs)", "alignment", {"alignment": {"bundle": {"rounds": 0}}}),
    ("poses", "angles end-to-end too", "end_to_end", _end_to_end(poses={"step_size": 0.7, "start": 8})),
)  # fmt: skip
DRAWN = (
    "defaults",
    "Butterworth 0.49 1/Å, order 8 (paper, strict)",
    "weight 90 (paper)",
    "slices: 1",
    "no L1",
)


def runs(quick: bool, work: Path, so_far: bool) -> tuple[list[dict[str, Any]], Path, dict[str, Any]]:
    """Rows in order, the defaults first; the series' folder, and its specification."""
    base, data, spec, settings, first = study.core_shell_run(quick, work, so_far)
    rows = [first | {"group": "", "name": "defaults", "folder": base}]
    for number, (group, name, stage, changes) in enumerate(ROWS):
        folder = work / f"ablation_{number:02d}"
        with suppress(study.Unfinished):
            changed = study.merged(settings, changes)
            row = study.reconstruct_once(folder, data, changed, base, stage, so_far)
            rows.append(row | {"group": group, "name": name, "folder": folder})
    return rows, data, spec


def table(rows: list[dict[str, Any]]) -> str:
    header = ["part", "setting", "Pt found", "Al found", "O found", "invented", "rmsd", "z / across"]
    header += ["FSC 0.5 all", "along z", "across", "shifts", "angles"]
    lines = []
    for row in rows:
        lines.append([
            row["group"] or "**defaults**", row["name"] if row["group"] else "",
            *(f"{study.percent(row['found'][symbol])} %" for symbol in ("Pt", "Al", "O")),
            f"{study.percent(row['invented'])} %", *study.errors(row),
            study.angstrom(row["resolution"]), study.angstrom(row["cones"]["z"]),
            study.angstrom(_across(row)), study.angstrom(row["shift"]), f"{row['angle']:.2f}°",
        ])  # fmt: skip
    return study.markdown(header, lines)


def figure(rows: list[dict[str, Any]], data: Path) -> Figure:
    """Radial power spectra as in figure 3d, the truth's with them, and the errors of all rows."""
    drawn, axes = grid(2, columns=2, width=4.6, height=4.2)
    for row, colour in zip([r for r in rows if _label(r) in DRAWN], COLOURS, strict=False):
        volume, voxel = read_mrc(row["folder"] / "volume.mrc")
        if not row["group"]:
            traced = read_atoms(row["folder"] / "atoms.xyz")
            truth = study.truth_in_frame(row["folder"], data, traced, volume.shape, voxel)
            _spectrum(axes[0], truth, voxel, color="black", lw=0.9, ls="--", label="truth")
        _spectrum(axes[0], volume, voxel, color=colour, label=_label(row))
    label(axes[0], "q (1/Å)", "mean power (V²)")
    title(axes[0], "radially averaged power")
    axes[0].legend(fontsize=7, frameon=False)
    names = [f"{row['group']}: {row['name']}" if row["group"] else "defaults" for row in rows]
    places = np.arange(len(rows))[::-1]
    along, across = [row["cones"]["z"] or np.nan for row in rows], [_across(row) or np.nan for row in rows]
    axes[1].barh(places + 0.2, along, 0.38, color=COLOURS[1], label="along z")
    axes[1].barh(places - 0.2, across, 0.38, color=COLOURS[0], label="across")
    axes[1].set_yticks(places, names, fontsize=6)
    axes[1].set_xlim(0, min(3.0, 1.15 * float(np.nanmax(along))))
    label(axes[1], "FSC 0.5 with truth (Å)", "")
    axes[1].legend(fontsize=7, frameon=False, loc="upper right")
    return drawn


def _across(row: dict[str, Any]) -> float | None:
    """Resolution across the beam, mean of x and y."""
    x, y = row["cones"]["x"], row["cones"]["y"]
    return None if x is None or y is None else (x + y) / 2


def _label(row: dict[str, Any]) -> str:
    return f"slices: {row['name']}" if row["group"] == "slices" else row["name"]


def _spectrum(axis: Any, volume: np.ndarray, voxel: Any, **style: Any) -> None:
    spectrum = radial_power_spectrum(volume - volume.mean(), voxel)
    kept = (spectrum.frequency > 0.1) & (spectrum.frequency < 0.5 / max(voxel))
    axis.semilogy(spectrum.frequency[kept], spectrum.power[kept], **style)


def main() -> None:
    args = study.arguments(__doc__)
    work = study.work_folder(args)
    rows, data, spec = runs(args.quick, work, args.so_far)
    text = f"{series.facts(spec, data)}\n\n{table(rows)}"
    study.publish("ablation", args.quick, text, figure(rows, data), args.write, work)


if __name__ == "__main__":
    main()
