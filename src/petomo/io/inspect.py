"""What a file or a run folder holds, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np

from petomo.core.errors import UserError
from petomo.io.artefacts import read_json
from petomo.io.hdf5 import hdf5_datasets
from petomo.io.metrics import read_metrics
from petomo.io.sources import open_npy
from petomo.io.volumes import read_mrc
from petomo.io.zarr_files import ZARR_SUFFIXES, zarr_lines


def _attribute_lines(attributes: Any) -> list[str]:
    return [f"  {key} = {value}" for key, value in dict(attributes).items()]


def _array_line(name: str, array: Any) -> str:
    chunks = getattr(array, "chunks", None)
    return f"{name}: {tuple(array.shape)} {array.dtype}" + (f", chunks {tuple(chunks)}" if chunks else "")


def _hdf5(path: Path) -> list[str]:
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
    """Shapes, number types and attributes of a data file, volume or run folder.

    Raises
    ------
    UserError
        If the file is missing, damaged or of an unknown format.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file; give a data file, a volume or a run folder")
    suffix = path.suffix.lower()
    try:
        if (path / "state.json").is_file():
            return _run_folder(path)
        if path.is_dir() or suffix in ZARR_SUFFIXES:
            return _zarr(path)
        if suffix == ".npy":
            source = open_npy(path)
            return [
                f"{source.array_shape}, {source.shape[0]} patterns of {source.shape[1]} x {source.shape[2]}"
            ]
        if h5py.is_hdf5(path):
            return _hdf5(path)
        if suffix in (".mrc", ".map", ".rec", ".st"):
            return _mrc(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, BadZipFile) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise UserError(f"{path}: this cannot be read ({reason})") from error
    raise UserError(f"{path}: the format is not known; give HDF5, Zarr, NPY, MRC or a run folder")
