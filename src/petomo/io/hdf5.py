"""Patterns in HDF5 files of any layout; known layouts (EMD, HyperSpy, NeXus) also give their calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from petomo.core.errors import UserError
from petomo.io.calibration import as_string
from petomo.io.dectris import is_master, open_dectris
from petomo.io.file_source import FileSource, Source, check_number_type, check_size, choose_array
from petomo.io.hdf5_metadata import conventions, nexus_signals
from petomo.io.honest import could_swell, refuse_swelling, touched, unpacks_to_more
from petomo.io.need_filters import need_filters
from petomo.io.sparse import is_sparse, open_sparse


@dataclass(frozen=True)
class _Checked:
    """A gzip-compressed dataset whose blocks are looked at before HDF5 unpacks them, each once."""

    path: Path
    dataset: Any
    seen: set[tuple[int, ...]]

    @property
    def dtype(self) -> Any:
        return self.dataset.dtype

    def __getitem__(self, where: Any) -> Any:
        chunks, identity = self.dataset.chunks, self.dataset.id
        size = math.prod(chunks) * self.dtype.itemsize
        for index in touched(self.dataset.shape, chunks, where):
            if index in self.seen:
                continue
            offset = tuple(number * length for number, length in zip(index, chunks, strict=True))
            stored = identity.get_chunk_info_by_coord(offset).size
            if could_swell("zlib", stored or 0, size):
                mask, block = identity.read_direct_chunk(offset)
                if not mask and unpacks_to_more("zlib", block, size):
                    raise refuse_swelling(self.path)
            self.seen.add(index)
        return self.dataset[where]


def _is_deflated(dataset: Any) -> bool:
    """Whether the last filter to have acted, checksums apart, was gzip."""
    properties = dataset.id.get_create_plist()
    codes = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    codes = [code for code in codes if code != h5py.h5z.FILTER_FLETCHER32]
    return bool(codes) and codes[-1] == h5py.h5z.FILTER_DEFLATE


@contextmanager
def _hdf5_array(path: Path, name: str, seen: set[tuple[int, ...]]) -> Iterator[Any]:
    with h5py.File(path, "r") as file:
        dataset = file[name]
        yield _Checked(path, dataset, seen) if _is_deflated(dataset) else dataset


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
            return FileSource(partial(_hdf5_array, path, name, set()), array.shape, attributes, origins)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: this is not a readable HDF5 file ({_line(error)})") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
