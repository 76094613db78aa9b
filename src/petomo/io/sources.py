"""Patterns of one tilt from any file petomo knows, read lazily: only what is asked for leaves the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from petomo.core.errors import UserError
from petomo.io.empad import open_empad
from petomo.io.file_source import FileSource, Source, check_number_type, check_size
from petomo.io.hdf5 import open_hdf5
from petomo.io.heaps import refuse_endless_heap
from petomo.io.vendor import VENDOR_SUFFIXES, open_vendor, vendor_reader
from petomo.io.zarr_files import ZARR_SUFFIXES, open_zarr

__all__ = ["FileSource", "Source", "open_npy", "open_source"]

HDF5_SUFFIXES = (".h5", ".hdf5", ".emd", ".hspy", ".nxs", ".mat")
EMPAD_SUFFIXES = (".raw", ".xml")
PATTERN_SUFFIXES = (*HDF5_SUFFIXES, *ZARR_SUFFIXES, ".npy", *EMPAD_SUFFIXES, *VENDOR_SUFFIXES)


@contextmanager
def _npy_array(path: Path) -> Iterator[Any]:
    yield np.load(path, mmap_mode="r", allow_pickle=False)


def open_npy(path: Path, dataset: str | None = None) -> FileSource:
    """Patterns of a NumPy file, memory mapped."""
    if dataset is not None:
        raise UserError(f"{path}: a NumPy file has no datasets inside; leave data.dataset out")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = array.shape, array.dtype
    except Exception as error:  # a damaged header fails in NumPy's parser in many ways
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise UserError(f"{path}: this is not a readable NumPy array of numbers ({reason})") from error
    if len(shape) not in (3, 4):
        raise UserError(f"{path}: the array has shape {shape}, but should have three or four axes")
    check_number_type(path, dtype)
    check_size(path, shape, dtype)
    return FileSource(partial(_npy_array, path), shape)


def open_source(path: Path, dataset: str | None = None) -> Source:
    """Patterns of one tilt, the format told by the file's name and, for HDF5, by its content.

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
    if h5py.is_hdf5(path):
        refuse_endless_heap(path)
    if (reader := vendor_reader(path)) is not None:
        return open_vendor(path, reader, dataset)
    if suffix in HDF5_SUFFIXES or h5py.is_hdf5(path):
        return open_hdf5(path, dataset)
    if suffix in EMPAD_SUFFIXES:
        return open_empad(path, dataset)
    known = ", ".join(PATTERN_SUFFIXES)
    raise UserError(f"{path}: the format {suffix or 'without a suffix'} is not known; petomo reads {known}")
