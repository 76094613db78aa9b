"""What a section of the report is made of, and how values become words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petomo.analysis.panels import Panel, as_panels
from petomo.core.electron import defocus_in_words

_LISTED = 6  # numbers of a list that a table shows one by one
_UNITS = {
    "per_square_angstrom": "1/Å²", "per_angstrom": "1/Å", "angstrom": "Å", "degree": "°", "mrad": "mrad",
    "kev": "keV", "ev": "eV", "volt": "V", "seconds": "s",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure's panels, and the sentence below them."""

    panels: Sequence[Panel]
    columns: int  # of a wide page
    caption: str


@dataclass(frozen=True)
class Content:
    """What a section shows."""

    pictures: Sequence[Picture] = ()
    rows: Sequence[Sequence[str]] = ()
    header: Sequence[str] = ()
    lines: Sequence[str] = ()
    text: str = ""  # shown word for word, folded away
    viewer: str = ""  # name of the script's viewer that stands before the pictures
    data: Mapping[str, Any] = field(default_factory=dict)  # what the viewer draws, by name
    instead: Callable[[], Sequence[Picture]] = tuple  # shown where scripts do not run


@dataclass(frozen=True)
class Plan:
    """How a section comes about."""

    title: str
    needs: tuple[str, ...]  # without these there is nothing to show; of "a|b" the first that is there serves
    maker: str  # the stage that leaves them
    show: Callable[[Path], Content]
    also: tuple[str, ...] = ()  # looked at if they are there


def first_of(run: Path, need: str) -> Path | None:
    """The first file of ``a|b`` that is in the run folder."""
    return next((run / name for name in need.split("|") if (run / name).is_file()), None)


def picture(figure: Any, caption: str) -> Picture:
    """A matplotlib figure, cut into its panels."""
    place = figure.axes[0].get_subplotspec()
    return Picture(as_panels(figure), place.get_gridspec().ncols if place else 1, caption)


def name_in_words(key: str) -> str:
    """A key for people: its unit, where it ends in one, in brackets."""
    if "defocus" in key:  # its value in words has the unit
        return key.removesuffix("_angstrom").replace("_", " ")
    key = key.removesuffix("_bytes")
    for ending, unit in _UNITS.items():
        if key.endswith("_" + ending):
            return f"{key.removesuffix('_' + ending).replace('_', ' ')} ({unit})"
    return key.replace("_", " ")


def flat_rows(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Rows (name, value in words) of a nested dict whose keys carry their units; defocus says its sign."""
    for key, value in values.items():
        name = f"{path}: {name_in_words(str(key))}" if path else name_in_words(str(key))
        if isinstance(value, Mapping):
            yield from flat_rows(value, name)
        elif value is not None:
            yield name, in_words(str(key), value)


def in_words(key: str, value: Any) -> str:
    """A value for people: short numbers, long lists by number and range, the sign of a defocus as a word."""
    if isinstance(value, bool) or not isinstance(value, (int, float, list, tuple)):
        return str(value)
    if isinstance(value, (int, float)):
        if key.endswith("bytes"):
            return f"{value / 1e6:,.3g} MB" if value < 1e9 else f"{value / 1e9:,.3g} GB"
        return defocus_in_words(value) if "defocus" in key else f"{value:.6g}"
    if len(value) <= _LISTED:
        return ", ".join(in_words(key, item) for item in value)
    if all(isinstance(item, (int, float)) for item in value):
        return f"{len(value)} values from {in_words(key, min(value))} to {in_words(key, max(value))}"
    return ", ".join(str(item) for item in value)
