import torch

from petomo.core.least_squares import least_squares


def test_agrees_with_lapack_and_repeats_to_the_bit():
    design = torch.randn(37, 5, dtype=torch.float64)
    target = torch.randn(37, 2, dtype=torch.float64)
    expected = torch.linalg.lstsq(design, target).solution
    kept, found = [], []
    for n in range(1, 60):  # the memory that LAPACK gets lies elsewhere each time
        kept.append(torch.empty(97 * n))
        found.append(least_squares(design.clone(), target.clone()))
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_column_without_information_gets_zero():
    design = torch.randn(9, 3, dtype=torch.float64)
    design[:, 1] = 0.0
    found = least_squares(design, design @ torch.tensor([[2.0], [5.0], [-1.0]], dtype=torch.float64))
    torch.testing.assert_close(found[:, 0], torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64))
    assert not least_squares(0 * design, design[:, :1]).any()
