import json
import math

import numpy as np
import pytest
import torch
from format_files import STAR
from typer.testing import CliRunner

from petomo.cli import app
from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io.angles import order_by_name, read_angles, read_named_angles
from petomo.io.artefacts import write_poses
from petomo.io.poses import ImageFrame, load_poses, save_poses
from petomo.io.readers import open_tilt_series
from petomo.io.settings import DataSettings
from petomo.io.star import find_block, read_star
from petomo.io.volumes import write_stack
from petomo.workflow.config import load_config
from petomo.workflow.runner import open_input

NAMES = ["tilt 00.h5", "tilt_01.h5", "tilt_02.h5"]
MDOC = """PixelSpacing = 7.88
ImageFile = a.mrc

[T = SerialEM: somewhere, TiltAngle = 99]

[ZValue = 1]
TiltAngle = -2.5
StagePosition = 1 2
SubFramePath = X:\\frames\\tilt_00.tif

[ZValue = 0]
TiltAngle = 5.00054
SubFramePath = X:\\frames\\tilt_01.tif
"""


@pytest.fixture
def poses():
    generator = torch.Generator().manual_seed(3)
    angles = torch.randn(3, 3, dtype=torch.float64, generator=generator) * torch.tensor([0.1, 0.6, 0.2])
    tau = torch.randn(3, 2, dtype=torch.float64, generator=generator) * 5
    return Poses(*angles.unbind(-1), tau)


def assert_same(a, b):
    for key in ("phi", "theta", "psi", "tau"):
        torch.testing.assert_close(getattr(a, key), getattr(b, key), rtol=0, atol=1e-6)


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".json", ".star", ".xf"])
@pytest.mark.parametrize("shape", [(7, 8), (5, 5)])
def test_a_round_trip_keeps_the_poses(tmp_path, poses, suffix, shape):
    frame = ImageFrame(0.4, shape)
    written = save_poses(tmp_path / f"run{suffix}", poses, NAMES, frame)
    assert all(path.is_file() for path in written)
    back, names = load_poses(tmp_path / f"run{suffix}", frame=frame)
    assert_same(back, poses)
    assert names == (NAMES if suffix != ".xf" else ["0", "1", "2"])


def test_xf_maps_the_image_onto_one_that_turns_about_y(tmp_path, poses):
    """What IMOD does with the lines: x' = A (x - c) + c + d in pixels, c = (n - 1) / 2."""
    shape, pixel = (7, 8), 0.4
    poses = poses.replace(phi=torch.zeros(3, dtype=torch.float64))
    written = save_poses(tmp_path / "a.xf", poses, NAMES, ImageFrame(pixel, shape))
    assert [path.name for path in written] == ["a.xf", "a.rawtlt", "a.tlt"]
    point = torch.tensor([[1.3, -0.7, 2.1]], dtype=torch.float64)
    image = poses.apply(point)[:, 0, :2].numpy() / pixel + np.array([8 // 2, 7 // 2])  # pixel indices
    centre = (np.array([8, 7]) - 1) / 2
    for line, angle, where in zip(
        (tmp_path / "a.xf").read_text().splitlines(), read_angles(tmp_path / "a.tlt"), image, strict=True
    ):
        numbers = np.array(line.split(), float)
        aligned = numbers[:4].reshape(2, 2) @ (where - centre) + centre + numbers[4:]
        theta = math.radians(angle)
        expected = [1.3 * math.cos(theta) + 2.1 * math.sin(theta), -0.7]
        np.testing.assert_allclose((aligned - np.array([8 // 2, 7 // 2])) * pixel, expected, atol=1e-8)


def test_star_columns_are_our_numbers(tmp_path, poses):
    save_poses(tmp_path / "TS 1.star", poses, NAMES)
    block = find_block(tmp_path, read_star(tmp_path / "TS 1.star"), ["rlnTomoYTilt"])
    assert block["rlnMicrographName"] == NAMES
    for column, values in (("X", poses.phi), ("Y", poses.theta)):
        np.testing.assert_allclose(
            np.array(block[f"rlnTomo{column}Tilt"], float), torch.rad2deg(values), atol=1e-8
        )
    np.testing.assert_allclose(np.array(block["rlnTomoXShiftAngst"], float), poses.tau[:, 0], atol=1e-8)


def test_star_of_relion(tmp_path):
    (tmp_path / "a.star").write_text(STAR)
    poses, names = load_poses(tmp_path / "a.star")
    assert names == ["frames/tilt_01.mrc", "frames/tilt_00.mrc"]
    assert torch.rad2deg(poses.psi).tolist() == pytest.approx([-1.25, -1.5])
    assert poses.tau.tolist() == [[4.5, -6], [1, 2]]
    assert read_angles(tmp_path / "a.star") == [3, -3], "the nominal angle, not the refined"
    poses, names = load_poses(tmp_path / "a.star", ["tilt_00.h5", "tilt_01.h5"])
    assert poses.tau.tolist() == [[1, 2], [4.5, -6]], "ordered by the tilts' names"
    assert len(load_poses(tmp_path / "a.star", ["tilt_00.h5"])[0]) == 1
    assert len(load_poses(tmp_path / "a.star", ["other.h5"])[0]) == 2


def test_mdoc(tmp_path):
    (tmp_path / "a.mdoc").write_text(MDOC)
    assert read_named_angles(tmp_path / "a.mdoc") == ([5.00054, -2.5], ["tilt_01.tif", "tilt_00.tif"])
    (tmp_path / "a.mdoc").write_text(MDOC.replace("TiltAngle = -2.5\n", ""))
    assert "should hold a TiltAngle" in refusal(read_angles, tmp_path / "a.mdoc")


def test_angles_go_to_the_files_they_name(tmp_path):
    for name in ("tilt_00.npy", "tilt_01.npy"):
        np.save(tmp_path / name, np.ones((1, 2, 3, 4)))
    (tmp_path / "a.mdoc").write_text(MDOC)
    (tmp_path / "a.star").write_text(STAR)
    (tmp_path / "a.rawtlt").write_text(" -7\n 8\n")
    np.save(tmp_path / "angles", np.array([1, 2], np.float32))
    given = {
        "root": str(tmp_path),
        "tilts": "tilt_*.npy",
        "energy_kev": 200,
        "semiangle_mrad": 25,
        "scan_step_angstrom": 1,
        "dk_per_angstrom": 0.05,
    }
    for name, angles in (
        ("a.mdoc", [-2.5, 5.00054]),
        ("a.star", [-3, 3]),
        ("a.rawtlt", [-7, 8]),
        ("angles.npy", [1, 2]),
    ):
        series = open_tilt_series(DataSettings(**given, stage_tilt_degree=str(tmp_path / name)))
        np.testing.assert_allclose(torch.rad2deg(series.stage_tilts), angles, atol=1e-12)


def test_angles_from_poses(tmp_path, poses):
    write_poses(tmp_path / "poses.json", poses, NAMES)
    angles, names = read_named_angles(tmp_path / "poses.json")
    assert names == NAMES
    np.testing.assert_allclose(angles, torch.rad2deg(poses.theta), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.star", "loop_\n", "starts with a data_ block"),
        ("a.star", "data_a\nloop_\n_x\n_y\n1 2\n3\n", "line 6: this row has 1 values for the 2 columns"),
        (
            "a.star",
            "data_a\nloop_\n_rlnTomoTiltSeriesStarFile\nb.star\n",
            "give the STAR file of one of them",
        ),
        ("a.star", STAR.replace("-1.25", "north"), "is not a number"),
        ("a.star", STAR.replace("-1.25", "nan"), "is not finite"),
        ("a.json", "[1, 2]", "each with phi_degree"),
        ("a.csv", "1 2", "poses come as .json, .star, .xf"),
        ("a.xf", "1 0 0 1 0 0\n", "a.tlt or a.rawtlt"),
    ],
)
def test_poses_that_are_none(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    assert words in refusal(load_poses, tmp_path / name)


def test_xf_that_is_none(tmp_path):
    (tmp_path / "a.rawtlt").write_text("1\n2\n")
    frame = ImageFrame(1.0)
    for text, words in (
        ("1 0 0 1 0 0\n", "holds 1 images, but a.rawtlt has 2 tilts"),
        ("1 0 0 1 0\n" * 2, "six numbers"),
        ("1.1 0 0 1 0 0\n" * 2, "stretches or shears"),
    ):
        (tmp_path / "a.xf").write_text(text)
        assert words in refusal(load_poses, tmp_path / "a.xf", frame=frame)
    assert "petomo poses" in refusal(load_poses, tmp_path / "a.xf")


def test_the_command(tmp_path, poses):
    run = tmp_path / "run"
    run.mkdir()
    write_poses(run / "poses.json", poses, NAMES)
    write_stack(run / "projections.mrc", torch.rand(3, 7, 8), 0.4)

    def petomo(*arguments):
        return CliRunner().invoke(app, ["poses", *map(str, arguments)], catch_exceptions=False).output

    assert f"{math.degrees(poses.theta[2]):.3f}" in petomo(run)
    for name in ("a.star", "b.xf", "c.json"):
        assert f"wrote {tmp_path / name}" in petomo(run, "--to", tmp_path / name)
    write_stack(tmp_path / "b.mrc", torch.rand(3, 7, 8), 0.4)
    petomo(tmp_path / "b.xf", "--to", tmp_path / "d.star")
    assert_same(load_poses(tmp_path / "d.star")[0], poses)
    assert len(json.loads((tmp_path / "c.json").read_text())["tilts"]) == 3
    with pytest.raises(UserError, match="exists already"):
        petomo(run, "--to", tmp_path / "a.star")


def test_a_run_takes_poses_of_other_programs(tmp_path):
    for name in ("tilt_00.npy", "tilt_01.npy"):
        np.save(tmp_path / name, np.ones((1, 2, 3, 4)))
    (tmp_path / "relion.star").write_text(STAR)
    (tmp_path / "run.yaml").write_text(
        "data: {tilts: 'tilt_*.npy', energy_kev: 200, semiangle_mrad: 25, scan_step_angstrom: 1, "
        "dk_per_angstrom: 0.05, stage_tilt_degree: relion.star}\nalignment: {poses: relion.star}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert config.alignment.poses == str(tmp_path / "relion.star")
    assert torch.rad2deg(open_input(config)[0].stage_tilts).tolist() == pytest.approx([-3, 3])
    np.save(tmp_path / "tilt_02.npy", np.ones((1, 2, 3, 4)))
    given = load_config(tmp_path / "run.yaml", ["data.stage_tilt_degree=[1, 2, 3]"])
    assert "holds 2 poses for 3 tilts" in refusal(open_input, given)


def test_names_with_points_are_not_cut_short():
    assert order_by_name(["a/t_1.5.tif", "a/t_1.0.tif"], ["t_1.0.h5", "t_1.5.h5"]) == [1, 0]
    assert order_by_name(["t_1.5.tif"], ["t_1.0.h5"]) is None
