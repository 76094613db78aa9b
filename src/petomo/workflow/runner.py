"""One run: its input checked, its stages in order, each marked when finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from petomo import __version__
from petomo.core.dataset import TiltSeries
from petomo.core.errors import UserError, WrongNumbers
from petomo.core.machine import installed_memory
from petomo.core.parallel import ALONE, Team
from petomo.io.artefacts import read_json
from petomo.io.atomic import remove_temporaries, write_failure
from petomo.io.metrics import drop_metrics
from petomo.io.poses import load_poses
from petomo.io.readers import open_tilt_series, validate_counts
from petomo.workflow.callbacks import LOG, Interrupted, Reporter
from petomo.workflow.config import Config, dump_config
from petomo.workflow.context import SHARED, RunContext, Stages, rewind
from petomo.workflow.describe import facts
from petomo.workflow.guard import memory_error
from petomo.workflow.resume import State, check_target, locked, refuse_changes, refuse_other_tilts


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a device.

    Raises
    ------
    UserError
        If CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("compute.device is cuda, but this machine offers none to torch; use cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def default_stages() -> Stages:
    """The paper's steps, in order."""
    from petomo.workflow.stages import STAGES

    return STAGES


def open_input(config: Config) -> tuple[TiltSeries, torch.device]:
    """Everything a configuration refers to, opened; no pattern is read.

    Raises
    ------
    UserError
        If something is missing or does not fit.
    """
    device = choose_device(config.compute.device)
    series = open_tilt_series(config.data)
    path = config.alignment.poses
    if path is not None:
        poses, _ = load_poses(path, [tilt.name for tilt in series])
        if len(poses) != len(series):
            raise UserError(
                f"{path}: this holds {len(poses)} poses for {len(series)} tilts; give one per tilt"
            )
    refuse_too_large(series, config, device)
    return series, device


def refuse_too_large(series: TiltSeries, config: Config, device: torch.device) -> None:
    """Refuse what the device cannot hold, before anything is allocated.

    Raises
    ------
    UserError
        Saying how much memory is needed and there.
    """
    need = facts(series, config, device=device)["memory_bytes"]
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = installed_memory()
    if need > there:
        raise UserError(
            f"{series.name}: this needs about {need / 2**30:.3g} GiB of memory, and the {device.type} has "
            f"{there / 2**30:.3g}; take a smaller volume, fewer slices or probe_modes"
        )


def run(
    config: Config,
    out_dir: str | Path,
    resume: bool = False,
    start_from: str | None = None,
    stages: Stages | None = None,
    reporter: Callable[[Path], Reporter] = Reporter,
    until: str | None = None,
    team: Team = ALONE,
) -> None:
    """Run the stages that are left to do.

    Parameters
    ----------
    config : Config
        Settings.
    out_dir : path
        Run folder, made if need be once the input is found sound.
    resume : bool
        Skip finished stages and continue the interrupted one from its checkpoint.
    start_from : str, optional
        Redo this stage and those after it, using the artefacts of those before.
    stages : mapping, optional
        Stage names to functions, in order; default ``petomo.workflow.stages.STAGES``.
    reporter : callable, optional
        Makes the reporter for the run folder.
    until : str, optional
        Last stage to run; the folder can be gone on with later.
    team : Team
        Processes that were all called alike and work at this run together; only the first writes and speaks.

    Raises
    ------
    UserError
        If the input or the folder does not allow the run; nothing is written then.
    Interrupted
        If the user stopped it; the folder can be resumed.
    """
    stages = default_stages() if stages is None else stages
    folder = Path(out_dir)
    wanted = {name: stages[name] for name in _stages_until(stages, start_from, until)}
    if not team.main:
        with Reporter(None, Console(quiet=True)) as silent:
            _run_stages(RunContext(config, folder, *open_input(config), silent, team=team), wanted, State())
        return
    holds_run = check_target(folder, stages, resume, start_from)
    series, device = open_input(config)
    electrons = None if holds_run and _has_input(folder) else validate_counts(series)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if holds_run != check_target(folder, stages, resume, start_from):
                raise UserError(f"{folder}: another run has just used this folder; add --resume to go on")
            remove_temporaries(folder)
            with reporter(folder) as report:
                context = RunContext(config, folder, series, device, report, team=team)
                state = _prepare(context, stages, start_from)
                if electrons is not None:
                    context.summarise(name=config.name, petomo=__version__, torch=torch.__version__,
                                      input=facts(series, config, electrons, device))  # fmt: skip
                _run_stages(context, wanted, state)
                if any(name not in state.finished for name in stages):
                    report.log(f"stopped after {until}, as asked; go on with: {_command(folder)}")
    except PermissionError as error:
        raise UserError(f"{error.filename}: this cannot be written; choose another --out") from error
    except OSError as error:
        raise write_failure(error.filename or folder, error) or error from error


def _stages_until(stages: Stages, start_from: str | None, until: str | None) -> list[str]:
    """Names of the stages up to ``until``."""
    names = list(stages)
    if until is None:
        return names
    if until not in stages:
        raise UserError(f"--until {until}: there is no such stage; choose one of {', '.join(names)}")
    if start_from in names and names.index(start_from) > names.index(until):
        raise UserError(f"--until {until}: this stage comes before --from {start_from}; name a later one")
    return names[: names.index(until) + 1]


def _command(folder: Path, how: str = "--resume") -> str:
    """How to go on with the run in a folder."""
    return f"petomo run {folder / 'config.yaml'} {how} --out {folder}"


def _has_input(folder: Path) -> bool:
    path = folder / "summary.json"
    return path.exists() and "input" in read_json(path)


def _prepare(context: RunContext, stages: Stages, start_from: str | None) -> State:
    """Bring the folder to where this run begins.

    Every step can be repeated, and ``state.json`` says which are left, so that a kill does no harm.
    """
    folder, names = context.folder, list(stages)
    known = (folder / "config.yaml").exists()  # written just after the first state.json
    state = State.read(folder)
    if start_from is not None:
        before, state.redo = names[: names.index(start_from)], names[names.index(start_from) :]
        if missing := [name for name in before if name not in state.finished]:
            raise UserError(
                f"{folder}: stage {missing[0]} has not finished, so --from {start_from} cannot; use --resume"
            )
        state.finished = {name: state.finished[name] for name in before}
    saved = (name for name in names if context.checkpoint_path(name).exists())
    current = next((name for name in saved if name not in state.finished and name not in state.redo), None)
    tilts = [tilt.name for tilt in context.series]
    if known or state.finished:
        refuse_changes(folder, context.config, list(state.finished), current)
    if state.finished or current:
        refuse_other_tilts(folder, state.tilts, tilts)
    state.tilts = tilts
    state.write(folder)
    for name in {*state.redo, *state.finished}:  # one killed while finishing has a checkpoint still
        context.checkpoint_path(name).unlink(missing_ok=True)
    if state.redo:
        rewind(folder, state.redo)
        drop_metrics(folder / "metrics.jsonl", tuple(state.redo))
    dump_config(context.config, folder / "config.yaml")
    state.redo = []
    state.write(folder)
    if state.finished:
        context.summarise(stage_seconds=state.finished)
    return state


def _run_stages(context: RunContext, stages: Stages, state: State) -> None:
    finished, main = state.finished, context.team.main
    skipped, alone = context.team.from_main(list(finished)), replace(context, team=ALONE)
    if context.config.compute.threads is not None:
        torch.set_num_threads(context.config.compute.threads)
    for name, stage in stages.items():
        if name in skipped:
            context.reporter.log(f"{name}: already finished")
            continue
        if main and not context.checkpoint_path(name).exists():
            drop_metrics(context.folder / "metrics.jsonl", (name,))
        context.reporter.stage(name)
        start = time.monotonic()
        if main or name in SHARED:
            _run_stage(context if name in SHARED else alone, name, stage)
        context.team.wait_for_main()
        finished[name] = round(time.monotonic() - start, 3)
        if main:
            state.write(context.folder)
            context.summarise(stage_seconds=finished)
            context.checkpoint_path(name).unlink(missing_ok=True)
        context.reporter.log(f"{name}: finished in {finished[name]:.1f} s")


def _run_stage(context: RunContext, name: str, stage: Callable[[RunContext], None]) -> None:
    """One stage, its failures told with its name and how to go on."""
    try:
        stage(context)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; resume with: {_command(context.folder)}") from None
    except Exception as error:
        LOG.debug("%s: failed", name, exc_info=True)  # into run.log; the console gets one sentence
        if isinstance(error, OSError):
            error = write_failure(error.filename or context.folder, error) or error
        error = memory_error(error) or error
        if isinstance(error, UserError):
            how = f"--from {name}" if isinstance(error, WrongNumbers) else "--resume"
            how = _command(context.folder, how)
            raise UserError(f"{name}: {error}; once that is mended, go on with: {how}") from error
        raise
