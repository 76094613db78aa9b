import itertools

import torch

from petomo.algorithms.quasi_newton import minimise


def test_a_step_is_no_longer_than_allowed():
    def evaluate(point):
        assert float(point.abs().max()) <= 2.0
        return float((point**2).sum()), 2 * point

    start = torch.tensor([1.0, -0.5], dtype=torch.float64)
    solver = minimise(evaluate, start, lambda g: 1e11 * g, longest=torch.tensor([0.3, 1.0]))
    *_, last = itertools.islice(solver, 8)
    assert last.value < 1e-2
