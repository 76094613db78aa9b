"""The true potential of a simulation on a run's grid, and the resolution against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy import fft

from petomo.analysis.matching import RigidMotion
from petomo.analysis.resolution import ShellCorrelation, directional_correlations, fourier_shell_correlation
from petomo.core.grid import Grid
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import read_mrc
from petomo.physics.scattering_factors import SCATTERING_TO_VOLT, Parametrization, scattering_factor

THRESHOLD = 0.5
"""Correlation with truth that goes with 0.143 between half sets (Rosenthal & Henderson 2003)."""


def potential_of_atoms(
    atoms: Atoms, grid: Grid, vibration_rms: float = 0.0, parametrization: Parametrization = "lobato"
) -> np.ndarray:
    """Electrostatic potential in volts ``z y x``, periodic, band limited, origin at voxel ``n // 2``.

    ``V(q) = h^2 / (2 pi m e) sum_j f_j(q) exp(-2 pi i q.r_j - 2 pi^2 u^2 q^2)`` (Kirkland 2020, Eq. 5.9).

    Parameters
    ----------
    atoms : Atoms
        Positions (x, y, z) in angstrom.
    grid : Grid
        ``z y x``.
    vibration_rms : float
        Displacements u by phonons, rms an axis in angstrom.
    """
    sizes = zip(grid.shape, grid.pixel_size, strict=True)
    qz, qy, qx = ((fft.rfftfreq if axis == 2 else fft.fftfreq)(n, p) for axis, (n, p) in enumerate(sizes))
    q2 = qz[:, None, None] ** 2 + qy[:, None] ** 2 + qx**2
    corner = [-(n // 2) * p for n, p in zip(grid.shape, grid.pixel_size, strict=True)]
    spectrum = np.zeros(q2.shape, dtype=complex)
    for number in np.unique(atoms.numbers):
        x, y, z = atoms.positions[atoms.numbers == number].T
        waves = [
            np.exp(-2j * np.pi * q[:, None] * (place - start))
            for q, place, start in zip((qz, qy, qx), (z, y, x), corner, strict=True)
        ]
        plane = waves[0][:, None] * waves[1]
        spectrum += scattering_factor(int(number), q2, parametrization) * (plane @ waves[2].T)
    spectrum *= SCATTERING_TO_VOLT * np.exp(-2 * np.pi**2 * vibration_rms**2 * q2) / np.prod(grid.pixel_size)
    return np.asarray(fft.irfftn(spectrum, s=grid.shape))


def score_resolution(
    run_dir: str | Path,
    truth_dir: str | Path,
    score: dict[str, Any],
    vibration_rms: float = 0.0,
    parametrization: Parametrization = "lobato",
) -> dict[str, Any]:
    """Fourier shell correlation of ``volume.mrc`` with the true potential, across and along the beam.

    Parameters
    ----------
    run_dir, truth_dir : path
        Run folder, and folder with the true ``atoms.xyz``.
    score : dict
        Of `petomo.analysis.score.score_run`; its rigid motion of the atoms aligns truth and run.
    vibration_rms : float
        Phonons simulated, rms an axis in angstrom.

    Returns
    -------
    dict
        JSON-able: ``threshold``, ``nyquist_angstrom``, and full periods in angstrom for ``all`` directions
        and the cones of 20 degrees about ``x``, ``y``, ``z``; ``reached`` says for each whether the curve
        fell below the threshold at all, else the period is the finest the volume can hold.
    """
    volume, voxel = read_mrc(Path(run_dir) / "volume.mrc")
    found = score["atoms"]["motion"]
    motion = RigidMotion(np.array(found["rotation_matrix"]), np.array(found["shift_xyz_angstrom"]))
    atoms = read_atoms(Path(truth_dir) / "atoms.xyz")
    atoms.positions = (atoms.positions - motion.shift) @ motion.rotation  # truth into the run's frame
    truth = potential_of_atoms(atoms, Grid(volume.shape, tuple(voxel)), vibration_rms, parametrization)
    curves: dict[str, ShellCorrelation] = {
        "all": fourier_shell_correlation(volume, truth, voxel),
        **directional_correlations(volume, truth, voxel),
    }
    return {
        "threshold": THRESHOLD,
        "nyquist_angstrom": 2 * max(voxel),
        **{name: curve.resolution(THRESHOLD) for name, curve in curves.items()},
        "reached": {name: curve.crossing(THRESHOLD) is not None for name, curve in curves.items()},
    }
