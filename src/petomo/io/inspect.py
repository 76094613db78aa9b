"""What a file or a run folder holds, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np

from petomo.core.errors import UserError
from petomo.io.angles import read_angles
from petomo.io.artefacts import read_json
from petomo.io.hdf5 import hdf5_datasets
from petomo.io.heaps import refuse_endless_heap
from petomo.io.metadata import as_text
from petomo.io.metrics import read_metrics
from petomo.io.sources import PATTERN_SUFFIXES, open_source
from petomo.io.volumes import read_mrc
from petomo.io.zarr_files import ZARR_SUFFIXES, zarr_lines

_TILTS = (".tlt", ".rawtlt", ".mdoc", ".star", ".json")


def _attribute_lines(attributes: Any) -> list[str]:
    return [f"  {key} = {value}" for key, value in dict(attributes).items()]


def _array_line(name: str, array: Any) -> str:
    chunks = getattr(array, "chunks", None)
    return f"{name}: {tuple(array.shape)} {array.dtype}" + (f", chunks {tuple(chunks)}" if chunks else "")


def _hdf5(path: Path) -> list[str]:
    refuse_endless_heap(path)
    with h5py.File(path, "r") as file:
        lines = _attribute_lines(file.attrs)
        for name, dataset in hdf5_datasets(file).items():
            lines += [_array_line(f"/{name}", dataset), *_attribute_lines(dataset.attrs)]
    return lines


def _zarr(path: Path) -> list[str]:
    lines = []
    for name, shape, dtype, chunks, attributes in zarr_lines(path):
        lines += [
            f"/{name}: {shape} {dtype}" + (f", chunks {chunks}" if chunks else ""),
            *_attribute_lines(attributes),
        ]
    return lines


def _mrc(path: Path) -> list[str]:
    data, voxel = read_mrc(path)
    size = " x ".join(f"{length:.4g}" for length in voxel)
    return [
        f"{data.shape} {data.dtype}, voxel {size} A (z y x)",
        f"from {np.min(data):.5g} to {np.max(data):.5g}, mean {np.mean(data):.5g}",
    ]


def _run_folder(path: Path) -> list[str]:
    finished = read_json(path / "state.json")["finished"]
    lines = [f"a run; finished: {', '.join(finished) or 'no stage yet'}"]
    last = {record["stage"]: record for record in read_metrics(path / "metrics.jsonl")}
    lines += [
        f"{stage}: iteration {record['iteration']}, loss {record['loss']}" for stage, record in last.items()
    ]
    return [
        *lines,
        "files: " + ", ".join(sorted(item.name for item in path.iterdir() if item.name[0] != ".")),
    ]


def describe_file(path: str | Path) -> list[str]:
    """Shapes, number types and attributes of a data file, volume, table of tilts or run folder.

    Raises
    ------
    UserError
        If the file is missing, damaged or of an unknown format.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file; give a data file, a volume or a run folder")
    try:
        if (path / "state.json").is_file():
            return _run_folder(path)
        if path.suffix.lower() in (".mrc", ".map", ".rec", ".st", ".ali"):
            return _mrc(path)
        if path.suffix.lower() in _TILTS:
            return _tilts(path)
        if not (path.is_dir() or path.suffix.lower() in PATTERN_SUFFIXES or h5py.is_hdf5(path)):
            raise UserError(
                f"{path}: the format is not known; give patterns, an MRC volume, tilts or a run folder"
            )
        return _stored(path) + _as_read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, BadZipFile) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise UserError(f"{path}: this cannot be read ({reason})") from error


def _stored(path: Path) -> list[str]:
    """What a container of arrays holds."""
    if path.is_dir() or path.suffix.lower() in ZARR_SUFFIXES:
        return _zarr(path)
    return _hdf5(path) if h5py.is_hdf5(path) else []


def _as_read(path: Path) -> list[str]:
    """The patterns, and what was found about them under other names than petomo's."""
    try:
        source = open_source(path)
    except UserError:
        if _stored(path):
            return []  # a container without patterns, or with several arrays that could be
        raise
    count, ky, kx = source.shape
    lines = [f"read as {source.array_shape}, {count} patterns of {ky} x {kx}"]
    for key, where in source.origins.items():
        lines.append(f"  {key} = {as_text(source.attributes[key])} (from {where})")
    return lines + ([f"  {source.remark}"] if source.remark else [])


def _tilts(path: Path) -> list[str]:
    angles = read_angles(path)
    return [f"{len(angles)} stage tilts from {min(angles):g} to {max(angles):g} degrees"]
