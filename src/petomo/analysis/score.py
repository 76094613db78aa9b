"""Score a run against the truth of a simulation: atoms, poses, scan positions, defocus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers

from petomo.analysis.matching import RigidMotion, match_atoms, register
from petomo.core.errors import UserError
from petomo.core.pose import Poses, fit_gauge, pose_errors
from petomo.io.artefacts import read_atoms, read_poses, read_positions, read_probes

MATCH_RADIUS = 0.7  # angstrom


def score_run(run_dir: str | Path, truth_dir: str | Path) -> dict[str, Any]:
    """Compare a run folder with the truth of its simulation.

    The specimen frame is free by one rigid motion: poses are compared after the motion fitted to the poses
    themselves, atoms after one fitted to the atoms. A common offset of a tilt's scan positions cannot be
    told from its tau, so that offset is counted with tau.

    Parameters
    ----------
    run_dir : path
        Run folder; what there is of ``atoms.xyz``, ``poses.json``, ``positions.h5``, ``probes.h5`` is scored.
    truth_dir : path
        Folder with ``atoms.xyz`` and ``poses.npz`` (``phi_theta_psi_rad``, ``tau_xy_angstrom``,
        ``scan_positions_xy_angstrom``, ``defocus_angstrom``).

    Returns
    -------
    dict
        JSON-able: ``atoms``, ``poses``, ``positions``, ``defocus`` (those that could be scored) and
        ``missing``, the names of files that were not there.

    Raises
    ------
    UserError
        If the truth is missing or has another number of tilts or scan positions than the run.
    """
    run, truth = Path(run_dir), truth_folder(truth_dir)
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run folder")
    known = _read_truth(truth)
    names = ("atoms.xyz", "poses.json", "positions.h5", "probes.h5")
    there = {name for name in names if (run / name).is_file()}
    out: dict[str, Any] = {}
    positions = read_positions(run / "positions.h5") if "positions.h5" in there else None
    start = None
    if "poses.json" in there:
        out["poses"], start = _score_poses(run, known, positions)
    if "atoms.xyz" in there and (truth / "atoms.xyz").is_file():
        out["atoms"] = score_atoms(
            read_atoms(run / "atoms.xyz"), read_atoms(truth / "atoms.xyz"), start=start
        )
    if positions is not None:
        out["positions"] = _score_positions(*positions, known["scan_positions_xy_angstrom"], run)
    if "probes.h5" in there:
        out["defocus"] = _score_defocus(
            read_probes(run / "probes.h5").defocus, known["defocus_angstrom"], run
        )
    out["missing"] = [name for name in names if name not in there]
    return out


def truth_folder(path: str | Path) -> Path:
    """Folder of the truth, also where that of its simulation is given."""
    inner = Path(path) / "truth"
    return (
        inner if not (Path(path) / "poses.npz").is_file() and (inner / "poses.npz").is_file() else Path(path)
    )


def score_atoms(
    found: Atoms, true: Atoms, *, radius: float = MATCH_RADIUS, start: RigidMotion | None = None
) -> dict[str, Any]:
    """Atoms found, missed and invented, one to one within ``radius`` after one rigid motion.

    Parameters
    ----------
    found, true : ase.Atoms
        Positions in angstrom.
    radius : float
        Angstrom.
    start : RigidMotion, optional
        First guess of the motion from found to true.
    """
    motion = register(found.positions, true.positions, start=start, radius=radius)
    moved = motion.apply(found.positions)
    match = match_atoms(moved, true.positions, radius)
    error = moved[match.found] - true.positions[match.true]
    symbols, true_symbols = (np.array(a.get_chemical_symbols(), dtype=str) for a in (found, true))
    wrong = symbols[match.found] != true_symbols[match.true]
    lone = np.setdiff1d(np.arange(len(found)), match.found)
    elements = {}
    for symbol in sorted(set(true_symbols.tolist()), key=lambda s: -atomic_numbers[s]):
        mine = true_symbols[match.true] == symbol
        total = int((true_symbols == symbol).sum())
        elements[symbol] = {
            "true": total,
            "found": int(mine.sum()),
            "missed": total - int(mine.sum()),
            "found_share": float(mine.sum() / total),
            "wrong_element": int(wrong[mine].sum()),
            "invented": int((symbols[lone] == symbol).sum()),
            **_rmsd(error[mine]),
        }
    return {
        "radius_angstrom": radius,
        "true": len(true),
        "traced": len(found),
        "found": len(match),
        "missed": len(true) - len(match),
        "invented": len(lone),
        "invented_share": len(lone) / max(len(found), 1),
        "wrong_element": int(wrong.sum()),
        **_rmsd(error),
        "z_score_rms": _z_score(found, match.found, error),
        "elements": elements,
        "motion": {
            "angle_degree": float(np.rad2deg(motion.angle)),
            "shift_xyz_angstrom": motion.shift.tolist(),
            "rotation_matrix": motion.rotation.tolist(),
        },
    }


def _z_score(found: Atoms, index: np.ndarray, error: np.ndarray) -> float | None:
    """Root mean square of the errors over their quoted standard errors; 1 if these are right."""
    if "position_error" not in found.arrays or len(index) == 0:
        return None
    return _rms((error / found.arrays["position_error"][index]).ravel())


def _rmsd(error: np.ndarray) -> dict[str, Any]:
    if len(error) == 0:
        return {"rmsd_angstrom": None, "rmsd_xyz_angstrom": None}
    square = (error**2).mean(axis=0)
    return {"rmsd_angstrom": float(np.sqrt(square.sum())), "rmsd_xyz_angstrom": np.sqrt(square).tolist()}


def _read_truth(truth: Path) -> dict[str, np.ndarray]:
    path = truth / "poses.npz"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a truth folder holds atoms.xyz and poses.npz")
    keys = ("phi_theta_psi_rad", "tau_xy_angstrom", "scan_positions_xy_angstrom", "defocus_angstrom")
    with np.load(path, allow_pickle=False) as file:
        missing = [key for key in keys if key not in file]
        if missing:
            raise UserError(f"{path}: it lacks {', '.join(missing)}")
        return {key: np.asarray(file[key], dtype=float) for key in keys}


def _same_number(run: Path, what: str, found: int, true: int) -> None:
    if found != true:
        raise UserError(f"{run}: the run has {found} {what}, the truth {true}; they need to be the same data")


def _score_poses(
    run: Path, known: dict[str, np.ndarray], positions: tuple[list, list] | None
) -> tuple[dict[str, Any], RigidMotion]:
    found, names = read_poses(run / "poses.json")
    _same_number(run, "tilts", len(found), len(known["tau_xy_angstrom"]))
    phi, theta, psi = torch.from_numpy(known["phi_theta_psi_rad"]).unbind(-1)
    true = Poses(phi, theta, psi, torch.from_numpy(known["tau_xy_angstrom"]))
    if positions is not None:
        scans = torch.from_numpy(known["scan_positions_xy_angstrom"])
        found, true = found.seen_from(positions[0]), true.seen_from(scans)
    errors = {key: value.numpy() for key, value in pose_errors(found, true).items()}
    degrees = np.rad2deg(errors["angle"])
    rotation, shift = fit_gauge(found, true)
    scores = {
        "shift_median_angstrom": float(np.median(errors["shift"])),
        "shift_worst_angstrom": float(errors["shift"].max()),
        "shift_worst_tilt": names[int(errors["shift"].argmax())],
        "shift_angstrom": errors["shift"].tolist(),
        "angle_rms_degree": float(np.sqrt((degrees**2).mean())),
        "angle_worst_degree": float(degrees.max()),
        "euler_rms_degree": {
            key: float(np.sqrt((np.rad2deg(errors[key]) ** 2).mean())) for key in ("phi", "theta", "psi")
        },
        "offset_folded_in": positions is not None,
    }
    return scores, RigidMotion(rotation.numpy(), shift.numpy())


def _score_positions(refined: list, initial: list, true: np.ndarray, run: Path) -> dict[str, Any]:
    _same_number(run, "tilts", len(refined), len(true))
    out: dict[str, Any] = {}
    for name, positions in (("refined", refined), ("initial", initial)):
        offset, affine = [], []
        for number, (found, known) in enumerate(zip(positions, true, strict=True)):
            _same_number(run, f"scan positions in tilt {number}", len(found), len(known))
            error = found.numpy() - known
            offset.append(_rms(error - error.mean(axis=0)))
            design = np.column_stack([known, np.ones(len(known))])
            affine.append(_rms(error - design @ np.linalg.lstsq(design, error, rcond=None)[0]))
        out[name] = {
            "rms_angstrom": _rms(np.array(offset)),
            "worst_tilt_rms_angstrom": max(offset),
            "rms_without_affine_angstrom": _rms(np.array(affine)),
        }
    return out


def _rms(error: np.ndarray) -> float:
    """Root of the mean squared length; of plain numbers the root of their mean square."""
    return float(np.sqrt((error**2).sum(axis=-1).mean() if error.ndim > 1 else (error**2).mean()))


def _score_defocus(found: list[float], true: np.ndarray, run: Path) -> dict[str, Any]:
    _same_number(run, "probes", len(found), len(true))
    error = np.array(found) - true
    error = error[np.isfinite(error)]
    if len(error) == 0:
        return {"tilts": 0}
    return {
        "tilts": len(error),
        "mean_angstrom": float(error.mean()),
        "rms_angstrom": _rms(error),
        "rms_without_mean_angstrom": _rms(error - error.mean()),
        "worst_without_mean_angstrom": float(np.abs(error - error.mean()).max()),
    }


def format_score(score: dict[str, Any]) -> str:
    """The score as a plain text table, in angstrom and degrees."""
    lines = _atom_lines(score["atoms"]) if "atoms" in score else []
    if p := score.get("poses"):
        euler = ", ".join(f"{key} {value:.3f}" for key, value in p["euler_rms_degree"].items())
        lines += [
            f"shifts     median {p['shift_median_angstrom']:.3f} A, "
            f"worst {p['shift_worst_angstrom']:.3f} A ({p['shift_worst_tilt']})",
            f"angles     rms {p['angle_rms_degree']:.3f} degrees, "
            f"worst {p['angle_worst_degree']:.3f} (rms {euler})",
        ]
    for name, p in score.get("positions", {}).items():
        lines.append(
            f"positions  {name}: rms {p['rms_angstrom']:.3f} A, "
            f"worst tilt {p['worst_tilt_rms_angstrom']:.3f} A, "
            f"without an affine map {p['rms_without_affine_angstrom']:.3f} A"
        )
    if (d := score.get("defocus")) and d["tilts"]:
        lines.append(
            f"defocus    rms {d['rms_angstrom']:.1f} A, {d['rms_without_mean_angstrom']:.1f} A "
            f"without the common offset of {d['mean_angstrom']:+.1f} A"
        )
    lines += [_resolution_line(name, found) for name, found in score.get("resolution", {}).items()]
    lines += [f"not scored: the run has no {name}" for name in score.get("missing", [])]
    return "\n".join(lines)


def _resolution_line(name: str, found: dict[str, Any]) -> str:
    """Where a volume's correlation with the truth falls below the threshold, if it does."""
    periods = {
        key: f"{found[key]:.2f}{'' if reached else ' or less'}" for key, reached in found["reached"].items()
    }
    cones = ", ".join(f"{periods[axis]} about {axis}" for axis in "xyz")
    return f"resolution {name}: {periods['all']} A at FSC {found['threshold']:g} with the truth; {cones}"


def _atom_lines(atoms: dict[str, Any]) -> list[str]:
    header = ("", "true", "found", "share", "missed", "wrong", "invented", "rmsd", "x", "y", "z")
    whole = atoms | {"found_share": atoms["found"] / max(atoms["true"], 1)}
    rows = [_atom_row(symbol, value) for symbol, value in [*atoms["elements"].items(), ("all", whole)]]
    motion, z = atoms["motion"], atoms.get("z_score_rms")
    calibration = [] if z is None else [f"errors     {z:.2f} x their quoted standard errors (rms)"]
    return [
        f"atoms within {atoms['radius_angstrom']:g} A, one to one, after a rigid motion of "
        f"{motion['angle_degree']:.2f} degrees and {np.linalg.norm(motion['shift_xyz_angstrom']):.2f} A",
        *("".join(f"{cell:>9}" for cell in row) for row in (header, *rows)),
        f"invented   {atoms['invented']} of {atoms['traced']} traced atoms "
        f"({100 * atoms['invented_share']:.1f} %)",
        *calibration,
    ]


def _atom_row(name: str, value: dict[str, Any]) -> tuple[str, ...]:
    errors = [value["rmsd_angstrom"], *(value["rmsd_xyz_angstrom"] or [None] * 3)]
    counts = (str(value[key]) for key in ("missed", "wrong_element", "invented"))
    share = f"{100 * value['found_share']:.1f}%"
    return (
        name,
        str(value["true"]),
        str(value["found"]),
        share,
        *counts,
        *("-" if e is None else f"{e:.3f}" for e in errors),
    )
