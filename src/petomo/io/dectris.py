"""Dectris (Arina, Eiger, Quadro) series: a master file that links numbered data files beside it.

Read directly rather than through RosettaSciIO, whose reader loads all frames, takes every scan to be square
and stores 32-bit counts in 16 bits. The compression (bitshuffle) needs hdf5plugin, part of the extra
``readers``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from petomo.core.errors import UserError
from petomo.io.calibration import as_string
from petomo.io.file_source import FileSource, check_number_type, check_size
from petomo.io.hdf5_metadata import nexus_energy
from petomo.io.need_filters import need_filters

Parts = tuple[tuple[Path, str, int], ...]
"""(data file, dataset, frames) in order."""


def is_master(file: h5py.File) -> bool:
    """Whether an HDF5 file is a Dectris master."""
    data = file.get("entry/data")
    return "entry/instrument/detector" in file and isinstance(data, h5py.Group) and bool(_links(data))


def _links(data: h5py.Group) -> list[h5py.ExternalLink]:
    links = [(name, data.get(name, getlink=True)) for name in sorted(data)]
    return [link for name, link in links if name.startswith("data_") and isinstance(link, h5py.ExternalLink)]


@dataclass(frozen=True)
class _Frames:
    """The frames of all data files, one after the other; masked pixels are zero."""

    datasets: tuple[Any, ...]
    starts: np.ndarray
    mask: np.ndarray | None

    @property
    def dtype(self) -> np.dtype:
        return self.datasets[0].dtype

    def __getitem__(self, where: slice) -> np.ndarray:
        pieces = [
            dataset[max(0, where.start - start) : max(0, where.stop - start)]
            for dataset, start in zip(self.datasets, self.starts, strict=True)
            if start < where.stop and where.start < start + len(dataset)
        ]
        out = np.concatenate(pieces)
        if self.mask is not None:
            out[:, self.mask] = 0
        return out


@contextmanager
def _open(parts: Parts, mask: np.ndarray | None) -> Iterator[_Frames]:
    with ExitStack() as stack:
        files = [stack.enter_context(h5py.File(path, "r")) for path, _, _ in parts]
        datasets = tuple(file[name] for file, (_, name, _) in zip(files, parts, strict=True))
        starts = np.concatenate([[0], np.cumsum([count for _, _, count in parts])[:-1]])
        yield _Frames(datasets, starts, mask)


def _part(path: Path, link: h5py.ExternalLink) -> tuple[Path, str, Any, Any]:
    """(file, dataset, shape, number type) behind a link."""
    target = path.parent / Path(as_string(link.filename).replace("\\", "/")).name
    if not target.is_file():
        raise UserError(f"{path}: the data file {target.name} should lie beside it, but does not")
    with h5py.File(target, "r") as file:
        dataset = file.get(link.path)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 3:
            raise UserError(f"{target}: there are no frames at {link.path}")
        check_number_type(target, dataset.dtype)
        check_size(target, dataset.shape, dataset.dtype, dataset.id.get_storage_size, dataset.chunks)
        need_filters(target, dataset)
        return target, link.path, dataset.shape, dataset.dtype


def open_dectris(path: Path, file: h5py.File) -> FileSource:
    """Frames of an open master file as a list of patterns ``(k, ky, kx)``.

    Raises
    ------
    UserError
        If a data file is missing or does not fit the others.
    """
    parts: list[tuple[Path, str, int]] = []
    first = None
    links: Any = file["entry/data"]
    for link in _links(links):
        target, name, shape, dtype = _part(path, link)
        first = first or (shape[1:], dtype)
        if (shape[1:], dtype) != first:
            raise UserError(f"{target}: its frames differ in size or number type from those before it")
        parts.append((target, name, shape[0]))
    assert first is not None  # `is_master` saw a link
    mask: Any = file.get("entry/instrument/detector/detectorSpecific/pixel_mask")
    dead = None
    if isinstance(mask, h5py.Dataset) and mask.shape == first[0]:
        need_filters(path, mask)
        dead = np.asarray(mask[()]) != 0
        if dead.all():
            raise UserError(
                f"{path}: its pixel mask hides every pixel; copy the file again, or mend the mask"
            )
    count = sum(part[2] for part in parts)
    attributes, origins = nexus_energy(file)
    hidden = dead if dead is not None and dead.any() else None
    return FileSource(
        partial(_open, tuple(parts), hidden), (count, *first[0]), attributes, origins, unrecorded=hidden
    )
