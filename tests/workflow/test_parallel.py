"""A whole run by two processes: the same artefacts as by one, one voice, one end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from minute_run import RUN, SPEC, petomo
from test_stages import contents

from petomo.io.metrics import read_metrics
from processes import ends, start_team

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHORTER = {
    "iterations: 3, slices: 2": "iterations: 60, slices: 2",  # long enough to be stopped in
    "iterations: 2, bundle: {rounds: 2, iterations: 10}": "iterations: 0, bundle: {rounds: 0}",
    "iterations: 4\n": "iterations: 3\n",
}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A folder with three tilts, a configuration, and the run of one process up to the completed volume."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "spec.yaml").write_text(SPEC.replace("[-40, -20, 0, 20, 40]", "[-30, 0, 30]"))
    settings = RUN
    for old, new in SHORTER.items():
        assert old in settings
        settings = settings.replace(old, new)
    (folder / "run.yaml").write_text(settings)
    petomo("simulate", folder / "spec.yaml", "--out", folder / "data")
    petomo("run", folder / "run.yaml", "--out", folder / "one", "--until", "completion")
    return folder


def command(folder, *arguments):
    """A run up to the completed volume, for `python`."""
    return ["-m", "petomo", "run", folder / "run.yaml", "--until", "completion", *arguments]


def sentences(error):
    """What petomo itself said last, without the launcher's own lines."""
    return [line for line in error.splitlines() if line.startswith("petomo:")]


def assert_close(folder, other):
    """Within what line searches and thresholds make of rounding errors."""
    a, b = contents(folder), contents(other)
    for key in a.keys() - {"names", "metrics"}:
        np.testing.assert_allclose(b[key], a[key], rtol=0, atol=3e-3 * np.abs(a[key]).max(), err_msg=key)
    # tilts are reconstructed side by side, so their lines are in another order
    left, right = (sorted(map(tuple, found["metrics"].tolist())) for found in (a, b))
    assert [line[:2] for line in left] == [line[:2] for line in right]
    np.testing.assert_allclose([line[2] for line in left], [line[2] for line in right], rtol=2e-4)


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
    assert error.count("completion: finished") == 1, "only one process speaks"
    left = [{path.name for path in run.iterdir()} - {"checkpoints"} for run in (series / "one", two)]
    assert left[0] == left[1]
    assert not list((two / "checkpoints").iterdir())
    assert_close(series / "one", two)


def test_an_error_is_told_once_and_ends_all(series, tmp_path):
    shutil.copytree(series / "one", tmp_path / "run")
    codes, error = ends(start_team(2, *command(series, "--out", tmp_path / "run")))
    assert codes == [2, 2], error
    assert len(sentences(error)) == 1, error
    assert "already holds a run" in error
    assert "Traceback" not in error


def test_the_slurm_script_starts_a_process_for_every_task(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "petomo": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT: $*" >> "$LOG"; exit 130\n',
        "srun": 'while [ "${1:0:2}" = -- ]; do shift; done\n'
        'for n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=0 "$@" || code=$?; done; exit $code\n',
        "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$*" >> "$LOG"; fi\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}")
        (tools / name).chmod(0o755)
    script = Path(__file__).parents[2] / "examples" / "slurm.sh"
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "SLURM_JOB_ID": "9"}
    environment |= {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(
        ["bash", script, "my config.yaml", "RUN"], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 130
    assert (tmp_path / "log").read_text().splitlines() == [
        "0 0 2 node7 20009: run my config.yaml --out RUN",
        "1 0 2 node7 20009: run my config.yaml --out RUN",
        "requeue 9",
    ]
