"""A whole run by two processes: the same artefacts as by one, one voice, one end."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_stages import RUN, SPEC, contents, petomo

from petomo.io.metrics import read_metrics
from processes import ends, start_team

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHORTER = {
    "iterations: 3, slices: 2": "iterations: 2, slices: 2",
    "iterations: 2, bundle: {rounds: 2, iterations: 10}": "iterations: 0, bundle: {rounds: 0}",
    "iterations: 4\n": "iterations: 3\n",
}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A folder with three tilts, a configuration, and the run of one process up to the volume."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "spec.yaml").write_text(SPEC.replace("[-40, -20, 0, 20, 40]", "[-30, 0, 30]"))
    settings = RUN
    for old, new in SHORTER.items():
        assert old in settings
        settings = settings.replace(old, new)
    (folder / "run.yaml").write_text(settings)
    petomo("simulate", folder / "spec.yaml", "--out", folder / "data")
    petomo("run", folder / "run.yaml", "--out", folder / "one", "--until", "end_to_end")
    return folder


def command(folder, *arguments):
    """A run up to the volume, for `python`."""
    return ["-m", "petomo", "run", folder / "run.yaml", "--until", "end_to_end", *arguments]


def sentences(error):
    """What petomo itself said last, without the launcher's own lines."""
    return [line for line in error.splitlines() if line.startswith("petomo:")]


def assert_close(folder, other):
    a, b = contents(folder), contents(other)
    for key in a.keys() - {"names", "metrics"}:
        np.testing.assert_allclose(b[key], a[key], rtol=0, atol=1e-3 * np.abs(a[key]).max(), err_msg=key)
    # tilts are reconstructed side by side, so their lines are in another order
    left, right = (sorted(map(tuple, found["metrics"].tolist())) for found in (a, b))
    assert [line[:2] for line in left] == [line[:2] for line in right]
    np.testing.assert_allclose([line[2] for line in left], [line[2] for line in right], rtol=1e-5)


def test_two_processes_leave_what_one_leaves_even_when_stopped(series):
    two = series / "two"
    arguments = list(map(str, [*TORCHRUN, *command(series, "--out", two)]))
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not any(r["stage"] == "ptychography" for r in read_metrics(two / "metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    (code,), error = ends([process])
    assert code != 0
    assert len(sentences(error)) == 1, error
    assert "stopped in" in sentences(error)[0]
    assert not (two / ".lock").exists()
    assert (two / "checkpoints" / "ptychography.h5").exists()

    codes, error = ends(start_team(2, *command(series, "--out", two, "--resume")))
    assert codes == [0, 0], error
    assert not sentences(error)
    assert error.count("end_to_end: finished") == 1, "only one process speaks"
    left = {path.name for path in two.iterdir() if path.name != "checkpoints"}
    assert left == {path.name for path in (series / "one").iterdir()}
    assert_close(series / "one", two)


def test_an_error_is_told_once_and_ends_all(series, tmp_path):
    shutil.copytree(series / "one", tmp_path / "run")
    codes, error = ends(start_team(2, *command(series, "--out", tmp_path / "run")))
    assert codes == [2, 2], error
    assert len(sentences(error)) == 1, error
    assert "already holds a run" in error
    assert "Traceback" not in error
