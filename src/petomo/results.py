"""What a run leaves, as Python objects that show themselves in notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from petomo.analysis.notebook import run_html, volume_html
from petomo.core.pose import Poses
from petomo.io import artefacts
from petomo.io.export import export_run, sound_atoms
from petomo.io.metrics import read_metrics
from petomo.io.volumes import GridData, read_grid
from petomo.workflow.config import Config, load_config

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.figure import Figure


class Volume(GridData):
    """A potential ``z y x`` that shows itself in notebooks; ``numpy.asarray(volume)`` are its numbers."""

    def figure(self, thickness: float = 1.0) -> Figure:
        """Three orthogonal slabs through the origin, mean over ``thickness`` angstrom."""
        from petomo.analysis.volume_figures import orthogonal_slices

        return orthogonal_slices(self.values, self.spacing, thickness)

    def __repr__(self) -> str:
        shape, size = (" x ".join(f"{n:.4g}" for n in numbers) for numbers in (self.shape, self.spacing))
        return f"<Volume: {self.name}, {shape} voxels of {size} angstrom (z y x), {self.unit}>"

    def _repr_html_(self) -> str:
        return volume_html(repr(self), self.figure())


class Run:
    """What a run has left in its folder; everything is read anew when asked for.

    Parameters
    ----------
    folder : path
        Run folder, of a finished run or of one that is still going on.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def finished(self) -> dict[str, float]:
        """Seconds of each finished stage."""
        return artefacts.read_json(self.folder / "state.json")["finished"]

    @property
    def config(self) -> Config:
        """Settings of the run."""
        return load_config(self.folder / "config.yaml")

    @property
    def summary(self) -> dict[str, Any]:
        """Content of ``summary.json``."""
        return artefacts.read_json(self.folder / "summary.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record an iteration: stage, iteration, loss, seconds ... (``pandas.DataFrame`` takes it)."""
        return read_metrics(self.folder / "metrics.jsonl")

    def losses(self, stage: str = "end_to_end") -> np.ndarray:
        """Losses of a stage's iterations in order."""
        return np.array([r["loss"] for r in self.metrics if r["stage"] == stage], dtype=float)

    def grid(self, what: str = "volume") -> Volume:
        """``volume``, ``volume_completed``, ``volume_linear``, ``absorption``, ``projections`` (tilt y x)."""
        grid = read_grid(self.folder, what)
        return Volume(**{field.name: getattr(grid, field.name) for field in fields(grid)})

    @property
    def volume(self) -> Volume:
        """The potential ``z y x`` in volts."""
        return self.grid("volume")

    @property
    def projections(self) -> np.ndarray:
        """Phase projections ``tilt y x`` in radian."""
        return read_grid(self.folder, "projections").values

    @property
    def poses(self) -> Poses:
        """Poses of all tilts, in radian and angstrom."""
        return artefacts.read_poses(self.folder / "poses.json")[0]

    @property
    def tilt_names(self) -> list[str]:
        """Names of the tilts, in the order of `poses`."""
        return artefacts.read_poses(self.folder / "poses.json")[1]

    @property
    def probes(self) -> artefacts.Probes:
        """Probe modes of every tilt, with pixel size and fitted defocus."""
        return artefacts.read_probes(self.folder / "probes.h5")

    @property
    def positions(self) -> list[Tensor]:
        """Refined scan positions ``(k, 2)`` of every tilt, (x, y) in angstrom."""
        return artefacts.read_positions(self.folder / "positions.h5")[0]

    @property
    def initial_positions(self) -> list[Tensor]:
        """Scan positions as given, like `positions`."""
        return artefacts.read_positions(self.folder / "positions.h5")[1]

    @property
    def bright_field(self) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Phase image and fitted values of every tilt."""
        return artefacts.read_bright_field(self.folder / "bright_field.h5")

    @property
    def patterns(self) -> Mapping[str, dict[str, Any]]:
        """The ``worst`` and the ``median`` pattern, measured and modelled, in electrons."""
        return artefacts.read_patterns(self.folder / "patterns.h5")

    @property
    def half_volumes(self) -> tuple[Volume, Volume]:
        """Two independent volumes, if half sets were asked for."""
        a, b, size = artefacts.read_half_volumes(self.folder / "half_volumes.h5")
        return Volume(a, size, name="potential, half a"), Volume(b, size, name="potential, half b")

    @property
    def atoms(self) -> Atoms:
        """Traced atoms (ASE), in angstrom, zero where the volume has it."""
        return sound_atoms(self.folder / "atoms.xyz")

    def export(self, target: str | Path, what: str | None = None, ome_version: str = "0.4") -> Path:
        """Write the volume, or what is asked for, for other programs; see `petomo.io.export.export_run`."""
        return export_run(self.folder, target, what, ome_version)

    def report(self) -> Path:
        """Write ``report.html`` from what is there; returns its path."""
        from petomo.analysis.report import write_report

        return write_report(self.folder)

    def score(self, truth: str | Path) -> dict[str, Any]:
        """Compare with the truth of a simulation; see `petomo.analysis.score.score_run`."""
        from petomo.analysis.score import score_run

        return score_run(self.folder, truth)

    def view(self) -> None:
        """Open in napari (extra ``view``) and wait until the window is closed."""
        from petomo.analysis.viewer import view

        view(self.folder)

    def __repr__(self) -> str:
        return f"<Run: {self.folder}, finished: {', '.join(self.finished) or 'no stage yet'}>"

    def _repr_html_(self) -> str:
        volume = self.grid().figure() if (self.folder / "volume.mrc").is_file() else None
        return run_html(repr(self), self.finished, self.metrics, volume)
