"""Disks, clocks and other runs: one sentence, and what was saved before stays."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from petomo.core.dataset import ArraySource, FourDSTEM, TiltSeries
from petomo.core.errors import UserError, WrongNumbers
from petomo.io import atomic
from petomo.io.artefacts import read_json, write_json
from petomo.io.checkpoint import load_checkpoint, save_checkpoint
from petomo.io.metrics import read_metrics
from petomo.workflow.config import load_config
from petomo.workflow.guard import Guard, is_empty, memory_error, refuse_empty, refuse_nan
from petomo.workflow.runner import run

COUNTS = np.random.default_rng(0).poisson(3, (3, 4, 6, 6)).astype(np.uint16)
TOTAL = 6


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        with h5py.File(tmp_path / "data" / f"t{number}.h5", "w") as file:
            file["counts"] = COUNTS
            file.attrs.update(energy_ev=2e5, semiangle_mrad=25.0, scan_step_angstrom=1.5)
            file.attrs.update(detector_sampling_inv_angstrom=0.07, nominal_tilt_deg=10.0 * number)
    (tmp_path / "run.yaml").write_text("data: {root: data}\noutput: {save_every: 1}\n")
    return load_config(tmp_path / "run.yaml")


def stage(context, at=None, what=None, size=1000):
    """Sums the patterns it reads anew in every iteration."""
    saved = context.restore("end_to_end") or {"n": 0, "sum": torch.zeros(size)}
    total = saved["sum"]
    for n in range(saved["n"] + 1, TOTAL + 1):
        if n == at:
            what(context)
        total = total + float(context.series[n % 2].patterns().sum())
        now = {"n": n, "sum": total}
        context.iteration("end_to_end", n, TOTAL, 1.0 / n, lambda now=now: now, tilt=n % 2)
    write_json(context.folder / "sum.json", total)


def stages(at=None, what=None, **options):
    return {"end_to_end": lambda context: stage(context, at, what, **options)}


def fails(config, folder, at, what, words, **options):
    """Run into a misfortune; the checkpoint is the one before it."""
    with pytest.raises(UserError, match=words) as error:
        run(config, folder, stages=stages(at, what, **options))
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("end_to_end: ")
    assert f"--out {folder}" in message
    assert load_checkpoint(folder / "checkpoints" / "end_to_end.h5")["state"]["n"] == at - 1
    assert not [path for path in folder.rglob("*") if atomic.is_temporary(path)]
    return message


def goes_on(config, folder):
    run(config, folder, resume=True, stages=stages())
    assert [record["iteration"] for record in read_metrics(folder / "metrics.jsonl")] == list(
        range(1, TOTAL + 1)
    )
    return read_json(folder / "sum.json")[0]


EXPECTED = TOTAL * float(COUNTS.sum())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses(config, tmp_path, monkeypatch, number, call):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    def break_disk(_):
        monkeypatch.setattr(os, call, refuse)

    fails(config, tmp_path / "run", 4, break_disk, "could not be written, because the disk")
    monkeypatch.undo()
    assert goes_on(config, tmp_path / "run") == EXPECTED


LIMITED = """
import resource, sys, torch
from petomo.io.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
save_checkpoint(sys.argv[1], {str(n): torch.ones(500) for n in range(300)})
"""


def test_hdf5_survives_a_write_that_fails(tmp_path):
    """HDF5 by itself would complain without end and crash."""
    save_checkpoint(tmp_path / "a.h5", {"x": torch.ones(3)})
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "UserError: " in done.stderr
    assert "a.h5: this could not be written, because the file grows beyond" in done.stderr
    assert "decrement" not in done.stderr
    assert torch.equal(load_checkpoint(tmp_path / "a.h5")["x"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


FULL = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_misfortunes import stages
from petomo.workflow.config import load_config
from petomo.workflow.runner import run
def fill(context):
    with open(context.folder / "ballast", "wb") as file:
        try:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        except OSError:
            pass
run(load_config(Path({config!r})), Path({folder!r}), stages=stages(4, fill, size=20000))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount a small disk")
def test_a_disk_that_is_really_full(config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "petomo-test", disk], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        code = FULL.format(
            tests=str(Path(__file__).parent), config=str(tmp_path / "run.yaml"), folder=str(disk / "run")
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "UserError: end_to_end: " in done.stderr
        assert "the disk is full; free some space; once that is mended, go on with: petomo run" in done.stderr
        assert "Logging error" not in done.stderr
        assert "Can't decrement" not in done.stderr
        assert load_checkpoint(disk / "run" / "checkpoints" / "end_to_end.h5")["state"]["n"] == 3
        (disk / "run" / "ballast").unlink()
        run(config, disk / "run", resume=True, stages=stages(size=20000))
        assert read_json(disk / "run" / "sum.json")[0] == EXPECTED
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_becomes_read_only(config, tmp_path, monkeypatch):
    def refuse(_self, path, _mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def close(_):
        monkeypatch.setattr(atomic._Deferring, "__init__", refuse)

    fails(config, tmp_path / "run", 4, close, "could not be written, because permission is denied")
    monkeypatch.undo()
    assert goes_on(config, tmp_path / "run") == EXPECTED


@pytest.mark.parametrize("spoil", ["remove", "truncate", "replace"])
def test_a_source_that_vanishes_or_shrinks(config, tmp_path, spoil):
    source = tmp_path / "data" / "t0.h5"
    whole = source.read_bytes()

    def misfortune(_):
        if spoil == "remove":
            source.unlink()
        elif spoil == "truncate":
            os.truncate(source, len(whole) // 2)
        else:
            source.write_bytes(b"something else altogether" * 200)

    message = fails(config, tmp_path / "run", 4, misfortune, r"t0\.h5")
    assert "errno" not in message
    with pytest.raises(UserError, match=r"t0\.h5|no file"):
        run(config, tmp_path / "run", resume=True, stages=stages())
    source.write_bytes(whole)
    assert goes_on(config, tmp_path / "run") == EXPECTED


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_clock_jumps(config, tmp_path, monkeypatch, jump):
    real = time.time

    def change_clock(_):
        monkeypatch.setattr(time, "time", lambda: real() + jump)

    run(config, tmp_path / "run", stages=stages(3, change_clock))
    assert all(0 <= record["seconds"] < 60 for record in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert 0 <= read_json(tmp_path / "run" / "state.json")["finished"]["end_to_end"] < 60
    assert read_json(tmp_path / "run" / "sum.json")[0] == EXPECTED


def test_two_runs_into_one_folder(config, tmp_path):
    def second(context):
        before = sorted((path.name, path.read_bytes()) for path in context.folder.iterdir() if path.is_file())
        for options in ({}, {"resume": True}, {"start_from": "end_to_end"}):
            words = "is running in this folder|already holds a run"
            with pytest.raises(UserError, match=words):
                run(config, tmp_path / "run", stages=stages(), **options)
        after = sorted((path.name, path.read_bytes()) for path in context.folder.iterdir() if path.is_file())
        assert after == before

    run(config, tmp_path / "run", stages=stages(2, second))
    assert read_json(tmp_path / "run" / "sum.json")[0] == EXPECTED


def test_a_run_that_came_and_went_meanwhile(config, tmp_path, monkeypatch):
    """Two are started at once, and the second comes to the folder when the first is through."""
    from petomo.workflow import runner

    real = runner.validate_counts

    def slow(series):
        monkeypatch.setattr(runner, "validate_counts", real)
        run(config, tmp_path / "run", stages=stages())
        return real(series)

    monkeypatch.setattr(runner, "validate_counts", slow)
    with pytest.raises(UserError, match="already holds a run"):
        run(config, tmp_path / "run", stages=stages())
    assert read_json(tmp_path / "run" / "sum.json")[0] == EXPECTED


def test_what_a_killed_run_leaves_is_removed(config, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path / "run", stages=stages(3, lambda _: 1 / 0))
    left = [".volume.123.tmp.mrc", ".state.4567.tmp.json", "checkpoints/.end_to_end.9.tmp.h5"]
    for name in left:
        (tmp_path / "run" / name).write_bytes(b"half")
    (tmp_path / "run" / "inputs" / ".alignment.77.tmp").mkdir(parents=True)
    (tmp_path / "run" / "inputs" / ".alignment.77.tmp" / "poses.json").write_text("{}")
    (tmp_path / "run" / ".notes").write_text("the user's own")
    with open(tmp_path / "run" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": "end_to_en')
    assert goes_on(config, tmp_path / "run") == EXPECTED
    assert not [path for path in (tmp_path / "run").rglob("*") if "tmp" in path.name]
    assert (tmp_path / "run" / ".notes").read_text() == "the user's own"


def test_killed_before_anything_happened(config, tmp_path):
    for options in ({}, {"resume": True}):
        folder = tmp_path / f"run{len(options)}"
        folder.mkdir()
        (folder / ".lock").write_text("12")
        (folder / "run.log").write_text("")
        run(config, folder, stages=stages(), **options)
        assert read_json(folder / "sum.json")[0] == EXPECTED


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"finished": 3}', '{"finished": {"end_to_end": "x"}}', "{"]
)
def test_a_damaged_state_is_one_sentence(config, tmp_path, text):
    run(config, tmp_path / "run", stages=stages())
    (tmp_path / "run" / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json"):
        run(config, tmp_path / "run", resume=True, stages=stages())


def test_sigterm_saves_and_stops(config, tmp_path):
    from petomo.workflow.callbacks import Interrupted

    with pytest.raises(Interrupted, match="resume with"):
        run(config, tmp_path / "run", stages=stages(3, lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    assert goes_on(config, tmp_path / "run") == EXPECTED


def wrong(config, folder, loss, words, state=None, **extra):
    """A stage whose fourth iteration goes wrong."""

    def bad(context):
        start = (context.restore("end_to_end") or {"n": 0})["n"] + 1
        for n in range(start, TOTAL + 1):
            value = state if state is not None and n == 4 else torch.ones(2)
            now = {"n": n, "x": value}
            context.iteration(
                "end_to_end", n, TOTAL, loss if n >= 4 else 1.0 / n, lambda now=now: now, **extra
            )

    with pytest.raises(UserError, match=words) as error:
        run(config, folder, stages={"end_to_end": bad})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("end_to_end: ")
    assert f"--from end_to_end --out {folder}" in str(error.value)
    return load_checkpoint(folder / "checkpoints" / "end_to_end.h5")["state"]["n"]


def test_numbers_that_go_wrong(config, tmp_path):
    words = "the loss is not a finite number in iteration 4 of 6, tilt 1; .*step_size"
    assert wrong(config, tmp_path / "nan", float("nan"), words, tilt=1) == 3
    assert wrong(config, tmp_path / "inf", float("inf"), "not a finite number in iteration 4") == 3
    words = "the loss has grown from 0.3333 to 1e.06 in iteration 4 of 6; .*step_size"
    assert wrong(config, tmp_path / "far", 1e6, words) == 3
    words = "state.x holds values that are not numbers"
    assert wrong(config, tmp_path / "state", 0.1, words, torch.tensor([1.0, float("nan")])) == 3


def test_a_solver_may_undo_a_few_steps():
    guard = Guard()
    guard.check("end_to_end", 1, 9, 5.0, {})
    for n in (2, 3):
        guard.check("end_to_end", n, 9, float("nan"), {"undone": 1.0})
    guard.check("end_to_end", 5, 9, 4.0, {})
    for n in (6, 7, 8):
        guard.check("end_to_end", n, 9, float("nan"), {"undone": 1.0})
    with pytest.raises(WrongNumbers, match="iteration 9 of 9; the steps are too long"):
        guard.check("end_to_end", 9, 9, float("nan"), {"undone": 1.0})
    with pytest.raises(WrongNumbers, match="the start is wrong already, so look at the counts"):
        Guard().check("ptychography", 1, 9, float("nan"), {"tilt": 0})


def test_steps_that_have_to_be_undone_again_and_again():
    guard = Guard()
    for n in range(1, 11):
        guard.check("end_to_end", n, 20, 5.0, {"undone": 1.0} if n % 2 else {})
    with pytest.raises(WrongNumbers, match="6 passes made it worse and were undone by iteration 11 of 20"):
        guard.check("end_to_end", 11, 20, 5.0, {"undone": 1.0})


def a_tilt(counts, name="t"):
    source = ArraySource(counts.reshape(-1, *counts.shape[2:]))
    return FourDSTEM(source, 2e5, 25.0, counts.shape[:2], (1.5, 1.5), (0.07, 0.07), name=name)


def test_an_empty_specimen():
    rng = np.random.default_rng(3)
    disk = np.hypot(*np.mgrid[-12:12, -10:10]) < 7
    waves = np.sin(np.arange(12 * 14)).reshape(12, 14, 1, 1)
    empty = a_tilt(rng.poisson(400 * disk, (12, 14, 24, 20)).astype(np.float32))
    full = a_tilt(rng.poisson(400 * disk * (1 + 0.05 * waves * np.ones((24, 20)))).astype(np.float32), "full")
    assert is_empty(empty)
    assert not is_empty(full)
    assert not is_empty(a_tilt(0.01 * rng.poisson(400 * disk, (12, 14, 24, 20)))), "not in electrons"
    assert not is_empty(a_tilt(rng.poisson(0.05 * disk, (12, 14, 24, 20)))), "too few counts to tell"
    assert not is_empty(a_tilt(np.ones((1, 1, 6, 6)))), "one pattern tells nothing"
    told = []
    refuse_empty(TiltSeries((empty, full)), told.append)
    assert len(told) == 1
    assert told[0].startswith("t: its patterns differ by counting noise alone")
    with pytest.raises(UserError, match="no specimen in the beam"):
        refuse_empty(TiltSeries((empty, empty)), told.append)


def test_losses_of_other_tilts_and_parts_are_not_compared():
    guard = Guard()
    guard.check("ptychography", 1, 9, 1.0, {"tilt": 0})
    guard.check("ptychography", 2, 9, 1e6, {"tilt": 1})
    guard.check("alignment", 1, 9, 1e-6, {"part": "align"})
    guard.check("alignment", 2, 9, 0.5, {"part": "bundle"})
    guard.check("end_to_end", 1, 9, 1.0, {})
    guard.check("end_to_end/half_a", 1, 9, 1e6, {})
    guard.check("end_to_end", 2, 9, -500.0, {})  # a Poisson likelihood has no zero
    guard.check("end_to_end", 3, 9, 50.0, {})


def test_refuse_nan_looks_everywhere():
    good = {
        "a": [torch.ones(2), {"b": np.zeros(2)}],
        "n": float("nan"),
        3: None,
        "c": torch.ones(2, dtype=torch.int8),
    }
    refuse_nan(good, "state")
    for bad in (torch.tensor([1j, complex("nan")]), np.array([1.0, np.nan])):
        with pytest.raises(WrongNumbers, match=re.escape("state.a.1.b holds")):
            refuse_nan({"a": [0, {"b": bad}]}, "state")


def test_memory_that_runs_out(config, tmp_path):
    def greedy(_):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"
        )

    fails(config, tmp_path / "run", 3, greedy, "not enough memory .* smaller volume")
    lost = RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {2**50} bytes.")
    assert "1024 TiB were asked for); shorten the step_size of positions" in str(memory_error(lost))
    assert memory_error(RuntimeError("something else")) is None
