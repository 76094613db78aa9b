"""Results of a run in the formats of other programs; the file's suffix says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from petomo.core.errors import UserError
from petomo.io.artefacts import read_atoms, write_atoms
from petomo.io.export_cif import NUMBERS, write_cif
from petomo.io.export_grids import OmeVersion, write_emd, write_ome_zarr, write_tiff
from petomo.io.volumes import ARTEFACTS, GridData, read_grid, write_mrc, write_stack

GRID_SUFFIXES = (".ome.zarr", ".zarr", ".ome.tiff", ".ome.tif", ".tiff", ".tif", ".mrc", ".map", ".emd")
ATOM_SUFFIXES = (".xyz", ".cif")


def suffix_of(path: str | Path) -> str:
    """The known suffix of a file name.

    Raises
    ------
    UserError
        If it has none of them.
    """
    name = Path(path).name.lower()
    known = (*GRID_SUFFIXES, *ATOM_SUFFIXES)
    for suffix in known:
        if name.endswith(suffix) and name != suffix:
            return suffix
    raise UserError(f"{path}: the suffix says no known format; give a name that ends in {', '.join(known)}")


def export_run(
    folder: str | Path, target: str | Path, what: str | None = None, ome_version: str = "0.4"
) -> Path:
    """Write an artefact of a run folder as ``target``, in the format its suffix says.

    Parameters
    ----------
    folder : path
        Run folder.
    target : path
        New file (for OME-Zarr: folder): .mrc and .map (MRC), .ome.zarr and .zarr (OME-Zarr), .emd (EMD 1.0),
        .tif (ImageJ), .ome.tif (OME), and for atoms .xyz (extended XYZ) and .cif.
    what : str, optional
        ``volume`` (default), ``volume_completed``, ``volume_linear``, ``absorption`` or ``projections``;
        for atoms none is needed.
    ome_version : str
        ``"0.4"`` or ``"0.5"``, for OME-Zarr.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    UserError
        If the suffix is unknown, the target is there already, or the artefact is missing or damaged.
    """
    folder, target = Path(folder), Path(target)
    suffix = suffix_of(target)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a run folder")
    if target.exists():
        raise UserError(f"{target}: this exists already; give another name or remove it first")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: there is no such folder; make it first")
    if suffix in ATOM_SUFFIXES:
        _export_atoms(folder, target, suffix, what)
        return target
    if what == "atoms":
        raise UserError(f"{target}: atoms go into {' or '.join(ATOM_SUFFIXES)}, not into {suffix}")
    write_grid(target, read_grid(folder, what or "volume"), ome_version)
    return target


def write_grid(target: str | Path, grid: GridData, ome_version: str = "0.4") -> None:
    """Write a volume or an image stack in the format that the suffix of ``target`` says."""
    suffix = suffix_of(target)
    if suffix in (".mrc", ".map"):
        if grid.axes[0] == "tilt":
            write_stack(target, grid.values, grid.spacing[1:])
        else:
            write_mrc(target, grid.values, grid.spacing)
    elif suffix.endswith(".zarr"):
        write_ome_zarr(target, grid, _ome_version(ome_version))
    elif suffix == ".emd":
        write_emd(target, grid)
    elif suffix in GRID_SUFFIXES:
        write_tiff(target, grid, ome=suffix.startswith(".ome"))
    else:
        raise UserError(
            f"{target}: {suffix} holds atoms, not a grid; choose one of {', '.join(GRID_SUFFIXES)}"
        )


def _ome_version(version: str) -> OmeVersion:
    if version == "0.4" or version == "0.5":
        return version
    raise UserError(f"OME-Zarr {version}: this version is not written; choose 0.4 or 0.5")


def _export_atoms(folder: Path, target: Path, suffix: str, what: str | None) -> None:
    if what not in (None, "atoms"):
        grids = ", ".join(GRID_SUFFIXES)
        known = "" if what in ARTEFACTS else " (and a run has no such artefact)"
        raise UserError(f"{target}: {suffix} holds atoms, not {what}{known}; choose one of {grids}")
    atoms = sound_atoms(folder / "atoms.xyz")
    if suffix == ".cif":
        write_cif(target, atoms, name=folder.resolve().name)
    else:
        write_atoms(target, atoms)


def sound_atoms(path: Path) -> Any:
    """ASE atoms of an ``atoms.xyz``.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    try:
        atoms = read_atoms(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: the file is damaged ({reason}); run the analysis stage again") from error
    spread = atoms.arrays.get("position_error", atoms.positions)
    numbers = [atoms.arrays[name] for name in NUMBERS if name in atoms.arrays]
    sound = spread.shape == atoms.positions.shape and spread.dtype.kind == "f"
    sound &= all(values.ndim == 1 and values.dtype.kind in "if" for values in numbers)
    if not (sound and np.isfinite(atoms.positions).all()):
        raise UserError(
            f"{path}: the file is damaged (atoms lack numbers they should have); run the analysis stage again"
        )
    return atoms
