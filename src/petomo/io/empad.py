"""EMPAD: raw frames of 130 x 128 float32, of which the last two rows are the detector's own, and an XML file.

Frames and XML keys as written by the EMPAD camera program, versions 0.51 and 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from petomo.core.errors import UserError
from petomo.io.calibration import as_number
from petomo.io.file_source import FileSource

SIDE = 128
ROWS = 130
_FRAME_BYTES = ROWS * SIDE * 4


def _read_xml(path: Path) -> ElementTree.Element:
    content = path.read_bytes() if path.stat().st_size < 2**22 else b""
    # no EMPAD file declares entities; they can make a small file swell beyond memory
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UserError(f"{path}: this declares XML entities, which no EMPAD file does; it is not opened")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: this is not a readable EMPAD XML file ({error})") from error


def _text(root: ElementTree.Element, *names: str) -> str | None:
    """Text of the first element with one of these names, wherever it is."""
    for name in names:
        for element in root.iter(name):
            if element.text and element.text.strip():
                return element.text.strip()
    return None


def _integer(root: ElementTree.Element, *names: str) -> int | None:
    number = as_number(_text(root, *names))
    return int(number) if number is not None and number > 0 else None


def _scan(root: ElementTree.Element) -> tuple[int, ...] | None:
    """(scan_y, scan_x) of a map, (frames,) of a series, None if the file does not say."""
    y, x = _integer(root, "pix_y"), _integer(root, "pix_x")
    if y is None or x is None:
        for parameters in root.iter("scan_parameters"):
            if parameters.get("mode") == "acquire":
                y, x = (_integer(parameters, f"scan_resolution_{axis}") for axis in "yx")
    if y is not None and x is not None:
        return y, x
    count = _integer(root, "count", "series_count")
    return None if count is None else (count,)


def _attributes(root: ElementTree.Element) -> tuple[dict[str, Any], dict[str, str]]:
    """Energy and detector pixel (SI units in the file); values of zero mean that nothing was measured.

    The scan step is left to the user: versions disagree on what their field of view means.
    """
    attributes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, scale, names in (
        ("energy_ev", 1.0, ("source.get_voltage", "high_voltage")),
        ("detector_sampling_mrad", 1e3, ("calibrated_diffraction_angle",)),
    ):
        for name in names:
            number = as_number(_text(root, name))
            if number is not None and number > 0:
                attributes[key], origins[key] = number * scale, f"XML element {name}"
    return attributes, origins


def _pair(path: Path) -> tuple[Path, Path | None]:
    """(raw, xml) from either of them."""
    if path.suffix.lower() == ".xml":
        element = next(_read_xml(path).iter("raw_file"), None)
        # only the name counts: the file lies beside its XML, wherever the camera computer kept it
        name = re.split(r"[/\\]", (element.get("filename") or "") if element is not None else "")[-1]
        for raw in (path.parent / name, path.with_suffix(".raw")):
            if name and raw.is_file():
                return raw, path
        raise UserError(
            f"{path}: the raw file {name or path.stem + '.raw'} should lie beside it, but does not"
        )
    mention = re.compile(rf'[/\\"]{re.escape(path.name)}"')
    named = [
        other
        for other in sorted(path.parent.glob("*.xml"))
        if other.stem == path.stem or mention.search(other.read_text("utf-8", "replace"))
    ]
    return path, named[0] if named else None


@contextmanager
def _frames(path: Path, shape: tuple[int, ...]) -> Iterator[Any]:
    yield np.memmap(path, np.dtype("<f4"), "r", shape=(*shape, ROWS, SIDE))[..., :SIDE, :]


def open_empad(path: Path, dataset: str | None = None) -> FileSource:
    """EMPAD patterns from the raw or the XML file, memory mapped.

    Raises
    ------
    UserError
        If one of the two is missing or they contradict each other.
    """
    if dataset is not None:
        raise UserError(f"{path}: an EMPAD file has no datasets inside; leave data.dataset out")
    raw, xml = _pair(path)
    frames, rest = divmod(raw.stat().st_size, _FRAME_BYTES)
    if frames == 0 or rest:
        raise UserError(
            f"{raw}: its {raw.stat().st_size} bytes are not whole EMPAD frames of {ROWS} x {SIDE} numbers; "
            "it was cut short, so copy it again"
        )
    root = _read_xml(xml) if xml is not None else None
    scan = _scan(root) if root is not None else None
    if scan is None and (named := re.search(r"_x(\d+)_y(\d+)", raw.stem)):
        scan = (int(named[2]), int(named[1]))
    if scan is not None and int(np.prod(scan)) != frames:
        raise UserError(
            f"{raw}: this holds {frames} frames, but {xml.name if xml else 'its name'} says "
            f"{' x '.join(map(str, scan))}; copy it again, or correct data.tilts"
        )
    shape = scan or (frames,)
    attributes, origins = _attributes(root) if root is not None else ({}, {})
    return FileSource(partial(_frames, raw, shape), (*shape, SIDE, SIDE), attributes, origins)
