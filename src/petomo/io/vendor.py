"""Instrument makers' files through RosettaSciIO (GPL-3; the optional extra ``readers``, loaded only here)."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from petomo.core.errors import UserError
from petomo.io.calibration import axes_attributes
from petomo.io.file_source import FileSource, check_number_type, check_size
from petomo.io.hdf5_metadata import instrument_attributes

VENDOR_FORMATS = {
    ".mib": "quantumdetector",
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".tvips": "tvips",
    ".blo": "blockfile",
}
"""Suffix to RosettaSciIO's reader."""
VENDOR_SUFFIXES = tuple(VENDOR_FORMATS)


def vendor_reader(path: Path) -> str | None:
    """RosettaSciIO's reader for a file, or None if petomo reads it itself or nobody does."""
    if path.suffix.lower() in VENDOR_FORMATS:
        return VENDOR_FORMATS[path.suffix.lower()]
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    try:
        with h5py.File(path, "r") as file:
            if "Data/Image" in file and path.suffix.lower() == ".emd":
                return "emd"
    except (OSError, RuntimeError, KeyError):
        pass
    return None


@dataclass(frozen=True)
class _Stack:
    """A dask array that computes only the slice asked for, in this thread."""

    array: Any

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, where: Any) -> np.ndarray:
        part = self.array[where]
        return part.compute(scheduler="synchronous") if hasattr(part, "compute") else np.asarray(part)


@lru_cache(maxsize=4)
def _signals(path: Path, reader: str, changed: float) -> list[dict[str, Any]]:  # noqa: ARG001
    """RosettaSciIO's signals of a file; ``changed`` is the file's time, so that a new one is read anew."""
    try:
        module = importlib.import_module(f"rsciio.{reader}")
    except ImportError as error:
        raise UserError(
            f"{path}: this format needs RosettaSciIO, which is not installed; pip install 'petomo[readers]'"
        ) from error
    try:
        logging.getLogger("rsciio").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module.file_reader(str(path), lazy=True)
    except Exception as error:  # a reader may fail in any way on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: RosettaSciIO's {reader} cannot read this ({reason})") from error


def _choose(path: Path, reader: str, dataset: str | None) -> tuple[int, dict[str, Any]]:
    signals = _signals(path, reader, path.stat().st_mtime)
    titles = [str(s["metadata"].get("General", {}).get("title", number)) for number, s in enumerate(signals)]
    fit = [number for number, s in enumerate(signals) if np.ndim(s["data"]) in (3, 4)]
    if dataset is not None:
        fit = [number for number in fit if dataset in (titles[number], str(number))]
    if len(fit) == 1:
        return fit[0], signals[fit[0]]
    listed = (
        ", ".join(f"{n} {titles[n]} {tuple(s['data'].shape)}" for n, s in enumerate(signals)) or "nothing"
    )
    raise UserError(
        f"{path}: {len(fit)} of the signals in this file could be the patterns (three or four axes), but "
        f"exactly one should; set data.dataset to the number or the title of one of: {listed}"
    )


@contextmanager
def _array(path: Path, reader: str, number: int) -> Iterator[_Stack]:
    yield _Stack(_signals(path, reader, path.stat().st_mtime)[number]["data"])


def open_vendor(path: Path, reader: str, dataset: str | None = None) -> FileSource:
    """Patterns of a file that RosettaSciIO reads; ``dataset`` is the number or title of a signal.

    Raises
    ------
    UserError
        If RosettaSciIO is missing, cannot read the file, or finds no patterns in it.
    """
    number, signal = _choose(path, reader, dataset)
    data = signal["data"]
    check_number_type(path, data.dtype)
    check_size(path, data.shape, data.dtype)
    axes = sorted(signal["axes"], key=lambda axis: axis.get("index_in_array", 0))
    names = [str(axis.get("name", index)) for index, axis in enumerate(axes)]
    attributes, origins = axes_attributes(
        [(axis.get("scale"), axis.get("units") or "") for axis in axes], names
    )
    instrument = signal["metadata"].get("Acquisition_instrument", {}).get("TEM", {})
    values = dict(instrument) | dict(instrument.get("Stage", {}))
    found, where = instrument_attributes(values, "Acquisition_instrument/TEM")
    return FileSource(
        partial(_array, path, reader, number), tuple(data.shape), attributes | found, origins | where
    )
