import math

import pytest
import torch

from helpers import (
    assert_backward_is_adjoint,
    assert_gradients,
    assert_isometry,
    random_complex,
    relative_error,
)
from petomo.physics.fourier import fft2, ifft2, quarter_turns, rotate_plane, translate_lines


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def gaussian(shape, centre, sigma=2.0):
    """Gaussian ``(v, u)`` at ``centre`` = (u, v) from pixel n // 2."""
    v = torch.arange(shape[0], dtype=torch.float64)[:, None] - shape[0] // 2
    u = torch.arange(shape[1], dtype=torch.float64)[None, :] - shape[1] // 2
    return torch.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize("shape", [(4, 7), (9, 6)])
def test_transforms_are_unitary(shape):
    wave = random_complex(2, *shape)
    assert_isometry(fft2, wave)
    torch.testing.assert_close(ifft2(fft2(wave)), wave)
    torch.testing.assert_close(fft2(wave)[..., 0, 0], wave.sum((-2, -1)) / math.sqrt(shape[0] * shape[1]))


@pytest.mark.parametrize("n", [31, 32])
def test_every_line_moves_by_its_own_shift(n):
    shifts = double([[1.0], [-2.3], [0.5]])
    line = torch.arange(n, dtype=torch.float64) - n // 2
    image = torch.exp(-(line**2) / 8).expand(3, n)
    moved = torch.exp(-((line - shifts) ** 2) / 8)
    torch.testing.assert_close(translate_lines(image, shifts, dim=-1), moved, rtol=0, atol=1e-7)
    torch.testing.assert_close(translate_lines(image.T, shifts.T, dim=0), moved.T, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(48, 48), (51, 60), (60, 49)])
@pytest.mark.parametrize("degrees", [0.0, 1.0, 29.0, 45.0, 60.0, -133.0, 178.0])
def test_rotation_carries_u_to_v_then_shifts(shape, degrees):
    a = math.radians(degrees)
    u, v, shift = 5.0, -3.0, (1.4, -0.7)
    there = (math.cos(a) * u - math.sin(a) * v + shift[0], math.sin(a) * u + math.cos(a) * v + shift[1])
    found = rotate_plane(gaussian(shape, (u, v)), double(a), tuple(map(double, shift)))
    torch.testing.assert_close(found, gaussian(shape, there), rtol=0, atol=2e-5)


def test_rotation_and_back_is_the_identity():
    image = gaussian((48, 41), (2.0, 6.0)) - gaussian((48, 41), (5.0, -4.0), 1.5)
    back = rotate_plane(rotate_plane(image, double(0.7)), double(-0.7))
    assert relative_error(back, image) < 1e-5


@pytest.mark.parametrize("degrees", [0.6, -50.0, 130.0])
def test_slices_rise_and_merge_before_they_turn(degrees):
    angle, rise = double(math.radians(degrees)), double([0.7, -1.2, 0.4, 2.0])
    shift = double(0.4), double(-0.8)
    stack = torch.stack([gaussian((48, 49), (5.0 - k, 2.0 * k)) for k in range(4)])
    risen = translate_lines(stack, rise[:, None, None], dim=1)
    expected = rotate_plane(risen, angle, shift)
    torch.testing.assert_close(rotate_plane(stack, angle, shift, rise), expected, rtol=0, atol=1e-5)
    found = rotate_plane(stack, angle, shift, rise, merge=2)
    torch.testing.assert_close(found, expected.unflatten(0, (2, 2)).sum(1), rtol=0, atol=1e-5)


def test_a_small_turn_is_two_shears_where_that_will_do():
    angle, shift, rise = double(math.radians(0.9)), (double(0.3), double(-0.4)), double([0.2, -0.5])
    stack = torch.stack([gaussian((60, 63), (16.0, -14.0)), gaussian((60, 63), (-9.0, 17.0))])
    exact = rotate_plane(stack, angle, shift, rise)
    off = float(angle) ** 2 / 2 * math.hypot(16, 14)  # pixels
    quick = rotate_plane(stack, angle, shift, rise, blur=0.01)
    assert 0.1 * off < float((quick - exact).abs().max()) < off  # a Gaussian's slope is below 0.61 / sigma
    assert torch.equal(rotate_plane(stack, angle, shift, rise, blur=0.003), exact)


@pytest.mark.parametrize("shape", [(7, 7), (6, 6), (5, 8), (8, 5)])
@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
def test_quarter_turns_about_pixel_half_n(shape, turns):
    u, v = 1, -2
    image = torch.zeros(shape)
    image[v + shape[0] // 2, u + shape[1] // 2] = 1.0
    for _ in range(turns % 4):
        u, v = -v, u
    out = quarter_turns(image, turns)
    assert out[v + shape[0] // 2, u + shape[1] // 2] == 1.0
    assert out.sum() == 1.0


def test_quarter_turn_leaves_the_field():
    image = torch.zeros(4, 9)
    image[2, 0] = 1.0  # u = -4 has no room along v
    assert quarter_turns(image, 1).sum() == 0


@pytest.mark.parametrize(("degrees", "blur"), [(10.0, 0.0), (100.0, 0.0), (2.0, 0.1)])
@pytest.mark.parametrize("merge", [1, 2])
def test_backward_of_the_rotation_is_its_adjoint(degrees, blur, merge):
    angle, shift, rise = double(math.radians(degrees)), (double(0.3), double(-1.2)), double([0.4, -0.1])
    assert_backward_is_adjoint(
        lambda x: rotate_plane(x, angle, shift, rise, merge, blur), torch.randn(2, 7, 10, dtype=torch.float64)
    )


@pytest.mark.parametrize("degrees", [10.0, -100.0])
def test_gradients_of_the_rotation(degrees):
    image = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    angle = double(math.radians(degrees)).requires_grad_()
    su, sv = double(0.3).requires_grad_(), double(-1.2).requires_grad_()
    assert_gradients(lambda x, a, u, v: rotate_plane(x, a, (u, v)), image, angle, su, sv)


@pytest.mark.parametrize(("degrees", "blur"), [(10.0, 0.0), (-100.0, 0.0), (2.0, 0.1)])
@pytest.mark.parametrize("merge", [1, 3])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_gradients_of_the_rotation_of_slices(degrees, blur, merge, shape):
    stack = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    angle, su, sv, *rise = (
        double(x).requires_grad_() for x in (math.radians(degrees), 0.3, -1.2, 0.2, 1.3, -0.7)
    )
    assert_gradients(
        lambda x, a, u, v, *r: rotate_plane(x, a, (u, v), torch.stack(r), merge, blur),
        stack,
        angle,
        su,
        sv,
        *rise,
    )
