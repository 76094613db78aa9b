"""What the studies share: series simulated once, runs resumed, truth as a volume, tables into pages.

Nothing here reaches a reconstruction but the simulated patterns and what a microscope's user would know;
truth is looked at only to score what came out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import series
import torch
from ase import Atoms
from matplotlib.figure import Figure
from PIL import Image

from petomo.analysis.matching import RigidMotion, register
from petomo.analysis.resolution import ShellCorrelation, directional_correlations, fourier_shell_correlation
from petomo.analysis.score import score_run
from petomo.analysis.truth import SMALLEST_FREQUENCY
from petomo.api import Plan
from petomo.core.pose import Poses, fit_gauge
from petomo.io.artefacts import read_atoms, read_json, read_poses, read_positions, to_json, write_json
from petomo.io.atomic import atomic_path, write_text
from petomo.io.volumes import read_mrc
from petomo.workflow.config import Config, load_config

PAGES = Path(__file__).parents[2] / "docs" / "studies"
LARGEST_FIGURE = 150_000  # bytes


class Unfinished(Exception):
    """A row that is still to be reconstructed, where only finished ones were asked for."""


def arguments(description: str | None) -> argparse.Namespace:
    """Command line of a study."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small specimen and few tilts: minutes")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/studies"), help="data and runs; kept, resumed"
    )
    parser.add_argument("--so-far", action="store_true", help="only what is finished; reconstruct nothing")
    parser.add_argument("--write", action="store_true", help="put table and figure into docs/studies")
    return parser.parse_args()


def work_folder(args: argparse.Namespace) -> Path:
    """Folder of all data and runs of one size."""
    work = args.work / ("quick" if args.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    return work


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, computed once."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some keys changed, section by section."""
    out = dict(base)
    for key, value in changes.items():
        mapping = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if mapping else value
    return out


def reconstruct_once(
    folder: Path,
    data: Path,
    settings: Mapping[str, Any],
    base: Path | None = None,
    start_from: str | None = None,
    so_far: bool = False,
    until: str = "analysis",
) -> dict[str, Any]:
    """Run all stages up to one and score them; what is there already is continued or only read.

    Parameters
    ----------
    folder : Path
        Run folder; its score goes into ``row.json``.
    data : Path
        Folder of the tilt series, with its ``truth``.
    settings : mapping
        Sections of a configuration.
    base, start_from
        A finished run whose stages before ``start_from`` are taken over.
    so_far : bool
        Reconstruct nothing.
    until : str
        The last stage.

    Raises
    ------
    Unfinished
        If there is no such row so far.
    """
    own = {"name": folder.name, "data": {"root": str(data.resolve())}, "output": {"save_every": 4}}
    config = Config.model_validate(merged(settings, own))
    wanted = json.loads(to_json({"settings": settings, "data": read_json(data / series.DONE)}))
    done = folder / "row.json"
    if done.exists() and read_json(done)["from"] == wanted:
        return read_json(done)["row"]
    if so_far:
        raise Unfinished(folder.name)
    print(f"reconstructing {folder}", flush=True)
    begun = (folder / "config.yaml").exists() and load_config(folder / "config.yaml").name == folder.name
    if begun and done.exists():  # finished with other settings or data
        shutil.rmtree(folder)
        begun = False
    if base is not None and not begun:
        _take_over(base, folder)
    seconds = folder.parent / f"{folder.name}_seconds.json"
    if not begun:
        seconds.unlink(missing_ok=True)
    with series.processor_time(seconds):
        Plan(config).run(folder, until, None if begun else start_from, quiet=True)
    row = measure(folder, data) | {"seconds": read_json(seconds)["processor"]}
    write_json(done, {"from": wanted, "row": row})
    return read_json(done)["row"]


class CoreShell(NamedTuple):
    """The series of `series.core_shell`, and its run with the defaults that several studies start from."""

    run: Path
    data: Path
    spec: dict[str, Any]
    settings: dict[str, Any]
    row: dict[str, Any]


def core_shell_run(quick: bool, work: Path, so_far: bool) -> CoreShell:
    """Simulate and reconstruct once."""
    spec, settings, run = series.core_shell(quick), series.core_shell_settings(quick), work / "core_shell_run"
    data = series.simulate_once(spec, work / "core_shell")
    return CoreShell(run, data, spec, settings, reconstruct_once(run, data, settings, so_far=so_far))


def _take_over(base: Path, folder: Path) -> None:
    """A copy of a finished run, to be redone from some stage."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with series.whole_folder(folder) as temporary:
        skipped = shutil.ignore_patterns("row.json", ".*", "report.html")
        shutil.copytree(base, temporary, dirs_exist_ok=True, ignore=skipped)


def measure(run: Path, data: Path) -> dict[str, Any]:
    """What the tables quote: atoms, poses, and the resolution of ``volume.mrc`` against truth."""
    score = score_run(run, data / "truth")
    volume, voxel = read_mrc(run / "volume.mrc")
    truth = truth_in_frame(run, data, read_atoms(run / "atoms.xyz"), volume.shape, voxel)
    curve = fourier_shell_correlation(volume, truth, voxel)
    cones = directional_correlations(volume, truth, voxel)
    atoms, poses = score["atoms"], score["poses"]
    return {
        "found": {symbol: part["found_share"] for symbol, part in atoms["elements"].items()},
        "invented": atoms["invented_share"],
        "wrong": atoms["wrong_element"] / max(atoms["found"], 1),
        "rmsd": atoms["rmsd_angstrom"],
        "rmsd_xyz": atoms["rmsd_xyz_angstrom"],
        "true_over_quoted": atoms.get("z_score_rms"),
        "angle": poses["angle_rms_degree"],
        "shift": poses["shift_median_angstrom"],
        "resolution": resolution(curve, 0.5),
        "cones": {name: resolution(cone, 0.5) for name, cone in cones.items()},
    }


def resolution(curve: ShellCorrelation, kind: str | float) -> float:
    """Full period in angstrom at the first crossing beyond `SMALLEST_FREQUENCY`."""
    return curve.beyond(SMALLEST_FREQUENCY).resolution(kind)


def truth_in_frame(
    run: Path, data: Path, traced: Atoms, shape: Sequence[int], voxel: Sequence[float]
) -> np.ndarray:
    """The true potential on a run's grid, moved rigidly to where the run has the specimen.

    Parameters
    ----------
    run, data : Path
        Run folder and the series it is made of.
    traced : Atoms
        Atoms traced in the volume to compare with; they refine the motion found from the poses.
    shape, voxel
        Grid ``z y x`` and its voxel in angstrom.
    """
    true = read_atoms(data / "truth" / "atoms.xyz")
    motion = register(traced.positions, true.positions, start=gauge(run, data))
    places = (true.positions - motion.shift) @ motion.rotation  # the inverse motion
    return series.potential(true.numbers, places, shape, voxel)


def gauge(run: Path, data: Path) -> RigidMotion:
    """Rigid motion from the run's frame to the truth's, from the poses alone."""
    with np.load(data / "truth" / "poses.npz", allow_pickle=False) as file:
        angles, tau, scan = (
            torch.from_numpy(np.asarray(file[key], dtype=float))
            for key in ("phi_theta_psi_rad", "tau_xy_angstrom", "scan_positions_xy_angstrom")
        )
    found, _ = read_poses(run / "poses.json")
    refined, _ = read_positions(run / "positions.h5")
    rotation, shift = fit_gauge(found.seen_from(refined), Poses(*angles.unbind(-1), tau).seen_from(scan))
    return RigidMotion(rotation.numpy(), shift.numpy())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def angstrom(value: float | None, digits: int = 2) -> str:
    """A length for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f} Å"


def percent(share: float) -> str:
    """Share as a percentage for a table."""
    return f"{100 * share:.1f}"


def errors(row: Mapping[str, Any]) -> tuple[str, str]:
    """Root mean square error of the atoms, and that along the beam over that of an axis across it."""
    if row["rmsd"] is None:
        return "-", "-"
    x, y, z = row["rmsd_xyz"]
    return f"{row['rmsd']:.3f} Å", f"{2**0.5 * z / np.hypot(x, y):.2f}"


def write_block(page: Path, key: str, text: str) -> None:
    """Replace what stands between ``<!-- key -->`` and ``<!-- end key -->`` of a page.

    Raises
    ------
    ValueError
        If the page has no such place.
    """
    pattern = re.compile(rf"(<!-- {key} -->\n).*?(<!-- end {key} -->)", re.DOTALL)
    old = page.read_text(encoding="utf-8")
    if not pattern.search(old):
        raise ValueError(f"{page}: there is no place for {key}")
    write_text(page, pattern.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old))


def write_figure(figure: Figure, path: Path) -> None:
    """A PNG of at most `LARGEST_FIGURE` bytes, with 128 colours.

    Raises
    ------
    ValueError
        If it is larger all the same.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    image = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    if small.tell() > LARGEST_FIGURE:
        raise ValueError(f"{path}: {small.tell()} bytes; make the figure smaller")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(small.getvalue())


def publish(name: str, quick: bool, text: str, figure: Figure, write: bool, work: Path) -> None:
    """Print the tables; put figure and tables into the work folder, or into the study's page as well."""
    key = "quick" if quick else "full"
    print(f"\n{text}\n")
    write_text(work / f"{name}.md", text + "\n")
    write_figure(figure, work / f"{name}.png")
    if write:
        write_figure(figure, PAGES / f"{name}_{key}.png")
        image = f"```{{image}} {name}_{key}.png\n:alt: The table as a figure\n```"
        write_block(PAGES / f"{name}.md", key, f"{text}\n\n{image}")
