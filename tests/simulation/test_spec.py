from pathlib import Path

import pytest
from pydantic import ValidationError

from petomo.core.errors import UserError
from petomo.simulation.spec import SimulationSpec, read_spec


def test_defaults_give_a_small_series():
    spec = SimulationSpec()
    assert len(spec.stage_tilt_degree) == 13
    assert spec.pattern_shape == (48, 48)
    assert spec.detector_sampling == pytest.approx((1 / 14.4, 1 / 14.4))


def test_groups_keep_their_other_defaults():
    spec = SimulationSpec(
        errors={"shift_max_angstrom": 0}, phonons={"configurations": 2}, scan_step_angstrom=2
    )
    assert spec.errors.psi_mean_degree == 0.8
    assert spec.phonons.displacement_rms_angstrom == 0.07
    assert spec.scan_step_angstrom == (2, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"doze": 1},
        {"errors": {"shift": 1}},
        {"dose_per_tilt": 0},
        {"stage_tilt_degree": 10},
        {"stage_tilt_degree": []},
        {"oversample": 1},
        {"potential": "peng"},
        {"defocus_angstrom": 400},
        {"aberrations": {"C10": 3}},
        {"aberrations": {"C99": 3}},
    ],
)
def test_mistakes_are_refused(wrong):
    with pytest.raises(ValidationError):
        SimulationSpec(**wrong)


def test_yaml_names_the_line_and_a_suggestion(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("seed: 3\nspecimen:\n  edge_angstroms: 20\n")
    with pytest.raises(UserError, match=r"line 3.*edge_angstrom"):
        read_spec(path)


def test_specimen_file_is_looked_for_beside_the_specification(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("specimen:\n  source: atoms.xyz\n")
    assert Path(read_spec(path).specimen.source) == tmp_path / "atoms.xyz"
    path.write_text("pattern_pixels: [40, 44]\nspecimen:\n  source: te_carbon\n")
    assert read_spec(path).specimen.source == "te_carbon"
    assert read_spec(path).pattern_shape == (40, 44)
