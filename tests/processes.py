"""Start several processes of one run, as a launcher does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def start_team(size: int, *command: object) -> list[subprocess.Popen]:
    """Python with ``command`` in every process of a team."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | common | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: list[subprocess.Popen]) -> tuple[list[int], str]:
    """Exit codes, and all that was said on standard error."""
    errors = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], "".join(errors)
