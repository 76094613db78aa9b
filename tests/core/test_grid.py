import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petomo.core.grid import Grid


@given(n=st.integers(1, 40), pixel=st.floats(0.01, 10))
def test_origin_is_voxel_half_n(n, pixel):
    x = Grid((n,), pixel).coordinates(0, dtype=torch.float64)
    assert x[n // 2] == 0
    np.testing.assert_allclose(np.diff(x), pixel)


@given(n=st.integers(1, 40), pixel=st.floats(0.01, 10))
def test_frequencies_in_fft_order(n, pixel):
    q = Grid((3, n), (1.0, pixel)).frequencies(1, dtype=torch.float64)
    assert q[0] == 0
    np.testing.assert_allclose(q, np.fft.fftfreq(n, pixel), rtol=1e-12)


def test_anisotropic_axes_keep_their_order():
    grid = Grid((4, 5, 6), (0.5, 0.25, 2.0))
    assert grid.extent == (2.0, 1.25, 12.0)
    assert grid.coordinates(0).tolist() == [-1.0, -0.5, 0.0, 0.5]
    assert grid.coordinates(1)[0] == -0.5
    assert grid.frequencies(2)[1] == pytest.approx(1 / 12)


def test_one_pixel_size_serves_all_axes_and_grids_compare():
    assert Grid((4, 5), 0.3) == Grid((4, 5), (0.3, 0.3))
    assert hash(Grid((4, 5), 0.3)) == hash(Grid((4, 5), (0.3, 0.3)))


@pytest.mark.parametrize(
    ("shape", "pixel"),
    [((4, 5), (0.3,)), ((0, 5), 0.3), ((4, 5), 0.0), ((4, 5), (0.3, -1.0)), ((4,), float("nan"))],
)
def test_nonsense_is_refused(shape, pixel):
    with pytest.raises(ValueError, match="one positive size per axis"):
        Grid(shape, pixel)
