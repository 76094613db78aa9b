"""Patterns in HDF5, Zarr and NPY files, read lazily: only the scan positions asked for leave the disk."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from petomo.core.errors import UserError

HDF5_SUFFIXES = (".h5", ".hdf5", ".emd", ".hspy", ".nxs", ".mat")
ZARR_SUFFIXES = (".zarr", ".zip", ".zspy")


@dataclass(frozen=True)
class FileSource:
    """Patterns of one array in a file, opened anew for every read.

    Parameters
    ----------
    open : callable
        Context manager that gives an array ``(scan_y, scan_x, ky, kx)`` or ``(k, ky, kx)``
        which reads only what a slice asks for.
    array_shape : tuple of int
        The array's shape as stored.
    attributes : dict
        Metadata found with it.
    """

    open: Callable[[], AbstractContextManager[Any]]
    array_shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        return (int(np.prod(self.array_shape[:-2])), *self.array_shape[-2:])  # pyright: ignore[reportReturnType]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Patterns ``(len(indices), ky, kx)`` in the order asked for, in the file's number type."""
        indices = np.asarray(indices)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.shape[0]):
            raise IndexError(f"scan index outside 0 to {self.shape[0] - 1}")
        wanted, inverse = np.unique(indices, return_inverse=True)
        with self.open() as array:
            out = np.empty((len(wanted), *self.shape[1:]), array.dtype)
            for start, stop, where in _runs(wanted, self.array_shape):
                out[start:stop] = array[where]
        return out if np.array_equal(inverse, np.arange(len(out))) else out[inverse]


def _runs(wanted: np.ndarray, array_shape: tuple[int, ...]) -> Iterator[tuple[int, int, Any]]:
    """Neighbouring scan positions of one scan row, as (start, stop) in ``wanted`` and a slice."""
    if not len(wanted):
        return
    width = array_shape[1] if len(array_shape) == 4 else array_shape[0]
    breaks = (np.diff(wanted) > 1) | (np.diff(wanted // width) > 0)
    edges = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(wanted)]])
    for start, stop in itertools.pairwise(edges):
        row, column = divmod(int(wanted[start]), width)
        columns = slice(column, column + int(stop - start))
        yield int(start), int(stop), ((row, columns) if len(array_shape) == 4 else columns)


def _choose(path: Path, found: dict[str, Any], dataset: str | None) -> str:
    """Name of the array to read among ``found`` (name -> array)."""
    stacks = {name: array for name, array in found.items() if array.ndim in (3, 4)}
    listed = ", ".join(f"{name} {tuple(array.shape)}" for name, array in stacks.items()) or "none"
    if dataset is not None:
        name = dataset.strip("/")
        if name not in found:
            raise UserError(
                f"{path}: there is no dataset `{dataset}`; data.dataset could be one of: {listed}"
            )
        if name not in stacks:
            raise UserError(
                f"{path}: dataset `{dataset}` has shape {tuple(found[name].shape)}, but should have "
                f"three or four axes (scan, then ky kx); data.dataset could be one of: {listed}"
            )
        return name
    for ndim in (4, 3):
        names = [name for name, array in stacks.items() if array.ndim == ndim]
        if len(names) == 1:
            return names[0]
        if names:
            raise UserError(
                f"{path}: several datasets could be the patterns; set data.dataset to one of: {listed}"
            )
    raise UserError(f"{path}: there is no dataset with three or four axes (scan, then ky kx) in this file")


def _attributes(*holders: Any) -> dict[str, Any]:
    """Attributes of the file, then of the group and the dataset, the inner ones last."""
    return {key: value for holder in holders for key, value in dict(holder.attrs).items()}


@contextmanager
def _hdf5_array(path: Path, name: str) -> Iterator[Any]:
    with h5py.File(path, "r") as file:
        yield file[name]


def hdf5_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset in an HDF5 file by its path."""
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def open_hdf5(path: Path, dataset: str | None = None) -> FileSource:
    """Patterns of one HDF5 dataset."""
    try:
        with h5py.File(path, "r") as file:
            found = hdf5_datasets(file)
            name = _choose(path, found, dataset)
            array = found[name]
            check_number_type(path, array.dtype)
            return FileSource(
                partial(_hdf5_array, path, name), array.shape, _attributes(file, array.parent, array)
            )
    except OSError as error:
        raise UserError(f"{path}: this is not a readable HDF5 file ({str(error).splitlines()[0]})") from error


@contextmanager
def open_zarr_node(path: Path) -> Iterator[Any]:
    """The root array or group of a Zarr v2 or v3 folder or ZIP file, closed afterwards."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("not a ZIP file")
    store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
    try:
        yield zarr.open(store, mode="r")
    finally:
        store.close()


@contextmanager
def _zarr_array(path: Path, name: str) -> Iterator[Any]:
    with open_zarr_node(path) as node:
        yield node[name] if name else node


def zarr_arrays(node: Any) -> dict[str, Any]:
    """Every array below a Zarr node by its path."""
    if isinstance(node, zarr.Array):
        return {"": node}
    return {name: item for name, item in node.members(max_depth=None) if isinstance(item, zarr.Array)}


def open_zarr(path: Path, dataset: str | None = None) -> FileSource:
    """Patterns of one Zarr array (v2 or v3, folder or ZIP)."""
    try:
        with open_zarr_node(path) as node:
            found = zarr_arrays(node)
            name = _choose(path, found, dataset)
            check_number_type(path, found[name].dtype)
            groups = (node, node[str(Path(name).parent)]) if "/" in name else (node,)
            return FileSource(
                partial(_zarr_array, path, name), found[name].shape, _attributes(*groups, found[name])
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: this is not a readable Zarr store ({str(error).splitlines()[0]})"
        ) from error


@contextmanager
def _npy_array(path: Path) -> Iterator[Any]:
    yield np.load(path, mmap_mode="r", allow_pickle=False)


def open_npy(path: Path, dataset: str | None = None) -> FileSource:
    """Patterns of a NumPy file, memory mapped."""
    if dataset is not None:
        raise UserError(f"{path}: a NumPy file has no datasets inside; leave data.dataset out")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: this is not a readable NumPy array of numbers ({error})") from error
    if array.ndim not in (3, 4):
        raise UserError(f"{path}: the array has shape {array.shape}, but should have three or four axes")
    check_number_type(path, array.dtype)
    return FileSource(partial(_npy_array, path), array.shape)


def check_number_type(path: Path, dtype: Any) -> None:
    """Refuse anything but integers and floats."""
    if np.dtype(dtype).kind not in "uif":
        raise UserError(
            f"{path}: the patterns have type {dtype}, but should be integer or floating point counts"
        )


def open_source(path: Path, dataset: str | None = None) -> FileSource:
    """Patterns of one tilt, the format told by the file's name.

    Raises
    ------
    UserError
        If the file is missing, of an unknown format, or holds no patterns.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file; correct data.root or data.tilts")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return open_npy(path, dataset)
    if suffix in ZARR_SUFFIXES or path.is_dir():
        return open_zarr(path, dataset)
    if suffix in HDF5_SUFFIXES or h5py.is_hdf5(path):
        return open_hdf5(path, dataset)
    known = ", ".join((*HDF5_SUFFIXES, *ZARR_SUFFIXES, ".npy"))
    raise UserError(f"{path}: the format {suffix or 'without a suffix'} is not known; petomo reads {known}")
