"""What `test_second_device` does in a process of its own: ``python lab.py FOLDER``."""

import os
import sys
import traceback
from pathlib import Path

import torch
from device import make_device

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "algorithms"), str(TESTS / "workflow")]


def solvers(folder, device):
    """Every case of the teams', on the device."""
    import team_lab

    for case in team_lab.CASES:
        torch.save(team_lab.solve(case, device=device), folder / f"{case}.pt")
    torch.save(team_lab.refine(device=device), folder / "atoms.pt")


def run(folder, device):
    """All stages of the run in ``folder``, stopped in most of them and resumed."""
    import test_stages

    from petomo.workflow import runner
    from petomo.workflow.config import load_config

    runner.choose_device = lambda _: device
    stops = [("ptychography", 4), ("alignment", 3), ("end_to_end", 2), ("refinement", 5), ("refinement", 13)]
    test_stages.run_with_stops(load_config(folder / "run.yaml"), folder / "second", stops)


def main(folder):
    torch.set_num_threads(1)
    try:
        device = make_device(Path(folder) / "build")
        solvers(Path(folder), device)
        run(Path(folder), device)
        code = 0
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # torch does not end the threads of such a device


if __name__ == "__main__":
    main(*sys.argv[1:])
