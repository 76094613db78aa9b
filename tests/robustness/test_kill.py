"""A killed run goes on to the same end; `kill_lab` does the killing in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from petomo.workflow.stages import STAGES

LAB = Path(__file__).with_name("kill_lab.py")


def lab(*arguments):
    command = [sys.executable, str(LAB), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    return report


def test_ten_kills_of_real_stages_change_nothing():
    assert lab("--kind", "light", "--kills", 10, "--seed", 1)["kills"] == 10


@pytest.mark.parametrize("options", [(), ("--start-from", "alignment")], ids=["anew", "redone"])
def test_a_kill_at_any_touch_of_a_file_changes_nothing(options):
    report = lab("--kind", "imitation", "--stride", 31, "--seed", 2, *options)
    assert report["kills"] >= 5


@pytest.mark.slow
def test_two_hundred_kills_over_all_stages_change_nothing():
    report = lab("--kind", "all", "--kills", 200)
    assert report["kills"] == 200
    assert set(STAGES) <= set(report["stages"]), "refinement among them"


@pytest.mark.slow
@pytest.mark.parametrize("start_from", ["ptychography", "alignment", "end_to_end"])
def test_kills_while_redoing_change_nothing(start_from):
    assert lab("--kind", "imitation", "--stride", 3, "--start-from", start_from)["kills"] > 50


@pytest.mark.slow
def test_kills_at_touches_of_files_by_real_stages_change_nothing():
    assert lab("--kind", "light", "--stride", 13)["kills"] > 30
