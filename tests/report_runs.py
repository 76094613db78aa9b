"""A made-up run folder for the report's tests, and a browser to look at it."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from petomo.core.pose import Poses
from petomo.io import artefacts
from petomo.io.metrics import append_metrics
from petomo.io.volumes import write_mrc

SHAPE, VOXEL = (11, 14, 17), (0.5, 0.4, 0.3)
NASTY = "<script>alert('x')</script>"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def make_run(folder):
    """A whole run folder with two tilts, an odd, anisotropic volume and hostile names; returns its volume."""
    rng = np.random.default_rng(0)
    volume = rng.normal(size=SHAPE)
    summary = {
        "name": NASTY,
        "data": {"defocus_angstrom": -60.0, "stage_tilts_degree": [-20, 20], "dose": list(range(9))},
        "input": {
            "tilts": 2, "stage_tilt_degree": [-20, 20], "scan_shape": [4, 5],
            "scan_step_angstrom": [0.5, 0.4], "detector_sampling_per_angstrom": [0.05, 0.04],
            "dose_total_per_square_angstrom": 123456.0,
        },
        "atoms": {"Pt": 1, "Al": 1, "O": 2},
    }  # fmt: skip
    artefacts.write_json(folder / "summary.json", summary)
    artefacts.write_json(folder / "state.json", {"finished": {"ptychography": 6.0, "end_to_end": 200}})
    (folder / "config.yaml").write_text(f"data:\n  root: {NASTY}\n")
    for stage, tilts in (("ptychography", (0, 1)), ("end_to_end", (None,))):
        for tilt in tilts:
            for i in range(3):
                extra = {} if tilt is None else {"tilt": tilt}
                record = {"stage": stage, "iteration": i, "loss": 3.0 - i, "seconds": 2.0, "noise_floor": 0.5}
                append_metrics(folder / "metrics.jsonl", record | extra)
    field = {
        "method": "parallax",
        "reason": f"because {NASTY}",
        "defocus_angstrom": 60.0,
        "C12_angstrom": 3.0,
    }
    artefacts.write_bright_field(folder / "bright_field.h5", [(volume[0], field), (volume[1], field)])
    modes = torch.from_numpy(rng.normal(size=(2, 3, 8, 10)) + 1j)
    artefacts.write_probes(folder / "probes.h5", modes, (0.4, 0.3), 2e5, [60.0, None])
    scan = torch.from_numpy(rng.uniform(-5, 5, (2, 20, 2)))
    artefacts.write_positions(folder / "positions.h5", list(scan + 0.1), list(scan))
    tilts = torch.tensor([-0.35, 0.35], dtype=torch.float64)
    artefacts.write_poses(folder / "poses.json", Poses.from_tilts(tilts), ["a", NASTY])
    artefacts.write_patterns(folder / "patterns.h5", patterns(rng))
    write_mrc(folder / "volume.mrc", volume, VOXEL)
    write_mrc(folder / "volume_completed.mrc", volume, VOXEL)
    halves = volume, volume + 0.3 * rng.normal(size=SHAPE)
    artefacts.write_half_volumes(folder / "half_volumes.h5", *halves, VOXEL)
    # an atom apart from the others, on a voxel: x 1.2, y 0.8, z 1.0
    positions = np.array([[1.2, 0.8, 1.0], [-1.5, -1.6, -1.5], [-1.0, 1.5, -2.0], [0.5, -1.5, 0.0]])
    atoms = Atoms("PtAlO2", positions=positions, info={"threshold_volt": 12.0})
    atoms.set_array("intensity", np.array([500.0, 200, np.nan, 95]))
    atoms.set_array("sigma", np.full(4, 0.3))
    artefacts.write_atoms(folder / "atoms.xyz", atoms)
    return volume


def patterns(rng):
    """Worst, median, and one more of either tilt."""

    def entry(tilt, index, loss):
        measured = rng.poisson(9.0, (12, 10))
        return {
            "measured": measured,
            "model": np.full((12, 10), 9.0),
            "tilt": tilt,
            "index": index,
            "loss": loss,
        }

    return {
        "worst": entry(0, 3, 5.0),
        "median": entry(1, 7, 1.0),
        "tilt_00_position_00011": entry(0, 11, 2.0),
        "tilt_01_position_00002": entry(1, 2, 3.0),
    }


def _chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("PETOMO_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return found if found and Path(found).exists() else None


@contextmanager
def browser():
    """A headless Chromium; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = _chromium()
    if program is None:
        pytest.skip("needs Chromium (PETOMO_CHROMIUM names one)")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield started
        finally:
            started.close()


class Watched:
    """A page of a browser whose errors, dialogs and requests are kept."""

    def __init__(self, browser, address, width=1280, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on(
            "console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", timeout=20000)
        self.page.wait_for_timeout(100)

    def text(self, selector):
        return self.page.locator(selector).first.text_content()
