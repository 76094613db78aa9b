"""One self-contained HTML page about a run, made from nothing but its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

import petomo
from petomo.analysis.report_sections import PLANS, Content, Plan
from petomo.core.errors import UserError
from petomo.io.artefacts import read_json
from petomo.io.atomic import write_text


@dataclass(frozen=True)
class Section:
    """A titled part of the page; ``missing`` says why there is no content."""

    name: str
    title: str
    content: Content | None
    missing: str = ""


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run folder.

    Parameters
    ----------
    run_dir : path
        Run folder. A section whose artefacts are missing is one line that names the stage that makes them.

    Returns
    -------
    pathlib.Path
        The page, written atomically.

    Raises
    ------
    UserError
        If there is no such folder.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run folder")
    sections = [_section(name, plan, run) for name, plan in PLANS.items()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("petomo.analysis"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=_title(run), sections=sections, version=petomo.__version__
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def _section(name: str, plan: Plan, run: Path) -> Section:
    absent = [need for need in plan.needs if not (run / need).is_file()]
    if absent:
        return Section(name, plan.title, None, f"{absent[0]} is not there yet; made by: {plan.maker}.")
    try:
        return Section(name, plan.title, plan.show(run))
    except (UserError, KeyError, ValueError, IndexError) as error:
        return Section(name, plan.title, None, f"{plan.needs[0]} cannot be shown: {error}")


def _title(run: Path) -> str:
    try:
        return str(read_json(run / "summary.json").get("name") or run.resolve().name)
    except (UserError, AttributeError):
        return run.resolve().name
