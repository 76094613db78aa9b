"""Volumes and image stacks in the formats of other programs: OME-Zarr, EMD, TIFF."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import tifffile
import zarr
from zarr.codecs import GzipCodec

from petomo.core.errors import UserError
from petomo.io.atomic import atomic_path, disk_errors
from petomo.io.volumes import GridData

OmeVersion = Literal["0.4", "0.5"]
CHUNK = 64  # voxels along an axis; the smallest level of a pyramid fits into one chunk
_IMAGEJ_BYTES = 2**32 - 2**20  # classic TIFF has 32-bit addresses


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name once the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(path):
            yield temporary
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def halved(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean of pairs along ``axes``; an odd last plane stands for itself, so that nothing is cut off."""
    for axis in axes:
        even = np.concatenate([values, values.take([-1], axis)], axis) if values.shape[axis] % 2 else values
        pairs = (*even.shape[:axis], -1, 2, *even.shape[axis + 1 :])
        values = even.reshape(pairs).mean(axis + 1, dtype=np.float32)
    return values


def pyramid(grid: GridData) -> list[tuple[np.ndarray, list[float], list[float]]]:
    """Levels from fine to coarse: values, spacing and coordinate of the first point of each axis.

    Spatial axes are halved until the longest fits into a chunk. The first point of a level lies in the
    middle of the points it is the mean of, half a step to the right each time.
    """
    axes = tuple(i for i, axis in enumerate(grid.axes) if axis != "tilt")
    values, spacing, origin = grid.values, list(grid.spacing), list(grid.origin)
    levels = [(values, list(spacing), list(origin))]
    while max(values.shape[i] for i in axes) > CHUNK:
        values = halved(values, axes)
        for i in axes:
            origin[i] += spacing[i] / 2
            spacing[i] *= 2
        levels.append((values, list(spacing), list(origin)))
    return levels


def write_ome_zarr(path: str | Path, grid: GridData, version: OmeVersion = "0.4") -> None:
    """Write a multi-scale OME-Zarr folder (Moore et al., Histochem. Cell Biol. 160 (2023) 223).

    Parameters
    ----------
    path : path
        Folder to write; it must not be there yet.
    grid : GridData
        Written as float32; scale and translation put the coordinate zero where `GridData` has it.
    version : str
        ``"0.4"`` (Zarr v2) or ``"0.5"`` (Zarr v3).
    """
    levels = pyramid(grid)
    with _atomic_folder(Path(path)) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=2 if version == "0.4" else 3)
        for number, (values, _, _) in enumerate(levels):
            array = root.create_array(
                str(number), shape=values.shape, dtype="float32", **_storage(grid, values, version)
            )
            array[:] = values
        multiscale = _multiscale(grid, levels)
        if version == "0.4":
            root.attrs["multiscales"] = [multiscale | {"version": version}]
        else:
            root.attrs["ome"] = {"version": version, "multiscales": [multiscale]}


def _storage(grid: GridData, values: np.ndarray, version: OmeVersion) -> dict[str, Any]:
    """How an array is stored: gzip, which every reader knows; nested chunks, which 0.4 asks for."""
    chunks = tuple(1 if a == "tilt" else min(n, CHUNK) for a, n in zip(grid.axes, values.shape, strict=True))
    if version == "0.4":
        key = {"name": "v2", "separator": "/"}
        return {"chunks": chunks, "compressors": {"id": "gzip", "level": 1}, "chunk_key_encoding": key}
    return {"chunks": chunks, "compressors": GzipCodec(level=1), "dimension_names": grid.axes}


def _multiscale(grid: GridData, levels: list[tuple[np.ndarray, list[float], list[float]]]) -> dict[str, Any]:
    def axis(name: str) -> dict[str, str]:
        return {"name": name} if name == "tilt" else {"name": name, "type": "space", "unit": "angstrom"}

    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": spacing},
                {"type": "translation", "translation": origin},
            ],
        }
        for number, (_, spacing, origin) in enumerate(levels)
    ]
    return {
        "name": f"{grid.name} ({grid.unit})",
        "axes": [axis(name) for name in grid.axes],
        "datasets": datasets,
        "type": "mean",
    }


def write_emd(path: str | Path, grid: GridData) -> None:
    """Write an EMD 1.0 file (HDF5), which py4DSTEM's emdfile and RosettaSciIO read.

    Parameters
    ----------
    path : path
        File to write.
    grid : GridData
        Becomes ``/petomo_root/ARTEFACT``, with the coordinates of each axis in angstrom.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(emd_group_type="file", version_major=1, version_minor=0, authoring_program="petomo")
        file.attrs.update(authoring_user="", UUID=str(uuid.uuid4()))
        root = file.create_group("petomo_root")
        root.attrs.update(emd_group_type="root", python_class="Root")
        array = root.create_group(grid.name.replace(" ", "_"))
        array.attrs.update(emd_group_type="array", python_class="Array")
        data = array.create_dataset("data", data=np.asarray(grid.values, dtype=np.float32))
        data.attrs["units"] = grid.unit
        for i, (name, n) in enumerate(zip(grid.axes, grid.shape, strict=True)):
            dim = array.create_dataset(f"dim{i}", data=grid.origin[i] + np.arange(n) * grid.spacing[i])
            dim.attrs["name"], dim.attrs["units"] = name, "" if name == "tilt" else "A"


def write_tiff(path: str | Path, grid: GridData, ome: bool = False) -> None:
    """Write a TIFF stack, one page per plane, with the pixel size as ImageJ or OME metadata.

    Parameters
    ----------
    path : path
        File to write.
    grid : GridData
        Written as float32.
    ome : bool
        OME-TIFF (of any size) instead of ImageJ's hyperstack.

    Raises
    ------
    UserError
        If an ImageJ stack would pass 4 GiB.
    """
    values = np.ascontiguousarray(grid.values, dtype=np.float32)
    step, dy, dx = grid.spacing
    images = grid.axes[0] == "tilt"
    if ome:
        metadata = {"axes": "TYX" if images else "ZYX", "Name": f"{grid.name} ({grid.unit})"}
        metadata |= {"PhysicalSizeX": dx, "PhysicalSizeXUnit": "Å"}
        metadata |= {"PhysicalSizeY": dy, "PhysicalSizeYUnit": "Å"}
        metadata |= {} if images else {"PhysicalSizeZ": step, "PhysicalSizeZUnit": "Å"}
        options = {"ome": True, "metadata": metadata}
    else:
        if values.nbytes > _IMAGEJ_BYTES:
            raise UserError(f"{path}: the stack is too large for ImageJ's TIFF; use .ome.tif or .ome.zarr")
        _, y, x = (n // 2 for n in values.shape)
        metadata = {"axes": "TYX" if images else "ZYX", "unit": "angstrom", "xorigin": x, "yorigin": y}
        metadata |= {} if images else {"spacing": step, "zorigin": values.shape[0] // 2}
        metadata |= {"min": float(values.min()), "max": float(values.max())}
        options = {"imagej": True, "resolution": (1 / dx, 1 / dy), "metadata": metadata}
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, values, photometric="minisblack", **options)
