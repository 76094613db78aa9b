"""What the minibatch solver keeps beside its model: where a pass began, curvatures, randomness, caution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petomo.algorithms.descent_options import DescentOptions
from petomo.models.ptycho_tomography import PtychoTomography
from petomo.models.ptychography import Ptychography

Model = Ptychography | PtychoTomography
OBJECT = {"volume", "absorption"}


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
        self.before: dict[str, Tensor] | None = None  # all that moves, where the last pass began
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

    def begin(self):
        """Remember all that moves, and let the volume go on by a share of what the last pass changed.

        What no tilt sees is filled by the regularisers alone, in one direction for many passes; what the
        tilts do see, the next pass corrects. Plain descent is left to itself.
        """
        if self.options.solver == "sgd":
            return
        self.model.zero_grad(set_to_none=True)  # that of the last batch would stand beside the copies
        earlier, self.before = self.before, {k: v.clone() for k, v in self.model.state_dict().items()}
        # the change of the first pass is the whole volume
        if earlier is None or self.finished < 2 or not self.options.volume.active(self.finished):
            return
        for name in OBJECT & earlier.keys():
            back = earlier[name].sub_(self.before[name])
            self.model.get_parameter(name).data.sub_(back, alpha=self.options.momentum)

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

    def undo(self):
        """Back to where the pass began, with half the step, and without momentum for the next."""
        assert self.before is not None  # plain descent is never undone
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(self.before[name])
        self.before, self.caution = None, self.caution / 2

    def state(self) -> dict:
        """What to resume from; the tensors are those the solver goes on with."""
        out = {
            "finished": self.finished,
            "caution": self.caution,
            "last": self.last,
            "model": dict(self.model.state_dict()),
            "generator": self.generator.get_state(),
            "curvature": dict(self.curvature),
        }
        if self.before is not None and self.options.momentum:
            out["before"] = {name: self.before[name] for name in OBJECT & self.before.keys()}
        return out

    def _load(self, state: dict):
        self.model.load_state_dict({k: torch.as_tensor(v) for k, v in state["model"].items()})
        device = self.model.volume.device
        if "before" in state:
            self.before = {k: torch.as_tensor(v).to(device) for k, v in state["before"].items()}
        self.generator.set_state(torch.as_tensor(state["generator"]))
        self.finished, self.caution, self.last = (state[k] for k in ("finished", "caution", "last"))
        self.curvature = {k: torch.as_tensor(v).to(device) for k, v in state["curvature"].items()}
