"""What the report's sections show, each from its own files of the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petomo.analysis import figures, report_data, volume_figures
from petomo.analysis.report_content import Content, Picture, Plan, first_of, flat_rows, picture
from petomo.analysis.resolution import fourier_shell_correlation, taper
from petomo.core.electron import defocus_in_words
from petomo.io import artefacts
from petomo.io.metrics import read_metrics
from petomo.io.volumes import read_mrc

VOLUMES = "volume.mrc|volume_linear.mrc"


def _input(run: Path) -> Content:
    summary = artefacts.read_json(run / "summary.json")
    given = summary.pop("input", {})  # its values need no such heading in a section of this title
    summary.pop("stage_seconds", None)  # the page's header has them
    start = {key: summary.pop(key) for key in ("name", "petomo", "torch") if key in summary}
    rows = [*flat_rows(start | given), *flat_rows(summary)]
    config = run / "config.yaml"
    return Content(rows=rows, text=config.read_text(encoding="utf-8") if config.is_file() else "")


def _loss(run: Path) -> Content:
    records = read_metrics(run / "metrics.jsonl")
    rows = []
    for stage, mine in _by_stage(records).items():
        last = {r.get("tilt"): r for r in mine if r.get("loss") is not None}.values()
        loss = np.mean([r["loss"] for r in last]) if last else np.nan
        floors = [r["noise_floor"] for r in last if r.get("noise_floor") is not None]
        over = f"{loss / np.mean(floors):.3f}" if floors else "-"
        rows.append(
            (stage.replace("_", " "), f"{loss:.5g}", f"{np.mean(floors):.5g}" if floors else "-", over)
        )
    caption = "The dashed line is the loss that the noise alone would leave with a perfect model."
    return Content(
        viewer="loss" if rows else "",
        data={"loss": report_data.loss_data(_by_stage(records))},
        instead=lambda: [picture(figures.loss_curves(records), caption)] if rows else (),
        header=("stage", "last loss (mean of the tilts)", "noise floor", "loss / floor"),
        rows=rows,
    )


def _by_stage(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    out: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        out.setdefault(figures.stage_name(record), []).append(record)
    return out


def _bright_field(run: Path) -> Content:
    tilts = artefacts.read_bright_field(run / "bright_field.h5")
    rows = []
    for number, (_, a) in enumerate(tilts):
        astigmatism = (
            f"{a['C12_angstrom']:.3g} Å at {a.get('phi12_degree', 0):.0f}°" if "C12_angstrom" in a else "-"
        )
        rotation = f"{a['scan_rotation_degree']:.2f}°" if "scan_rotation_degree" in a else "-"
        words = defocus_in_words(a.get("defocus_angstrom"))
        rows.append((str(number), str(a.get("method", "-")), words, astigmatism, rotation))
    # reasons differ from tilt to tilt by numbers only: one for each method
    reasons = {a.get("method"): str(a["reason"]) for _, a in reversed(tilts) if a.get("reason")}
    caption = "Phase from the bright-field disk alone, before any iteration."
    return Content(
        pictures=[picture(figures.bright_field_images(tilts, _scan_field(run)), caption)],
        header=("tilt", "method", "defocus", "astigmatism C12", "scan rotation"),
        rows=rows,
        lines=list(reasons.values()),
    )


def _scan_field(run: Path) -> list[float] | None:
    """Height and width of the scan in angstrom."""
    step, shape = _known(run, "scan_step_angstrom"), _known(run, "scan_shape")
    return [s * n for s, n in zip(step, shape, strict=True)] if step and shape else None


def _probes(run: Path) -> Content:
    probes = artefacts.read_probes(run / "probes.h5")
    modes = [m.numpy() for m in probes.modes]
    known = [d for d in probes.defocus if np.isfinite(d)]
    lines = (
        [f"Fitted defocus at z = 0: {defocus_in_words(min(known))} to {defocus_in_words(max(known))}."]
        if known
        else []
    )
    caption = "Real space; hue is the phase, brightness the root of the amplitude; percent of the intensity."
    figure = figures.probe_modes(modes, probes.pixel_size, probes.defocus)
    return Content(pictures=[picture(figure, caption)], lines=lines)


def _positions(run: Path) -> Content:
    refined, initial = ([p.numpy() for p in part] for part in artefacts.read_positions(run / "positions.h5"))
    caption = "From the nominal to the refined position; the tilt's common offset is taken off."
    return Content(pictures=[picture(figures.scan_positions(refined, initial), caption)])


def _poses(run: Path) -> Content:
    poses, names = artefacts.read_poses(run / "poses.json")
    angles = np.rad2deg(np.stack([a.numpy() for a in (poses.phi, poses.theta, poses.psi)], axis=1))
    nominal = _known(run, "stage_tilts_degree")
    rows = [
        (name, *(f"{a:.3f}" for a in angle), *(f"{t:.3f}" for t in tau))
        for name, angle, tau in zip(names, angles, poses.tau.tolist(), strict=True)
    ]
    caption = f"{artefacts.POSE_CONVENTION}; a rigid motion common to all tilts is free."
    return Content(
        pictures=[picture(figures.poses(angles, poses.tau.numpy(), nominal), caption)],
        header=("tilt", "phi (°)", "theta (°)", "psi (°)", "tau x (Å)", "tau y (Å)"),
        rows=rows,
    )


def _known(run: Path, key: str) -> list[float] | None:
    """A list of numbers in the summary, wherever in it."""

    def search(value: Any) -> list[float] | None:
        if not isinstance(value, Mapping):
            return None
        if isinstance(value.get(key), list):
            return value[key]
        return next((found for inner in value.values() if (found := search(inner))), None)

    path = run / "summary.json"
    return search(artefacts.read_json(path)) if path.is_file() else None


def _patterns(run: Path) -> Content:
    patterns = artefacts.read_patterns(run / "patterns.h5")
    scans = run / "positions.h5"
    positions = [p.numpy() for p in artefacts.read_positions(scans)[0]] if scans.is_file() else []
    data = report_data.patterns_data(patterns, positions, _known(run, "detector_sampling_per_angstrom"))
    lines = [f"{data['left_out']} of {len(patterns)} patterns were left out of this page to keep it small."]
    return Content(
        viewer="patterns",
        data={"patterns": data},
        lines=lines if data["left_out"] else (),
        instead=lambda: list(_pattern_pairs(patterns)),
    )


def _pattern_pairs(patterns: Mapping[str, Mapping[str, Any]]) -> Iterator[Picture]:
    for name in ("worst", "median"):
        if (entry := patterns.get(name)) is not None:
            title = (
                f"{name} pattern: tilt {entry['tilt']}, position {entry['index']}, loss {entry['loss']:.4g}"
            )
            figure = figures.pattern_pair(entry["measured"], entry["model"])
            yield picture(
                figure, f"The {title}. Square-root scale; the difference is in widths of Poisson noise."
            )


def _slices(run: Path) -> Content:
    path = first_of(run, VOLUMES) or run / "volume.mrc"
    volume, voxel = read_mrc(path)
    unit = "V" if path.name == "volume.mrc" else "rad/Å"  # linear tomography knows phases only
    shown = report_data.volume_data(volume, voxel, unit)
    z, y, x = volume.shape
    lines = [
        f"{z} × {y} × {x} voxels (z y x) of {' × '.join(f'{v:.4g}' for v in voxel)} Å; "
        f"{volume.min():.4g} to {volume.max():.4g} {unit}, mean {volume.mean():.4g} {unit}."
    ]
    if path.name != "volume.mrc":
        lines.append(
            "The linear tomography of the aligned projections: the end-to-end volume is not there yet."
        )
    if shown["binned"] != [1, 1, 1]:
        factors = " × ".join(map(str, shown["binned"]))
        lines.append(
            f"Shown in means over {factors} voxels (z y x) to keep this page small; {path.name} has all."
        )
    data: dict[str, Any] = {"volume": shown}
    if path.name == "volume.mrc" and (run / "atoms.xyz").is_file():
        data["atoms"] = report_data.atoms_data(artefacts.read_atoms(run / "atoms.xyz"))
    caption = "Slabs through the centre, the brightest 0.2 % clipped; the beam runs along z at zero tilt."
    return Content(
        viewer="slices",
        data=data,
        lines=lines,
        instead=lambda: [picture(volume_figures.orthogonal_slices(volume, voxel, unit=unit), caption)],
    )


def _spectrum(run: Path) -> Content:
    volume, voxel = read_mrc(first_of(run, VOLUMES) or run / "volume.mrc")
    caption = "Central planes of the power spectrum: the missing wedge opens about qz."
    return Content(pictures=[picture(volume_figures.power_spectrum(volume, voxel), caption)])


def _completed(run: Path) -> Content:
    volume, voxel = read_mrc(run / "volume_completed.mrc")
    caption = "Slabs through the centre, the brightest 0.2 % clipped, as of the volume from patterns alone."
    lines = [
        "It started as the potential of the refined atoms, and the patterns changed what they contradict. "
        "Where no tilt looks it is the atoms' alone: a model, not an observation."
    ]
    return Content(
        pictures=[picture(volume_figures.orthogonal_slices(volume, voxel, unit="V"), caption)], lines=lines
    )


def _fsc(run: Path) -> Content:
    a, b, voxel = artefacts.read_half_volumes(run / "half_volumes.h5")
    mask = taper(a.shape)
    a, b = (a - a.mean()) * mask, (b - b.mean()) * mask
    curve = fourier_shell_correlation(a, b, voxel)
    axes = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}
    cones = {n: fourier_shell_correlation(a, b, voxel, direction=d) for n, d in axes.items()}
    rows = []
    for name, kind in (("0.143", 0.143), ("half-bit", "half_bit"), ("one-bit", "one_bit")):
        periods = [
            f"{c.resolution(kind):.3f}" + (" (never crossed)" if c.crossing(kind) is None else "")
            for c in (curve, *cones.values())
        ]
        rows.append((name, *periods))
    figure = volume_figures.shell_correlation(curve, cones)
    caption = "Half sets under a soft mask; cones of 20° half angle about the axes."
    return Content(
        pictures=[picture(figure, caption)],
        header=("threshold", "all (Å)", "about x (Å)", "about y (Å)", "about z (Å)"),
        rows=rows,
    )


def _atoms(run: Path) -> Content:
    atoms = artefacts.read_atoms(run / "atoms.xyz")
    symbols = np.array(atoms.get_chemical_symbols())
    rows = []
    for symbol in dict.fromkeys(symbols.tolist()):
        mine = symbols == symbol
        medians = [
            f"{np.median(atoms.arrays[key][mine]):.3g}" if key in atoms.arrays else "-"
            for key in ("intensity", "sigma")
        ]
        rows.append((symbol, str(mine.sum()), *medians))
    limit = atoms.info.get("threshold_volt")
    return Content(
        pictures=[picture(volume_figures.atom_projections(atoms), "Sample frame, origin at the centre.")],
        header=("element", "atoms", "median integrated potential (V Å³)", "median sigma (Å)"),
        rows=rows,
        lines=[f"Peaks above {float(limit):.4g} V count as atoms."] if limit is not None else (),
    )


def _timings(run: Path) -> Content:
    rows = []
    for stage, mine in _by_stage(read_metrics(run / "metrics.jsonl")).items():
        seconds = float(sum(r.get("seconds") or 0 for r in mine))
        rows.append((stage.replace("_", " "), str(len(mine)), f"{seconds:.1f}", f"{seconds / len(mine):.3g}"))
    return Content(header=("stage", "iterations", "seconds", "seconds an iteration"), rows=rows)


PLANS: dict[str, Plan] = {
    "input": Plan("What went in", ("summary.json",), "the start of the run", _input, ("config.yaml",)),
    "loss": Plan("Loss per stage", ("metrics.jsonl",), "any iterative stage", _loss),
    "bright-field": Plan(
        "Bright field", ("bright_field.h5",), "bright_field", _bright_field, ("summary.json",)
    ),
    "probes": Plan("Probes", ("probes.h5",), "ptychography", _probes),
    "positions": Plan("Scan positions", ("positions.h5",), "ptychography", _positions),
    "poses": Plan("Poses", ("poses.json",), "alignment", _poses, ("summary.json",)),
    "patterns": Plan(
        "Patterns against the model",
        ("patterns.h5",),
        "end_to_end",
        _patterns,
        ("positions.h5", "summary.json"),
    ),
    "slices": Plan("Slices of the potential", (VOLUMES,), "end_to_end", _slices, ("atoms.xyz",)),
    "spectrum": Plan("Power spectrum", (VOLUMES,), "end_to_end", _spectrum),
    "completed": Plan("Completed by the atoms", ("volume_completed.mrc",), "completion", _completed),
    "fsc": Plan(
        "Resolution of half sets", ("half_volumes.h5",), "analysis with analysis.fsc.half_sets: true", _fsc
    ),
    "atoms": Plan("Atoms", ("atoms.xyz",), "analysis", _atoms),
    "timings": Plan("Timings", ("metrics.jsonl",), "any iterative stage", _timings),
}
"""The page's sections in order."""
