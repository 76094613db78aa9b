"""`petomo check` and `petomo info` on files, as a user and as a program meet them."""

import json

import h5py
import numpy as np
import pytest

from petomo.workflow.config import load_config
from petomo.workflow.diagnose import check

Y, X = np.meshgrid(np.arange(30) - 15, np.arange(34) - 17, indexing="ij")
DISK = np.where(np.hypot(Y, X) <= 8.0, 40.0, 0.5)


def write_tilt(path, tilt, middle=(0, 0), **attributes):
    rng = np.random.default_rng(int(tilt) + 100)
    attributes = {
        "energy_ev": 2e5,
        "semiangle_mrad": 20.0,
        "scan_step_angstrom": 1.5,
        "nominal_tilt_deg": tilt,
        "detector_sampling_inv_angstrom": 20e-3 / 0.0250793 / 8.0,
        "nominal_defocus_angstrom": -60.0,
    } | attributes
    with h5py.File(path, "w") as file:
        file["counts"] = rng.poisson(np.roll(DISK, middle, (0, 1)), (9, 10, 30, 34)).astype(np.uint16)
        file.attrs.update({key: value for key, value in attributes.items() if value is not None})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_tilt(tmp_path / f"t{number}.h5", 10.0 * number)
    (tmp_path / "run.yaml").write_text("data: {}\n")
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_time_counts_what_will_run():
    def seconds(*settings):
        return check(load_config("run.yaml", settings)).numbers["time_seconds"]

    plain, traced = seconds(), seconds("analysis.atoms.elements=[Pt]")
    assert list(plain) == ["ptychography", "end_to_end"]
    assert traced["refinement"] > 2 * traced["end_to_end"]
    assert "refinement" not in seconds("analysis.atoms.elements=[Pt]", "refinement.rounds=0")


@pytest.mark.usefixtures("folder")
def test_check_of_a_vacuum_series_says_what_it_cannot_tell(petomo):
    code, out, err = petomo("check", "run.yaml")
    assert (code, err) == (0, "")
    for words in (
        "bright-field disk seen at",
        "how the detector lies against the scan cannot be told",
        "nothing wrong was found",
        "time roughly, on cpu: ptychography",
        "ready to run on cpu",
    ):
        assert words in out, words


def test_the_keys_that_check_suggests_make_the_finding_go(folder, petomo):
    for number in range(3):
        write_tilt(folder / f"t{number}.h5", 10.0 * number, (2, -3), semiangle_mrad=18.0)
    code, out, err = petomo("check", "run.yaml")
    assert (code, err) == (0, "")
    assert "warning: the bright-field disk lies off the middle pixel n // 2 in 3 of 3 tilts" in out
    assert "data.override: true, since the files say otherwise" in out
    code, out, _ = petomo("check", "run.yaml", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["usable"] is True
    findings = {finding["kind"]: finding for finding in told["findings"]}
    assert set(findings) == {"semiangle", "beam_centre"}
    assert findings["beam_centre"]["keys"] == {"data.pattern_centre": [17, 14]}
    settings = [
        f"{key}={json.dumps(value)}" for each in findings.values() for key, value in each["keys"].items()
    ]
    assert check(load_config("run.yaml", settings)).diagnosis.findings == ()


@pytest.mark.parametrize("flip", [(True, False, False), (False, True, True), (False, False, True)])
def test_the_suggested_centre_counts_pixels_as_stored(folder, flip):
    for number in range(3):
        write_tilt(folder / f"t{number}.h5", 10.0 * number, (2, -3))
    settings = [f"data.flip={json.dumps(flip)}"]
    (finding,) = check(load_config("run.yaml", settings)).diagnosis.findings
    settings.append(f"data.pattern_centre={finding.keys['data.pattern_centre']}")
    assert check(load_config("run.yaml", settings)).diagnosis.findings == ()


@pytest.mark.parametrize("flip", [(False, False, False), (True, False, True)])
def test_suggestions_count_pixels_as_stored_in_windows_too(folder, flip):
    """Of patterns cut out around a beam one pixel from where the settings say, and with a hot pixel."""
    for number in range(3):
        write_tilt(folder / f"t{number}.h5", 10.0 * number, (2, -3))
        with h5py.File(folder / f"t{number}.h5", "r+") as file:
            file["counts"][:, :, 9, 11] += 200
    settings = [
        f"data.flip={json.dumps(flip)}",
        "data.pattern_centre=[16, 13]",
        "data.pattern_shape=[26, 27]",
    ]
    findings = {f.kind: f for f in check(load_config("run.yaml", settings)).diagnosis.findings}
    assert findings["beam_centre"].keys == {"data.pattern_centre": [17, 14]}
    assert findings["hot_pixels"].keys == {"data.bad_pixels": [[9, 11]]}
    settings = [*settings, "data.pattern_centre=[17, 14]", "data.bad_pixels=[[9, 11]]"]
    assert check(load_config("run.yaml", settings)).diagnosis.findings == ()


def test_an_unusable_series_exits_2_after_saying_why(folder, petomo):
    for number in range(3):
        write_tilt(folder / f"t{number}.h5", 10.0 * number, detector_sampling_inv_angstrom=0.9)
    code, out, err = petomo("check", "run.yaml")
    assert code == 2
    assert "error: the bright-field disk has a radius of 0.89 detector pixels" in out
    assert "ready" not in out
    assert err.count("\n") == 1
    assert "run.yaml: the data cannot be used as they are" in err


@pytest.mark.usefixtures("folder")
def test_info_says_what_is_inside_and_what_follows(petomo):
    code, out, err = petomo("info", "t2.h5")
    assert (code, err) == (0, "")
    for words in (
        "/counts: (9, 10, 30, 34) uint16",
        "one tilt at 20 degrees",
        "60 A overfocus (C10 = 60 A): the beam crosses over before",
        "depth of field",
        "not in the file: data.scan_rotation_degree (0 is assumed)",
    ):
        assert words in out, words
    assert json.loads(petomo("info", "t2.h5", "--json")[1])["lines"] == out.splitlines()


def test_info_says_what_is_missing(folder, petomo):
    write_tilt(folder / "bare.h5", 0.0, semiangle_mrad=None, nominal_tilt_deg=None, scan_step_angstrom=None)
    code, out, err = petomo("info", "bare.h5")
    assert (code, err) == (0, "")
    assert "missing, to be given in the configuration: data.semiangle_mrad, data.scan_step_angstrom" in out
    np.save("list.npy", np.ones((12, 6, 6)))
    assert "data.scan_shape" in petomo("info", "list.npy")[1]
