"""When a run folder may be used: empty, free, and of the same configuration as before."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from petomo import __version__
from petomo.core.errors import UserError
from petomo.io.artefacts import read_json, write_json
from petomo.io.atomic import is_temporary
from petomo.workflow.config import Config, load_config
from petomo.workflow.context import Stages

SECTIONS = {
    "bright_field": ("data", "bright_field", "compute.seed", "compute.precision"),
    "ptychography": ("volume", "ptychography"),
    "alignment": ("alignment",),
    "end_to_end": ("end_to_end", "analysis.fsc"),
    "analysis": ("analysis",),
    "refinement": ("refinement",),
    "completion": ("completion",),
    "report": (),
}
"""Settings each stage depends on, beside those of the stages before it."""


def _flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in group.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def changed_key(old: Config, new: Config, sections: Sequence[str], exempt: str = "") -> str | None:
    """First key below ``sections`` but ``exempt`` whose value differs, with both values, or None."""
    a, b = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for key in [*b, *(key for key in a if key not in b)]:
        inside = any(key == section or key.startswith(f"{section}.") for section in sections)
        if inside and key != exempt and a.get(key) != b.get(key):
            was, now = (json.dumps(value.get(key), ensure_ascii=False) for value in (a, b))  # as in YAML
            return f"{key} was {was} and is now {now}"
    return None


def refuse_changes(folder: Path, config: Config, kept: list[str], current: str | None) -> None:
    """A result may not silently mix two configurations.

    Parameters
    ----------
    folder : Path
        Run folder with the old ``config.yaml``.
    config : Config
        New settings.
    kept : list of str
        Stages whose artefacts are kept.
    current : str or None
        Stage that goes on from its checkpoint; a change of its ``iterations`` is a fair wish.

    Raises
    ------
    UserError
        Naming the key and both values.
    """
    sections = [section for stage in (*kept, current) for section in SECTIONS.get(stage or "", ())]
    difference = changed_key(load_config(folder / "config.yaml"), config, sections, f"{current}.iterations")
    if difference is not None:
        raise UserError(
            f"{folder}: {difference}, which this run's earlier work depends on; "
            "restore it, redo with --from STAGE, or choose another --out"
        )


def check_target(folder: Path, stages: Stages, resume: bool, start_from: str | None) -> bool:
    """Whether ``folder`` holds a run to go on with; refuses what does not fit the options."""
    if start_from is not None and start_from not in stages:
        raise UserError(f"--from {start_from}: there is no such stage; choose one of {', '.join(stages)}")
    try:
        holds_run = (folder / "state.json").exists()
        names = [path for path in folder.iterdir() if not is_temporary(path)] if folder.is_dir() else []
    except OSError as error:
        raise UserError(
            f"{folder}: this folder cannot be read ({error.strerror}); choose another --out"
        ) from error
    again = resume or start_from is not None
    if holds_run and not again:
        raise UserError(
            f"{folder}: this folder already holds a run; add --resume or --from STAGE, or change --out"
        )
    # killed before it had written anything of worth: as good as a new folder
    begun = bool(names) and all(path.name in (".lock", "run.log") for path in names)
    if again and not holds_run and not (resume and begun):
        option = "--resume" if resume else "--from"
        raise UserError(f"{folder}: there is no run in this folder for {option}; start one without it")
    if names and not holds_run and not begun:
        raise UserError(
            f"{folder}: this folder is not empty and holds no run; choose a new or empty one with --out"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: the run folder cannot be written ({existing}); choose another --out")
    return holds_run


@dataclass
class State:
    """Content of ``state.json``.

    Parameters
    ----------
    finished : dict
        Finished stages and their seconds.
    redo : list of str
        Stages whose redoing was asked for; their traces are still to be removed.
    tilts : list of str
        Names of the tilts, in order; empty if not known.
    """

    finished: dict[str, float] = field(default_factory=dict)
    redo: list[str] = field(default_factory=list)
    tilts: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write it atomically."""
        write_json(folder / "state.json", {"petomo": __version__, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> State:
        """Read it; a folder without one has done nothing.

        Raises
        ------
        UserError
            If it is there but damaged.
        """
        path = folder / "state.json"
        if not path.exists():
            return cls()
        content = read_json(path)
        try:
            finished = {str(name): float(seconds) for name, seconds in content["finished"].items()}
            redo, tilts = ([str(name) for name in content.get(key, ())] for key in ("redo", "tilts"))
            return cls(finished, redo, tilts)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: this should hold `finished`, the stages done and their seconds; "
                "restore it, or start again with another --out"
            ) from None


def refuse_other_tilts(folder: Path, before: Sequence[str], now: Sequence[str]) -> None:
    """A file that vanished, or came, between two runs of a folder would shift all that is kept by number."""
    for name, what in [(n, "is missing now") for n in before if n not in now] + [
        (n, "has come since") for n in now if before and n not in before
    ]:
        raise UserError(
            f"{folder}: this run was begun with {len(before)} tilts, and {name} {what}; restore the data "
            "folder, or choose another --out"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the system lets go even after a crash."""
    path = folder / ".lock"
    with open(path, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except BlockingIOError:
            held = False
        except OSError as error:  # a network drive without locks, say
            raise UserError(
                f"{folder}: this folder cannot be locked ({error.strerror}); choose another --out"
            ) from error
        if not held:  # somebody has it, or had it and removed the file just after it was opened here
            lock.seek(0)
            raise UserError(
                f"{folder}: process {lock.read() or '?'} is running in this folder; "
                "wait for it or choose another --out"
            )
        try:
            lock.truncate(0)
            with suppress(OSError):  # the number is only for the other's message
                lock.write(str(os.getpid()))
                lock.flush()
            yield
        finally:
            path.unlink(missing_ok=True)
