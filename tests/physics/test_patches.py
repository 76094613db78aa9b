import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_adjoint
from petomo.physics.patches import corners, crop, required_margin, scatter_add_, split_positions


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=5))
def test_whole_and_remainder(pairs):
    pixels = torch.tensor(pairs, dtype=torch.float64)
    whole, rest = split_positions(pixels)
    assert whole.dtype == torch.int64
    torch.testing.assert_close(whole + rest, pixels)
    assert rest.abs().max() <= 0.5


def test_remainder_carries_the_gradient():
    pixels = torch.tensor([[1.7, -2.2]], requires_grad=True)
    split_positions(pixels)[1].sum().backward()
    torch.testing.assert_close(pixels.grad, torch.ones(1, 2))


@pytest.mark.parametrize("field", [(12, 15), (13, 14)])
@pytest.mark.parametrize("window", [(4, 5), (5, 4)])
def test_centre_of_the_patch_lies_at_the_position(field, window):
    stack = torch.zeros(1, *field)
    stack[0, field[0] // 2 + 2, field[1] // 2 - 3] = 1.0
    patch = crop(stack, corners(torch.tensor([[-3, 2]]), field, window), window)
    assert patch.shape == (1, 1, *window)
    assert patch[0, 0, window[0] // 2, window[1] // 2] == 1.0


def test_scatter_is_the_adjoint_of_crop():
    corner, window = torch.tensor([[0, 1], [3, 2], [1, 1], [3, 2]]), (4, 5)
    x = torch.randn(2, 8, 9, dtype=torch.float64)
    y = torch.randn(2, 4, *window, dtype=torch.float64)
    assert_adjoint(
        lambda v: crop(v, corner, window), lambda p: scatter_add_(torch.zeros_like(x), p, corner), x, y
    )


def test_margin_is_just_enough():
    field, window = (10, 12), (4, 5)
    corner = corners(torch.tensor([[-7, 0], [8, -6], [0, 7]]), field, window)
    left, right, top, bottom = required_margin(corner, field, window)
    assert (left, right, top, bottom) == (3, 5, 3, 4)
    grown = torch.nn.functional.pad(torch.ones(1, *field), (left, right, top, bottom))
    moved = corner + torch.tensor([top, left])
    assert crop(grown, moved, window).shape == (1, 3, *window)
    assert moved.amin() == 0
    assert required_margin(torch.tensor([[2, 3]]), field, window) == (0, 0, 0, 0)
