"""The command line as a user meets it: bad input is one sentence, exit code 2, nothing half-written."""

import json
import math
import subprocess
import sys

import h5py
import numpy as np
import pytest

from petomo.io.artefacts import read_json
from petomo.io.volumes import write_mrc
from petomo.workflow import runner
from petomo.workflow.callbacks import Interrupted

COUNTS = np.random.default_rng(0).poisson(3, (3, 4, 6, 6)).astype(np.float32)


def write_tilt(path, counts=COUNTS, tilt=0.0):
    with h5py.File(path, "w") as file:
        file["counts"] = counts
        file.attrs.update(energy_ev=2e5, semiangle_mrad=25.0, scan_step_angstrom=1.5, nominal_tilt_deg=tilt)
        file.attrs.update(detector_sampling_inv_angstrom=0.07, nominal_defocus_angstrom=-60.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a sound series and configuration; stages that only leave a mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PETOMO_DEBUG", raising=False)
    monkeypatch.setattr(runner, "default_stages", lambda: {"bright_field": mark, "report": mark})
    (tmp_path / "data").mkdir()
    for number in range(3):
        write_tilt(tmp_path / "data" / f"t{number}.h5", tilt=10.0 * number)
    (tmp_path / "run.yaml").write_text("data:\n  root: data\n")
    return tmp_path


def mark(context):
    context.iteration("bright_field", 1, 1, 0.5)


def spoil(folder, counts):
    write_tilt(folder / "data" / "t1.h5", counts, tilt=10.0)


def changed(value):
    counts = COUNTS.copy()
    counts[1, 2, 3, 3] = value
    return counts


BAD = {
    "missing configuration": (None, ["nowhere.yaml"], "nowhere.yaml: there is no such file"),
    "missing folder": (None, ["run.yaml", "--set", "data.root=nowhere"], "nowhere: there is no such folder"),
    "missing tilt": (None, ["run.yaml", "--set", "data.tilts=[t9.h5]"], "t9.h5: there is no such file"),
    "empty glob": (None, ["run.yaml", "--set", "data.tilts=*.mib"], "no file matches data.tilts `*.mib`"),
    "wrong dataset path": (
        None,
        ["run.yaml", "--set", "data.dataset=/frames"],
        "t0.h5: there is no dataset `/frames`; data.dataset could be one of: counts (3, 4, 6, 6)",
    ),
    "fewer angles than tilts": (
        None,
        ["run.yaml", "--set", "data.stage_tilt_degree=[0, 10]"],
        "data.stage_tilt_degree has 2 angles for 3 tilt files; give exactly one per file",
    ),
    "NaN": (
        lambda folder: spoil(folder, changed(math.nan)),
        ["run.yaml"],
        "t1.h5: the pattern at scan y 1, x 2 holds a count that is not a finite number",
    ),
    "negative": (lambda folder: spoil(folder, changed(-1)), ["run.yaml"], "t1.h5: the pattern at scan"),
    "wrong pattern shape": (
        lambda folder: spoil(folder, COUNTS[..., :5]),
        ["run.yaml"],
        "t1.h5: this tilt has patterns of 6 x 5 pixels, but t0.h5 has patterns of 6 x 6 pixels",
    ),
    "zero dose": (lambda folder: spoil(folder, 0 * COUNTS), ["run.yaml"], "t1.h5: every count is zero"),
    "unknown key": (
        lambda folder: (folder / "run.yaml").write_text("data:\n  root: data\n  conv_angle: 25\n"),
        ["run.yaml"],
        "run.yaml line 3: `data.conv_angle` is not a known key; did you mean `semiangle_mrad`?",
    ),
    "a number for a list": (
        lambda folder: (folder / "run.yaml").write_text("data:\n  root: data\n  scan_shape: 14\n"),
        ["run.yaml"],
        "run.yaml line 3: `data.scan_shape` is 14, but should be a list",
    ),
    "bad override": (None, ["run.yaml", "--set", "ptychography.slices"], "write it as key=value"),
    "contradiction": (None, ["run.yaml", "--set", "data.energy_kev=80"], "but data.energy_kev says 80"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(folder, petomo, command, case):
    prepare, arguments, words = BAD[case]
    if prepare is not None:
        prepare(folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    code, out, err = petomo(command, *arguments, *(["--out", "out"] if command == "run" else []))
    assert code == 2
    assert out == ""
    assert err.startswith("petomo: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_unwritable_folders(folder, petomo):
    (folder / "file").write_text("")
    for arguments in (["run", "run.yaml", "--out", "file/run"], ["run", "run.yaml", "--out", "file"]):
        code, out, err = petomo(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "file" in err
        assert "--out" in err
    assert (folder / "file").read_text() == ""


def test_debug_shows_the_traceback(folder, petomo, monkeypatch):
    monkeypatch.setenv("PETOMO_DEBUG", "1")
    with pytest.raises(Exception, match="there is no such file"):
        petomo("check", folder / "nowhere.yaml")


@pytest.mark.usefixtures("folder")
def test_check_says_what_follows(petomo):
    code, out, err = petomo("check", "run.yaml")
    assert (code, err) == (0, "")
    for words in (
        "3 tilts from 0 to 20 degrees",
        "60 A overfocus (C10 = 60 A)",
        "t1.h5: +10.00 degrees, ",
        "e/A^2 in all",
        "ready to run",
    ):
        assert words in out


def test_run_and_its_default_folder(folder, petomo):
    code, _, err = petomo("run", "run.yaml", "--set", "compute.seed=3")
    assert code == 0
    assert "report: finished" in err
    assert "seed: 3" in (folder / "runs" / "run" / "config.yaml").read_text()
    assert list(read_json(folder / "runs" / "run" / "state.json")["finished"]) == ["bright_field", "report"]
    code, _, err = petomo("run", "run.yaml", "--set", "compute.seed=3")
    assert code == 2
    assert "already holds a run; add --resume or --from" in err
    assert petomo("run", "run.yaml", "--set", "compute.seed=3", "--from", "report")[0] == 0
    code, out, _ = petomo("info", "runs/run")
    assert code == 0
    assert "finished: bright_field, report" in out


@pytest.mark.usefixtures("folder")
def test_an_interrupted_run_exits_130_and_says_how_to_go_on(petomo, monkeypatch):
    def stop(_):
        raise Interrupted("stopped in bright_field after iteration 2 of 9")

    monkeypatch.setattr(runner, "default_stages", lambda: {"bright_field": stop})
    code, _, err = petomo("run", "run.yaml", "--out", "out")
    assert code == 130
    assert (
        "petomo: stopped in bright_field after iteration 2 of 9; resume with: petomo run out/config.yaml"
        in err
    )
    monkeypatch.setattr(runner, "default_stages", lambda: {"bright_field": mark})
    assert petomo("run", "out/config.yaml", "--resume", "--out", "out")[0] == 0


def test_init_writes_a_file_that_checks(folder, petomo):
    code, out, _ = petomo("init")
    assert code == 0
    assert "petomo check petomo.yaml" in out
    assert petomo("check", "petomo.yaml", "--set", "data.root=data")[0] == 0
    code, _, err = petomo("init")
    assert code == 2
    assert "exists already" in err
    assert petomo("init", "data")[0] == 0
    assert (folder / "data" / "petomo.yaml").exists()
    assert "data.root" in petomo("check", "petomo.yaml")[2], "no tilts beside the file"


def test_info(folder, petomo):
    write_mrc("v.mrc", np.ones((2, 3, 4)), 0.5)
    np.save("a.npy", COUNTS)
    assert "/counts: (3, 4, 6, 6) float32" in petomo("info", "data/t0.h5")[1]
    assert "(2, 3, 4) float32, voxel 0.5 x 0.5 x 0.5 A" in petomo("info", "v.mrc")[1]
    assert "12 patterns of 6 x 6" in petomo("info", "a.npy")[1]
    (folder / "x.txt").write_text("hello")
    for name, words in {"x.txt": "format is not known", "none.h5": "no such file"}.items():
        code, _, err = petomo("info", name)
        assert code == 2
        assert words in err


def test_schema_is_json_with_every_section(petomo):
    schema = json.loads(petomo("schema")[1])
    assert {"data", "volume", "bright_field", "end_to_end"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.usefixtures("folder")
def test_score_and_report_need_folders(petomo):
    for arguments in (
        ["score", "none", "--truth", "data"],
        ["score", "data", "--truth", "none"],
        ["report", "none"],
    ):
        code, _, err = petomo(*arguments)
        assert code == 2
        assert "none: there is no such folder" in err


def test_simulate_refuses_a_filled_folder_and_unknown_keys(folder, petomo):
    (folder / "spec.yaml").write_text("sead: 3\n")
    code, _, err = petomo("simulate", "spec.yaml", "--out", "data")
    assert code == 2
    assert "data: this folder is not empty" in err
    code, _, err = petomo("simulate", "spec.yaml", "--out", "new")
    assert code == 2
    assert "spec.yaml line 1: `sead` is not a known key; did you mean `seed`?" in err
    assert not (folder / "new").exists()


def test_help_needs_no_heavy_import():
    heavy = "'torch', 'numpy', 'pydantic', 'rich', 'ruamel'"
    code = f"import sys, petomo.cli; print([name for name in ({heavy}) if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
