"""Patterns in Zarr stores, version 2 or 3, as folders or ZIP files.

The metadata are read and judged here before Zarr sees them: an array that Zarr cannot decode (the object
array ``/meta`` of the paper's own data) must not hide the patterns beside it, a codec that could run code
(pickle) must never start, and a declared shape must be honest.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from petomo.core.errors import UserError
from petomo.io.calibration import axes_attributes
from petomo.io.file_source import FileSource, check_number_type, check_size, choose_array
from petomo.io.hdf5_metadata import instrument_attributes

ZARR_SUFFIXES = (".zarr", ".zip", ".zspy")
_METADATA = (".zarray", "zarr.json")
_MAX_METADATA = 2**22
_SAFE_CODECS = {
    "adler32", "astype", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset",
    "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits", "pcodec", "quantize", "shuffle",
    "sharding_indexed", "transpose", "zfpy", "zlib", "zstd",
}  # fmt: skip


class ZarrFiles:
    """The files of a store, read without Zarr."""

    def __init__(self, path: Path):
        self.path = path
        self._zip = None
        if path.is_file():
            if not zipfile.is_zipfile(path):
                raise zipfile.BadZipFile("not a ZIP file")
            with zipfile.ZipFile(path) as archive:
                self._zip = {item.filename: item for item in archive.infolist()}

    def read(self, key: str) -> bytes | None:
        """Content of a small file, or None if there is none."""
        if self._zip is not None:
            item = self._zip.get(key)
            if item is None:
                return None
            if item.file_size > _MAX_METADATA:
                raise ValueError(f"{key} is {item.file_size} bytes long")
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(item)
        file = self.path / key
        if not file.is_file():
            return None
        if file.stat().st_size > _MAX_METADATA:
            raise ValueError(f"{key} is {file.stat().st_size} bytes long")
        return file.read_bytes()

    def json(self, key: str) -> dict[str, Any]:
        """A metadata file as a dictionary; empty if there is none."""
        content = self.read(key)
        value = json.loads(content) if content is not None else {}
        if not isinstance(value, dict):
            raise ValueError(f"{key} does not hold a group of keys")
        return value

    def arrays(self) -> dict[str, dict[str, Any]]:
        """Metadata of every array by its path ("" = the root itself)."""
        found = {}
        for key in self._metadata_keys():
            content = self.json(key)
            if content.get("node_type", "array") == "array":
                found[key.rpartition("/")[0]] = content
        return dict(sorted(found.items()))

    def _metadata_keys(self) -> Iterator[str]:
        if self._zip is not None:
            yield from (name for name in self._zip if name.rpartition("/")[2] in _METADATA)
            return
        for folder, folders, files in os.walk(self.path):
            relative = Path(folder).relative_to(self.path).as_posix()
            here = [name for name in _METADATA if name in files]
            yield from (name if relative == "." else f"{relative}/{name}" for name in here)
            if ".zarray" in here:
                folders.clear()  # below are only chunks
            elif "zarr.json" in here:
                folders[:] = [name for name in folders if name != "c"]

    def stored(self, name: str) -> int:
        """Bytes of the chunks of one array."""
        if self._zip is not None:
            prefix = f"{name}/" if name else ""
            return sum(item.compress_size for key, item in self._zip.items() if key.startswith(prefix))
        return sum(
            os.path.getsize(os.path.join(folder, file))
            for folder, _, files in os.walk(self.path / name)
            for file in files
        )

    def attributes(self, name: str) -> dict[str, Any]:
        """Attributes of the root, then of the groups on the way, then of the array, the inner ones last."""
        found: dict[str, Any] = {}
        parts = name.split("/") if name else []
        for depth in range(len(parts) + 1):
            prefix = "/".join([*parts[:depth], ""])
            found |= self.json(f"{prefix}.zattrs") or self.json(f"{prefix}zarr.json").get("attributes") or {}
        return found


def _codecs(entries: list[Any]) -> Iterator[str]:
    """Names of all codecs in a list of settings, nested ones included."""
    for entry in entries:
        if isinstance(entry, dict):
            yield str(entry.get("id", entry.get("name", ""))).removeprefix("numcodecs.")
            settings = entry.get("configuration") or {}
            for key in ("codecs", "index_codecs"):
                yield from _codecs(settings.get(key) or [])


def _chunk(metadata: dict[str, Any]) -> tuple[int, ...] | None:
    grid = metadata.get("chunks") or metadata.get("chunk_grid", {}).get("configuration", {}).get(
        "chunk_shape"
    )
    return tuple(grid) if grid else None


@contextmanager
def open_zarr_array(path: Path, name: str) -> Iterator[Any]:
    """One array of a Zarr store, closed afterwards."""
    store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
    try:
        yield zarr.open_array(store, path=name, mode="r")
    finally:
        store.close()


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
        codecs = found[name].get("codecs") or []
        codecs = [*codecs, found[name].get("compressor"), *(found[name].get("filters") or [])]
        for codec in _codecs(codecs):
            if codec not in _SAFE_CODECS:
                raise UserError(
                    f"{path}: array `{name}` is stored with the codec {codec or 'without a name'}, which "
                    "petomo does not run; store it again with blosc, zstd, gzip or no compression"
                )
        dtype = found[name].get("dtype") or found[name].get("data_type")
        check_size(path, shapes[name], _numpy_type(dtype), partial(files.stored, name), _chunk(found[name]))
        with open_zarr_array(path, name) as array:
            check_number_type(path, array.dtype)
            shape = tuple(array.shape)
        attributes, origins, remark = _calibration(files, found, name, shape)
        return FileSource(partial(open_zarr_array, path, name), shape, attributes, origins, remark)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
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
    from petomo.io.zarr_meta import read_record, record_attributes

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
            _chunk(metadata),
            files.attributes(name),
        )
        for name, metadata in files.arrays().items()
    ]
