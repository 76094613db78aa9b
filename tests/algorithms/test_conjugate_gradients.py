import torch

from petomo.algorithms.conjugate_gradients import conjugate_gradients


def problem(sizes=(4, 3)):
    torch.manual_seed(3)
    count = sum(sizes)
    root = torch.randn(count, count, dtype=torch.float64)
    matrix, right = root @ root.T + torch.eye(count), torch.randn(count, dtype=torch.float64)

    def product(blocks):
        return (matrix @ torch.cat(blocks)).split(sizes)

    def precondition(blocks):
        return (torch.cat(blocks) / matrix.diagonal()).split(sizes)

    return matrix, right, product, precondition, right.split(sizes)


def test_solves_for_all_blocks():
    matrix, right, product, precondition, blocks = problem()
    solution = torch.cat(conjugate_gradients(product, blocks, precondition, 7))
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, right))


def test_ends_when_near_enough():
    _, _, product, precondition, blocks = problem()
    calls = []

    def counted(x):
        calls.append(x)
        return product(x)

    conjugate_gradients(counted, blocks, precondition, 50, tolerance=0.5)
    assert 1 < len(calls) < 7


def test_ends_where_there_is_no_curvature():
    _, _, product, _, blocks = problem()
    solution = conjugate_gradients(lambda x: tuple(-v for v in product(x)), blocks, lambda x: x, 5)
    assert all(float(part.abs().max()) == 0 for part in solution)
