"""petomo in notebooks and scripts: load, run a stage, look.

>>> import petomo
>>> plan = petomo.load("run.yaml", "end_to_end.iterations=30")  # doctest: +SKIP
>>> run = plan.run("RUN", until="ptychography")  # doctest: +SKIP
>>> run.probes.defocus  # doctest: +SKIP
>>> plan.run("RUN").volume  # doctest: +SKIP
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from petomo.analysis.notebook import plan_html
from petomo.core.dataset import TiltSeries
from petomo.core.errors import UserError
from petomo.io.readers import open_tilt_series
from petomo.io.volumes import read_mrc
from petomo.results import Run, Volume
from petomo.workflow import runner
from petomo.workflow.callbacks import Reporter
from petomo.workflow.config import Config, load_config
from petomo.workflow.describe import facts, sentences
from petomo.workflow.diagnose import check

_MRC = (".mrc", ".map", ".rec", ".st")


def load(source: str | Path, *settings: str) -> Plan | Run | Volume:
    """Open a configuration, a folder or a file.

    Parameters
    ----------
    source : path
        A YAML configuration; a run folder; an MRC volume; or measured data, one file or a folder of them,
        which then go with the default configuration.
    *settings : str
        ``key=value`` as for ``petomo run --set``, for configurations and data.

    Returns
    -------
    Plan, Run or Volume
        A plan to run, what a run has left, or a volume.

    Raises
    ------
    UserError
        If it is missing or does not hold what it should.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; give a configuration, a run or data")
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return Plan(load_config(path, settings))
    kind = "a run folder" if (path / "state.json").is_file() else "an MRC file" if suffix in _MRC else None
    if kind is None:
        return Plan(_default_config(path.resolve(), settings))
    if settings:
        raise UserError(f"{path}: {kind} takes no settings; leave out {settings[0]}")
    return Run(path) if kind == "a run folder" else Volume(*read_mrc(path))


def open_run(folder: str | Path) -> Run:
    """What a run has left in its folder; see `Run`.

    Raises
    ------
    UserError
        If the folder holds no run.
    """
    if not (Path(folder) / "state.json").is_file():
        raise UserError(f"{folder}: this folder holds no run; give the --out of `petomo run`")
    return Run(folder)


def simulate(spec: str | Path, out: str | Path) -> Path:
    """Simulate a tilt series, with the truth beside it, from a YAML specification; returns the folder.

    Raises
    ------
    UserError
        If the specification has a mistake, or the folder is not new or empty.
    """
    from petomo.simulation.acquisition import simulate as simulate_series
    from petomo.simulation.spec import read_spec

    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: this folder is not empty; choose a new or empty one")
    simulate_series(read_spec(spec), out)
    return out


def _default_config(path: Path, settings: Sequence[str]) -> Config:
    """Defaults for data at ``path``; relative paths in ``settings`` count from the working folder."""
    folder = path.is_dir() and path.suffix.lower() != ".zarr"
    data = {"root": str(path)} if folder else {"root": str(path.parent), "tilts": [path.name]}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "defaults.yaml"
        file.write_text(json.dumps({"name": path.stem, "data": data}), encoding="utf-8")  # JSON is YAML
        return load_config(file, settings)


@dataclass(frozen=True, repr=False)
class Plan:
    """A configuration and the data it refers to.

    Parameters
    ----------
    config : Config
        Settings, every default filled in.
    """

    config: Config

    @cached_property
    def series(self) -> TiltSeries:
        """The tilt series, lazy: patterns are read when asked for."""
        return open_tilt_series(self.config.data)

    def facts(self) -> dict[str, Any]:
        """Derived numbers (wavelength, overlap, depth of field, memory ...), units in the keys."""
        return facts(self.series, self.config, device=runner.choose_device(self.config.compute.device))

    def check(self) -> list[str]:
        """Read and validate all data; what ``petomo check`` says, a sentence an item."""
        return check(self.config).lines()

    def run(
        self,
        folder: str | Path,
        until: str | None = None,
        start_from: str | None = None,
        quiet: bool = False,
    ) -> Run:
        """Run the stages that are left to do; a run that is in the folder already is continued.

        Parameters
        ----------
        folder : path
            Run folder.
        until : str, optional
            Last stage to run: ``bright_field``, ``ptychography``, ``alignment``, ``end_to_end`` ...
        start_from : str, optional
            Redo this stage and those after it.
        quiet : bool
            Show no progress; ``run.log`` has it all the same.

        Raises
        ------
        UserError
            If data, settings or folder do not allow the run.
        Interrupted
            If the user stopped it; calling `run` again goes on.
        """
        folder = Path(folder)
        resume = start_from is None and (folder / "state.json").is_file()
        console = Console(stderr=True, quiet=quiet)
        runner.run(
            self.config, folder, resume, start_from, None, lambda path: Reporter(path, console), until=until
        )
        return Run(folder)

    def __repr__(self) -> str:
        return "\n".join([f"<Plan: {self.config.name}>", *sentences(self.facts())])

    def _repr_html_(self) -> str:
        return plan_html(self.config.name, sentences(self.facts()))
