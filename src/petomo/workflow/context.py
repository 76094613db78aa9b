"""What a stage gets to work with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from petomo.core.dataset import TiltSeries
from petomo.core.parallel import ALONE, Team
from petomo.io.artefacts import read_json, write_json
from petomo.io.atomic import atomic_folder, atomic_path
from petomo.io.checkpoint import load_checkpoint, save_checkpoint
from petomo.io.metrics import read_metrics, truncate_metrics
from petomo.workflow.callbacks import Interrupted, Reporter
from petomo.workflow.config import Config
from petomo.workflow.guard import Guard, refuse_nan

SHARED = frozenset({"bright_field", "ptychography", "end_to_end", "refinement", "completion"})
"""Stages that all processes of a run work at together; the others are left to the first of them."""


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def rewind(folder: Path, stages: Sequence[str]) -> None:
    """Bring a run folder's artefacts back to before the first of ``stages``, which are to be redone."""
    for stage in reversed(stages):
        inputs = folder / "inputs" / stage
        for path in sorted(inputs.glob("[!.]*")):
            _copy(path, folder / path.name)
        if stage != stages[0]:
            shutil.rmtree(inputs, ignore_errors=True)


@dataclass
class RunContext:
    """A run, seen from inside a stage.

    Parameters
    ----------
    config : Config
        Resolved settings.
    folder : Path
        Run folder; artefacts go here.
    series : TiltSeries
        The data, lazy.
    device : torch.device
        Where to compute.
    reporter : Reporter
        Progress and log.
    team : Team
        Processes that work at this stage together: its first one writes the files, and all of them call the
        methods below in the same order.
    """

    config: Config
    folder: Path
    series: TiltSeries
    device: torch.device
    reporter: Reporter
    guard: Guard = field(default_factory=Guard, repr=False)
    team: Team = ALONE

    def checkpoint_path(self, stage: str) -> Path:
        """The stage's checkpoint; removed when the stage is finished."""
        return self.folder / "checkpoints" / f"{stage}.h5"

    def inputs(self, stage: str, *names: str) -> Path:
        """Folder ``inputs/STAGE`` with the artefacts a stage starts from.

        They are copied there, all or none, by the stage's first call, so that a stage which replaces them
        (positions, probes, poses) finds the same ones when it is resumed or redone; see `rewind`.

        Parameters
        ----------
        stage : str
            Stage's name.
        *names : str
            Files of the run folder; one that is not there is left out. Later calls need not name them.
        """
        folder = self.folder / "inputs" / stage
        if self.team.main and not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            with atomic_folder(folder) as temporary:
                for name in names:
                    if (self.folder / name).exists():
                        shutil.copyfile(self.folder / name, temporary / name)
        if names:
            self.team.wait_for_main()
        return folder

    def report(self, stage: str, iteration: int, total: int, loss: float, **extra: Any) -> None:
        """Tell of an iteration, and refuse a loss that is no number; see `iteration`."""
        self.reporter.iteration(stage, iteration, total, loss, **extra)
        self.guard.check(stage, iteration, total, loss, extra)

    def iteration(
        self,
        stage: str,
        iteration: int,
        total: int,
        loss: float,
        state: Callable[[], Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> None:
        """Report an iteration; save ``state()`` when it is due or the user wants to stop.

        Parameters
        ----------
        stage : str
            Stage's name, or ``stage/part``: a part has lines of its own in ``metrics.jsonl`` and shares the
            stage's checkpoint.
        iteration, total : int
            Iterations done, counted from 1, and in all.
        loss : float
            Loss of this iteration.
        state : callable, optional
            Gives all that the stage needs to go on from here; see `restore`.
        **extra
            Further entries for ``metrics.jsonl``.

        Raises
        ------
        Interrupted
            After the checkpoint is written, if the user pressed Ctrl-C.
        UserError
            If the loss or, when it is saved or done, the state is not made of numbers.
        """
        self.report(stage, iteration, total, loss, **extra)
        stop = self.team.any(self.reporter.interrupted)
        if state is not None and (stop or iteration % self.config.output.save_every == 0):
            self.save(stage.partition("/")[0], state())
        elif state is not None and iteration == total:
            refuse_nan(state(), f"the result after iteration {iteration}")
        if stop:
            self.team.wait_for_main()  # until it has saved
            raise Interrupted(f"stopped in {stage} after iteration {iteration} of {total}")

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Write the stage's checkpoint."""
        refuse_nan(state, "the state")
        if not self.team.main:
            return
        self.checkpoint_path(stage).parent.mkdir(exist_ok=True)
        lines = len(read_metrics(self.folder / "metrics.jsonl"))
        save_checkpoint(self.checkpoint_path(stage), {"metrics_lines": lines, "state": state})

    def restore(self, stage: str) -> dict[str, Any] | None:
        """The state last saved, or None; ``metrics.jsonl`` is cut back to that moment."""
        if not self.checkpoint_path(stage).exists():
            return None
        content = load_checkpoint(self.checkpoint_path(stage))
        if self.team.main:
            truncate_metrics(self.folder / "metrics.jsonl", content["metrics_lines"])
        return content["state"]

    def summarise(self, **entries: Any) -> None:
        """Add entries to ``summary.json``."""
        if not self.team.main:
            return
        path = self.folder / "summary.json"
        write_json(path, (read_json(path) if path.exists() else {}) | entries)


Stages = Mapping[str, Callable[[RunContext], None]]
