"""Work shared by the threads of this process.

Transforms of a few small windows use several threads badly. So each thread takes patterns of its own and
computes alone; torch and the compiled passes let go of the interpreter while they work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def shares(count: int, least: int = 1, device: torch.device | None = None) -> list[slice]:
    """Cut ``count`` things in a row into one part for each of torch's threads.

    Parameters
    ----------
    count : int
        How many things there are.
    least : int
        What is worth a thread of its own.
    device : torch.device, optional
        Anything but a processor gets one part.
    """
    threads = torch.get_num_threads() if device is None or device.type == "cpu" else 1
    parts = max(1, min(threads, count // least))
    return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def spread(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[work(part) for part in parts]`` at the same time, each on one thread and without gradients."""
    if len(parts) == 1:
        return [work(parts[0])]

    @torch.no_grad()
    def alone(part: Part) -> Result:
        return work(part)

    return list(_pool(len(parts)).map(alone, parts))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "petomo", lambda: torch.set_num_threads(1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
