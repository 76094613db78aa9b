"""Numbers that go wrong: a run stops where they do, before they are saved over better ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petomo.core.dataset import FourDSTEM, TiltSeries
from petomo.core.errors import UserError, WrongNumbers

EXPLODED = 100
"""Rise over the lowest loss, in sizes of the first, that no noise explains."""

UNDONE_IN_VAIN = 4
"""Passes in a row that a solver may undo for a loss that is no number."""

UNDONE_TOO_OFTEN = 6
"""Passes in all that a solver may undo before its steps are much too long."""

SAMPLE = 1024
"""Patterns of a tilt that `is_empty` looks at."""

FAINT = 0.03
"""Contrast (rms) that patterns must be able to show before `is_empty` may miss it."""

STEPS = {
    "ptychography": "shorten ptychography.object.step_size and ptychography.probe.step_size",
    "alignment": "check the projections in report.html, or leave a bad tilt out with data.exclude",
    "end_to_end": "shorten end_to_end.volume.step_size and end_to_end.probe.step_size",
}
_LOOK = "look at the counts, energy, semi-angle and defocus that `petomo check` prints"


class Guard:
    """Watches the losses of a run.

    A part of a stage (a tilt, say) is watched by itself. The lowest loss is forgotten when a run is resumed.
    """

    def __init__(self):
        self._first: dict[Any, float] = {}
        self._lowest: dict[Any, float] = {}
        self._undone: dict[Any, int] = {}
        self._undone_ever: dict[Any, int] = {}

    def check(self, stage: str, iteration: int, total: int, loss: float, extra: Mapping[str, Any]) -> None:
        """Refuse a loss that is no finite number, or has exploded.

        Parameters
        ----------
        stage : str
            Stage, or ``stage/part``.
        iteration, total, loss
            As reported.
        extra : mapping
            ``tilt`` and ``part`` tell losses apart that cannot be compared; ``undone`` says that the solver
            took the step back and goes on with a shorter one.

        Raises
        ------
        WrongNumbers
            With iteration, tilt and the likely cause.
        """
        key = (stage, extra.get("tilt"), extra.get("part"))
        lowest = self._lowest.get(key, math.inf)
        undone = self._undone[key] = self._undone.get(key, 0) + 1 if extra.get("undone") else 0
        where = f"iteration {iteration} of {total}" + (f", tilt {extra['tilt']}" if "tilt" in extra else "")
        if not math.isfinite(loss) and not 0 < undone < UNDONE_IN_VAIN:
            raise WrongNumbers(f"the loss is not a finite number in {where}; {_cause(stage, lowest)}")
        size = max(abs(lowest), abs(self._first.get(key, math.inf)))
        if loss - lowest > EXPLODED * size and not undone and "part" not in extra:
            raise WrongNumbers(
                f"the loss has grown from {lowest:.4g} to {loss:.4g} in {where}; {_cause(stage, lowest)}"
            )
        ever = self._undone_ever[key] = self._undone_ever.get(key, 0) + (undone > 0)
        if ever >= UNDONE_TOO_OFTEN:
            raise WrongNumbers(
                f"{ever} passes made it worse and were undone by {where}; {_cause(stage, lowest)}"
            )
        if math.isfinite(loss):
            self._first.setdefault(key, loss)
            self._lowest[key] = min(lowest, loss)


def _cause(stage: str, lowest: float) -> str:
    """What most likely made the loss wrong."""
    remedy = STEPS.get(stage.partition("/")[0], _LOOK)
    if math.isinf(lowest):  # wrong from the start
        return f"the start is wrong already, so {_LOOK}; or {remedy}"
    return f"the steps are too long, so {remedy}"


def refuse_nan(state: Any, what: str) -> None:
    """Refuse tensors and arrays with NaN anywhere in a nested state, before they replace a good one.

    Raises
    ------
    WrongNumbers
        Naming the entry.
    """
    if isinstance(state, Mapping):
        for key, value in state.items():
            refuse_nan(value, f"{what}.{key}")
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            refuse_nan(value, f"{what}.{number}")
    elif (isinstance(state, Tensor) and bool(torch.isnan(state).any())) or (
        isinstance(state, np.ndarray) and state.dtype.kind in "fc" and bool(np.isnan(state).any())
    ):
        raise WrongNumbers(
            f"{what} holds values that are not numbers, so the checkpoint before it is kept; "
            "shorten the step sizes of this stage"
        )


def memory_error(error: Exception) -> UserError | None:
    """A sentence if an exception says that memory ran out, or None."""
    text = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not (
        isinstance(error, RuntimeError) and "allocate memory" in text
    ):
        return None
    asked = re.search(r"allocate (\d+) bytes", text)
    if asked and int(asked[1]) > 2**40:
        return WrongNumbers(
            f"a step led out of all bounds ({int(asked[1]) / 2**40:.0f} TiB were asked for); shorten the "
            "step_size of positions, affine and poses"
        )
    return UserError(
        f"not enough memory ({(text.splitlines() or ['no more'])[0][:150]}); take a smaller volume, fewer "
        "slices, a smaller batch_size, or another device"
    )


def is_empty(tilt: FourDSTEM) -> bool:
    """Whether the patterns of a tilt differ by counting noise alone, so that nothing was in the beam.

    The scatter ``(I - mean)^2 / mean`` summed over pixels and positions has the mean ``n - 1`` and the
    variance ``(n - 1) (2 + 1 / mean)`` a pixel for Poisson counts. Too few counts to tell, and data that are
    not counted in electrons and scatter otherwise, are never called empty.
    """
    count = min(len(tilt), SAMPLE)
    patterns = tilt.patterns(np.unique(np.linspace(0, len(tilt) - 1, count).astype(int))).astype(np.float64)
    mean, n = patterns.mean(0), len(patterns) - 1
    seen = mean > 0
    excess = (np.square(patterns - mean).sum(0)[seen] / mean[seen]).sum() - n * seen.sum()
    deviation = np.sqrt((n * (2 + 1 / mean[seen])).sum())
    return bool(FAINT**2 * n * mean.sum() > 10 * deviation and abs(excess) < 5 * deviation)


def refuse_empty(series: TiltSeries, told: Callable[[str], None]) -> None:
    """Stop where there is nothing to reconstruct, and tell of tilts that missed the specimen.

    Raises
    ------
    UserError
        If no tilt shows a specimen.
    """
    empty = [tilt.name for tilt in series if is_empty(tilt)]
    if len(empty) == len(series):
        raise UserError(
            "the patterns of every tilt differ by counting noise alone, so there is no specimen in the beam; "
            "check that these are the right files, and that the scan lies on the specimen"
        )
    for name in empty:
        told(
            f"{name}: its patterns differ by counting noise alone; use data.exclude if it missed the specimen"
        )
