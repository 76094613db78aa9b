"""Memory and time are told before a simulation begins, and too much is refused."""

import json
import subprocess
import sys
import time

import pytest

from petomo.simulation import acquisition, needs, specimen
from petomo.simulation.acquisition import simulate
from petomo.simulation.spec import SimulationSpec

MEASURE = """
import json, resource, sys, tempfile
import torch
from petomo.simulation import acquisition, needs
from petomo.simulation.spec import SimulationSpec

def peak():
    # not ru_maxrss: it counts what the process that started this one held
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
warm = {"specimen": {"edge_angstrom": 4, "core_angstrom": 2}, "scan_shape": (2, 2), "pattern_pixels": 16,
        "stage_tilt_degree": [0], "defocus_angstrom": 20, "phonons": {"configurations": 1}}
said = []
keep = acquisition.memory_parts
acquisition.memory_parts = lambda *arguments: said.append(keep(*arguments)) or said[-1]
with tempfile.TemporaryDirectory() as folder:
    acquisition.simulate(SimulationSpec(**warm), folder + "/warm")
    before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    acquisition.simulate(SimulationSpec(**json.loads(sys.argv[1])), folder + "/measured")
print(json.dumps([sum(said[-1].values()), peak() - before, sorted(said[-1], key=said[-1].get)[-1]]))
"""
ONE = {"phonons": {"configurations": 1}}
MANY_SLICES = ONE | {
    "specimen": {"edge_angstrom": 40, "core_angstrom": 6},
    "stage_tilt_degree": [30],
    "scan_shape": [5, 6],
    "pattern_pixels": 96,
}
MANY_PATTERNS = ONE | {
    "specimen": {"edge_angstrom": 5, "core_angstrom": 3},
    "stage_tilt_degree": [0],
    "scan_shape": [50, 40],
    "scan_step_angstrom": 0.3,
    "pattern_pixels": 80,
}


@pytest.mark.parametrize(
    ("spec", "most"), [(MANY_SLICES, "potential"), (MANY_PATTERNS, "patterns")], ids=["slices", "patterns"]
)
def test_the_memory_said_is_the_memory_taken(spec, most):
    command = [sys.executable, "-c", MEASURE, json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, taken, part = json.loads(done.stdout)
    assert part == most
    assert taken > 1e8, "too little to be measured beside the program itself"
    assert 1 / 1.5 < said / taken < 1.5


def test_it_is_said_before_the_first_tilt(tmp_path, petomo):
    (tmp_path / "spec.yaml").write_text(
        "specimen: {edge_angstrom: 4, core_angstrom: 2}\nstage_tilt_degree: [0]\nscan_shape: [2, 3]\n"
        "defocus_angstrom: 20\npattern_pixels: 16\nphonons: {configurations: 1}\n"
    )
    code, _, told = petomo("simulate", tmp_path / "spec.yaml", "--out", tmp_path / "data")
    first, second = told.splitlines()
    assert code == 0
    assert first.startswith("memory roughly 0.0")
    assert "GiB beside the program itself, time roughly 1 s" in first
    assert second.startswith("tilt 1 of 1")


@pytest.mark.parametrize(
    ("settings", "lower"),
    [
        ("scan_shape: [100000, 100000]", "scan_shape, scan_step_angstrom"),
        ("{scan_shape: [100000, 100000], scan_step_angstrom: 0.001}", "scan_shape or pattern_pixels"),
        ("scan_step_angstrom: 100000", "scan_step_angstrom"),
        ("pattern_pixels: 100000", "pattern_pixels or oversample"),
        ("oversample: 5000", "oversample"),
        ("specimen: {edge_angstrom: 100000}", "specimen.edge_angstrom"),
        ("specimen: {source: te_carbon, core_angstrom: 1.0e+300}", "specimen.core_angstrom"),
        ("specimen: {source: te_carbon, edge_angstrom: 1.0e+20}", "specimen.edge_angstrom"),
        ("phonons: {configurations: 1000000000000}", "phonons.configurations"),
        ("slice_angstrom: 1.0e-300", "slice_angstrom"),
        ("scan_step_angstrom: 1.0e+300", "scan_step_angstrom"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_key_to_lower(tmp_path, petomo, settings, lower):
    (tmp_path / "spec.yaml").write_text(settings)
    start = time.monotonic()
    code, _, told = petomo("simulate", tmp_path / "spec.yaml", "--out", tmp_path / "data")
    assert code == 2
    assert time.monotonic() - start < 10
    assert told.count("\n") == 1
    assert lower in told.partition(";")[2]
    assert not (tmp_path / "data").exists()


def test_a_small_machine_refuses_what_a_larger_one_does(tmp_path, monkeypatch):
    spec = SimulationSpec(phonons={"configurations": 1}, stage_tilt_degree=[0], scan_shape=(2, 2))
    monkeypatch.setattr(needs, "installed_memory", lambda: 2**20)
    with pytest.raises(acquisition.UserError, match=r"needs about 0\.\d+ GiB of memory, .* lower "):
        simulate(spec, tmp_path / "data")
    monkeypatch.setattr(specimen, "installed_memory", lambda: 2**10)
    with pytest.raises(acquisition.UserError, match=r"lower specimen\.edge_angstrom"):
        simulate(spec, tmp_path / "data")
