import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from petomo.analysis.panels import COLOURS
from petomo.analysis.viewer import add_layers, view
from petomo.core.errors import UserError
from petomo.io.artefacts import write_atoms
from petomo.io.volumes import write_mrc

VOXEL = (0.5, 0.31, 0.29)


class FakeViewer:
    """Keeps what napari would have been given."""

    def __init__(self):
        self.images, self.points = [], []

    def add_image(self, data, **options):
        self.images.append((data, options))

    def add_points(self, data, **options):
        self.points.append((data, options))


@pytest.fixture
def folder(tmp_path):
    values = np.zeros((5, 8, 7), np.float32)
    values[4, 1, 6] = 9
    write_mrc(tmp_path / "volume.mrc", values, VOXEL)
    write_mrc(tmp_path / "volume_linear.mrc", values / 2, VOXEL)
    atoms = Atoms("OPtO", [[3 * 0.29, -3 * 0.31, 2 * 0.5], [0, 0, 0], [1, 2, 3]])
    atoms.set_array("intensity", np.array([5.0, 80, 6]))
    atoms.set_array("position_error", np.arange(9.0).reshape(3, 3))
    write_atoms(tmp_path / "atoms.xyz", atoms)
    return tmp_path


def test_volume_and_atoms_share_a_frame_in_angstrom(folder):
    viewer = FakeViewer()
    add_layers(viewer, folder)
    assert [(o["name"], o["visible"]) for _, o in viewer.images] == [
        ("phase per length by linear tomography (rad/A)", False),
        ("potential (V)", True),
    ]
    data, options = viewer.images[-1]
    assert options["units"] == ("angstrom",) * 3
    bright = np.array(np.unravel_index(data.argmax(), data.shape)) * options["scale"] + options["translate"]
    oxygen = next(d for d, o in viewer.points if o["name"] == "O (2)")
    np.testing.assert_allclose(oxygen[0], bright, atol=1e-6)


def test_elements_have_their_own_layer_colour_and_features(folder):
    viewer = FakeViewer()
    add_layers(viewer, folder)
    (_, platinum), (_, oxygen) = viewer.points
    assert (platinum["name"], oxygen["name"]) == ("Pt (1)", "O (2)")
    assert (platinum["face_color"], oxygen["face_color"]) == COLOURS[:2]
    assert platinum["size"] > oxygen["size"] > 0
    assert set(oxygen["features"]) == {
        "intensity", "position_error_x", "position_error_y", "position_error_z",
    }  # fmt: skip
    assert oxygen["features"]["intensity"].tolist() == [5, 6]
    assert oxygen["features"]["position_error_y"].tolist() == [1, 7]


def test_an_early_run_shows_what_there_is(folder):
    (folder / "volume.mrc").unlink()
    (folder / "atoms.xyz").unlink()
    viewer = FakeViewer()
    add_layers(viewer, folder)
    ((_, options),) = viewer.images
    assert options["visible"]
    assert viewer.points == []
    (folder / "volume_linear.mrc").unlink()
    with pytest.raises(UserError, match="neither volume\\.mrc nor"):
        add_layers(viewer, folder)


def test_an_empty_volume_has_contrast_limits_napari_takes(folder):
    write_mrc(folder / "volume.mrc", np.zeros((2, 3, 4)), VOXEL)
    viewer = FakeViewer()
    add_layers(viewer, folder)
    low, high = viewer.images[-1][1]["contrast_limits"]
    assert low < high


def test_without_napari_one_sentence_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "napari", None)
    with pytest.raises(UserError, match=r"petomo\[view\].*petomo report"):
        view(folder)
    with pytest.raises(UserError, match="no such folder"):
        view(folder / "none")


def test_the_window_opens_filled_and_closes_on_errors(folder, monkeypatch):
    viewer, called = FakeViewer(), []
    axes, bar = SimpleNamespace(visible=False), SimpleNamespace(visible=False)
    viewer.canvas = SimpleNamespace(overlays=SimpleNamespace(scale_bar=bar))
    viewer.scene = SimpleNamespace(overlays=SimpleNamespace(axes=axes))
    viewer.show, viewer.close = (lambda: called.append(len(viewer.points))), (lambda: called.append("close"))
    napari = SimpleNamespace(Viewer=lambda **_: viewer, run=lambda: called.append("run"))
    monkeypatch.setitem(sys.modules, "napari", napari)
    view(folder)
    assert called == [2, "run"]
    assert axes.visible
    assert bar.visible
    (folder / "volume.mrc").write_text("no volume")
    with pytest.raises(UserError, match="not a sound MRC file"):
        view(folder)
    assert called == [2, "run", "close"]
