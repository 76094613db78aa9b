import numpy as np
import pytest
import torch

from petomo.core.dataset import ArraySource, FourDSTEM, TiltSeries
from petomo.workflow.config import Config
from petomo.workflow.describe import defocus_sentence, facts, probe_diameter, sentences
from petomo.workflow.grids import plan_grids


def series(defocus=100.0, step=(1.0, 2.0)):
    patterns = ArraySource(np.ones((12, 40, 50), np.uint16))
    tilts = tuple(
        FourDSTEM(patterns, 3e5, 20.0, (3, 4), step, (0.05, 0.04), tilt, defocus, name=str(tilt))
        for tilt in (-0.5, 0.7)
    )
    return TiltSeries(tilts)


def test_derived_numbers():
    numbers = facts(series(), Config(), [24000.0, 48000.0])
    assert numbers["wavelength_angstrom"] == pytest.approx(0.0196875, rel=1e-4)
    assert numbers["k_max_per_angstrom"] == pytest.approx(1.0)
    assert numbers["pixel_angstrom"] == pytest.approx([0.5, 0.5])
    assert numbers["stage_tilts_degree"] == pytest.approx(np.rad2deg([-0.5, 0.7]))
    assert numbers["nyquist_angstrom"] == pytest.approx(1.0)
    assert numbers["depth_of_field_angstrom"] == pytest.approx(0.0196875 / 0.02**2, rel=1e-4)
    assert numbers["bright_field_radius_pixels"] == pytest.approx(0.02 / 0.0196875 / 0.05, rel=1e-4)
    assert numbers["dose_per_tilt_per_square_angstrom"] == pytest.approx([1000, 2000])
    assert numbers["dose_total_per_square_angstrom"] == pytest.approx(3000)
    assert numbers["probe_diameter_angstrom"] == pytest.approx(
        np.hypot(1.22 * 0.0196875 / 0.02, 4.0), rel=1e-4
    )
    assert numbers["probe_overlap"] == pytest.approx(1 - 2 / numbers["probe_diameter_angstrom"])
    assert numbers["volume_shape"] == [12, 20, 28], "z as wide as the larger side of 2 x 6 A; margins aside"
    assert numbers["volume_shape"] == list(plan_grids(series(), Config()).volume_shape)


def test_the_sign_of_a_defocus_is_said_in_words():
    assert defocus_sentence(60) == (
        "60 A underfocus (C10 = -60 A): the beam crosses over after the specimen's centre plane"
    )
    assert defocus_sentence(-60) == (
        "60 A overfocus (C10 = 60 A): the beam crosses over before the specimen's centre plane"
    )
    assert defocus_sentence(0.0).startswith("in focus")
    assert defocus_sentence(None).startswith("defocus unknown")
    assert defocus_sentence(float("nan")).startswith("defocus unknown")


def test_lines_for_people():
    text = "\n".join(sentences(facts(series(), Config(), [24000.0, 48000.0])))
    for words in (
        "2 tilts from -28.65 to 40.11 degrees",
        "1 x 2 A",
        "40 x 50 pixels",
        "1.969 pm",
        "100 A underfocus",
        "overlap by 52%",
        "1000 to 2000 e/A^2 a tilt, 3000 e/A^2 in all",
        "GiB",
    ):
        assert words in text, words
    assert "do not overlap" in "\n".join(sentences(facts(series(0.0, (2.0, 2.0)), Config())))


def test_a_focused_probe_is_as_wide_as_diffraction_makes_it():
    assert probe_diameter(None, 20.0, 3e5) == probe_diameter(0.0, 20.0, 3e5) == pytest.approx(1.201, rel=1e-3)


def test_memory_counts_what_grows():
    def needed(*names, **sections):
        return facts(series(), Config(**{n: sections[n] for n in names} if names else {}))["memory_bytes"]

    small = needed()
    volume = 4 * np.prod(facts(series(), Config())["volume_shape"])
    patterns = 2 * 12 * 50 * 50 * 4
    assert small > 4 * volume + patterns
    assert needed("end_to_end", end_to_end={"absorption": True}) - small == pytest.approx(4 * volume)
    assert needed("volume", volume={"shape": [100, 200, 300]}) > 16 * 6e6
    assert needed("compute", compute={"precision": "float64"}) - small > 4 * volume
    gpu = facts(series(), Config(), device=torch.device("cuda"))["memory_bytes"]
    assert gpu > small, "a GPU passes many more patterns at a time"
