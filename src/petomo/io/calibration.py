"""Axes and units as other programs write them, turned into petomo's attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_LENGTHS = {"A": 1.0, "angstrom": 1.0, "ang": 1.0, "nm": 10.0, "pm": 0.01, "um": 1e4, "mm": 1e7, "m": 1e10}
_ANGLES = {"mrad": 1.0, "rad": 1e3, "deg": math.radians(1) * 1e3}
_SPELLINGS = (
    ("Å", "A"), ("Å", "A"), ("µ", "u"), ("μ", "u"), ("⁻¹", "^-1"), ("**-1", "^-1"), ("(-1)", "-1"),
    ("{-1}", "-1"), ("^-1", "-1"), ("_", ""), ("[", ""), ("]", ""), (" ", ""), ("$", ""), ("\\AA", "A"),
)  # fmt: skip


def as_string(value: Any) -> str:
    """Text of an attribute that may be bytes, a one-element array or text."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def as_number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(as_string(value) if isinstance(value, (bytes, np.ndarray)) else value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def unit_factor(unit: Any) -> tuple[str, float] | None:
    """What a unit measures (length, frequency, angle) and its size in A, 1/A or mrad; None if unknown.

    Knows the spellings of EMD 0.2 (``[n_m^-1]``), py4DSTEM (``A^-1``), HyperSpy (``1/nm``, Å⁻¹) and DM.
    """
    text = as_string(unit)
    for spelling, plain in _SPELLINGS:
        text = text.replace(spelling, plain)
    if text in _LENGTHS:
        return "length", _LENGTHS[text]
    if text in _ANGLES:
        return "angle", _ANGLES[text]
    inverse = text.removeprefix("1/") if text.startswith("1/") else text.removesuffix("-1")
    if inverse != text and inverse in _LENGTHS:
        return "frequency", 1 / _LENGTHS[inverse]
    return None


def axes_attributes(
    steps: Sequence[tuple[Any, Any]], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scan step and detector sampling from (step, unit) of every axis, the detector's two last.

    Axes without a unit, or with one that does not fit, say nothing.

    Returns
    -------
    attributes, origins : dict, dict
        See `petomo.io.file_source.Source`.
    """
    attributes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    pairs = (
        [("scan", slice(0, 2)), ("detector", slice(2, 4))] if len(steps) == 4 else [("detector", slice(1, 3))]
    )
    keys = {
        ("scan", "length"): "scan_step_angstrom",
        ("detector", "frequency"): "detector_sampling_inv_angstrom",
        ("detector", "angle"): "detector_sampling_mrad",
    }
    for role, where in pairs:
        found = [(as_number(step), unit_factor(unit)) for step, unit in steps[where]]
        if any(step is None or step == 0 or unit is None for step, unit in found):
            continue
        kinds = {unit[0] for _, unit in found if unit}
        key = keys.get((role, kinds.pop())) if len(kinds) == 1 else None
        if key is not None:
            attributes[key] = [abs(step) * unit[1] for step, unit in found if step and unit]
            origins[key] = f"the scale of axes {' and '.join(names[where])}"
    return attributes, origins


def axis_step(coordinates: Any) -> float | None:
    """Step of an axis given by its first coordinates, or None if it has no single step."""
    values = np.asarray(coordinates, float).ravel()
    return float(values[1] - values[0]) if len(values) > 1 and np.isfinite(values[:2]).all() else None
