"""What runs on a GPU runs on any second device, and comes to the same there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_stages import contents

sys.path.append(str(Path(__file__).parents[1] / "second_device"))
sys.path.append(str(Path(__file__).parents[1] / "algorithms"))

import team_lab
from device import lacking

from petomo.io.artefacts import read_atoms
from processes import ends, start_team

LAB = Path(__file__).parents[1] / "second_device" / "lab.py"


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        size = float(value.abs().max())
        assert float((found[key] - value).abs().max()) <= tolerance * max(size, 1e-9), key


@pytest.mark.skipif(lacking() is not None, reason=f"building the device needs {lacking()}")
def test_solvers_and_a_run_with_stops(minute, tmp_path):
    shutil.copy(minute / "run.yaml", tmp_path)
    shutil.copytree(minute / "data", tmp_path / "data")
    done = subprocess.run([sys.executable, LAB, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes, errors = ends(start_team(2, LAB, tmp_path))
    assert codes == [0, 0], errors
    for case in (*team_lab.CASES, "atoms"):
        expected = team_lab.refine() if case == "atoms" else team_lab.solve(case)
        tolerance = {"single": 1e-5, "atoms": 1e-6}.get(case, 1e-9)
        for process in ("0_of_1", "0_of_2", "1_of_2"):
            assert_near(torch.load(tmp_path / f"{case}_{process}.pt"), expected, tolerance)
    found, expected = contents(tmp_path / "second"), contents(minute / "run")
    for key in set(expected) - {"names", "metrics", "defocus"}:
        # of where it is a pattern in vacuum says nothing
        near = 0.02 if key.startswith("positions") else 1e-3 * abs(expected[key]).max()
        assert abs(found[key] - expected[key]).max() <= near, key
    one, other = (read_atoms(folder / "atoms.xyz") for folder in (tmp_path / "second", minute / "run"))
    assert one.get_chemical_symbols() == other.get_chemical_symbols()
    assert abs(one.positions - other.positions).max() < 1e-3, "angstrom"


@pytest.mark.gpu
@pytest.mark.parametrize("case", team_lab.CASES)
def test_solvers_on_a_gpu(case):
    tolerance = 1e-4 if case == "single" else 1e-6
    assert_near(team_lab.solve(case, device=torch.device("cuda")), team_lab.solve(case), tolerance)


@pytest.mark.gpu
def test_refinement_of_atoms_on_a_gpu():
    assert_near(team_lab.refine(device=torch.device("cuda")), team_lab.refine(), 1e-5)
