"""Resolution at low dose: the paper's figure 3e on a simulated twin of the Te particle beside a nanotube.

From one densely scanned series only every so many scan positions are kept, tilt by tilt, and everything is
done with those alone: aberrations, ptychography, alignment, and two volumes from the black and the white
squares of what is left. At s-fold sub-sampling either half thus holds one s-th of all patterns. The two
volumes share poses, probes and refined positions, which come from both halves.

    python benchmarks/studies/half_sets.py --quick --write
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import series
import study
from matplotlib.figure import Figure

from petomo.analysis.panels import COLOURS, grid, label, title
from petomo.analysis.resolution import ShellCorrelation, fourier_shell_correlation
from petomo.io.artefacts import read_atoms, read_half_volumes

STRIDES = {2: (1, 1), 12: (2, 3), 20: (2, 5)}  # y, x; a half holds 1 / (2 y x) of the patterns


def te_carbon(quick: bool) -> dict[str, Any]:
    """Twin of the paper's experiment: 80 keV, 25 mrad, one voxel a scan step, its dose, a smaller field."""
    common = {
        "seed": 31,
        "energy_kev": 80,
        "semiangle_mrad": 25,
        "scan_step_angstrom": 0.4,
        "pixel_angstrom": 0.38,
        "dose_per_tilt": 24000,
    }
    if quick:
        return common | {
            "specimen": {"source": "te_carbon", "edge_angstrom": 9, "core_angstrom": 9.5},
            "stage_tilt_degree": [-53, -44, -35, -26, -18, -9, 0, 9, 18, 26, 35, 44, 52],
            "scan_shape": (25, 46),
            "pattern_pixels": 44,
            "slice_angstrom": 2.0,
            "phonons": {"configurations": 2},
            "errors": {"shift_max_angstrom": 1.0},
        }
    return common | {
        "specimen": {"source": "te_carbon", "edge_angstrom": 20, "core_angstrom": 14},
        "stage_tilt_degree": [-53, *(-48.8 + 4.2 * i for i in range(24)), 52],
        "scan_shape": (51, 76),
        "pattern_pixels": 66,
        "errors": {"shift_max_angstrom": 3.0},
    }


def settings(quick: bool, factor: int) -> dict[str, Any]:
    """Settings at a sub-sampling; dense scans have more steps in a pass of Algorithm 1, and need fewer."""
    atoms = {"elements": ["Te", "C"]}
    dense = {"ptychography": {"iterations": 8, "positions": {"step_size": 0.5, "start": 3}}}
    common = {
        "volume": {"thickness_angstrom": 20 if quick else 28},
        "analysis": {"fsc": {"half_sets": True}, "atoms": atoms},
        "compute": {"threads": 1},
    }
    return common | (dense if factor < 4 else {})


def runs(quick: bool, work: Path, so_far: bool) -> tuple[dict[int, Any], Path, dict[str, Any]]:
    """A row for each sub-sampling, the dense series' folder, and its specification."""
    spec = te_carbon(quick)
    data = series.simulate_once(spec, work / "te_carbon")
    every = range(len(spec["stage_tilt_degree"]))
    rows = {}
    for factor, stride in STRIDES.items():
        kept = data if stride == (1, 1) else series.subset(data, work / f"te_carbon_{factor}", every, stride)
        folder = work / f"half_sets_{factor}"
        try:
            row = study.reconstruct_once(folder, kept, settings(quick, factor), so_far=so_far)
        except study.Unfinished:
            continue
        a, b, voxel = read_half_volumes(folder / "half_volumes.h5")
        truth = study.truth_in_frame(folder, kept, read_atoms(folder / "atoms.xyz"), a.shape, voxel)
        halves = fourier_shell_correlation(a, b, voxel)
        against = [fourier_shell_correlation(half, truth, voxel) for half in (a, b)]
        fluence = len(every) * spec["dose_per_tilt"] / factor
        rows[factor] = row | {"halves": halves, "against": against, "fluence": fluence}
    return rows, data, spec


def resolution(curve: ShellCorrelation, kind: str | float) -> str:
    """Full period; with a sign where the curve never crosses the threshold."""
    return f"{'≤ ' * (curve.crossing(kind) is None)}{study.resolution(curve, kind):.2f} Å"


def table(rows: dict[int, Any]) -> str:
    header = ["data", "fluence, all tilts", "half sets, one-bit", "half-bit", "0.143", "half and truth, 0.5"]
    header += ["Te found", "C found", "invented", "shifts", "angles", "processor"]
    lines = []
    for factor, row in rows.items():
        lines.append([
            f"1/{factor} in each half", f"{row['fluence']:.3g} e/Å²",
            *(resolution(row["halves"], kind) for kind in ("one_bit", "half_bit", 0.143)),
            " and ".join(f"{study.resolution(curve, 0.5):.2f}" for curve in row["against"]) + " Å",
            *(f"{study.percent(row['found'][symbol])} %" for symbol in ("Te", "C")),
            f"{study.percent(row['invented'])} %", study.angstrom(row["shift"]), f"{row['angle']:.2f}°",
            f"{row['seconds']:.0f} s",
        ])  # fmt: skip
    dense = rows[min(rows)]
    which = f"The halves of 1/{min(rows)} together"
    whole = f"{which}: FSC with the truth falls to 0.5 at {study.angstrom(dense['resolution'])}"
    cones = ", ".join(f"{study.angstrom(dense['cones'][name])} along {name}" for name in "xyz")
    return f"{study.markdown(header, lines)}\n\n{whole} ({cones})."


def figure(rows: dict[int, Any]) -> Figure:
    """Correlation of the halves with each other and with the truth."""
    drawn, axes = grid(2, columns=2, width=4.2, height=3.2)
    for (factor, row), colour in zip(rows.items(), COLOURS, strict=False):
        halves, name = row["halves"], f"1/{factor} of the patterns"
        axes[0].plot(halves.frequency, halves.correlation, color=colour, label=name)
        mean = np.mean([curve.correlation for curve in row["against"]], axis=0)
        axes[1].plot(halves.frequency, mean, color=colour, label=name)
    axes[0].plot(halves.frequency, halves.one_bit, "-.", color="0.35", lw=1, label="one-bit")
    axes[0].plot(halves.frequency, halves.half_bit, "--", color="0.35", lw=1, label="half-bit")
    axes[1].axhline(0.5, ls=":", color="0.35", lw=1)
    for axis, text in zip(axes, ("the two halves", "a half and the truth, mean of both"), strict=True):
        label(axis, "q (1/Å)", "correlation")
        title(axis, text)
        axis.set_ylim(-0.1, 1.05)
        axis.set_xlim(0, halves.frequency[-1])
        axis.legend(fontsize=7, frameon=False, loc="lower left")
    return drawn


def main() -> None:
    args = study.arguments(__doc__)
    work = study.work_folder(args)
    rows, data, spec = runs(args.quick, work, args.so_far)
    text = f"{series.facts(spec, data)}\n\n{table(rows)}"
    study.publish("half_sets", args.quick, text, figure(rows), args.write, work)


if __name__ == "__main__":
    main()
