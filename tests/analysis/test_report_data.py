"""What the page carries: arrays that come back, places that stay, choices that are even."""

import base64
import gzip

import numpy as np
import pytest
from ase import Atoms

from petomo.analysis import report_data


def unpack(packed):
    data = gzip.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(data, np.dtype(packed["type"]).newbyteorder("<")).reshape(packed["shape"])


def volts(shown):
    return shown["low"] + shown["step"] * unpack(shown["levels"])


@pytest.mark.parametrize(("fine", "levels"), [(10**6, 4095), (0, 255)])
def test_the_volume_comes_back_to_half_a_grey_level(fine, levels):
    volume = np.random.default_rng(0).normal(size=(5, 8, 11)).astype(np.float32)
    shown = report_data.volume_data(volume, (0.5, 0.4, 0.3), "rad/Å", fine=fine)
    span = volume.max() - volume.min()
    assert np.abs(volts(shown) - volume).max() <= 0.501 * span / levels
    np.testing.assert_allclose(shown["start"], [-2 * 0.5, -4 * 0.4, -5 * 0.3])
    assert shown["binned"] == [1, 1, 1]
    assert shown["unit"] == "rad/Å"
    assert shown["window"][0] < shown["surface"] < shown["window"][1]


def test_binning_keeps_every_place():
    z, y, x = np.ogrid[:9, :10, :23]
    for axis, ramp in enumerate((z, y, x)):
        size = (0.3, 0.4, 0.3)
        place = (ramp - ramp.max() // 2 - ramp.max() % 2) * size[axis] + np.zeros((9, 10, 23))
        shown = report_data.volume_data(place, size, most=300)
        assert np.prod(shown["levels"]["shape"]) <= 300
        index = np.indices(shown["levels"]["shape"])[axis]
        expected = shown["start"][axis] + shown["voxel"][axis] * index
        np.testing.assert_allclose(volts(shown), expected, atol=shown["step"])


def test_a_flat_volume_has_a_window():
    shown = report_data.volume_data(np.full((3, 3, 3), 2.0), (1, 1, 1))
    np.testing.assert_allclose(volts(shown), 2)
    assert shown["window"][1] > shown["window"][0]


def test_atoms_carry_their_numbers_and_no_nan():
    atoms = Atoms("OPt", positions=[[1, 2, 3], [0, 0, 0]])
    atoms.set_array("sigma", np.array([np.nan, 0.25]))
    shown = report_data.atoms_data(atoms)
    assert [e["symbol"] for e in shown["elements"]] == ["Pt", "O"]
    assert shown["element"] == [1, 0]
    assert shown["numbers"] == {"sigma": [None, 0.25]}


def test_losses_of_tilts_start_together_and_lone_values_make_one_curve():
    chain = [
        {"iteration": 3 * t + i + 1, "loss": 5.0 - i, "tilt": t, "noise_floor": 1.0 + t}
        for t in (0, 1)
        for i in range(3)
    ]
    lone = [{"iteration": t + 1, "loss": float(t), "tilt": t} for t in range(4)]
    ptychography, field = report_data.loss_data({"ptychography": chain, "bright_field": lone})
    assert [c["iteration"] for c in ptychography["curves"]] == [[1, 2, 3], [1, 2, 3]]
    assert ptychography["floor"] == 1.5
    assert (field["along"], field["curves"][0]["iteration"]) == ("tilt", [0, 1, 2, 3])
    long = [{"iteration": i, "loss": 1.0} for i in range(5000)]
    (thin,) = report_data.loss_data({"x": [*long, {"iteration": 5000, "loss": float("nan")}]})
    assert thin["curves"][0]["iteration"][::499] == [0, 4999]


def test_patterns_keep_their_counts_and_worst_and_median_when_thinned():
    rng = np.random.default_rng(0)
    counts = {f"p{i:02d}": rng.poisson(200, (6, 7)) for i in range(20)} | {"worst": rng.poisson(3, (6, 7))}
    entries = {
        name: {"measured": n, "model": n + 0.5, "tilt": 1, "index": i, "loss": 1.0}
        for i, (name, n) in enumerate(counts.items())
    }
    scans = [np.zeros((0, 2)), rng.normal(size=(21, 2))]
    shown = report_data.patterns_data(entries, scans, (0.1, 0.2))
    assert len(shown["entries"]) == 21
    assert shown["left_out"] == 0
    for entry in shown["entries"]:
        roots = unpack(entry["roots"]) * entry["step"]
        np.testing.assert_array_equal(np.round(roots[0] ** 2), counts[entry["name"]])
        np.testing.assert_allclose(entry["xy"], scans[1][entry["index"]], atol=1e-3)
    thin = report_data.patterns_data(entries, scans, most_bytes=42 * 4 * 7)
    assert [e["name"] for e in thin["entries"]] == ["worst", "p00", "p04", "p08", "p11", "p15", "p19"]
    assert thin["left_out"] == 14
