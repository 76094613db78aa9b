import numpy as np
import pytest
import torch

from helpers import assert_adjoint
from petomo.physics import interpolation
from petomo.physics.interpolation import KERNELS, spline_coefficients

FRACTION = np.linspace(0.01, 0.99, 50)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_a_partition_of_one(name):
    kernel, half = KERNELS[name]
    taps = np.arange(1 - half, half + 1)[:, None]
    weight, slope = kernel(FRACTION - taps)
    np.testing.assert_allclose(weight.sum(0), 1.0)
    np.testing.assert_allclose((weight * taps).sum(0), FRACTION)  # straight lines stay straight
    np.testing.assert_allclose(slope.sum(0), 0.0, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_slopes_belong_to_the_kernels(name):
    kernel, half = KERNELS[name]
    t = np.linspace(-half, half, 40)[1:-1] + 0.003
    difference = (kernel(t + 1e-6)[0] - kernel(t - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(kernel(t)[1], difference, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 3), (8, 2, 1), (13, 10, 4)])
def test_spline_coefficients_give_the_samples_back(shape):
    samples = torch.randn(shape, dtype=torch.float64)
    expected = found = spline_coefficients(samples)
    for dim in (0, 1):
        padded = torch.nn.functional.pad(found, (0, 0, *((1, 1) if dim else (0, 0, 1, 1))))
        n = shape[dim]
        found = sum(w * padded.narrow(dim, i, n) for i, w in enumerate((1 / 6, 2 / 3, 1 / 6)))
    torch.testing.assert_close(found, samples)
    other = torch.randn(shape, dtype=torch.float64)
    assert_adjoint(spline_coefficients, spline_coefficients, samples, other)
    assert spline_coefficients(samples, out=samples) is samples
    torch.testing.assert_close(samples, expected)


def test_compiled_sweeps_agree_with_plain_ones(monkeypatch):
    samples = torch.randn(9, 7, 40)
    expected = spline_coefficients(samples)
    monkeypatch.setattr(interpolation, "compiled", lambda _: None)
    torch.testing.assert_close(spline_coefficients(samples), expected)
    torch.testing.assert_close(spline_coefficients(samples.mT.contiguous().mT), expected)
    assert spline_coefficients(samples, out=samples) is samples
    torch.testing.assert_close(samples, expected)
