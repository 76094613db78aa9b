"""Threads that each compute alone."""

import os
import threading

import pytest
import torch

from petomo.core.threads import shares, spread


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "least"), [(10, 1), (7, 3), (3, 4), (1, 1), (0, 1)])
def test_shares_cover_everything_once(count, least):
    parts = shares(count, least)
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert len(parts) == (2 if count // least >= 2 else 1)
    assert len(shares(count, least, torch.device("meta"))) == 1


def test_each_thread_computes_alone_and_the_caller_as_before():
    meet = threading.Barrier(2, timeout=20)

    def work(part):
        meet.wait()  # both are at it at the same time
        return part, torch.get_num_threads(), torch.is_grad_enabled()

    assert spread(work, ["a", "b"]) == [("a", 1, False), ("b", 1, False)]
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    assert spread(lambda part: (part, torch.get_num_threads()), ["alone"]) == [("alone", 2)]


def test_a_mistake_in_a_thread_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        spread(lambda part: 1 / part, [1, 0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_has_threads_of_its_own():
    assert spread(abs, [-1, -2]) == [1, 2]
    child = os.fork()
    if child == 0:
        os._exit(0 if spread(abs, [-3, -4]) == [3, 4] else 1)
    assert os.waitpid(child, 0)[1] == 0
