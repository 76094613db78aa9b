import json
import logging
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from petomo.core.errors import UserError
from petomo.io.artefacts import read_json
from petomo.io.metrics import read_metrics
from petomo.workflow.callbacks import Interrupted
from petomo.workflow.config import load_config
from petomo.workflow.runner import choose_device, run

COUNTS = np.random.default_rng(0).poisson(3, (3, 4, 6, 6)).astype(np.uint16)
TOTAL = 7


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        with h5py.File(tmp_path / "data" / f"t{number}.h5", "w") as file:
            file["counts"] = COUNTS
            file.attrs.update(energy_ev=2e5, semiangle_mrad=25.0, scan_step_angstrom=1.5)
            file.attrs.update(detector_sampling_inv_angstrom=0.07, nominal_tilt_deg=10.0 * number)
    (tmp_path / "run.yaml").write_text("data: {root: data}\noutput: {save_every: 2}\n")
    return lambda *overrides: load_config(tmp_path / "run.yaml", overrides)


class Stage:
    """A random walk that saves its generator; stops, fails or is killed where told."""

    def __init__(self, name, at=None, what=None):
        self.name, self.at, self.what, self.calls = name, at, what, 0

    def __call__(self, context):
        self.calls += 1
        generator = torch.Generator().manual_seed(context.config.compute.seed)
        value, first = torch.zeros(3), 1
        if (state := context.restore(self.name)) is not None:
            generator.set_state(state["generator"])
            value, first = state["value"], state["iteration"] + 1
        for iteration in range(first, TOTAL + 1):
            value = value + torch.randn(3, generator=generator)
            if iteration == self.at:
                self.what()
            now = {"iteration": iteration, "value": value, "generator": generator.get_state()}
            loss = float(value.sum())
            context.iteration(self.name, iteration, TOTAL, loss, state=lambda now=now: now, noise_floor=0.5)
        np.save(context.folder / f"{self.name}.npy", value)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def crash():
    raise ZeroDivisionError


def stages(at=None, what=None, where="end_to_end"):
    names = ("bright_field", "ptychography", "end_to_end", "report")
    return {name: Stage(name, *((at, what) if name == where else ())) for name in names}


def results(folder):
    metrics = [
        {k: v for k, v in record.items() if k != "seconds"}
        for record in read_metrics(folder / "metrics.jsonl")
    ]
    arrays = {path.name: np.load(path).tobytes() for path in sorted(folder.glob("*.npy"))}
    return (
        metrics,
        arrays,
        list(read_json(folder / "state.json")["finished"]),
        (folder / "config.yaml").read_text(),
    )


def test_a_whole_run(config, tmp_path):
    run(config(), tmp_path / "run", stages=stages())
    metrics, arrays, finished, _ = results(tmp_path / "run")
    assert [record["iteration"] for record in metrics] == list(range(1, TOTAL + 1)) * 4
    assert metrics[0] == {
        "stage": "bright_field",
        "iteration": 1,
        "loss": metrics[0]["loss"],
        "noise_floor": 0.5,
    }
    assert all(record["seconds"] >= 0 for record in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert finished == ["bright_field", "ptychography", "end_to_end", "report"]
    assert len(arrays) == 4
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["input"]["dose_per_tilt_per_square_angstrom"] == pytest.approx(
        [COUNTS.sum() / (12 * 2.25)] * 2
    )
    assert list(summary["stage_seconds"]) == finished
    log = (tmp_path / "run" / "run.log").read_text()
    assert "end_to_end: iteration 7 of 7" in log
    assert load_config(tmp_path / "run" / "config.yaml") == config()
    assert not logging.getLogger("petomo").handlers


@pytest.mark.parametrize("at", [1, 2, 5, 7])
@pytest.mark.parametrize(("what", "error"), [(ctrl_c, Interrupted), (crash, ZeroDivisionError)])
def test_resuming_gives_what_an_uninterrupted_run_gives(config, tmp_path, at, what, error):
    run(config(), tmp_path / "whole", stages=stages())
    with pytest.raises(error):
        run(config(), tmp_path / "part", stages=stages(at, what))
    assert results(tmp_path / "part")[2] == ["bright_field", "ptychography"]
    log = (tmp_path / "part" / "run.log").read_text()
    assert ("ZeroDivisionError" in log) == (what is crash)
    again = stages()
    run(config(), tmp_path / "part", resume=True, stages=again)
    assert [stage.calls for stage in again.values()] == [0, 0, 1, 1]
    assert results(tmp_path / "part") == results(tmp_path / "whole")


def test_ctrl_c_says_how_to_resume_and_restores_the_handler(config, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        Interrupted, match=r"after iteration 3 of 7; resume with: petomo run .*config.yaml --resume --out"
    ):
        run(config(), tmp_path / "run", stages=stages(3, ctrl_c))
    assert signal.getsignal(signal.SIGINT) is before

    def twice():
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "two", stages=stages(3, twice))


def test_redoing_from_a_stage(config, tmp_path):
    run(config(), tmp_path / "run", stages=stages())
    again = stages()
    changed = config("end_to_end.iterations=3", "compute.device=cpu")
    run(changed, tmp_path / "run", start_from="end_to_end", stages=again)
    assert [stage.calls for stage in again.values()] == [0, 0, 1, 1]
    whole = results(tmp_path / "run")
    assert [record["iteration"] for record in whole[0]] == list(range(1, TOTAL + 1)) * 4
    assert load_config(tmp_path / "run" / "config.yaml").end_to_end.iterations == 3
    run(changed, tmp_path / "run", resume=True, stages=stages())
    assert results(tmp_path / "run") == whole, "nothing left to do changes nothing"


def test_stopping_after_a_stage_and_going_on(config, tmp_path):
    run(config(), tmp_path / "whole", stages=stages())
    out, first = tmp_path / "run", stages()
    run(config(), out, stages=first, until="ptychography")
    assert [stage.calls for stage in first.values()] == [1, 1, 0, 0]
    assert results(out)[2] == ["bright_field", "ptychography"]
    log = (out / "run.log").read_text()
    assert f"stopped after ptychography, as asked; go on with: petomo run {out}/config.yaml --resume" in log
    for until, calls in (("end_to_end", [0, 0, 1, 0]), ("bright_field", [0] * 4), (None, [0, 0, 0, 1])):
        again = stages()
        run(config(), out, resume=True, stages=again, until=until)
        assert [stage.calls for stage in again.values()] == calls
    assert results(out) == results(tmp_path / "whole")


def test_until_needs_a_stage_that_comes(config, tmp_path):
    with pytest.raises(UserError, match=r"--until atoms: there is no such stage; choose one of bright_field"):
        run(config(), tmp_path / "run", stages=stages(), until="atoms")
    assert not (tmp_path / "run").exists()
    run(config(), tmp_path / "run", stages=stages())
    before = results(tmp_path / "run")
    with pytest.raises(UserError, match=r"--until ptychography: .* comes before --from end_to_end"):
        run(config(), tmp_path / "run", stages=stages(), start_from="end_to_end", until="ptychography")
    assert results(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("override", "options", "key"),
    [
        ("ptychography.slices=9", {"resume": True}, "ptychography.slices was 3 and is now 9"),
        ("compute.seed=9", {"start_from": "end_to_end"}, "compute.seed was 0 and is now 9"),
        ("data.exclude=[1]", {"start_from": "ptychography"}, "data.exclude was [] and is now [1]"),
        ("end_to_end.batch_size=9", {"resume": True}, "end_to_end.batch_size was null and is now 9"),
    ],
)
def test_changed_settings_are_refused_by_name(config, tmp_path, override, options, key):
    with pytest.raises(Interrupted):
        run(config(), tmp_path / "run", stages=stages(3, ctrl_c))
    before = results(tmp_path / "run")
    with pytest.raises(UserError) as error:
        run(config(override), tmp_path / "run", stages=stages(), **options)
    assert key in str(error.value)
    assert results(tmp_path / "run") == before


def test_more_iterations_may_be_asked_for_half_way(config, tmp_path):
    with pytest.raises(Interrupted):
        run(config(), tmp_path / "run", stages=stages(3, ctrl_c))
    run(config("end_to_end.iterations=99"), tmp_path / "run", resume=True, stages=stages())


def test_folders_that_do_not_fit(config, tmp_path):
    def refused(folder, words, **options):
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(UserError, match=words):
            run(config(), folder, stages=stages(), **options)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before, "nothing may be written"

    refused(tmp_path / "new", "no run in this folder for --resume", resume=True)
    refused(tmp_path / "new", "no run in this folder for --from", start_from="report")
    refused(tmp_path / "new", "no such stage; choose one of bright_field", start_from="nonsense")
    refused(tmp_path / "data", "not empty and holds no run")
    refused(tmp_path / "run.yaml" / "x", "cannot be (read|written)")
    run(config(), tmp_path / "run", stages=stages())
    refused(tmp_path / "run", "already holds a run; add --resume or --from")


def test_from_needs_the_stages_before(config, tmp_path):
    with pytest.raises(Interrupted):
        run(config(), tmp_path / "run", stages=stages(3, ctrl_c, "ptychography"))
    with pytest.raises(UserError, match="stage ptychography has not finished, so --from report cannot"):
        run(config(), tmp_path / "run", start_from="report", stages=stages())


def test_bad_input_leaves_no_folder(config, tmp_path):
    with h5py.File(tmp_path / "data" / "t1.h5", "r+") as file:
        file["counts"][...] = 0
    with pytest.raises(UserError, match=r"t1.h5: every count is zero"):
        run(config(), tmp_path / "run", stages=stages())
    (tmp_path / "poses.json").write_text(json.dumps({"tilts": []}))
    with pytest.raises(UserError, match=r"poses\.json: a pose is missing"):
        run(config(f"alignment.poses={tmp_path / 'poses.json'}"), tmp_path / "run", stages=stages())
    assert not (tmp_path / "run").exists()


def test_one_process_at_a_time(config, tmp_path):
    run(config(), tmp_path / "run", stages=stages())
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is running in this folder"):
            run(config(), tmp_path / "run", resume=True, stages=stages())
    run(config(), tmp_path / "run", resume=True, stages=stages())


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="offers none"):
        choose_device("cuda")
