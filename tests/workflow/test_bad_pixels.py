"""Broken detector pixels, from the files to the volume."""

import h5py
import numpy as np
import torch
from minute_run import SPEC

from petomo.io.volumes import read_mrc
from petomo.simulation.acquisition import simulate
from petomo.simulation.spec import read_spec
from petomo.workflow.config import load_config
from petomo.workflow.runner import run

SMALLER = {"[-40, -20, 0, 20, 40]": "[-30, 0, 30]", "scan_shape: [8, 7]": "scan_shape: [7, 6]"}
RUN = """
data: {root: data, tilts: "tilt_*.h5"}
bright_field: {fit: [C10], defocus_range_angstrom: [-20, 20]}
ptychography: {iterations: 3, slices: 2, probe_modes: 1, positions: {start: 1}}
alignment: {iterations: 1, bundle: {rounds: 1, iterations: 5}}
end_to_end: {iterations: 4, slices: 2, batch_size: 20, volume: {step_size: 1.0}}
compute: {threads: 1, device: cpu}
output: {save_every: 1000}
"""
DEAD = [[12, 10], [12, 11], [9, 8], [17, 12]]
HOT = [[10, 12], [14, 9], [3, 4], [12, 15]]


def spoil(folder, pixels, value):
    """The same pixels in all patterns, in the disk and beyond it."""
    for path in folder.glob("tilt_*.h5"):
        with h5py.File(path, "r+") as file:
            counts = file["counts"][()]
            counts[..., *np.transpose(pixels)] = value
            file["counts"][...] = counts


def test_pixels_named_bad_leave_the_volume_as_it_was(tmp_path):
    spec = SPEC
    for old, new in SMALLER.items():
        assert old in spec
        spec = spec.replace(old, new)
    (tmp_path / "spec.yaml").write_text(spec)
    (tmp_path / "run.yaml").write_text(RUN)
    torch.set_num_threads(1)
    simulate(read_spec(tmp_path / "spec.yaml"), tmp_path / "data")

    def volume(name, bad=()):
        config = load_config(tmp_path / "run.yaml", [f"data.bad_pixels={list(bad)}"])
        run(config, tmp_path / name, until="end_to_end")
        return read_mrc(tmp_path / name / "volume.mrc")[0]

    clean = volume("clean")
    spoil(tmp_path / "data", DEAD, 0)
    dead = volume("dead")
    spoil(tmp_path / "data", HOT, 60000)
    hot = volume("hot", DEAD)
    named = volume("named", DEAD + HOT)
    error = {
        name: np.linalg.norm(found - clean) / np.linalg.norm(clean)
        for name, found in (("dead", dead), ("hot", hot), ("named", named))
    }
    assert error["named"] < 0.18
    assert error["named"] < error["dead"] / 1.4, "fewer pixels, but counted as measurements of zero"
    assert error["named"] < error["hot"] / 8
