"""What the page's viewers draw: volume, atoms, patterns and losses, packed small enough for one page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from petomo.analysis.panels import element_colours

FINE_VOXELS = 1_500_000
"""Volumes up to this size are embedded with 4096 grey levels, larger ones with 256."""
MOST_VOXELS = 6_000_000
"""Larger volumes are binned until they fit."""
_PATTERN_BYTES = 3_000_000  # patterns before compression; of more, an even choice is embedded
_DOTS = 900  # scan positions drawn in the picker's map of one tilt
_POINTS = 500  # of a loss curve
_ROOT_STEP = 0.01  # of square roots of electrons: far below the noise's 1/2


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array for the page: ``{"type", "shape", "data"}``, the data little-endian, gzipped, in base64."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    data = gzip.compress(values.tobytes(), compresslevel=9, mtime=0)
    return {
        "type": values.dtype.name,
        "shape": list(values.shape),
        "data": base64.b64encode(data).decode("ascii"),
    }


def volume_data(
    volume: np.ndarray,
    voxel_size: Sequence[float],
    unit: str = "V",
    most: int = MOST_VOXELS,
    fine: int = FINE_VOXELS,
) -> dict[str, Any]:
    """The volume in grey levels with its place in the sample frame.

    Parameters
    ----------
    volume : np.ndarray
        Potential ``z y x``.
    voxel_size : sequence of float
        Angstrom along z y x.
    unit : str
        Of the volume's values.
    most : int
        Voxels beyond which neighbours are averaged.
    fine : int
        Voxels up to which 4096 levels are kept; 256 beyond.

    Returns
    -------
    dict
        ``levels`` (see `packed`), ``low`` and ``step`` (value of a level: ``low + step * level``), ``start``
        (coordinate of the first voxel's centre) and ``voxel`` in angstrom along z y x, ``binned`` (factors),
        and ``window`` and ``surface``, the contrast limits and the contour to begin with.
    """
    volume = np.nan_to_num(np.asarray(volume, np.float32))
    voxel = np.asarray(voxel_size, float)
    factors = np.ones(3, int)
    shape = np.array(volume.shape)
    while np.prod(np.maximum(shape // factors, 1)) > most:
        extent = np.where(shape // (factors + 1) > 0, voxel * factors, np.inf)
        factors[np.argmin(extent)] += 1
    small = _binned(volume, factors)
    low, high = float(small.min()), float(small.max())
    levels = 4095 if small.size <= fine else 255
    step = (high - low) / levels or 1.0
    counts = np.round((small - low) / step).astype(np.uint16 if levels > 255 else np.uint8)
    dark, bright = (float(np.quantile(small, q)) for q in (0.002, 0.9995))
    window = [dark, bright if bright > dark else dark + levels * step]
    return {
        "levels": packed(counts),
        "unit": unit,
        "low": low,
        "step": step,
        "start": list((np.asarray((factors - 1) / 2) - shape // 2) * voxel),
        "voxel": list(voxel * factors),
        "binned": factors.tolist(),
        "window": window,
        "surface": window[0] + 0.3 * (window[1] - window[0]),
    }


def _binned(volume: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Means over blocks; what does not fill a block at the far ends is left out."""
    if (factors == 1).all():
        return volume
    kept = np.array(volume.shape) // factors
    cropped = volume[tuple(slice(0, n) for n in kept * factors)]
    blocks = cropped.reshape(kept[0], factors[0], kept[1], factors[1], kept[2], factors[2])
    return blocks.mean(axis=(1, 3, 5))


def atoms_data(atoms: Atoms) -> dict[str, Any]:
    """Positions (x, y, z in angstrom), elements with their colours, and each atom's numbers by name."""
    symbols = np.array(atoms.get_chemical_symbols())
    colours, _ = element_colours(symbols)
    present = list(colours)
    arrays = {
        name: [float(f"{v:.4g}") if np.isfinite(v) else None for v in values.tolist()]
        for name, values in atoms.arrays.items()
        if name not in ("numbers", "positions") and values.ndim == 1 and values.dtype.kind in "fiu"
    }
    counts = [int((symbols == s).sum()) for s in present]
    return {
        "xyz": np.round(atoms.positions, 3).tolist(),
        "elements": [
            {"symbol": s, "colour": colours[s], "count": n} for s, n in zip(present, counts, strict=True)
        ],
        "element": [present.index(s) for s in symbols],
        "numbers": arrays,
    }


def loss_data(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Per stage its curves ``{"tilt", "iteration", "loss"}``, long ones thinned, and the mean noise floor.

    Iterations of several tilts are counted from each tilt's first. Where every tilt has one value only, they
    make one curve over the tilts, and ``along`` is "tilt".
    """
    out = []
    for stage, records in stages.items():
        curves: dict[Any, list[Mapping[str, Any]]] = {}
        for record in records:
            if isinstance(record.get("loss"), (int, float)) and np.isfinite(record["loss"]):
                curves.setdefault(record.get("tilt"), []).append(record)
        if not curves:
            continue
        last = [c[-1]["noise_floor"] for c in curves.values() if c[-1].get("noise_floor") is not None]
        out.append(
            {
                "stage": stage,
                "floor": float(np.mean(last)) if last else None,
                **_curves(curves),
            }
        )
    return out


def _curves(curves: Mapping[Any, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    if len(curves) > 1 and all(len(c) == 1 for c in curves.values()):
        one = [{"iteration": tilt, "loss": c[0]["loss"]} for tilt, c in curves.items()]
        return {"along": "tilt", "curves": [_curve(None, one, 0)]}
    first = {tilt: c[0]["iteration"] - 1 if len(curves) > 1 else 0 for tilt, c in curves.items()}
    return {"along": "iteration", "curves": [_curve(tilt, c, first[tilt]) for tilt, c in curves.items()]}


def _curve(tilt: Any, records: Sequence[Mapping[str, Any]], before: int) -> dict[str, Any]:
    chosen = _even(len(records), _POINTS)
    return {
        "tilt": tilt,
        "iteration": [records[i]["iteration"] - before for i in chosen],
        "loss": [float(f"{records[i]['loss']:.6g}") for i in chosen],
    }


def patterns_data(
    patterns: Mapping[str, Mapping[str, Any]],
    positions: Sequence[np.ndarray] = (),
    sampling: Sequence[float] | None = None,
    most_bytes: int = _PATTERN_BYTES,
) -> dict[str, Any]:
    """Patterns beside their models, for the position picker.

    Parameters
    ----------
    patterns : mapping
        As `petomo.io.artefacts.read_patterns` gives them.
    positions : sequence of np.ndarray
        Per tilt the scan positions ``(k, 2)``, (x, y) in angstrom; may be empty.
    sampling : sequence of float, optional
        Detector pixel (ky, kx) in 1/angstrom.
    most_bytes : int
        Above this an even choice of the patterns is kept, ``worst`` and ``median`` always.

    Returns
    -------
    dict
        ``entries`` with the square roots of both patterns in steps of ``step``, ``maps`` (per tilt shown,
        dots of the scan), ``sampling`` and ``left_out``, the number of patterns that were not embedded.
    """
    named = {name: entry for name, entry in patterns.items() if name in ("worst", "median")}
    others = {name: entry for name, entry in patterns.items() if name not in named}
    size = sum(4 * np.size(entry["measured"]) for entry in patterns.values())
    keep = len(others) if size <= most_bytes else max(1, int(len(others) * most_bytes / size))
    names = list(others)
    chosen = [names[i] for i in _even(len(names), keep)]
    entries = [_pattern(name, patterns[name], positions) for name in [*named, *chosen]]
    tilts = sorted({entry["tilt"] for entry in entries})
    return {
        "entries": entries,
        "maps": {str(t): _dots(positions[t]) for t in tilts if t < len(positions)},
        "sampling": None if sampling is None else [float(s) for s in sampling],
        "left_out": len(patterns) - len(entries),
    }


def _pattern(name: str, entry: Mapping[str, Any], positions: Sequence[np.ndarray]) -> dict[str, Any]:
    tilt, index = int(entry["tilt"]), int(entry["index"])
    roots = np.sqrt(np.maximum(np.nan_to_num(np.stack([entry["measured"], entry["model"]])), 0))
    step = max(_ROOT_STEP, float(roots.max()) / 65535)
    known = tilt < len(positions) and index < len(positions[tilt])
    return {
        "name": name,
        "tilt": tilt,
        "index": index,
        "loss": float(entry["loss"]),
        "xy": np.round(positions[tilt][index], 3).tolist() if known else None,
        "electrons": [float(np.sum(entry[key])) for key in ("measured", "model")],
        "step": step,
        "roots": packed(np.round(roots / step).astype(np.uint16)),
    }


def _even(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly, both ends included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _dots(positions: np.ndarray) -> list[list[float]]:
    return np.round(positions[:: max(1, -(-len(positions) // _DOTS))], 2).tolist()
