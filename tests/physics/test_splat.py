"""Small spots drawn into an image."""

import pytest
import torch

from helpers import assert_gradients
from petomo.physics import splat
from petomo.physics.splat import draw_windows

SHAPE = (9, 12)
PLACES = torch.tensor([0, 4, 4, 6]), torch.tensor([8, 2, 3, 0])  # two of them overlap, two touch the edge


@pytest.fixture(autouse=True, params=["compiled", "plain torch"])
def way(request, monkeypatch):
    """Every test runs both ways."""
    if request.param == "plain torch":
        monkeypatch.setattr(splat, "compiled", lambda _: None)
    else:
        pytest.importorskip("numba")


def spots():
    generator = torch.Generator().manual_seed(3)
    many = {"dtype": torch.float64, "generator": generator}
    return torch.randn(4, 3, **many), torch.randn(4, 4, **many)


def test_every_window_lands_where_it_should():
    rows, columns = spots()
    expected = torch.zeros(SHAPE, dtype=torch.float64)
    for row, column, y, x in zip(rows, columns, *map(torch.Tensor.tolist, PLACES), strict=True):
        expected[y : y + 3, x : x + 4] += torch.outer(row, column)
    torch.testing.assert_close(draw_windows(rows, columns, *PLACES, SHAPE), expected)


def test_gradients():
    rows, columns = (part.requires_grad_() for part in spots())
    assert_gradients(lambda r, c: draw_windows(r, c, *PLACES, SHAPE), rows, columns)


def test_adjoint_of_one_profile():
    """Linear in each profile: <A r, image> = <r, A* image>."""
    rows, columns = spots()
    image = torch.randn(SHAPE, dtype=torch.float64)
    drawn = draw_windows(rows.requires_grad_(), columns, *PLACES, SHAPE)
    (back,) = torch.autograd.grad(drawn, rows, image)
    torch.testing.assert_close((drawn * image).sum(), (rows * back).sum())


def test_profiles_and_gradients_need_not_be_contiguous():
    rows, columns = (part.T.contiguous().T.requires_grad_() for part in spots())
    drawn = draw_windows(rows, columns, *PLACES, SHAPE)
    given = torch.autograd.grad(
        drawn, (rows, columns), torch.ones(SHAPE, dtype=torch.float64).T.contiguous().T
    )
    plain = [part.detach().contiguous().requires_grad_() for part in (rows, columns)]
    expected = torch.autograd.grad(draw_windows(*plain, *PLACES, SHAPE).sum(), plain)
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
