"""The report of a made-up run folder: sections in order, escaped, self-contained; and its figures."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from petomo.analysis import figures, volume_figures
from petomo.analysis.panels import as_panels, bar_length
from petomo.analysis.report import ReportPage, write_report
from petomo.analysis.report_content import flat_rows
from petomo.analysis.report_patterns import choose_patterns
from petomo.analysis.report_sections import PLANS
from petomo.core.electron import defocus_in_words
from petomo.core.errors import UserError
from petomo.io.metrics import append_metrics
from report_runs import NASTY, SHAPE, VOXEL, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return folder


class _Page(HTMLParser):
    """Tags, text and resources of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.scripts, self.sections = [], [], [], []
        self.words = self.code = self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag == "section":
            self.sections.append(dict(attrs)["id"])
        if tag == "script":
            self.scripts.append(dict(attrs).get("type"))
        if tag == "meta" and "http-equiv" in dict(attrs):
            self.policy = dict(attrs)["content"]

    def handle_data(self, data):
        if self.cdata_elem != "script":
            self.words += data
        elif self.scripts[-1] is None:
            self.code += data


@pytest.fixture(scope="module")
def page(run):
    return _Page(write_report(run).read_text(encoding="utf-8"))


def test_all_sections_are_there_in_order(page):
    expected = [
        "input", "loss", "bright-field", "probes", "positions", "poses", "patterns", "slices", "spectrum",
        "completed", "fsc", "atoms", "timings",
    ]  # fmt: skip
    assert page.sections == expected == list(PLANS)
    assert "is not there yet" not in page.words
    assert "cannot be shown" not in page.words
    # still pictures, those for browsers without scripts among them
    assert page.tags.count("img") == 2 + 6 + 2 + 3 + 4 + 3 + 1 + 4 + (2 + 6 + 3)


def test_the_page_loads_nothing_from_outside_and_runs_its_own_script_only(page):
    assert all(s.startswith(("data:", "#")) for s in page.sources)
    data = page.scripts.count("application/json")
    assert page.scripts.count(None) == 1
    assert len(page.scripts) == data + 1 == 5
    code = base64.b64encode(hashlib.sha256(page.code.encode()).digest()).decode()
    assert f"script-src 'sha256-{code}'" in page.policy
    assert page.policy.startswith("default-src 'none'")
    assert "connect-src" not in page.policy
    assert page.words.count(NASTY) >= 4  # title, heading, configuration, reason, pose name: as text


def test_the_page_speaks_of_defocus_with_its_sign(page):
    assert "60 Å overfocus" in page.words
    assert "60 Å underfocus" in page.words


def test_timings_and_losses_are_summed_per_stage(page):
    words = re.sub(r"\s+", " ", page.words)
    assert re.search(r"ptychography ?6 ?12\.0 ?2", words)
    assert re.search(r"end to end ?1 ?0\.5 ?2\.000", words)


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
            {
                "a_b": {
                    "defocus_angstrom": [50.0, -7.0],
                    "dose": list(range(9)),
                    "fine": True,
                    "x": None,
                    "memory_bytes": 59772096,
                }
            }
        )
    )
    assert rows == {
        "a b: defocus": "50 Å underfocus, 7 Å overfocus",
        "a b: dose": "9 values from 0 to 8",
        "a b: fine": "True",
        "a b: memory": "59.8 MB",
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
    figure = figures.pattern_pair(rng.poisson(model).astype(float), model)
    assert figure.axes[2].images[0].get_array().std() == pytest.approx(1, abs=0.05)


def test_one_stage_without_a_floor_or_positive_loss():
    records = [{"stage": "alignment", "iteration": i, "loss": -1.0 * i} for i in range(3)]
    (axis,) = figures.loss_curves(records).axes
    assert axis.get_yscale() == "linear"


def test_panels_take_their_colour_bars_and_legends_along():
    volume = np.random.default_rng(0).normal(size=SHAPE)
    panels = as_panels(volume_figures.orthogonal_slices(volume, VOXEL))
    assert [p.title[0] for p in panels] == ["z", "y", "x"]
    assert all(300 < p.width < 420 and p.source.startswith("data:image/png;base64,") for p in panels)


def test_scale_bars_of_bright_field_images_know_the_field():
    phase = np.zeros((12, 30))  # more pixels than the scan has positions
    figure = figures.bright_field_images([(phase, {})], (8.0, 20.0))
    assert figure.axes[0].texts[0].get_text() == "5 Å"
    assert figure.axes[0].patches[0].get_width() == pytest.approx(5.0 / (20 / 30))


def test_the_linear_volume_stands_in_until_the_other_is_there(run, tmp_path):
    (tmp_path / "volume_linear.mrc").write_bytes((run / "volume.mrc").read_bytes())
    words = _Page(write_report(tmp_path).read_text(encoding="utf-8")).words
    assert "The linear tomography of the aligned projections" in words
    assert "volume.mrc is not there yet" not in words


def test_a_section_is_made_anew_when_its_files_change(run, tmp_path):
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    page = ReportPage(tmp_path, live=True)
    first, stamp = page.render(), page.stamp()
    assert (page.render(), page.stamp()) == (first, stamp)
    append_metrics(tmp_path / "metrics.jsonl", {"stage": "analysis", "iteration": 4, "loss": 77.7})
    assert page.stamp() != stamp
    hashes = [
        dict(re.findall(r'<section id="([a-z-]+)" data-hash="(\w+)"', text))
        for text in (first, page.render())
    ]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {"loss", "timings"}
    assert "analysis: iteration 4, loss 77.7" in page.render()


def test_damaged_files_do_not_stop_the_report(run, tmp_path):
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(b"[1, 2]\n")
    page = _Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.sections == list(PLANS)


def test_patterns_are_chosen_all_over_every_scan():
    losses = [np.arange(12.0), np.array([5.0, 50, 1, 2, 3, 4])]
    chosen = choose_patterns(losses, [(3, 4), (2, 3)])
    assert chosen["worst"] == (1, 1)
    assert chosen["median"] == (0, 5)
    assert len(set(chosen.values())) == len(chosen)
    assert {k for t, k in chosen.values() if t == 0} == {0, 2, 3, 4, 5, 6, 7, 8, 10, 11}
    assert {k for t, k in chosen.values() if t == 1} == set(range(6))
