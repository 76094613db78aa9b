"""Patterns in HDF5 files of any layout; known layouts (EMD, HyperSpy, NeXus) also give their calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from petomo.core.errors import UserError
from petomo.io.calibration import as_string
from petomo.io.dectris import is_master, open_dectris
from petomo.io.file_source import FileSource, Source, check_number_type, check_size, choose_array
from petomo.io.hdf5_metadata import conventions, nexus_signals
from petomo.io.need_filters import need_filters
from petomo.io.sparse import is_sparse, open_sparse


@contextmanager
def _hdf5_array(path: Path, name: str) -> Iterator[Any]:
    with h5py.File(path, "r") as file:
        yield file[name]


def hdf5_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset in an HDF5 file by its path; links to other files are not followed."""
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def _own_attributes(*holders: Any) -> dict[str, Any]:
    """Attributes of the file, then of the group and the dataset, the inner ones last."""
    return {key: value for holder in holders for key, value in dict(holder.attrs).items()}


def _refuse_elsewhere(path: Path, dataset: Any) -> None:
    """Refuse values that lie in files outside the folder of this one."""
    folder = path.resolve().parent
    names = [name for name, _, _ in dataset.external or ()]
    if dataset.is_virtual:
        names += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    for name in names:
        if not (folder / as_string(name)).resolve().is_relative_to(folder):
            raise UserError(
                f"{path}: dataset `{dataset.name}` takes its values from {as_string(name)}, outside the "
                "folder of this file; put that file beside it"
            )


def _name(path: Path, file: h5py.File, found: dict[str, h5py.Dataset], dataset: str | None) -> str:
    if dataset is None:
        signals = [name for name in nexus_signals(file) if name in found and found[name].ndim in (3, 4)]
        if len(signals) == 1:
            return signals[0]
    return choose_array(path, {name: array.shape or () for name, array in found.items()}, dataset)


def open_hdf5(path: Path, dataset: str | None = None) -> Source:
    """Patterns of one HDF5 dataset, or of electron events (4D Camera).

    Raises
    ------
    UserError
        If the file is damaged, holds no patterns, or keeps them where petomo does not look.
    """
    try:
        with h5py.File(path, "r") as file:
            if dataset is None and is_sparse(file):
                return open_sparse(path, file)
            if dataset is None and is_master(file):
                return open_dectris(path, file)
            found = hdf5_datasets(file)
            name = _name(path, file, found, dataset)
            array = found[name]
            check_number_type(path, array.dtype)
            _refuse_elsewhere(path, array)
            outside = array.is_virtual or array.external
            stored = None if outside else array.id.get_storage_size
            check_size(path, array.shape, array.dtype, stored, array.chunks)
            need_filters(path, array)
            attributes, origins = conventions(file, array)
            attributes |= _own_attributes(file, array.parent, array)
            return FileSource(partial(_hdf5_array, path, name), array.shape, attributes, origins)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: this is not a readable HDF5 file ({_line(error)})") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
