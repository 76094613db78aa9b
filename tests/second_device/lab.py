"""What `test_second_device` does in processes of its own: ``python lab.py FOLDER``, or several at once."""

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from device import make_device

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "algorithms"), str(TESTS / "workflow")]

import team_lab  # noqa: E402

from petomo.core.parallel import ALONE, assembled  # noqa: E402


def solvers(folder, device, team=ALONE):
    """Every case of the teams', on the device."""
    for case in team_lab.CASES:
        torch.save(team_lab.solve(case, team, device), folder / f"{case}_{team.rank}_of_{team.size}.pt")
    torch.save(team_lab.refine(team, device), folder / f"atoms_{team.rank}_of_{team.size}.pt")


def relay(name):
    """Let a collective of gloo take tensors of the device, as NCCL does: all of one device."""
    collective = getattr(dist, name)

    def relayed(*arguments):
        assert len({x.device for x in arguments if isinstance(x, torch.Tensor)}) == 1
        near = [x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments]
        collective(*near)
        for x, result in zip(arguments, near, strict=True):
            if isinstance(x, torch.Tensor):
                x.copy_(result)

    setattr(dist, name, relayed)


def together(folder, device):
    """The solvers by all processes of the launcher."""
    for name in ("all_reduce", "broadcast", "all_to_all_single"):
        relay(name)
    with assembled() as team:
        solvers(folder, device, team)


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
        for work in (together,) if "RANK" in os.environ else (solvers, run):
            work(Path(folder), device)
        code = 0
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # torch does not end the threads of such a device


if __name__ == "__main__":
    main(*sys.argv[1:])
