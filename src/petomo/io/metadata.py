"""What a file says about itself beside what the settings say; a contradiction is an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petomo.core.errors import UserError

SAME = 1e-3
"""Relative difference up to which a file and the settings agree: people round."""


def _agree(a: Sequence[float], b: Sequence[float], absolute: float) -> bool:
    return all(math.isclose(x, y, rel_tol=SAME, abs_tol=absolute) for x, y in zip(a, b, strict=True))


def as_text(values: Any) -> str:
    """One number, or several joined by x."""
    return " x ".join(f"{number:.6g}" for number in np.atleast_1d(values))


def _numbers(path: Path, label: str, value: Any, count: int) -> tuple[float, ...]:
    """A file's attribute as ``count`` finite numbers; one number serves all."""
    try:
        numbers = tuple(float(number) for number in np.atleast_1d(value))
    except (ValueError, TypeError, OverflowError):
        numbers = ()
    numbers = numbers * count if len(numbers) == 1 else numbers
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        said = " ".join(repr(value).split())  # an array is shown on several lines
        raise UserError(f"{path}: {label} is {said}, but should be {count} finite number(s)")
    return numbers


class Metadata:
    """One file's attributes beside the user's settings; a conflict names both.

    Parameters
    ----------
    path : Path
        For messages.
    attributes : dict
        What the file says, under petomo's names.
    origins : dict, optional
        Where in the file that was, if not an attribute of that name.
    remark : str
        What to add where something is missing.
    override : bool
        Whether the settings hold where the two contradict each other.
    """

    def __init__(
        self,
        path: Path,
        attributes: dict[str, Any],
        origins: dict[str, str] | None = None,
        remark: str = "",
        override: bool = False,
    ):
        self.path, self.attributes = path, attributes
        self.origins, self.remark, self.override = origins or {}, remark, override

    def label(self, attribute: str) -> str:
        """The attribute as the user finds it in the file."""
        return self.origins.get(attribute, f"attribute {attribute}")

    def get(
        self, attribute: str, key: str, given: Any, count: int = 1, scale: float = 1.0, absolute: float = 0.0
    ) -> tuple[float, ...] | None:
        """Values in the code's unit; ``given`` (the setting) and the attribute times ``scale``."""
        setting = None if given is None else tuple(np.broadcast_to(given, count).tolist())
        if attribute not in self.attributes or (self.override and setting is not None):
            return setting
        label = self.label(attribute)
        value = _numbers(self.path, label, self.attributes[attribute], count)
        value = tuple(number * scale for number in value)
        if setting is not None and not _agree(setting, value, absolute):
            raw = self.attributes[attribute]
            raise UserError(
                f"{self.path}: {label} says {as_text(raw)}, but {key} says {as_text(setting)}; "
                f"correct or remove {key}, or set data.override to true if the file is wrong"
            )
        return value

    def need(self, attribute: str, key: str, given: Any, **options: Any) -> tuple[float, ...]:
        """As `get`, but must be known and positive."""
        value = self.get(attribute, key, given, **options)
        if value is None:
            remark = f" ({self.remark})" if self.remark else ""
            raise UserError(
                f"{self.path}: there is no attribute {attribute} in the file{remark}; "
                f"give {key} in the settings"
            )
        if not min(value) > 0:
            raise UserError(
                f"{self.path}: {self.label(attribute)} is {as_text(value)}, but should be positive"
            )
        return value
