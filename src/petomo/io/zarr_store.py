"""What lies in a Zarr store, read without Zarr.

The metadata are read and judged here before Zarr sees them: an array that Zarr cannot decode (the object
array ``/meta`` of the paper's own data) must not hide the patterns beside it, a codec that could run code
(pickle) must never start, and a declared shape must be honest.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_METADATA = (".zarray", "zarr.json")
_DOCUMENTS = (*_METADATA, ".zgroup", ".zattrs", ".zmetadata")
_MAX_METADATA = 2**22


class ZarrFiles:
    """The files of a store, read without Zarr."""

    def __init__(self, path: Path):
        self.path = path
        self._archive, self._zip = None, None
        if path.is_file():
            if not zipfile.is_zipfile(path):
                raise zipfile.BadZipFile("not a ZIP file")
            self._archive = zipfile.ZipFile(path)
            self._zip = {item.filename: item for item in self._archive.infolist()}
            for name, item in self._zip.items():  # Zarr would unpack them whole
                if name.rpartition("/")[2] in _DOCUMENTS and item.file_size > _MAX_METADATA:
                    raise ValueError(f"{name} is {item.file_size} bytes long")

    def close(self) -> None:
        """Let go of the archive."""
        if self._archive is not None:
            self._archive.close()

    def length(self, key: str) -> int:
        """Bytes of a file; 0 if there is none."""
        if self._zip is not None:
            return self._zip[key].file_size if key in self._zip else 0
        try:
            return os.path.getsize(self.path / key)
        except OSError:
            return 0

    def first(self, key: str, count: int) -> bytes:
        """The first bytes of a file."""
        if self._archive is None:
            with open(self.path / key, "rb") as file:
                return file.read(count)
        try:
            with self._archive.open(key) as file:
                return file.read(count)
        except (EOFError, zlib.error) as error:
            raise zipfile.BadZipFile(f"{key} is cut short or damaged") from error

    def read(self, key: str) -> bytes | None:
        """Content of a small file, or None if there is none."""
        exists = key in self._zip if self._zip is not None else (self.path / key).is_file()
        if not exists:
            return None
        if self.length(key) > _MAX_METADATA:
            raise ValueError(f"{key} is {self.length(key)} bytes long")
        return self.first(key, _MAX_METADATA)

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


def _names_of(entries: list[Any]) -> Iterator[str]:
    """Names of all codecs in a list of settings, nested ones included."""
    for entry in entries:
        if isinstance(entry, dict):
            yield str(entry.get("id", entry.get("name", ""))).removeprefix("numcodecs.")
            settings = entry.get("configuration") or {}
            for key in ("codecs", "index_codecs"):
                yield from _names_of(settings.get(key) or [])


def codecs_of(metadata: dict[str, Any]) -> list[str]:
    """Names of all codecs of an array, the one that acted last on the bytes at the end."""
    entries = metadata.get("codecs") or [*(metadata.get("filters") or []), metadata.get("compressor")]
    return list(_names_of(entries))


def chunk_of(metadata: dict[str, Any]) -> tuple[int, ...] | None:
    """Shape of the chunks."""
    grid = metadata.get("chunks") or metadata.get("chunk_grid", {}).get("configuration", {}).get(
        "chunk_shape"
    )
    return tuple(grid) if grid else None


def chunk_key(metadata: dict[str, Any], name: str, index: tuple[int, ...]) -> str:
    """File of one chunk."""
    prefix, separator = (f"{name}/" if name else ""), metadata.get("dimension_separator", ".")
    if "codecs" in metadata:
        encoding = metadata.get("chunk_key_encoding") or {}
        default = encoding.get("name", "default") == "default"
        separator = (encoding.get("configuration") or {}).get("separator", "/" if default else ".")
        prefix += f"c{separator}" if default else ""
    return prefix + separator.join(map(str, index))
