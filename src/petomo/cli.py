"""The command line. Heavy imports wait until a command needs them, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from petomo import __version__
from petomo.core.errors import UserError

app = typer.Typer(
    name="petomo",
    help="End-to-end ptychographic electron tomography: one 3D potential from a 4D-STEM tilt series.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key: a.b=value.")]
ConfigFile = Annotated[Path, typer.Argument(help="YAML configuration.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="For programs instead of people.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"petomo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, help="Show it.")] = False,
) -> None:
    del version


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File or folder to write.")] = Path("petomo.yaml"),
) -> None:
    """Write a commented configuration to start from."""
    from petomo.io.atomic import write_text

    target = path / "petomo.yaml" if path.is_dir() else path
    if target.exists():
        raise UserError(f"{target}: this file exists already; give another name")
    write_text(
        target, Path(__file__).with_name("workflow").joinpath("template.yaml").read_text(encoding="utf-8")
    )
    typer.echo(f"wrote {target}; edit it, then: petomo check {target}")


@app.command()
def check(config: ConfigFile, set_: Settings = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Open and validate everything, say in words what follows, and find what is wrong with the data."""
    import json

    from petomo.workflow.config import load_config
    from petomo.workflow.diagnose import check as check_series

    checked = check_series(load_config(config, set_))
    if as_json:
        typer.echo(json.dumps(checked.as_json(), indent=1))
    else:
        for line in checked.lines():
            typer.echo(line)
    if not checked.usable:
        raise UserError(f"{config}: the data cannot be used as they are; see the findings marked `error`")


@app.command()
def run(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Redo this stage and the later ones.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    live: Annotated[
        int | None,
        typer.Option("--live", min=0, max=65535, help="Port of a page that follows the run; 0: any."),
    ] = None,
    set_: Settings = [],  # noqa: B006
) -> None:
    """Reconstruct: bright field, ptychography, alignment, end-to-end, analysis, report."""
    from petomo.core.parallel import assembled
    from petomo.workflow.config import load_config
    from petomo.workflow.runner import Interrupted
    from petomo.workflow.runner import run as run_stages

    try:
        with assembled() as team:
            settings = load_config(config, set_)
            folder = out or Path("runs") / settings.name
            with _followed(folder, live if team.main else None):
                run_stages(settings, folder, resume, start_from, until=until, team=team)
    except Interrupted as stop:
        typer.echo(f"petomo: {stop}", err=True)
        raise typer.Exit(130) from None


@app.command()
def simulate(
    spec: Annotated[Path, typer.Argument(help="YAML specification.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the tilt series; new or empty.")],
) -> None:
    """Simulate a tilt series from atoms, with the truth beside it."""
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: this folder is not empty; choose a new or empty one with --out")
    from petomo.simulation.acquisition import simulate as simulate_series
    from petomo.simulation.spec import read_spec

    def told(done: int, total: int, seconds: float) -> None:
        typer.echo(f"tilt {done} of {total}: {seconds:.1f} s", err=True)

    def expected(line: str) -> None:
        typer.echo(line, err=True)

    simulate_series(read_spec(spec), out, on_tilt=told, on_start=expected)
    typer.echo(f"wrote {out}")


@app.command()
def plan(
    spec: Annotated[Path, typer.Argument(help="YAML plan.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: plans/NAME.")] = None,
    set_: Settings = [],  # noqa: B006
) -> None:
    """Simulate a planned acquisition and alternatives to it, and say what to expect of each."""
    from petomo.workflow.callbacks import Interrupted
    from petomo.workflow.plan import plan as work_through
    from petomo.workflow.plan_spec import read_plan
    from petomo.workflow.plan_table import table

    folder = out or Path("plans") / spec.stem
    try:
        done = work_through(read_plan(spec, set_), folder, lambda line: typer.echo(line, err=True))
    except Interrupted as stop:
        typer.echo(f"petomo: {stop}", err=True)
        raise typer.Exit(130) from None
    for line in table(done["cases"]):
        typer.echo(line)
    typer.echo(f"wrote {folder / 'plan.md'} and {folder / 'plan.json'}")


@app.command()
def score(
    run_folder: RunFolder,
    truth: Annotated[Path, typer.Option("--truth", help="Folder with atoms.xyz and poses.npz.")],
) -> None:
    """Compare a finished run with the truth of a simulation; also writes RUN/score.json."""
    _need_folder(run_folder, "a run folder")
    _need_folder(truth, "the truth folder of a simulation")
    from petomo.analysis.score import format_score, score_run
    from petomo.analysis.truth import score_volumes
    from petomo.io.artefacts import write_json

    result = score_run(run_folder, truth)
    result["resolution"] = score_volumes(run_folder, truth, result)
    write_json(run_folder / "score.json", result)
    typer.echo(format_score(result))


@app.command()
def report(run_folder: RunFolder) -> None:
    """Write RUN/report.html from the artefacts that are there."""
    _need_folder(run_folder, "a run folder")
    from petomo.analysis.report import write_report

    typer.echo(f"wrote {write_report(run_folder)}")


@app.command()
def export(
    run_folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="New file; its suffix says the format.")],
    what: Annotated[
        str | None,
        typer.Option(
            "--what", help="volume, volume_completed, volume_linear, absorption, projections or atoms."
        ),
    ] = None,
    ome: Annotated[str, typer.Option("--ome", help="Version of OME-Zarr, 0.4 or 0.5.")] = "0.4",
) -> None:
    """Write the volume (MRC, OME-Zarr, EMD, TIFF) or the atoms (.xyz, .cif) for other programs."""
    from petomo.io.export import export_run

    typer.echo(f"wrote {export_run(run_folder, to, what, ome)}")


@app.command()
def view(run_folder: RunFolder) -> None:
    """Look at the volume and the atoms in napari (install petomo[view])."""
    from petomo.analysis.viewer import view as view_run

    view_run(run_folder)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="Data file, volume or run folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what a file holds, what is missing, and what follows from it."""
    from petomo.io.inspect import describe_file
    from petomo.workflow.describe import file_lines

    lines = [*describe_file(file), *file_lines(file)]
    if as_json:
        import json

        typer.echo(json.dumps({"file": str(file), "lines": lines}, indent=1))
        return
    for line in lines:
        typer.echo(line)


@app.command()
def poses(
    source: Annotated[Path, typer.Argument(help="Run folder, .json, .star or .xf file.", show_default=False)],
    to: Annotated[Path | None, typer.Option("--to", help="File to write: .json, .star or .xf.")] = None,
    pixel_angstrom: Annotated[
        float | None, typer.Option(help="Pixel of IMOD's .xf; default: of the image stack beside it.")
    ] = None,
) -> None:
    """Show the poses of all tilts, or write them for other programs (RELION STAR, IMOD .xf with .rawtlt)."""
    from petomo.io.pose_exchange import exchange_poses

    for line in exchange_poses(source, to, pixel_angstrom):
        typer.echo(line)


@app.command()
def schema() -> None:
    """Print the configuration's JSON schema, for completion in editors."""
    import json

    from petomo.workflow.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=1))


@contextmanager
def _followed(folder: Path, port: int | None) -> Iterator[None]:
    """The live page of a run, if asked for."""
    if port is None:
        yield
        return
    from petomo.workflow.live import live_page

    with live_page(folder, port) as address:
        typer.echo(f"the run can be followed at {address} on this machine", err=True)
        yield


def _need_folder(path: Path, what: str) -> None:
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; give {what}")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}; give a path that can be read or written"
    return str(error)


def main() -> None:
    """Entry point: what a user can mend becomes one sentence and exit code 2.

    ``PETOMO_DEBUG=1`` shows the traceback instead.
    """
    # threads that wait by spinning take the processor from the one they wait for where others use it too
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # large volumes in pages of 2 MB (torch reads this): most of a turn's time went into pages of 4 kB
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except (UserError, OSError) as error:
        if os.environ.get("PETOMO_DEBUG"):
            raise
        print(f"petomo: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
