"""What the minibatch solver keeps beside its model: momentum, curvatures, random numbers, and its caution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petomo.algorithms.descent_options import DescentOptions
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.models.ptychography import Ptychography

Model = Ptychography | PtychoTomography


class Work:
    """What the solver carries from pass to pass.

    Parameters
    ----------
    model : Ptychography or PtychoTomography
        Solved in place.
    options : DescentOptions
        Its settings.
    state : dict or None
        An earlier `Work.state` to go on from.
    """

    def __init__(self, model: Model, options: DescentOptions, state: dict | None):
        self.model, self.options = model, options
        self.generator = torch.Generator().manual_seed(options.seed)
        self.momentum = torch.zeros_like(model.volume.data)
        self.momentum_absorption = (
            None if model.absorption is None else torch.zeros_like(model.absorption.data)
        )
        self.curvature: dict[str, Tensor] = {}
        self.finished, self.caution, self.last = 0, 1.0, math.inf
        if state is not None:
            self._load(state)

    def scale(self, iteration: int, part: float = 0.0) -> float:
        """Share of the full step at this point of the run."""
        if self.options.solver == "sgd":
            return 1.0
        low, x = self.options.final_step, (iteration + part) / self.options.iterations
        return self.caution * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))

    def snapshot(self) -> list[Tensor] | None:
        """Copies of all that `undo` brings back; None for plain descent, which is left to itself."""
        return None if self.options.solver == "sgd" else [t.clone() for t in self._moving()]

    def expect(self, loss: float):
        """Take the first loss of a run for a mark, with room to spare."""
        if self.finished == 0 and math.isinf(self.last):
            self.last = 1.5 * loss

    def rose(self, loss: float) -> bool:
        """Whether this pass was a failure: too long a step for a curvature that is known by its bound."""
        worse = not loss < 1.1 * self.last
        # after a failure the next pass sets the mark: what it starts from may be no better
        self.last = math.inf if worse else loss
        return worse

    def undo(self, before: list[Tensor]):
        """Back to a snapshot, without momentum, with half the step."""
        for tensor, kept in zip(self._moving(), before, strict=True):
            tensor.copy_(kept)
        for momentum in (self.momentum, self.momentum_absorption):
            if momentum is not None:
                momentum.zero_()
        self.caution /= 2

    def _moving(self) -> list[Tensor]:
        return list(self.model.state_dict().values())

    def tensors(self) -> list[Tensor]:
        """All that the next pass starts from."""
        absorption = () if self.momentum_absorption is None else (self.momentum_absorption,)
        return [*self._moving(), self.momentum, *absorption]

    def state(self) -> dict:
        """What to resume from; the tensors are those the solver goes on with."""
        out = {
            "finished": self.finished,
            "caution": self.caution,
            "last": self.last,
            "model": dict(self.model.state_dict()),
            "momentum": self.momentum,
            "generator": self.generator.get_state(),
            "curvature": dict(self.curvature),
        }
        if self.momentum_absorption is not None:
            out["momentum_absorption"] = self.momentum_absorption
        return out

    def _load(self, state: dict):
        self.model.load_state_dict({k: torch.as_tensor(v) for k, v in state["model"].items()})
        device = self.momentum.device
        self.momentum.copy_(torch.as_tensor(state["momentum"]))
        if self.momentum_absorption is not None:
            self.momentum_absorption.copy_(torch.as_tensor(state["momentum_absorption"]))
        self.generator.set_state(torch.as_tensor(state["generator"]))
        self.finished, self.caution, self.last = (state[k] for k in ("finished", "caution", "last"))
        self.curvature = {k: torch.as_tensor(v).to(device) for k, v in state["curvature"].items()}
