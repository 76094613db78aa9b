"""What every reader gives: patterns of one array in a file, and what the file says about them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from petomo.core.errors import UserError

MAX_PATTERN_PIXELS = 2**26
MAX_POSITIONS = 2**28
MAX_RATIO = 10_000
"""Declared bytes over stored bytes beyond which a large file is damaged: no real compression reaches it."""


class Source(Protocol):
    """Patterns as stored, with the file's own metadata."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        ...

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(scan_y, scan_x, ky, kx) or (k, ky, kx)."""
        ...

    @property
    def attributes(self) -> dict[str, Any]:
        """Metadata under petomo's own names."""
        ...

    @property
    def origins(self) -> dict[str, str]:
        """Where in the file each of them was found, for messages."""
        ...

    @property
    def remark(self) -> str:
        """What a message about missing metadata should add."""
        ...

    @property
    def unrecorded(self) -> np.ndarray | None:
        """True at pixels ``(ky, kx)`` that the file says measured nothing, and that hold zero; None: none."""
        ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Patterns ``(len(indices), ky, kx)`` in the order asked for, in the file's number type."""
        ...


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
    attributes, origins, remark, unrecorded
        See `Source`.
    """

    open: Callable[[], AbstractContextManager[Any]]
    array_shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    remark: str = ""
    unrecorded: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        return flat_shape(self.array_shape)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Patterns ``(len(indices), ky, kx)`` in the order asked for, in the file's number type."""
        wanted, inverse = np.unique(checked_indices(indices, self.shape[0]), return_inverse=True)
        with self.open() as array:
            out = np.empty((len(wanted), *self.shape[1:]), array.dtype)
            for start, stop, where in _runs(wanted, self.array_shape):
                out[start:stop] = array[where]
        return out if np.array_equal(inverse, np.arange(len(out))) else out[inverse]


def flat_shape(array_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(k, ky, kx) of an array with one or two scan axes."""
    return math.prod(map(int, array_shape[:-2])), int(array_shape[-2]), int(array_shape[-1])


def checked_indices(indices: np.ndarray, count: int) -> np.ndarray:
    """The indices as an array, all within the scan."""
    indices = np.asarray(indices)
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise IndexError(f"scan index outside 0 to {count - 1}")
    return indices


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


def choose_array(path: Path, shapes: dict[str, tuple[int, ...]], dataset: str | None) -> str:
    """Name of the array to read among those of a file (name -> shape).

    Raises
    ------
    UserError
        If none fits, several do, or ``dataset`` is not one of them.
    """
    stacks = {name: tuple(shape) for name, shape in shapes.items() if len(shape) in (3, 4)}
    listed = ", ".join(f"{name} {shape}" for name, shape in stacks.items()) or "none"
    if dataset is not None:
        name = dataset.strip("/")
        if name not in shapes:
            raise UserError(
                f"{path}: there is no dataset `{dataset}`; data.dataset could be one of: {listed}"
            )
        if name not in stacks:
            raise UserError(
                f"{path}: dataset `{dataset}` has shape {tuple(shapes[name])}, but should have "
                f"three or four axes (scan, then ky kx); data.dataset could be one of: {listed}"
            )
        return name
    for ndim in (4, 3):
        names = [name for name, shape in stacks.items() if len(shape) == ndim]
        if len(names) == 1:
            return names[0]
        if names:
            raise UserError(
                f"{path}: several datasets could be the patterns; set data.dataset to one of: {listed}"
            )
    raise UserError(f"{path}: there is no dataset with three or four axes (scan, then ky kx) in this file")


def check_number_type(path: Path, dtype: Any) -> None:
    """Refuse anything but integers and floats."""
    if np.dtype(dtype).kind not in "uif":
        raise UserError(
            f"{path}: the patterns have type {dtype}, but should be integer or floating point counts"
        )


def check_size(
    path: Path,
    shape: tuple[int, ...],
    dtype: Any,
    stored: Callable[[], int] | None = None,
    chunk: tuple[int, ...] | None = None,
) -> None:
    """Refuse a declared shape that no detector made, before anything is allocated for it.

    Parameters
    ----------
    path : Path
        For the message.
    shape, dtype
        As declared in the file.
    stored : callable, optional
        Bytes the file spends on the array; asked for only if much is declared.
    chunk : tuple of int, optional
        Shape of a compressed block, which is decompressed whole.
    """
    count, ky, kx = flat_shape(shape)
    size = np.dtype(dtype).itemsize
    if ky * kx > MAX_PATTERN_PIXELS or count > MAX_POSITIONS:
        raise UserError(
            f"{path}: the file declares {count} patterns of {ky} x {kx} pixels, which no detector gives; "
            "it is damaged, so copy it again"
        )
    if chunk is not None and math.prod(map(int, chunk)) * size > 2**32:
        raise UserError(
            f"{path}: the file keeps its patterns in blocks of {' x '.join(map(str, chunk))}, more than "
            "4 GiB each; store it again in smaller chunks, best a few patterns each"
        )
    declared = count * ky * kx * size
    if stored is not None and declared > 2**30 and declared > MAX_RATIO * stored():
        raise UserError(
            f"{path}: the file declares {declared / 2**30:.0f} GiB of patterns, but holds hardly any; "
            "it is damaged or was cut short, so copy it again"
        )
