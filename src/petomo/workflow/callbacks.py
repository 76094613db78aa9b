"""Progress, log, metrics and Ctrl-C: what a person watching a run sees and does."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from petomo.io.metrics import append_metrics

LOG = logging.getLogger("petomo")


class Interrupted(Exception):
    """The user asked to stop, and the state on disk can be resumed."""

    exit_code = 130


class Reporter:
    """Shows and records the iterations of a run.

    Use as a context manager: inside, the first Ctrl-C (or SIGTERM) only sets
    `interrupted`, so that the iteration can finish and be saved; the second
    stops at once.

    Parameters
    ----------
    folder : path or None
        Run folder for ``metrics.jsonl`` and ``run.log``; None writes neither.
    console : rich.console.Console, optional
        Where to show progress; default standard error.
    log_every : float
        Seconds between progress lines where the console is not a terminal.
    """

    def __init__(self, folder: Path | None = None, console: Console | None = None, log_every: float = 10.0):
        self.folder = folder
        self.console = console or Console(stderr=True)
        self.interrupted = False
        self._log_every = log_every
        self._clock = self._last_line = time.monotonic()
        self._key: tuple[Any, ...] | None = None
        self._progress: Progress | None = None
        self._task: Any = None
        self._handlers: list[logging.Handler] = []
        self._signals: dict[int, Any] = {}

    def __enter__(self) -> Reporter:
        if self.folder is not None:
            handler = _LogFile(self.folder / "run.log", encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._handlers.append(handler)
        shown = _ConsoleHandler(self.console)
        self._handlers.append(shown)
        LOG.setLevel(logging.DEBUG)
        for handler in self._handlers:
            LOG.addHandler(handler)
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._signals[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: whoever owns that one handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._close_bar()
        for number, previous in self._signals.items():
            signal.signal(number, previous)
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()
        self._signals, self._handlers = {}, []

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        LOG.warning("stopping after this iteration; press Ctrl-C again to stop at once")

    def log(self, message: str) -> None:
        """One line on the console and in ``run.log``."""
        LOG.info(message)

    def stage(self, name: str) -> None:
        """A stage begins: its clock starts."""
        self._close_bar()
        self._clock = self._last_line = time.monotonic()
        LOG.info("%s: started", name)

    def iteration(self, stage: str, iteration: int, total: int, loss: float, **extra: Any) -> None:
        """Record one iteration.

        Parameters
        ----------
        stage : str
            Stage's name.
        iteration, total : int
            Iterations done, counted from 1, and in all.
        loss : float
            Loss of this iteration.
        **extra
            Further entries of the line in ``metrics.jsonl``, such as ``tilt``, ``noise_floor``, ``lr``.
        """
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        if self.folder is not None:
            record = {"stage": stage, "iteration": iteration, "loss": loss, "seconds": round(seconds, 4)}
            append_metrics(self.folder / "metrics.jsonl", record | extra)
        label = f"{stage} tilt {extra['tilt']}" if "tilt" in extra else stage
        if self.console.is_terminal:
            self._show(label, iteration, total, loss)
        elif iteration >= total or now - self._last_line >= self._log_every:
            self._last_line = now
            LOG.info("%s: iteration %d of %d, loss %.6g, %.2f s each", label, iteration, total, loss, seconds)

    def _show(self, label: str, iteration: int, total: int, loss: float) -> None:
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            tail = (TextColumn("left"), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]}"))
            self._progress = Progress(*columns, *tail, console=self.console)
            self._progress.start()
        if self._key != (label, total):
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(label, total=total, completed=iteration - 1, loss="")
            self._key = (label, total)
        self._progress.update(self._task, completed=iteration, loss=f"{loss:.5g}")

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = self._key = None


class _LogFile(logging.FileHandler):
    """A log on a full disk loses lines, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        del record

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    """Log lines above the progress bar, without markup or highlighting."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)
