"""The ``/meta`` record of the paper's own data (Zenodo 13060513): a dictionary in a Zarr object array.

The authors' scripts read ``k_max`` from it (real-space pixel ``1 / (2 k_max)``); the other names are those of
their metadata class. Values are decoded from JSON or taken from a structured array, never unpickled.
"""

from __future__ import annotations

from typing import Any

import numcodecs
import numpy as np

from petomo.io.calibration import as_number
from petomo.io.zarr_store import ZarrFiles

_MAX_CHUNK = 2**16
_PICKLED = "its {} is pickled, which could run code, so petomo does not open it"


def read_record(files: ZarrFiles, name: str, metadata: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """First record of the array, and what to tell the user if it cannot be had."""
    attributes = files.attributes(name)
    if "dtype" not in metadata:
        return attributes, ""
    dtype = metadata["dtype"]
    codecs = [str(entry.get("id")) for entry in metadata.get("filters") or []]
    if "pickle" in codecs:
        return attributes, _PICKLED.format(name)
    objects = dtype == "|O" and codecs in (["json2"], ["json"])
    structured = isinstance(dtype, list) and not codecs
    separator = metadata.get("dimension_separator", ".")
    chunk = files.read(f"{name}/{separator.join('0' * len(metadata['shape']))}")
    if not (objects or structured) or chunk is None or len(chunk) > _MAX_CHUNK:
        return attributes, f"its {name} is of a kind petomo does not read"
    if metadata.get("compressor"):
        if metadata["compressor"].get("id") not in ("blosc", "zlib", "gzip", "lz4", "zstd", "bz2", "lzma"):
            return attributes, f"its {name} is compressed in a way petomo does not read"
        codec: Any = numcodecs.get_codec(metadata["compressor"])
        chunk = bytes(codec.decode(chunk))
    if objects:
        codec = numcodecs.get_codec(metadata["filters"][0])
        values = codec.decode(chunk).ravel()
        record = values[0] if len(values) else {}
        return attributes | (record if isinstance(record, dict) else {}), ""
    values = np.frombuffer(chunk, np.dtype([_field(entry) for entry in dtype]), count=1)
    return attributes | {key: values[0][key] for key in values.dtype.names or ()}, ""


def _field(entry: Any) -> tuple:
    return tuple(tuple(part) if isinstance(part, list) else part for part in entry)


def _numbers(value: Any, scale: float = 1.0) -> list[float] | None:
    """One or two positive finite numbers, or None."""
    numbers = [as_number(number) for number in np.atleast_1d(np.asarray(value, dtype=object)).ravel()[:3]]
    if len(numbers) not in (1, 2) or any(number is None or number <= 0 for number in numbers):
        return None
    return [float(number) * scale for number in numbers if number is not None]


def record_attributes(
    record: dict[str, Any], name: str, shape: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Petomo's attributes from the record: k_max (1/A), E_ev, alpha_rad, dr (A)."""
    attributes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, key, scale in (
        ("E_ev", "energy_ev", 1.0),
        ("alpha_rad", "semiangle_mrad", 1e3),
        ("dr", "scan_step_angstrom", 1.0),
        ("k_max", "detector_sampling_inv_angstrom", 2.0),
    ):
        numbers = _numbers(record.get(source), scale)
        if numbers is None:
            continue
        if source == "k_max":  # half the width of the detector
            numbers = [number / n for number, n in zip(np.broadcast_to(numbers, 2), shape[-2:], strict=True)]
        attributes[key], origins[key] = (numbers[0] if len(numbers) == 1 else numbers), f"{name}/{source}"
    return attributes, origins
