"""Specimens made of atoms: built-in ones and files."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, nanotube
from ase.io.formats import filetype
from ase.spacegroup import crystal
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from petomo.core.errors import UserError
from petomo.core.machine import installed_memory
from petomo.core.pose import rotation_matrices
from petomo.simulation.spec import BUILT_IN, SpecimenSpec

FORMATS = (
    "xyz", "extxyz", "cif", "proteindatabank", "vasp", "xsf", "cube", "gen", "gromacs", "lammps-data", "sdf",
    "mol", "prismatic", "mustem", "res", "magres",
)  # fmt: skip
"""Kinds of files that are only text with atoms; others of ASE's run databases or unpickle."""

_NEAREST_TO_CORE = 2.0
_VAN_DER_WAALS_GAP = 3.4


def build_specimen(spec: SpecimenSpec, rng: np.random.Generator) -> Atoms:
    """Atoms in the sample frame, the middle of their bounding box at the origin, no cell.

    Raises
    ------
    UserError
        If a file cannot be read as atoms, nothing is left of the specimen, or it takes more memory than there
        is.
    """
    _refuse_too_many(spec)
    if spec.source == "ptal2o3":
        atoms = pt_in_alumina(spec.edge_angstrom, spec.core_angstrom, rng)
    elif spec.source == "te_carbon":
        atoms = te_beside_nanotube(spec.edge_angstrom, spec.core_angstrom, rng)
    else:
        atoms = _read(spec.source)
    built_in = spec.source in BUILT_IN
    vacancies = spec.vacancy_share if spec.vacancy_share is not None else 0.03 * built_in
    rms = spec.displacement_rms_angstrom
    rms = rms if rms is not None else 0.04 * built_in
    atoms = atoms[rng.random(len(atoms)) >= vacancies]
    if not len(atoms):
        raise UserError(
            f"the specimen {spec.source} has no atoms; enlarge it or lower specimen.vacancy_share"
        )
    angles = torch.deg2rad(torch.tensor(spec.rotation_degree, dtype=torch.float64))
    positions = atoms.positions @ rotation_matrices(*angles).numpy().T + rng.normal(0, rms, (len(atoms), 3))
    return Atoms(atoms.numbers, positions - (positions.min(axis=0) + positions.max(axis=0)) / 2)


def _refuse_too_many(spec: SpecimenSpec) -> None:
    """Refuse a built-in specimen of more atoms than the machine holds.

    A lattice is made over a cube that holds the specimen however it is turned, 0.12 atoms per cubic angstrom
    or less, with some 150 bytes an atom while it is cut out; the nanotube has 24 atoms every 4.26 angstrom.
    """
    edge, core = (min(size, 1e9) for size in (spec.edge_angstrom, spec.core_angstrom))
    lattice = {"ptal2o3": edge**3 + core**3, "te_carbon": core**3}.get(spec.source, 0.0)
    tube = 5.7 * edge if spec.source == "te_carbon" else 0.0
    need, there = 150 * (0.12 * 3**1.5 * lattice + tube), installed_memory()
    if need > there:
        key = "edge_angstrom" if edge > core or tube > lattice else "core_angstrom"
        raise UserError(
            f"this specimen needs about {need / 2**30:.3g} GiB of memory, and the machine has "
            f"{there / 2**30:.3g}; lower specimen.{key}"
        )


def _read(path: str) -> Atoms:
    if not Path(path).is_file():
        raise UserError(
            f"{path}: there is no such file; specimen.source should be {', '.join(BUILT_IN)} "
            "or a file of atoms"
        )
    try:
        kind = filetype(path)
        if kind not in FORMATS:
            raise UserError(f"{path}: files of type {kind} are not read; give one of {', '.join(FORMATS)}")
        atoms = ase.io.read(path, format=kind)
    except UserError:
        raise
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise UserError(f"{path}: ASE cannot read this as atoms ({error})") from error
    if isinstance(atoms, Atoms) and not np.isfinite(atoms.positions).all():
        raise UserError(f"{path}: a position of an atom is not a finite number; correct it or leave it out")
    if not isinstance(atoms, Atoms):
        raise UserError(f"{path}: this holds {len(atoms)} structures, but should hold one")
    return atoms


def pt_in_alumina(edge: float, core: float, rng: np.random.Generator) -> Atoms:
    """Pt cube inside an alpha-alumina cube, both lattices turned and shifted at random.

    Parameters
    ----------
    edge, core : float
        Edges in angstrom, along the axes of the sample frame.

    Notes
    -----
    Corundum: R-3c, a = 4.7589, c = 12.991 angstrom (Newnham and de Haan, Z. Krist. 117 (1962) 235);
    Pt: fcc, a = 3.92 angstrom. Alumina nearer than 2 angstrom to a Pt atom is left out.
    """
    corundum = crystal(
        ["Al", "O"],
        basis=[(0, 0, 0.3520), (0.3063, 0, 0.25)],
        spacegroup=167,
        cellpar=[4.7589, 4.7589, 12.991, 90, 90, 120],
    )
    alumina = _within_cube(_random_lattice(corundum, edge, rng), edge)
    platinum = _within_cube(_random_lattice(bulk("Pt", a=3.92, cubic=True), core, rng), core)
    if len(platinum):
        distance, _ = KDTree(platinum.positions).query(alumina.positions)
        alumina = alumina[distance >= _NEAREST_TO_CORE]
    return platinum + alumina


def te_beside_nanotube(edge: float, core: float, rng: np.random.Generator) -> Atoms:
    """Ball of trigonal Te beside a (6, 0) carbon nanotube that lies along y.

    Parameters
    ----------
    edge : float
        Length of the tube in angstrom.
    core : float
        Diameter of the ball in angstrom.

    Notes
    -----
    Te: P3_1 2 1, a = 4.4572, c = 5.929 angstrom, u = 0.2633 (Adenis et al., Acta Cryst. C 45 (1989) 941).
    """
    lattice = crystal(
        "Te", [(0.2633, 0, 1 / 3)], spacegroup=152, cellpar=[4.4572, 4.4572, 5.929, 90, 90, 120]
    )
    ball = _random_lattice(lattice, core, rng)
    ball = ball[np.linalg.norm(ball.positions, axis=1) <= core / 2]
    tube = nanotube(6, 0, length=int(np.ceil(edge / 4.26)) + 1)
    tube.positions -= tube.positions.mean(axis=0)
    radius = np.linalg.norm(tube.positions[:, :2], axis=1).mean()
    tube.positions = tube.positions[:, [0, 2, 1]]
    tube = tube[np.abs(tube.positions[:, 1]) <= edge / 2]
    ball.positions[:, 0] += radius + _VAN_DER_WAALS_GAP + core / 2
    return Atoms(np.r_[ball.numbers, tube.numbers], np.r_[ball.positions, tube.positions])


def _random_lattice(unit: Atoms, extent: float, rng: np.random.Generator) -> Atoms:
    """Turned and shifted lattice that covers a cube of edge ``extent`` about the origin."""
    reach = extent * np.sqrt(3) / 2
    spacings = 1 / np.linalg.norm(np.linalg.inv(unit.cell.array), axis=0)
    counts = 2 * np.ceil(reach / spacings).astype(int) + 1
    lattice = unit.repeat(counts.tolist())
    middle = (counts // 2 + rng.random(3)) @ unit.cell.array
    turn = Rotation.from_quat(rng.normal(size=4))  # uniform on the rotations
    return Atoms(lattice.numbers, turn.apply(lattice.positions - middle))


def _within_cube(atoms: Atoms, edge: float) -> Atoms:
    return atoms[np.flatnonzero((np.abs(atoms.positions) <= edge / 2).all(axis=1))]
