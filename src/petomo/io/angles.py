"""Stage tilts from the files of other programs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petomo.core.errors import UserError
from petomo.io.star import find_block, read_star
from petomo.io.text import read_text

Named = tuple[list[float], list[str] | None]
"""Angles in degrees, and the names of the files they belong to where they are given."""
ANGLE_SUFFIXES = (".tlt", ".rawtlt", ".mdoc", ".star", ".json", ".npy", ".txt")


def read_angles(path: Path) -> list[float]:
    """Stage tilts in degrees, in the file's order; see `read_named_angles`."""
    return read_named_angles(path)[0]


def read_named_angles(path: Path) -> Named:
    """Stage tilts in degrees from IMOD, SerialEM, RELION-5, JSON, NumPy or plain text.

    Parameters
    ----------
    path : Path
        ``.tlt``, ``.rawtlt`` or ``.txt``: one angle a line. ``.mdoc``: ``TiltAngle`` of every section.
        ``.star``: ``rlnTomoNominalStageTiltAngle``, else ``rlnTomoYTilt``. ``.json``: a list, or petomo's
        ``poses.json``. ``.npy``: one axis.

    Raises
    ------
    UserError
        If the file is missing or holds something else.
    """
    readers = {".json": _json, ".mdoc": _mdoc, ".star": _star, ".npy": _npy}
    angles, names = readers.get(path.suffix.lower(), _plain)(path)
    if not angles or not all(map(math.isfinite, angles)):
        raise UserError(f"{path}: an angle is not a finite number; give every stage tilt in degrees")
    return angles, names


def _numbers(path: Path, values: Any) -> list[float]:
    try:
        return [float(value) for value in values]
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"{path}: this should hold one angle in degrees per line, or a JSON list of them"
        ) from None


def _plain(path: Path) -> Named:
    return _numbers(path, read_text(path).split()), None


def _json(path: Path) -> Named:
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and isinstance(values.get("tilts"), list):
        tilts = [tilt if isinstance(tilt, dict) else {} for tilt in values["tilts"]]
        names = [str(tilt.get("name", "")) for tilt in tilts]
        return _numbers(path, [tilt.get("theta_degree") for tilt in tilts]), names
    return _numbers(path, values if isinstance(values, list) else None), None


def _npy(path: Path) -> Named:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        flat = values.ndim == 1 and values.dtype.kind in "uif"
    except Exception as error:  # a damaged header fails in NumPy's parser in many ways
        raise UserError(f"{path}: there is no such file, or it is not a NumPy array of angles") from error
    if not flat or len(values) > 2**16:
        raise UserError(
            f"{path}: this should hold one axis of angles in degrees, but has shape {values.shape}"
        )
    return [float(value) for value in values], None


def _star(path: Path) -> Named:
    blocks = read_star(path)
    for column in ("rlnTomoNominalStageTiltAngle", "rlnTomoYTilt"):
        if any(column in block for block in blocks.values()):
            block = find_block(path, blocks, [column])
            names = block.get("rlnMicrographName") or block.get("rlnMicrographMovieName")
            return _numbers(path, block[column]), names
    find_block(path, blocks, ["rlnTomoYTilt"])
    raise AssertionError  # find_block has raised


def _mdoc(path: Path) -> Named:
    """SerialEM: one section per image, in the order of the stack."""
    sections: list[tuple[int, dict[str, str]]] = []
    for line in read_text(path).splitlines():
        header = re.match(r"\s*\[\s*(ZValue|FrameSet)\s*=\s*(\d+)\s*\]", line)
        if header:
            sections.append((int(header[2]), {}))
        elif line.strip().startswith("["):
            continue
        elif sections and "=" in line:
            key, _, value = line.partition("=")
            sections[-1][1][key.strip()] = value.strip()
    if not sections or any("TiltAngle" not in values for _, values in sections):
        raise UserError(
            f"{path}: every section of an mdoc file should hold a TiltAngle, but here one does not"
        )
    sections.sort(key=lambda section: section[0])
    paths = [re.split(r"[/\\]", values.get("SubFramePath", ""))[-1] for _, values in sections]
    return _numbers(path, [values["TiltAngle"] for _, values in sections]), paths if all(paths) else None


def order_by_name(names: Sequence[str] | None, wanted: Sequence[str]) -> list[int] | None:
    """Which entry of ``names`` belongs to each wanted file; None if the names do not tell.

    Names count without their folder and suffix.
    """
    if names is None:
        return None
    stems = [_stem(name) for name in names]
    order = [stems.index(_stem(name)) for name in wanted if stems.count(_stem(name)) == 1]
    return order if len(order) == len(wanted) else None


def _stem(name: str) -> str:
    return Path(re.split(r"[/\\]", name)[-1]).stem
