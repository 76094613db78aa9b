"""The report of a made-up run folder: sections in order, escaped, self-contained; and its figures."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ase import Atoms
from matplotlib.figure import Figure

from petomo.analysis import figures, volume_figures
from petomo.analysis.panels import bar_length
from petomo.analysis.report import write_report
from petomo.analysis.report_sections import PLANS, flat_rows
from petomo.core.electron import defocus_in_words
from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io import artefacts
from petomo.io.metrics import append_metrics
from petomo.io.volumes import write_mrc

SHAPE, VOXEL = (11, 14, 17), (0.5, 0.4, 0.3)
NASTY = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run folder with two tilts, an odd, anisotropic volume and hostile names."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    volume = rng.normal(size=SHAPE)
    artefacts.write_json(
        folder / "summary.json",
        {
            "name": NASTY,
            "data": {"defocus_angstrom": -60.0, "stage_tilts_degree": [-20, 20], "dose": list(range(9))},
        },
    )
    (folder / "config.yaml").write_text(f"data:\n  root: {NASTY}\n")
    for stage, tilts in (("ptychography", (0, 1)), ("end_to_end", (None,))):
        for tilt in tilts:
            for i in range(3):
                extra = {} if tilt is None else {"tilt": tilt}
                record = {
                    "stage": stage,
                    "iteration": i,
                    "loss": 3.0 - i,
                    "seconds": 2.0,
                    "noise_floor": 0.5,
                } | extra
                append_metrics(folder / "metrics.jsonl", record)
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
    pair = {
        "measured": rng.poisson(9.0, (12, 10)),
        "model": np.full((12, 10), 9.0),
        "tilt": 0,
        "index": 3,
        "loss": 1.0,
    }
    artefacts.write_patterns(folder / "patterns.h5", {"worst": pair, "median": pair})
    write_mrc(folder / "volume.mrc", volume, VOXEL)
    artefacts.write_half_volumes(
        folder / "half_volumes.h5", volume, volume + 0.3 * rng.normal(size=SHAPE), VOXEL
    )
    atoms = Atoms("PtAlO2", positions=rng.uniform(-2, 2, (4, 3)), info={"threshold_volt": 12.0})
    atoms.set_array("intensity", np.array([500.0, 200, 90, 95]))
    atoms.set_array("sigma", np.full(4, 0.3))
    artefacts.write_atoms(folder / "atoms.xyz", atoms)
    return folder


class _Page(HTMLParser):
    """Tags, text and resources of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.headings, self.sections = [], [], [], []
        self.words, self._heading = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag == "section":
            self.sections.append(dict(attrs)["id"])

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def page(run):
    return _Page(write_report(run).read_text(encoding="utf-8"))


def test_all_sections_are_there_in_order(page):
    expected = [
        "input", "loss", "bright-field", "probes", "positions", "poses", "patterns", "slices", "spectrum",
        "fsc", "atoms", "timings",
    ]  # fmt: skip
    assert page.sections == expected == list(PLANS)
    assert "is not there yet" not in page.words
    assert "cannot be shown" not in page.words
    assert page.tags.count("img") == 11


def test_the_page_loads_nothing_from_outside_and_runs_no_script(page):
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in page.sources)
    assert "script" not in page.tags
    assert page.words.count(NASTY) >= 4  # title, heading, configuration, reason, pose name: as text


def test_the_page_speaks_of_defocus_with_its_sign(page):
    assert "60 Å overfocus" in page.words
    assert "60 Å underfocus" in page.words


def test_timings_and_losses_are_summed_per_stage(page):
    words = re.sub(r"\s+", " ", page.words)
    assert re.search(r"ptychography ?6 ?12\.0 ?2", words)
    assert re.search(r"end_to_end ?1 ?0\.5 ?2\.000", words)


def test_a_missing_artefact_is_one_line_that_names_its_stage(run, tmp_path):
    (tmp_path / "summary.json").write_bytes((run / "summary.json").read_bytes())
    (tmp_path / "volume.mrc").write_bytes(b"not an MRC file")
    page = _Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.sections == list(PLANS)
    words = re.sub(r"\s+", " ", page.words)
    assert "probes.h5 is not there yet; made by: ptychography." in words
    assert "half_sets: true" in words
    assert "volume.mrc cannot be shown" in words
    assert "img" not in page.tags
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".html"] == ["report.html"]


def test_no_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_nested_values_become_rows_in_words():
    rows = dict(
        flat_rows(
            {"a_b": {"defocus_angstrom": [50.0, -7.0], "dose": list(range(9)), "fine": True, "x": None}}
        )
    )
    assert rows == {
        "a b / defocus angstrom": "50 Å underfocus, 7 Å overfocus",
        "a b / dose": "9 values from 0 to 8",
        "a b / fine": "True",
    }


@pytest.mark.parametrize(("width", "bar"), [(19.2, 2.0), (40.0, 10.0), (8.0, 2.0), (0.9, 0.2), (2000, 500)])
def test_scale_bars_are_round_and_about_a_quarter(width, bar):
    assert bar_length(width) == pytest.approx(bar)


@pytest.mark.parametrize(
    ("defocus", "words"),
    [(60, "60 Å underfocus"), (-12.34, "12.34 Å overfocus"), (0.0, "in focus"), (None, "defocus unknown"),
     (float("nan"), "defocus unknown")],
)  # fmt: skip
def test_defocus_in_words(defocus, words):
    assert defocus_in_words(defocus) == words


def test_slices_lie_at_the_origin_and_keep_the_axes_apart():
    volume = np.zeros(SHAPE)
    volume[SHAPE[0] // 2, SHAPE[1] // 2 + 3, SHAPE[2] // 2 - 4] = 50.0
    figure = volume_figures.orthogonal_slices(volume, VOXEL, thickness=0.3)
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images and axis.get_title()]
    assert [image.shape for image in images] == [(14, 17), (11, 17), (11, 14)]
    assert np.argwhere(images[0] > 40).tolist() == [[10, 4]]
    assert images[1].max() == images[2].max() == 0


def test_domain_colouring_shows_phase_as_hue_whatever_the_amplitude():
    colours = figures.domain_colouring(np.array([[1.0 + 0j, 0.25], [1j, 0]]))
    np.testing.assert_allclose(colours[0, 1] / colours[0, 0], 0.5)
    assert colours[0, 0].argmax() == 0
    assert colours[1, 0].argmax() == 1
    assert colours[1, 1].max() == 0


def test_poses_are_drawn_against_nominal_tilts():
    angles = np.array([[0.1, -20.2, 1.0], [0.2, 20.3, 1.1]])
    figure = figures.poses(angles, np.zeros((2, 2)), [-20, 20])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [-0.2, 0.3])
    assert isinstance(figures.poses(angles, np.zeros((2, 2))), Figure)


def test_arrows_leave_out_the_common_offset():
    start = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1).reshape(-1, 2)
    figure = figures.scan_positions([start + np.array([2.0, -1.0])], [start])
    arrows = figure.axes[0].collections[0]
    np.testing.assert_allclose([arrows.U, arrows.V], 0, atol=1e-12)
    assert "(2.00, -1.00)" in figure.axes[0].get_title()


def test_noise_makes_a_pattern_difference_of_unit_width():
    rng = np.random.default_rng(0)
    model = np.full((60, 70), 40.0)
    figure = figures.pattern_pair(rng.poisson(model).astype(float), model, "worst")
    assert figure.axes[2].images[0].get_array().std() == pytest.approx(1, abs=0.05)


def test_one_stage_without_a_floor_or_positive_loss():
    records = [{"stage": "alignment", "iteration": i, "loss": -1.0 * i} for i in range(3)]
    (axis,) = figures.loss_curves(records).axes
    assert axis.get_yscale() == "linear"
