import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_isometry, random_complex
from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.physics.fourier import fft2, ifft2
from petomo.physics.propagation import fresnel

LAMBDA = wavelength(200e3)
GRID = Grid((33, 40), (0.3, 0.25))


def propagate(wave, grid, dz, **kwargs):
    return ifft2(fft2(wave) * fresnel(grid, LAMBDA, dz, **kwargs))


@given(dz=st.floats(-1e3, 1e3))
def test_propagation_is_unitary(dz):
    assert_isometry(lambda w: propagate(w, GRID, dz), random_complex(2, *GRID.shape))


@given(a=st.floats(-200, 200), b=st.floats(-200, 200))
def test_distances_add(a, b):
    product = fresnel(GRID, LAMBDA, a) * fresnel(GRID, LAMBDA, b)
    torch.testing.assert_close(product, fresnel(GRID, LAMBDA, a + b), rtol=0, atol=1e-9)


def test_literal_formula():
    kernel = fresnel(GRID, LAMBDA, 17.0)
    qy, qx = -3 / (33 * 0.3), 5 / (40 * 0.25)
    phase = -math.pi * LAMBDA * (qy**2 + qx**2) * 17.0
    assert kernel[-3, 5].item() == pytest.approx(complex(math.cos(phase), math.sin(phase)), abs=1e-12)


@pytest.mark.parametrize("dz", [400.0, -400.0])
def test_gaussian_beam(dz):
    # exp(-r^2 / 2 s^2) becomes s^2 / u exp(-r^2 / 2 u), u = s^2 + i lambda dz / 2 pi: diverging for dz > 0
    grid, s2 = Grid((100, 91), (0.3, 0.35)), 2.0**2
    y, x = grid.coordinates(0, dtype=torch.float64)[:, None], grid.coordinates(1, dtype=torch.float64)
    r2 = x**2 + y**2
    u = s2 + 1j * LAMBDA * dz / (2 * math.pi)
    found = propagate(torch.exp(-r2 / (2 * s2)).to(torch.complex128), grid, dz)
    torch.testing.assert_close(found, s2 / u * torch.exp(-r2 / (2 * u)), rtol=0, atol=1e-6)


def test_band_limit_is_a_share_of_nyquist_along_each_axis():
    kernel = fresnel(GRID, LAMBDA, 5.0, band_limit=2 / 3)
    qy, qx = GRID.frequencies(0)[:, None] * 2 * 0.3, GRID.frequencies(1) * 2 * 0.25
    kept = qy**2 + qx**2 <= (2 / 3) ** 2
    torch.testing.assert_close(kernel.abs(), kept.double())
    assert 0.3 < kept.float().mean() < 0.4  # pi / 4 x 4 / 9 of the square


def test_type_on_request():
    assert fresnel(GRID, LAMBDA, 5.0).dtype == torch.complex128
    assert fresnel(GRID, LAMBDA, 5.0, dtype=torch.complex64).dtype == torch.complex64


def test_gradient_for_the_distance():
    wave, dz = random_complex(6, 7), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    grid = Grid((6, 7), (0.3, 0.4))
    assert torch.autograd.gradcheck(lambda d: propagate(wave, grid, d), (dz,))
