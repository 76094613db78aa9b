"""Slices of atoms: against quadrature of the scattering factors, against the rotated volume, gradients."""

import math

import numpy as np
import pytest
import torch

from helpers import assert_gradients
from petomo.core.grid import Grid
from petomo.physics.atomic_potential import (
    atomic_slices,
    atomic_volume,
    half_plane_weight,
    projected_factor,
    slice_shares,
)
from petomo.physics.resample import SliceGeometry
from petomo.physics.scattering_factors import SCATTERING_TO_VOLT, scattering_factor

GEOMETRY = SliceGeometry(slices=3, thickness=2.3, shape=(33, 40), voxel=0.31)


def draw(lab, occupancy=1.0, variance=0.01, numbers=(8,), geometry=GEOMETRY):
    lab = torch.as_tensor(lab, dtype=torch.float64).reshape(-1, 3)
    full = torch.full((len(lab),), 1.0, dtype=torch.float64)
    return atomic_slices(lab, occupancy * full, variance * full, np.array(numbers), geometry, torch.float64)


@pytest.mark.parametrize("shape", [(7, 9), (6, 9), (7, 8), (6, 8)])
def test_half_a_plane_has_the_power_of_the_whole_image(shape):
    """Parseval, for odd and even sizes."""
    image = torch.randn(shape, dtype=torch.float64)
    spectrum = torch.fft.rfft2(image) * 0.3**2  # an integral, as those of atoms are
    power = (half_plane_weight(shape, 0.3) * spectrum.abs() ** 2).sum()
    torch.testing.assert_close(power, image.square().sum())


def test_integral_is_the_scattering_factor_forward():
    stack = draw([[0.4, -0.7, 0.5]], occupancy=0.8, numbers=[13])
    total = float(stack.sum()) * GEOMETRY.voxel**2
    assert total == pytest.approx(0.8 * SCATTERING_TO_VOLT * scattering_factor(13, np.array(0.0)), rel=1e-10)


def test_lies_where_the_atom_is():
    x, y, z = 0.93, -1.55, 1.2  # whole voxels from the axis
    stack = draw([[x, y, z]])
    row, column = divmod(int(stack.sum(0).argmax()), GEOMETRY.shape[1])
    assert (row - 33 // 2, column - 40 // 2) == (-5, 3)
    depth = torch.arange(-1, 2, dtype=torch.float64) * GEOMETRY.thickness
    weights = stack.sum((1, 2)) / stack.sum()
    assert float((weights * depth).sum()) == pytest.approx(z, abs=1e-9)


def test_beyond_the_slices_an_atom_goes_into_the_last_one_whole():
    first, share = slice_shares(torch.tensor([-9.0, 9.0]), GEOMETRY)
    assert (first + share).tolist() == [0.0, 2.0]
    one = SliceGeometry(1, 5.0, (8, 8), 0.5)
    assert draw([[0, 0, 7.0]], geometry=one).shape == (1, 8, 8)


def test_debye_waller_factor_blurs_by_a_gaussian():
    sharp, soft = draw([[0.1, 0.2, 0]], variance=0.0), draw([[0.1, 0.2, 0]], variance=0.03)
    qy = torch.fft.fftfreq(33, 0.31, dtype=torch.float64)[:, None]
    qx = torch.fft.fftfreq(40, 0.31, dtype=torch.float64)
    kernel = torch.exp(-2 * math.pi**2 * 0.03 * (qx**2 + qy**2))
    # the Nyquist column of an even axis has no sign, so that it cannot carry a shift
    error = torch.fft.fft2(sharp) * kernel - torch.fft.fft2(soft)
    assert float(error.abs().max()) < 1e-9 * float(torch.fft.fft2(sharp).abs().max())


def test_atoms_add_up_and_elements_differ():
    lab = [[0.4, -0.7, 0.5], [-1.0, 0.3, -1.9]]
    both = draw(lab, numbers=[78, 8])
    apart = draw(lab[:1], numbers=[78]) + draw(lab[1:], numbers=[8])
    torch.testing.assert_close(both, apart)
    assert projected_factor(78, (33, 40), 0.31)[0, 0] > 4 * projected_factor(8, (33, 40), 0.31)[0, 0]


def test_gradients():
    torch.manual_seed(3)
    lab = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    occupancy = torch.rand(3, dtype=torch.float64, requires_grad=True)
    variance = (0.01 * torch.rand(3, dtype=torch.float64)).requires_grad_()
    geometry = SliceGeometry(slices=2, thickness=2.0, shape=(9, 12), voxel=0.5)
    weights = torch.randn(2, 9, 12, dtype=torch.float64)

    def value(*inputs):
        return (atomic_slices(*inputs, np.array([8, 13, 8]), geometry, torch.float64) * weights).sum()

    assert_gradients(value, lab, occupancy, variance, atol=1e-4)


def test_volume_projects_to_the_slice():
    """More atoms than are drawn at a time, of two elements, each with its own occupancy and motion."""
    many, random = 300, np.random.default_rng(2)
    grid = Grid((20, 33, 40), (0.5, 0.31, 0.31))
    places = random.uniform(-3, 3, (many, 3))
    occupancy, variance = random.uniform(0.5, 1, many), random.uniform(0.002, 0.02, many)
    numbers = random.choice([8, 78], many)
    volume = atomic_volume(places, occupancy, variance, numbers, grid)
    one = SliceGeometry(1, 10.0, (33, 40), 0.31)
    tensors = (torch.as_tensor(part) for part in (places, occupancy, variance))
    slices = atomic_slices(*tensors, numbers, one, torch.float64)
    np.testing.assert_allclose(volume.sum(0) * 0.5, slices[0].numpy(), atol=1e-9 * float(slices.max()))


def test_volume_blurs_along_the_beam_too():
    grid = Grid((64, 24, 24), (0.2, 0.3, 0.3))
    one = np.ones(1)
    sharp, soft = (atomic_volume(np.zeros((1, 3)), one, u * one, np.array([8]), grid) for u in (0.01, 0.05))
    profile = [np.abs(np.fft.rfft(v.sum((1, 2)))) for v in (sharp, soft)]
    qz = np.fft.rfftfreq(64, 0.2)
    np.testing.assert_allclose(profile[1] / profile[0], np.exp(-2 * np.pi**2 * 0.04 * qz**2), rtol=1e-8)
