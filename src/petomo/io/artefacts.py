"""The files of a run folder, one pair of functions each; everything is written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io.atomic import atomic_hdf5, atomic_path, write_text

POSE_CONVENTION = "r_lab = Rz(psi) Ry(theta) Rx(phi) r_sample + (tau_x, tau_y, 0)"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _finite(value: Any) -> Any:
    """NaN and infinity as null, which JSON has no numbers for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; tensors and arrays become lists, NaN and infinity null."""
    plain = json.loads(json.dumps(value, default=_jsonable))
    return json.dumps(_finite(plain), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON; see `to_json`."""
    write_text(path, to_json(value, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; the stage that writes it has not run") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: this is not valid JSON ({error}); run the stage that writes it again"
        ) from error


@contextmanager
def _old_hdf5(path: str | Path) -> Iterator[h5py.File]:
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; the stage that writes it has not run")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError) as error:
        raise UserError(
            f"{path}: the file is damaged ({error}); run the stage that writes it again"
        ) from error


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().resolve_conj().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _tilt(number: int) -> str:
    return f"tilt_{number:02d}"


def _tilts(file: h5py.File) -> list[Any]:
    """The tilts' groups in order, past a hundred too."""
    return [file[name] for name in sorted(file, key=lambda name: int(str(name).partition("_")[2]))]


def write_poses(path: str | Path, poses: Poses, names: Sequence[str]) -> None:
    """Write ``poses.json``: angles in degrees, tau in angstrom, one entry per tilt."""
    angles = {
        key: torch.rad2deg(getattr(poses, key).detach().double()).tolist() for key in ("phi", "theta", "psi")
    }
    tilts = [
        {
            "name": name,
            **{f"{key}_degree": values[number] for key, values in angles.items()},
            "tau_angstrom": poses.tau[number].detach().double().tolist(),
        }
        for number, name in zip(range(len(poses)), names, strict=True)
    ]
    write_json(path, {"convention": POSE_CONVENTION, "tilts": tilts})


def read_poses(path: str | Path) -> tuple[Poses, list[str]]:
    """Poses (float64) and tilt names from ``poses.json``."""
    content = read_json(path)
    try:
        tilts = content["tilts"]
        phi, theta, psi = (
            torch.deg2rad(torch.tensor([float(tilt[f"{key}_degree"]) for tilt in tilts], dtype=torch.float64))
            for key in ("phi", "theta", "psi")
        )
        tau = torch.tensor([tilt["tau_angstrom"] for tilt in tilts], dtype=torch.float64).reshape(-1, 2)
        return Poses(phi, theta, psi, tau), [
            str(tilt.get("name", number)) for number, tilt in enumerate(tilts)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"{path}: this should hold `tilts`, each with phi_degree, theta_degree, psi_degree "
            "and tau_angstrom [x, y]"
        ) from error


@dataclass(frozen=True)
class Probes:
    """Content of ``probes.h5``.

    Parameters
    ----------
    modes : list of Tensor
        One ``mode y x`` complex64 tensor per tilt, real space, centred at ``n // 2``.
    pixel_size : (float, float)
        (y, x) in angstrom.
    energy_ev : float
        Beam energy.
    defocus : list of float
        Fitted at z = 0, in angstrom, positive = underfocus; NaN where unknown.
    """

    modes: list[Tensor]
    pixel_size: tuple[float, float]
    energy_ev: float
    defocus: list[float]


def write_probes(
    path: str | Path,
    probes: Tensor | Sequence[Tensor],
    pixel_size: tuple[float, float],
    energy_ev: float,
    defocus: Sequence[float | None],
) -> None:
    """Write ``probes.h5`` from probes ``(tilt, mode, y, x)``; see `Probes` for units."""
    with atomic_hdf5(path) as file:
        for number, (modes, value) in enumerate(zip(probes, defocus, strict=True)):
            array = _array(modes).astype(np.complex64)
            data = file.create_dataset(f"{_tilt(number)}/probe", data=array)
            power = (np.abs(array) ** 2).sum((1, 2))
            data.attrs["pixel_size_angstrom"] = np.asarray(pixel_size, float)
            data.attrs["energy_ev"] = float(energy_ev)
            data.attrs["defocus_angstrom"] = math.nan if value is None else float(value)
            data.attrs["mode_powers"] = power / max(float(power.sum()), np.finfo(float).tiny)


def read_probes(path: str | Path) -> Probes:
    """Read ``probes.h5``."""
    with _old_hdf5(path) as file:
        items: list[Any] = [tilt["probe"] for tilt in _tilts(file)]
        if not items:
            raise UserError(f"{path}: there are no probes in this file; run ptychography again")
        attributes = items[0].attrs
        y, x = (float(size) for size in attributes["pixel_size_angstrom"])
        return Probes(
            [torch.from_numpy(item[()]) for item in items],
            (y, x),
            float(attributes["energy_ev"]),
            [float(item.attrs["defocus_angstrom"]) for item in items],
        )


def write_positions(path: str | Path, positions: Sequence[Tensor], initial: Sequence[Tensor]) -> None:
    """Write ``positions.h5``: refined and initial scan positions ``(k, 2)``, (x, y) in angstrom, per tilt."""
    with atomic_hdf5(path) as file:
        for number, (refined, start) in enumerate(zip(positions, initial, strict=True)):
            for name, value in (("positions", refined), ("initial", start)):
                data = file.create_dataset(f"{_tilt(number)}/{name}", data=_array(value).astype(np.float64))
                data.attrs["unit"], data.attrs["order"] = "angstrom", "x y"


def read_positions(path: str | Path) -> tuple[list[Tensor], list[Tensor]]:
    """Refined and initial positions per tilt, float64 ``(k, 2)``."""
    with _old_hdf5(path) as file:
        refined, initial = (
            [torch.from_numpy(tilt[key][()]) for tilt in _tilts(file)] for key in ("positions", "initial")
        )
    return refined, initial


def write_bright_field(path: str | Path, tilts: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Write ``bright_field.h5``.

    Parameters
    ----------
    path : path
        File to write.
    tilts : sequence of (phase, attributes)
        Phase image ``scan_y scan_x`` in radian and what was fitted: ``method``, ``reason``,
        ``defocus_angstrom``, ``C12_angstrom``, ``phi12_degree``, ``scan_rotation_degree``, ``contrast``.
    """
    with atomic_hdf5(path) as file:
        for number, (phase, attributes) in enumerate(tilts):
            data = file.create_dataset(f"{_tilt(number)}/phase", data=_array(phase))
            data.attrs.update({key: value for key, value in attributes.items() if value is not None})


def read_bright_field(path: str | Path) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Phase image and fitted values per tilt; see `write_bright_field`."""
    with _old_hdf5(path) as file:
        return [(tilt["phase"][()], dict(tilt["phase"].attrs)) for tilt in _tilts(file)]


def write_patterns(path: str | Path, patterns: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``patterns.h5``: measured and model patterns in electrons, centred.

    Parameters
    ----------
    path : path
        File to write.
    patterns : mapping
        ``worst`` and ``median`` to ``{"measured": (ky kx), "model": (ky kx), "tilt", "index", "loss"}``.
    """
    with atomic_hdf5(path) as file:
        for name, entry in patterns.items():
            group = file.create_group(name)
            for key in ("measured", "model"):
                group.create_dataset(key, data=_array(entry[key]).astype(np.float32))
            group.attrs.update({key: entry[key] for key in ("tilt", "index", "loss")})


def read_patterns(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read ``patterns.h5``; see `write_patterns`."""
    with _old_hdf5(path) as file:
        groups: dict[str, Any] = dict(file.items())
        return {
            name: {key: group[key][()] for key in ("measured", "model")} | dict(group.attrs)
            for name, group in groups.items()
        }


def write_half_volumes(path: str | Path, a: Any, b: Any, voxel_size: tuple[float, float, float]) -> None:
    """Write ``half_volumes.h5``: two independent ``z y x`` volumes in volts, voxel (z, y, x) in angstrom."""
    with atomic_hdf5(path) as file:
        for name, volume in (("a", a), ("b", b)):
            data = file.create_dataset(name, data=_array(volume).astype(np.float32))
            data.attrs["voxel_size_angstrom"] = np.asarray(voxel_size, float)


def read_half_volumes(path: str | Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Both half volumes and their voxel size (z, y, x)."""
    with _old_hdf5(path) as file:
        a, b = (file[name] for name in ("a", "b"))
        z, y, x = (float(size) for size in a.attrs["voxel_size_angstrom"])  # pyright: ignore
        return a[()], b[()], (z, y, x)  # pyright: ignore


def write_atoms(path: str | Path, atoms: Any) -> None:
    """Write ASE atoms, with their extra arrays, as extended XYZ."""
    import ase.io

    with atomic_path(path) as temporary:
        ase.io.write(temporary, atoms, format="extxyz")


def read_atoms(path: str | Path) -> Any:
    """ASE atoms from an extended XYZ file."""
    import ase.io

    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; the stage that writes it has not run")
    return ase.io.read(path, format="extxyz")
