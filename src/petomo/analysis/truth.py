"""The true potential of a simulation on a run's grid, and the resolution against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from petomo.analysis.matching import RigidMotion
from petomo.analysis.resolution import ShellCorrelation, directional_correlations, fourier_shell_correlation
from petomo.analysis.score import truth_folder
from petomo.core.grid import Grid
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import read_mrc
from petomo.physics.atomic_potential import atomic_volume
from petomo.physics.scattering_factors import Parametrization

THRESHOLD = 0.5
"""Correlation with truth that goes with 0.143 between half sets (Rosenthal & Henderson 2003)."""
SMALLEST_FREQUENCY = 0.2
"""1/angstrom; the few coefficients below are of the specimen's outline, in the missing wedge often lost."""


def potential_of_atoms(
    atoms: Atoms, grid: Grid, vibration_rms: float = 0.0, parametrization: Parametrization = "lobato"
) -> np.ndarray:
    """`petomo.physics.atomic_potential.atomic_volume` of whole atoms that all vibrate alike.

    Parameters
    ----------
    atoms : Atoms
        Positions (x, y, z) in angstrom.
    grid : Grid
        ``z y x``.
    vibration_rms : float
        Displacements u by phonons, rms an axis in angstrom.
    """
    whole = np.ones(len(atoms))
    return atomic_volume(
        atoms.positions, whole, vibration_rms**2 * whole, atoms.numbers, grid, parametrization
    )


def score_volumes(
    run_dir: str | Path,
    truth_dir: str | Path,
    score: dict[str, Any],
    vibration_rms: float = 0.0,
    parametrization: Parametrization = "lobato",
) -> dict[str, dict[str, Any]]:
    """Fourier shell correlation of a run's volumes with the true potential, across and along the beam.

    Parameters
    ----------
    run_dir, truth_dir : path
        Run folder, and folder with the true ``atoms.xyz``.
    score : dict
        Of `petomo.analysis.score.score_run`; its rigid motion of the atoms aligns truth and run.
    vibration_rms : float
        Phonons simulated, rms an axis in angstrom. Every shell is normalised, so that it hardly matters.

    Returns
    -------
    dict
        JSON-able, by file, of ``volume.mrc`` and ``volume_completed.mrc`` those that are there; empty without
        scored atoms. Each has ``threshold``, ``nyquist_angstrom``, and full periods in angstrom for ``all``
        directions and the cones of 20 degrees about ``x``, ``y``, ``z``; ``reached`` says for each whether
        the curve fell below the threshold at all, else the period is the finest the volume can hold.
    """
    run, truth = Path(run_dir), truth_folder(truth_dir)
    if "atoms" not in score:
        return {}
    atoms, drawn, out = _in_frame(read_atoms(truth / "atoms.xyz"), score), {}, {}
    for name in ("volume.mrc", "volume_completed.mrc"):
        if not (run / name).is_file():
            continue
        volume, voxel = read_mrc(run / name)
        grid = Grid(volume.shape, tuple(voxel))
        if grid not in drawn:  # as a rule both lie on one grid
            drawn[grid] = potential_of_atoms(atoms, grid, vibration_rms, parametrization)
        out[name] = _against(drawn[grid], volume, voxel)
    return out


def _in_frame(atoms: Atoms, score: dict[str, Any]) -> Atoms:
    """True atoms moved to where a run has them."""
    found = score["atoms"]["motion"]
    motion = RigidMotion(np.array(found["rotation_matrix"]), np.array(found["shift_xyz_angstrom"]))
    atoms.positions = (atoms.positions - motion.shift) @ motion.rotation
    return atoms


def _against(truth: np.ndarray, volume: np.ndarray, voxel: tuple[float, ...]) -> dict[str, Any]:
    """What `score_volumes` says of a volume, from the truth on its grid."""
    curves: dict[str, ShellCorrelation] = {
        "all": fourier_shell_correlation(volume, truth, voxel),
        **directional_correlations(volume, truth, voxel),
    }
    curves = {name: curve.beyond(SMALLEST_FREQUENCY) for name, curve in curves.items()}
    return {
        "threshold": THRESHOLD,
        "nyquist_angstrom": 2 * max(voxel),
        **{name: curve.resolution(THRESHOLD) for name, curve in curves.items()},
        "reached": {name: curve.crossing(THRESHOLD) is not None for name, curve in curves.items()},
    }
