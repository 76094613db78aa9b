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


def test_no_unknown_goes_too_far_or_too_low():
    seen = []

    def evaluate(point):
        seen.append(point.clone())
        return float(((point - target) ** 2).sum()), 2 * (point - target)

    target = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    start = torch.tensor([-0.5, 0.0], dtype=torch.float64)
    least = torch.tensor([0.0, -torch.inf], dtype=torch.float64)
    solver = minimise(evaluate, start, lambda g: g / 2, longest=torch.tensor([1.0, 2.0]), least=least)
    points = [now.point for now in itertools.islice(solver, 4)]
    assert points[0].tolist() == [0.0, 0.0], "the start is brought within the bounds"
    # the bound of one does not hold the other back
    assert [float(p[1]) for p in points[1:]] == [2.0, 4.0, 5.0]
    assert all(float(p[0]) >= 0 for p in seen)
