"""The Python interface, and the tutorial that shows it."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import petomo
from petomo import results
from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io import artefacts
from petomo.io.volumes import write_mrc
from petomo.workflow import runner
from petomo.workflow.callbacks import Interrupted

ROOT = Path(__file__).parents[1]
COUNTS = np.random.default_rng(0).poisson(3, (3, 4, 6, 6)).astype(np.uint16)
VOXEL = (0.5, 0.31, 0.29)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sound series of two tilts and a configuration; three stages that only say that they ran."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        with h5py.File(tmp_path / "data" / f"t{number}.h5", "w") as file:
            file["counts"] = COUNTS
            file.attrs.update(energy_ev=2e5, semiangle_mrad=25.0, scan_step_angstrom=1.5)
            file.attrs.update(detector_sampling_inv_angstrom=0.07, nominal_tilt_deg=10.0 * number)
    (tmp_path / "run.yaml").write_text("data: {root: data}\nname: <i>small\n")

    def stage(name):
        def work(context):
            context.iteration(name, 1, 1, 0.5 + len(name))
            with open(context.folder / "ran.txt", "a") as file:
                file.write(f"{name}\n")

        return work

    names = ("bright_field", "ptychography", "alignment")
    monkeypatch.setattr(runner, "default_stages", lambda: {name: stage(name) for name in names})
    return tmp_path


def ran(run):
    return (run.folder / "ran.txt").read_text().split()


def test_importing_petomo_is_quick_and_everything_named_is_there():
    code = "import sys, petomo; assert 'numpy' not in sys.modules; print(petomo.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert set(petomo.__all__) <= set(dir(petomo))
    assert all(getattr(petomo, name) is not None for name in petomo.__all__)
    assert petomo.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        petomo.nonsense  # noqa: B018


def test_a_run_goes_on_stage_by_stage(folder):
    plan = petomo.load(folder / "run.yaml")
    run = plan.run(folder / "run", until="bright_field", quiet=True)
    assert list(run.finished) == ran(run) == ["bright_field"]
    run = plan.run(folder / "run", until="ptychography", quiet=True)
    assert ran(run) == ["bright_field", "ptychography"]
    assert ran(plan.run(folder / "run", until="bright_field", quiet=True)) == ran(run)
    run = plan.run(folder / "run", quiet=True)
    assert list(run.finished) == ran(run) == ["bright_field", "ptychography", "alignment"]
    assert run.losses("alignment").tolist() == [9.5]


def test_a_redone_stage_leaves_the_later_ones_to_be_done(folder):
    plan = petomo.load(folder / "run.yaml")
    plan.run(folder / "run", quiet=True)
    run = plan.run(folder / "run", start_from="ptychography", until="ptychography", quiet=True)
    assert list(run.finished) == ["bright_field", "ptychography"]
    assert run.losses("alignment").size == 0
    assert ran(plan.run(folder / "run", quiet=True))[-2:] == ["ptychography", "alignment"]


def test_mistakes_are_user_errors(folder):
    plan = petomo.load(folder / "run.yaml")
    with pytest.raises(UserError, match="there is no such stage; choose one of bright_field"):
        plan.run(folder / "run", until="brightfield")
    assert not (folder / "run").exists()
    with pytest.raises(UserError, match=r"iterationz.*iterations"):
        petomo.load(folder / "run.yaml", "end_to_end.iterationz=3")
    with pytest.raises(UserError, match="no such file or folder"):
        petomo.load(folder / "nothing")
    with pytest.raises(UserError, match="holds no run"):
        petomo.open_run(folder)
    with pytest.raises(UserError, match="not empty"):
        petomo.simulate(folder / "spec.yaml", folder)
    plan.run(folder / "run", quiet=True)
    with pytest.raises(UserError, match="a run folder takes no settings"):
        petomo.load(folder / "run", "compute.seed=1")


def test_a_users_stop_is_not_taken_for_the_end(folder, monkeypatch):
    def stopped(_context):
        raise Interrupted("stopped in bright_field after iteration 1 of 2")

    monkeypatch.setattr(runner, "default_stages", lambda: {"bright_field": stopped, "ptychography": stopped})
    with pytest.raises(Interrupted, match="iteration 1 of 2"):
        petomo.load(folder / "run.yaml").run(folder / "run", until="bright_field", quiet=True)


def test_data_alone_go_with_the_defaults(folder, monkeypatch):
    monkeypatch.chdir(folder)
    plan = petomo.load("data", "data.exclude=[0]", "compute.seed=7")
    assert (len(plan.series), plan.config.compute.seed, plan.config.name) == (1, 7, "data")
    plan = petomo.load("data/t1.h5")
    assert [tilt.name for tilt in plan.series] == ["t1.h5"]
    assert plan.series[0].patterns([5]).shape == (1, 6, 6)
    assert any("e/A^2" in line for line in plan.check())
    assert any("bright-field disk" in line for line in plan.check()), "findings, as `petomo check` has them"
    assert plan.facts()["tilts"] == 1
    run = plan.run("run", until="bright_field", quiet=True)
    assert run.config == plan.config


def test_plans_show_themselves_with_text_escaped(folder):
    plan = petomo.load(folder / "run.yaml")
    assert "2 tilts from 0 to 10 degrees" in repr(plan)
    page = plan._repr_html_()
    assert "2 tilts from 0 to 10 degrees" in page
    assert "<i>" not in page
    assert "&lt;i&gt;small" in page


@pytest.fixture
def finished(folder):
    """A run with artefacts of every kind."""
    run = petomo.load(folder / "run.yaml").run(folder / "run", quiet=True).folder
    values = np.random.default_rng(1).normal(size=(6, 9, 8)).astype(np.float32)
    write_mrc(run / "volume.mrc", values, VOXEL)
    write_mrc(run / "projections.mrc", values[:2], VOXEL)
    artefacts.write_poses(run / "poses.json", Poses.from_tilts(torch.tensor([0.1, 0.2])), ["a", "b"])
    modes = torch.randn(2, 3, 5, 4, dtype=torch.complex64)
    artefacts.write_probes(run / "probes.h5", modes, VOXEL[1:], 2e5, [30.0, None])
    positions = [torch.randn(7, 2, dtype=torch.float64) for _ in range(4)]
    artefacts.write_positions(run / "positions.h5", positions[:2], positions[2:])
    artefacts.write_half_volumes(run / "half_volumes.h5", values, -values, VOXEL)
    return run, values, positions


def test_a_run_shows_what_it_left(finished):
    folder, values, positions = finished
    run = petomo.load(folder)
    assert isinstance(run, results.Run)
    np.testing.assert_array_equal(run.volume, values)
    assert run.volume.spacing == pytest.approx(VOXEL)
    assert run.projections.shape == (2, 9, 8)
    assert (run.poses.theta.tolist(), run.tilt_names) == (pytest.approx([0.1, 0.2]), ["a", "b"])
    assert run.probes.defocus[0] == 30
    torch.testing.assert_close(run.positions[1], positions[1])
    torch.testing.assert_close(run.initial_positions[1], positions[3])
    np.testing.assert_array_equal(run.half_volumes[1], -values)
    assert run.summary["input"]["tilts"] == 2
    with pytest.raises(UserError, match=r"atoms\.xyz: there is no such file"):
        _ = run.atoms
    with pytest.raises(UserError, match=r"patterns\.h5: there is no such file"):
        _ = run.patterns


def test_runs_and_volumes_show_themselves(finished):
    run = petomo.open_run(finished[0])
    assert "finished: bright_field, ptychography, alignment" in repr(run)
    page = run._repr_html_()
    assert page.count("<tr>") == 4
    assert page.count("data:image/png;base64,") == 1
    assert "<td>9.5</td>" in page
    assert "6 x 9 x 8 voxels of 0.5 x 0.31 x 0.29 angstrom" in repr(run.volume)
    assert "data:image/png;base64," in run.volume._repr_html_()
    (run.folder / "volume.mrc").unlink()
    assert "data:image" not in run._repr_html_()
    volume = petomo.load(run.folder / "projections.mrc")
    assert volume.shape == (2, 9, 8)


def cells(script):
    return [part.partition("\n")[2].strip() for part in script.split("# %% ")[1:]]


def test_the_tutorial_shows_its_script():
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    script = (ROOT / "examples" / "tutorial.py").read_text(encoding="utf-8")
    assert re.findall(r"```python\n(.*?)\n```", page, flags=re.DOTALL) == cells(script)


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tutorial.py", str(tmp_path)])
    left = runpy.run_path(str(ROOT / "examples" / "tutorial.py"))
    told = capsys.readouterr().out
    found, invented = map(int, re.search(r"(\d+) of 21 atoms found, (\d+) invented", told).groups())
    assert found >= 20
    assert invented <= 1
    assert left["run"].finished.keys() == {"bright_field", "ptychography", "alignment", "end_to_end"}
    assert left["run"].losses()[-1] < left["usual"][-1]
    assert (tmp_path / "atoms.cif").is_file()
