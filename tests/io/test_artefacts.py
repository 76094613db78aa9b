import json
import math
import os

import ase
import h5py
import mrcfile
import numpy as np
import pytest
import torch

from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io import artefacts as files
from petomo.io.atomic import atomic_path, write_text
from petomo.io.metrics import append_metrics, drop_metrics, read_metrics, truncate_metrics
from petomo.io.volumes import read_mrc, write_mrc, write_stack


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_mrc_volume(tmp_path, capsys):
    volume = np.random.default_rng(0).normal(size=(5, 6, 9))
    write_mrc(tmp_path / "v.mrc", volume, (0.3, 0.25, 0.5))
    data, voxel = read_mrc(tmp_path / "v.mrc")
    np.testing.assert_array_equal(data, volume.astype(np.float32))
    assert voxel == pytest.approx((0.3, 0.25, 0.5))
    assert mrcfile.validate(tmp_path / "v.mrc"), capsys.readouterr().out
    with mrcfile.open(tmp_path / "v.mrc") as mrc:
        assert mrc.is_volume()
        origin, start = mrc.header.origin, mrc.nstart
        assert (origin.x, origin.y, origin.z) == pytest.approx((-4 * 0.5, -3 * 0.25, -2 * 0.3))
        assert (start.x, start.y, start.z) == (-4, -3, -2)


def test_mrc_stack(tmp_path, capsys):
    images = torch.rand(3, 5, 4)
    write_stack(tmp_path / "p.mrc", images, (0.3, 0.2))
    data, voxel = read_mrc(tmp_path / "p.mrc")
    np.testing.assert_array_equal(data, images)
    assert voxel[1:] == pytest.approx((0.3, 0.2))
    assert mrcfile.validate(tmp_path / "p.mrc"), capsys.readouterr().out
    with mrcfile.open(tmp_path / "p.mrc") as mrc:
        assert mrc.is_image_stack()


def test_damaged_mrc_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_mrc(tmp_path / "no.mrc")
    write_mrc(tmp_path / "v.mrc", np.ones((4, 4, 4)), 1.0)
    whole = (tmp_path / "v.mrc").read_bytes()
    (tmp_path / "v.mrc").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="not a sound MRC"):
        read_mrc(tmp_path / "v.mrc")


def test_poses(tmp_path):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    poses = Poses(values[0] * 0.1, values[1], values[2] * 0.1, torch.randn(5, 2, dtype=torch.float64))
    files.write_poses(tmp_path / "poses.json", poses, [f"t{i}" for i in range(5)])
    back, names = files.read_poses(tmp_path / "poses.json")
    assert names == [f"t{i}" for i in range(5)]
    for key in ("phi", "theta", "psi", "tau"):
        torch.testing.assert_close(getattr(back, key), getattr(poses, key), rtol=0, atol=1e-15)
    entry = json.loads((tmp_path / "poses.json").read_text())["tilts"][2]
    assert entry["theta_degree"] == pytest.approx(math.degrees(poses.theta[2]))
    assert entry["tau_angstrom"] == poses.tau[2].tolist()


def test_poses_of_another_shape_are_refused(tmp_path):
    (tmp_path / "poses.json").write_text('{"tilts": [{"theta_degree": 3}]}')
    with pytest.raises(UserError, match="phi_degree, theta_degree, psi_degree"):
        files.read_poses(tmp_path / "poses.json")
    (tmp_path / "poses.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_poses(tmp_path / "poses.json")


def test_probes_keep_their_order_past_a_hundred_tilts(tmp_path):
    probes = torch.randn(103, 2, 3, 4, dtype=torch.complex64)
    defocus = [None, *map(float, range(102))]
    files.write_probes(tmp_path / "probes.h5", probes, (0.3, 0.2), 2e5, defocus)
    back = files.read_probes(tmp_path / "probes.h5")
    assert torch.equal(torch.stack(back.modes), probes)
    assert math.isnan(back.defocus[0])
    assert back.defocus[1:] == defocus[1:]
    assert (back.pixel_size, back.energy_ev) == ((0.3, 0.2), 2e5)
    with h5py.File(tmp_path / "probes.h5") as file:
        power = probes[7].abs().square().sum((1, 2))
        np.testing.assert_allclose(file["tilt_07/probe"].attrs["mode_powers"], power / power.sum(), rtol=1e-5)


def test_positions(tmp_path):
    positions = [torch.randn(k, 2, dtype=torch.float64) for k in (4, 6)]
    initial = [torch.zeros(k, 2, dtype=torch.float64) for k in (4, 6)]
    files.write_positions(tmp_path / "positions.h5", positions, initial)
    back, start = files.read_positions(tmp_path / "positions.h5")
    assert all(torch.equal(a, b) for a, b in zip(back + start, positions + initial, strict=True))


def test_bright_field_patterns_halves_and_atoms(tmp_path):
    phase = np.arange(6.0).reshape(2, 3)
    files.write_bright_field(
        tmp_path / "b.h5", [(phase, {"method": "ssb", "contrast": 0.5, "C12_angstrom": None})]
    )
    ((back, attributes),) = files.read_bright_field(tmp_path / "b.h5")
    np.testing.assert_array_equal(back, phase)
    assert attributes == {"method": "ssb", "contrast": 0.5}

    entry = {"measured": torch.ones(3, 4), "model": torch.zeros(3, 4), "tilt": 1, "index": 7, "loss": 0.25}
    files.write_patterns(tmp_path / "p.h5", {"worst": entry, "median": entry | {"index": 2}})
    patterns = files.read_patterns(tmp_path / "p.h5")
    assert patterns["median"]["index"] == 2
    np.testing.assert_array_equal(patterns["worst"]["measured"], np.ones((3, 4)))

    files.write_half_volumes(tmp_path / "h.h5", torch.ones(2, 3, 4), torch.zeros(2, 3, 4), (1.0, 2.0, 3.0))
    a, b, voxel = files.read_half_volumes(tmp_path / "h.h5")
    assert (a.sum(), b.sum(), voxel) == (24, 0, (1.0, 2.0, 3.0))

    atoms = ase.Atoms("PtO", [[0, 0, 0], [1.5, -2, 0.25]])
    atoms.set_array("intensity", np.array([900.0, 100.0]))
    files.write_atoms(tmp_path / "atoms.xyz", atoms)
    again = files.read_atoms(tmp_path / "atoms.xyz")
    assert list(again.symbols) == ["Pt", "O"]
    np.testing.assert_allclose(again.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(again.get_array("intensity"), [900, 100])


@pytest.mark.parametrize(
    "read",
    [files.read_probes, files.read_positions, files.read_patterns, files.read_half_volumes, files.read_json],
)
def test_missing_or_damaged_artefacts_are_sentences(tmp_path, read):
    with pytest.raises(UserError, match="there is no such file"):
        read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"damaged|not valid JSON"):
        read(tmp_path / "x")


def test_json_is_strict():
    text = files.to_json({"a": math.nan, "b": [np.float32(1.5), torch.tensor([1, 2])], "c": np.inf, 3: "é"})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, [1, 2]],
        "c": None,
        "3": "é",
    }
    with pytest.raises(TypeError, match="object"):
        files.to_json({"a": object()})


def test_metrics_survive_a_crash_and_are_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for number in range(4):
        append_metrics(path, {"stage": "a" if number < 2 else "b", "iteration": number, "loss": math.nan})
    with open(path, "a") as file:
        file.write('{"stage": "b", "iter')
    assert [record["iteration"] for record in read_metrics(path)] == [0, 1, 2, 3]
    truncate_metrics(path, 3)
    assert [record["iteration"] for record in read_metrics(path)] == [0, 1, 2]
    drop_metrics(path, ("b",))
    assert [record["iteration"] for record in read_metrics(path)] == [0, 1]
    assert path.read_text().endswith("\n")
