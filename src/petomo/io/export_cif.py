"""Traced atoms as a CIF file (Hall, Allen & Brown, Acta Cryst. A47 (1991) 655)."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms

from petomo import __version__
from petomo.core.errors import UserError
from petomo.io.atomic import write_text

VACUUM = 5.0  # angstrom on every side of the atoms' bounding box
NUMBERS = {"intensity": "integrated_potential", "sigma": "width", "sigma_z": "width_z"}
"""One number an atom: arrays of `petomo.analysis.atoms.trace_atoms` and their names in CIF."""

_HEAD = """\
data_{name}
_audit_creation_method 'petomo {version}'
_cell_length_a {a:.5f}
_cell_length_b {b:.5f}
_cell_length_c {c:.5f}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_cell_formula_units_Z 1
_chemical_formula_sum '{formula}'
_space_group_name_H-M_alt 'P 1'
_space_group_IT_number 1

loop_
_space_group_symop_id
_space_group_symop_operation_xyz
1 'x, y, z'

_atom_sites_special_details
;
The particle is not periodic: the cell is its bounding box with vacuum around it. Cartesian coordinates
are in angstrom in the frame of volume.mrc, whose zero is voxel n // 2. Numbers in brackets are standard
uncertainties.
;
_atom_sites_Cartn_transform_axes 'x along a, y along b, z along c'
"""


def with_uncertainty(value: float, error: float | None, digits: int = 4) -> str:
    """A number with its standard uncertainty in brackets, in units of the last digit, as ``1.2345(12)``.

    The uncertainty keeps two digits up to 19 and else one (IUCr's rule of 19).

    Parameters
    ----------
    value : float
        Number.
    error : float or None
        Standard uncertainty; None, not finite or not positive for none.
    digits : int
        Decimals of a number without uncertainty.
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.{digits}f}"
    decimals = 1 - math.floor(math.log10(error))
    if round(error * 10.0**decimals) > 19:
        decimals -= 1
    decimals = max(decimals, 0)
    return f"{value:.{decimals}f}({max(1, round(error * 10.0**decimals))})"


def write_cif(path: str | Path, atoms: Atoms, name: str = "petomo") -> None:
    """Write atoms as CIF: element, fractional and Cartesian coordinates with their uncertainties.

    Parameters
    ----------
    path : path
        File to write.
    atoms : ase.Atoms
        Sample frame, angstrom. The arrays ``position_error`` ``(atom, 3)`` (angstrom), ``intensity``
        (V angstrom^3), ``sigma`` and ``sigma_z`` (angstrom) are written where present, the latter three
        under names that begin with ``_petomo``.
    name : str
        Of the data block.

    Raises
    ------
    UserError
        If there are no atoms, which CIF cannot say.
    """
    if len(atoms) == 0:
        raise UserError(f"{path}: the run found no atoms, and CIF cannot say so; export .xyz")
    corner = atoms.positions.min(0) - VACUUM
    cell = np.ptp(atoms.positions, axis=0) + 2 * VACUUM
    counts = Counter(atoms.get_chemical_symbols())
    formula = " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))
    block = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:70] or "petomo"
    a, b, c = cell
    lines = [_HEAD.format(name=block, version=__version__, a=a, b=b, c=c, formula=formula)]
    for i in range(3):
        lines += [f"_atom_sites_Cartn_tran_matrix_{i + 1}{j + 1} {cell[i] * (i == j):.5f}" for j in range(3)]
    lines += [f"_atom_sites_Cartn_tran_vector_{i + 1} {corner[i]:.5f}" for i in range(3)]
    write_text(path, "\n".join([*lines, "", *_sites(atoms, corner, cell)]) + "\n")


def _sites(atoms: Atoms, corner: np.ndarray, cell: np.ndarray) -> list[str]:
    """The loop of atom sites."""
    error = atoms.arrays.get("position_error", np.full((len(atoms), 3), np.nan))
    extra = {key: tag for key, tag in NUMBERS.items() if key in atoms.arrays}
    lines = ["loop_", "_atom_site_label", "_atom_site_type_symbol"]
    lines += [f"_atom_site_{kind}_{axis}" for kind in ("fract", "Cartn") for axis in "xyz"]
    lines += ["_atom_site_occupancy", *(f"_petomo_atom_site_{tag}" for tag in extra.values())]
    seen: Counter[str] = Counter()
    for i, symbol in enumerate(atoms.get_chemical_symbols()):
        seen[symbol] += 1
        place, spread = atoms.positions[i], error[i]
        fields = [f"{symbol}{seen[symbol]}", symbol]
        fields += [
            with_uncertainty(p, e, 6) for p, e in zip((place - corner) / cell, spread / cell, strict=True)
        ]
        fields += [with_uncertainty(p, e) for p, e in zip(place, spread, strict=True)]
        fields += ["1", *(f"{atoms.arrays[key][i]:.6g}" for key in extra)]
        lines.append(" ".join(fields))
    return lines
