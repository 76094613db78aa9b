"""One self-contained HTML page about a run, made from nothing but its folder."""

from __future__ import annotations

import base64
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

import petomo
from petomo.analysis.report_content import Content, Plan, first_of
from petomo.analysis.report_header import Header, header
from petomo.analysis.report_sections import PLANS
from petomo.core.errors import UserError
from petomo.io.artefacts import to_json
from petomo.io.atomic import write_text

_SCRIPTS = ("base", "charts", "patterns", "slices", "surface", "space", "steer", "viewer", "page")
_HEADER_FILES = ("summary.json", "state.json", "metrics.jsonl")
_DRAWING = threading.Lock()  # matplotlib draws in one thread at a time

Stamp = tuple[tuple[str, int, int], ...]


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
    write_text(run / "report.html", ReportPage(run).render())
    return run / "report.html"


class ReportPage:
    """The page about a run; a section is made anew only when one of its files has changed.

    Parameters
    ----------
    run : path
        Run folder; it need not be there yet.
    live : bool
        Whether the page asks where it came from for news, as `petomo.workflow.live` serves it; such a page
        leaves out the still pictures for browsers without scripts.
    """

    def __init__(self, run: str | Path, live: bool = False):
        self.run, self.live = Path(run), live
        self._made: dict[str, tuple[Stamp, Markup]] = {}
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("petomo.analysis"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.policies["json.dumps_function"] = to_json  # strict: NaN becomes null
        self._templates.policies["json.dumps_kwargs"] = {}
        self._script = Markup("\n".join(self._asset(f"report_{name}.js") for name in _SCRIPTS))
        self._style = Markup(self._asset("report.css"))

    def stamp(self) -> str:
        """Changes whenever a file that the page shows does; reads none of them."""
        stamps = [self._stamp(_files(plan)) for plan in PLANS.values()]
        return _digest(repr((stamps, self._stamp(_HEADER_FILES), petomo.__version__)))

    def render(self) -> str:
        """The page as it stands now."""
        with _DRAWING:
            sections = [(name, plan.title, self._section(name, plan)) for name, plan in PLANS.items()]
        top: Header = header(self.run)
        script = Markup('"use strict";\n(() => {\n') + self._script + Markup("\n})();\n")
        digest = hashlib.sha256(script.encode("utf-8")).digest()
        return self._templates.get_template("report.html").render(
            header=top,
            header_hash=_digest(repr(top)),
            sections=[(name, title, html, _digest(html)) for name, title, html in sections],
            version=petomo.__version__,
            style=self._style,
            script=script,
            script_hash=base64.b64encode(digest).decode("ascii"),
            live=self.live,
        )

    def _section(self, name: str, plan: Plan) -> Markup:
        stamp = self._stamp(_files(plan))
        if name not in self._made or self._made[name][0] != stamp:
            section = _section(name, plan, self.run)
            instead = section.content.instead() if section.content is not None and not self.live else ()
            html = self._templates.get_template("section.html").render(section=section, instead=instead)
            self._made[name] = (stamp, Markup(html))
        return self._made[name][1]

    def _stamp(self, files: tuple[str, ...]) -> Stamp:
        out = []
        for name in files:
            try:
                status = (self.run / name).stat()
            except OSError:
                continue
            out.append((name, status.st_mtime_ns, status.st_size))
        return tuple(out)

    def _asset(self, name: str) -> str:
        loader = self._templates.loader
        assert loader is not None
        return loader.get_source(self._templates, name)[0]


def _files(plan: Plan) -> tuple[str, ...]:
    return tuple(name for need in (*plan.needs, *plan.also) for name in need.split("|"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _section(name: str, plan: Plan, run: Path) -> Section:
    absent = [need.split("|")[0] for need in plan.needs if first_of(run, need) is None]
    if absent:
        return Section(name, plan.title, None, f"{absent[0]} is not there yet; made by: {plan.maker}.")
    try:
        return Section(name, plan.title, plan.show(run))
    except (UserError, KeyError, ValueError, IndexError, TypeError, AttributeError, OSError) as error:
        return Section(name, plan.title, None, f"{plan.needs[0].split('|')[0]} cannot be shown: {error}")
