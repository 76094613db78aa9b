"""Patterns in Zarr stores, version 2 or 3, as folders or ZIP files; see `petomo.io.zarr_store`."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from petomo.core.errors import UserError
from petomo.io.calibration import axes_attributes
from petomo.io.file_source import FileSource, check_number_type, check_size, choose_array
from petomo.io.hdf5_metadata import instrument_attributes
from petomo.io.honest import could_swell, refuse_swelling, touched, unpacks_to_more
from petomo.io.zarr_meta import read_record, record_attributes
from petomo.io.zarr_store import ZarrFiles, chunk_key, chunk_of, codecs_of

ZARR_SUFFIXES = (".zarr", ".zip", ".zspy")
_SAFE_CODECS = {
    "adler32", "astype", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset",
    "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits", "pcodec", "quantize", "shuffle",
    "sharding_indexed", "transpose", "zfpy", "zlib", "zstd",
}  # fmt: skip


@dataclass(frozen=True)
class _Checked:
    """An array whose blocks are looked at before they are unpacked, each once."""

    files: ZarrFiles
    name: str
    array: Any
    metadata: dict[str, Any]
    seen: set[tuple[int, ...]]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, where: Any) -> np.ndarray:
        codecs, chunks = codecs_of(self.metadata), chunk_of(self.metadata)
        if chunks is not None and "sharding_indexed" not in codecs:
            size = math.prod(chunks) * self.dtype.itemsize
            for index in touched(self.array.shape, chunks, where):
                if index not in self.seen:
                    self._look(chunk_key(self.metadata, self.name, index), codecs[-1] if codecs else "", size)
                    self.seen.add(index)
        return np.asarray(self.array[where])

    def _look(self, key: str, codec: str, size: int) -> None:
        stored = self.files.length(key)
        if stored > 2 * size + 2**16:
            raise refuse_swelling(self.files.path)
        if could_swell(codec, stored, size):
            streamed = codec in ("zlib", "gzip", "bz2", "lzma")
            # filters may change the size of numbers, at most from one byte to eight
            if unpacks_to_more(codec, self.files.first(key, stored if streamed else 32), 8 * size):
                raise refuse_swelling(self.files.path)


@lru_cache(maxsize=128)
def _opened(path: Path, name: str, stamp: tuple[int, int], process: int) -> _Checked:  # noqa: ARG001
    """An open array; the list of a large archive takes a second to read, so it is read once.

    ``stamp`` (time and size of the file) and ``process`` see to it that a new file, and a forked process,
    open it anew.
    """
    files = ZarrFiles(path)
    store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
    return _Checked(files, name, zarr.open_array(store, path=name, mode="r"), files.arrays()[name], set())


@contextmanager
def open_zarr_array(path: Path, name: str) -> Iterator[_Checked]:
    """One array of a Zarr store."""
    status = path.stat()
    yield _opened(path, name, (status.st_mtime_ns, status.st_size), os.getpid())


def open_zarr(path: Path, dataset: str | None = None) -> FileSource:
    """Patterns of one Zarr array.

    Raises
    ------
    UserError
        If the store is damaged, holds no patterns, or asks for a codec that could run code.
    """
    try:
        files = ZarrFiles(path)
        found = files.arrays()
        if not found:
            raise UserError(f"{path}: this is not a readable Zarr store (there is no array in it)")
        shapes = {key: tuple(int(length) for length in meta["shape"]) for key, meta in found.items()}
        name = choose_array(path, shapes, dataset)
        for codec in codecs_of(found[name]):
            if codec not in _SAFE_CODECS:
                raise UserError(
                    f"{path}: array `{name}` is stored with the codec {codec or 'without a name'}, which "
                    "petomo does not run; store it again with blosc, zstd, gzip or no compression"
                )
        dtype = found[name].get("dtype") or found[name].get("data_type")
        check_size(path, shapes[name], _numpy_type(dtype), partial(files.stored, name), chunk_of(found[name]))
        with open_zarr_array(path, name) as array:
            check_number_type(path, array.dtype)
            shape = tuple(array.array.shape)
        attributes, origins, remark = _calibration(files, found, name, shape)
        return FileSource(partial(open_zarr_array, path, name), shape, attributes, origins, remark)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
        MemoryError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(
            f"{path}: this is not a readable Zarr store ({(str(error).splitlines() or ['damaged'])[0]})"
        ) from error


def _numpy_type(name: Any) -> np.dtype:
    return np.dtype(name) if isinstance(name, str) else np.dtype(np.float64)


def _calibration(
    files: ZarrFiles, found: dict[str, dict[str, Any]], name: str, shape: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, str], str]:
    """Attributes, where they come from, and what to say if they are not enough."""
    attributes, origins, remark = _hyperspy(files, name, len(shape))
    for other, metadata in found.items():
        if other.rpartition("/")[2] == "meta" and other != name:
            record, remark = read_record(files, other, metadata)
            extra, where = record_attributes(record, other, shape)
            attributes |= extra
            origins |= where
    return attributes | files.attributes(name), origins, remark


def _hyperspy(files: ZarrFiles, name: str, ndim: int) -> tuple[dict[str, Any], dict[str, str], str]:
    """HyperSpy's .zspy: axes as attributes of groups ``axis-0``... beside the data."""
    parent = f"{name.rpartition('/')[0]}/" if "/" in name else ""
    axes = [files.json(f"{parent}axis-{number}/.zattrs") for number in range(ndim)]
    if not all(axes):
        return {}, {}, ""
    names = [str(axis.get("name", number)) for number, axis in enumerate(axes)]
    attributes, origins = axes_attributes(
        [(axis.get("scale"), axis.get("units", "")) for axis in axes], names
    )
    instrument = f"{parent}metadata/Acquisition_instrument/TEM"
    values = files.json(f"{instrument}/.zattrs") | files.json(f"{instrument}/Stage/.zattrs")
    found, where = instrument_attributes(values, "Acquisition_instrument/TEM")
    return attributes | found, origins | where, ""


def zarr_lines(path: Path) -> list[tuple[str, tuple[int, ...], str, tuple[int, ...] | None, dict[str, Any]]]:
    """(path, shape, number type, chunks, attributes) of every array, whether Zarr can decode it or not."""
    files = ZarrFiles(path)
    return [
        (
            name,
            tuple(metadata["shape"]),
            str(metadata.get("dtype") or metadata.get("data_type")),
            chunk_of(metadata),
            files.attributes(name),
        )
        for name, metadata in files.arrays().items()
    ]
