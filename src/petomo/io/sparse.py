"""Counted electrons of the 4D Camera (stempy's HDF5 layout), kept sparse until patterns are asked for.

Layout (github.com/OpenChemistry/stempy, docs/source/StempyH5Format.rst): ``electron_events/frames`` holds a
list of flat detector indices per frame, ``electron_events/scan_positions`` the scan index of each frame. A
scan position may have several frames (their electrons add up) or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from petomo.core.errors import UserError
from petomo.io.file_source import check_size, checked_indices, flat_shape

CAMERA = 576
"""Side of the 4D Camera, for files of its first version, which do not say it."""


@dataclass(frozen=True)
class SparseSource:
    """Patterns counted from events; see `petomo.io.file_source.Source`."""

    path: Path
    array_shape: tuple[int, int, int, int]
    rows: np.ndarray = field(repr=False)
    """Frames sorted by scan position."""
    starts: np.ndarray = field(repr=False)
    """First entry of ``rows`` of every scan position, and one past the last."""
    attributes: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    remark: str = ""
    unrecorded: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        return flat_shape(self.array_shape)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Electrons ``(len(indices), ky, kx)`` as uint16; only the frames asked for are read."""
        indices = checked_indices(indices, self.shape[0])
        pixels = self.shape[1] * self.shape[2]
        out = np.zeros(len(indices) * pixels, np.uint16)
        pieces = [self.rows[self.starts[index] : self.starts[index + 1]] for index in indices]
        rows = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        events = self._events(np.unique(rows))
        hits = [events[int(row)] + owner * pixels for row, owner in zip(rows, owners, strict=True)]
        if hits:
            where, counts = np.unique(np.concatenate(hits), return_counts=True)
            out[where] = counts
        return out.reshape(len(indices), *self.shape[1:])

    def _events(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Flat detector indices of frames (sorted), neighbours read together."""
        pixels, found = self.shape[1] * self.shape[2], {}
        with h5py.File(self.path, "r") as file:
            frames: Any = file["electron_events/frames"]
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else ():
                for row, events in zip(run, frames[int(run[0]) : int(run[-1]) + 1], strict=True):
                    found[int(row)] = events = np.asarray(events, np.int64)
                    if len(events) and (events.min() < 0 or events.max() >= pixels):
                        raise UserError(
                            f"{self.path}: frame {row} has an electron outside the {self.shape[1]} x "
                            f"{self.shape[2]} pixels of the camera; the file is damaged, so copy it again"
                        )
        return found


def is_sparse(file: h5py.File) -> bool:
    """Whether the file holds counted electrons."""
    frames = file.get("electron_events/frames")
    return isinstance(frames, h5py.Dataset) and h5py.check_vlen_dtype(frames.dtype) is not None


def _size(path: Path, item: Any, names: tuple[str, str], default: int | None) -> tuple[int, int]:
    sizes = [item.attrs.get(name, default) for name in names]
    try:
        first, second = (int(size) for size in sizes)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        first = second = 0
    if first < 1 or second < 1:
        raise UserError(f"{path}: `{item.name}` should have the attributes Nx and Ny, both positive")
    return first, second


def open_sparse(path: Path, file: h5py.File) -> SparseSource:
    """Counted electrons of an open file; reads the scan position of every frame, but no electron.

    Raises
    ------
    UserError
        If the shapes are missing or do not fit.
    """
    frames: Any = file["electron_events/frames"]
    positions: Any = file.get("electron_events/scan_positions")
    if not isinstance(positions, h5py.Dataset) or positions.ndim != 1 or frames.ndim != 1:
        raise UserError(f"{path}: electron_events should hold frames and scan_positions, one each per frame")
    scan = _size(path, positions, ("Ny", "Nx"), None)
    # stempy's reader takes Nx as the rows of the camera; it matters only for cameras that are not square
    camera = _size(path, frames, ("Nx", "Ny"), CAMERA)
    check_size(path, (*scan, *camera), np.uint16, None)
    count = scan[0] * scan[1]
    where = np.asarray(positions[()]).astype(np.int64)
    total = len(frames)
    if len(where) != total and len(where) == count and total % count == 0:  # version 3: k frames a position
        where = np.repeat(where, total // count)
    if len(where) != total or (total and (where.min() < 0 or where.max() >= count)):
        raise UserError(
            f"{path}: {total} frames and {len(where)} scan positions do not fit "
            f"a scan of {scan[0]} x {scan[1]}"
        )
    rows = np.argsort(where, kind="stable")
    starts = np.searchsorted(where[rows], np.arange(count + 1))
    attributes = {key: value for item in (file, frames.parent) for key, value in dict(item.attrs).items()}
    return SparseSource(path, (*scan, *camera), rows, starts, attributes)
