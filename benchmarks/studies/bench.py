"""A finished run opened again up to step 3, the truth beside it: what studies of the solver start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import study
import torch
from rich.console import Console

from petomo.algorithms.descent import reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.analysis.resolution import ShellCorrelation, fourier_shell_correlation
from petomo.io.artefacts import read_atoms
from petomo.workflow.callbacks import Reporter
from petomo.workflow.config import load_config
from petomo.workflow.context import RunContext
from petomo.workflow.grids import PatternReader, make_loss, plan_grids
from petomo.workflow.runner import open_input
from petomo.workflow.step_end_to_end import active_regularizers, build_model, descent_options

BAND = (0.2, 1.25)  # 1/angstrom, over which the correlation with truth is averaged
BAND_NAME = f"correlation with truth, {BAND[0]:g} to {BAND[1]:g} 1/Å"


def open_run(run: Path) -> RunContext:
    """A run as one of its stages sees it, on the processor and silent."""
    config = load_config(run / "config.yaml")
    tilts, _ = open_input(config)
    return RunContext(config, run, tilts, torch.device("cpu"), Reporter(None, Console(quiet=True)))


def band_mean(found: ShellCorrelation) -> float:
    """Mean correlation over `BAND`."""
    band = (found.frequency > BAND[0]) & (found.frequency < BAND[1])
    return float(found.correlation[band].mean())


class Bench:
    """The data, the start and the truth."""

    def __init__(self, run: Path, data: Path):
        context, still = open_run(run), Schedule(0.0)
        grids, tilts = plan_grids(context.series, context.config), context.series
        self.loss = make_loss(context, grids, "amplitude")
        self.read = PatternReader(tilts, grids.window.shape, context.device)
        self.build = lambda: build_model(context, grids, run / "inputs" / "end_to_end")
        self.patterns = [len(tilt) for tilt in tilts]
        self.voxel = (grids.voxel,) * 3
        # as configured, but for the geometry, which stays
        self.options = replace(descent_options(context), positions=still, affine=still, poses=still)
        self.terms = active_regularizers(context, grids, self.build(), 0)
        traced = read_atoms(run / "atoms.xyz")
        self.truth = study.truth_in_frame(run, data, traced, grids.volume_shape, self.voxel)

    def curve(self, options: DescentOptions, terms: list[Any]) -> Iterator[dict[str, float]]:
        """Loss and agreement with the truth after every pass."""
        model = self.build()
        for status in reconstruct(model, self.read, self.loss, options, terms):
            found = fourier_shell_correlation(model.volume.detach().numpy(), self.truth, self.voxel)
            yield {
                "pass": status.iteration,
                "loss": status.loss,
                "correlation": band_mean(found),
                "resolution": study.resolution(found, 0.5),
            }
