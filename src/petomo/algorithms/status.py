"""What a solver hands out after every iteration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Status:
    """One iteration of a solver.

    Parameters
    ----------
    iteration : int
        Iterations done so far, counted from 1 and across a resume.
    loss : float
        Objective before the iteration's update.
    extras : dict of str to float
        Further numbers worth logging.
    state : dict
        Tensors and numbers; handed back to the solver as ``state=`` it continues as if never stopped.
        Tensors are not copied: clone what must outlive the next iteration.
    """

    iteration: int
    loss: float
    extras: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
