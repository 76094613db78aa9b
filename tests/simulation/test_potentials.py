import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from petomo.core.grid import Grid
from petomo.physics.scattering_factors import SCATTERING_TO_VOLT, scattering_factor, table
from petomo.simulation.potentials import AtomicPotential


def potential_3d(z: int, r: float, parametrization: str) -> float:
    """Closed forms of the transforms of both parametrisations, in volts."""
    p = table(parametrization)[z - 1]
    if parametrization == "lobato":
        a, b = p[:5], p[5:]
        terms = a * np.exp(-2 * np.pi * r / np.sqrt(b)) * (np.pi / (b * r) + np.pi**2 / b**1.5)
        return SCATTERING_TO_VOLT * terms.sum()
    a, b, c, d = p[0:6:2], p[1:6:2], p[6::2], p[7::2]
    yukawa = np.pi * a / r * np.exp(-2 * np.pi * np.sqrt(b) * r)
    gauss = c * (np.pi / d) ** 1.5 * np.exp(-((np.pi * r) ** 2) / d)
    return SCATTERING_TO_VOLT * (yukawa + gauss).sum()


def test_constant_is_that_of_the_literature():
    # 2 pi a0 e (Kirkland 2020, Appendix C), with e = 14.39964 V A and a0 = 0.529177 A
    assert math.isclose(SCATTERING_TO_VOLT, 2 * math.pi * 0.529177 * 14.39964, rel_tol=1e-5)


@pytest.mark.parametrize("parametrization", ["lobato", "kirkland"])
def test_tables_behave_as_atoms(parametrization):
    assert table(parametrization).shape[0] == 103
    for z in range(1, 104):
        q = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
        f = scattering_factor(z, q**2, parametrization)
        assert (np.diff(f) < 0).all()
        # Mott: f -> (Z - f_x) / (2 pi^2 a0 q^2), where the X-ray factor still holds some electrons
        mott = z / (2 * np.pi**2 * 0.529177 * q[-1] ** 2)
        assert 0.6 * mott < f[-1] < 1.1 * mott


def test_parametrisations_agree_with_each_other():
    q2 = np.linspace(0.2, 3.0, 20) ** 2
    for z in (6, 8, 13, 52, 78):
        assert scattering_factor(z, q2) == pytest.approx(scattering_factor(z, q2, "kirkland"), rel=0.02)


def test_unknown_element_is_refused():
    with pytest.raises(ValueError, match="Z = 104"):
        scattering_factor(104, np.zeros(1))


@pytest.mark.parametrize("parametrization", ["lobato", "kirkland"])
def test_projected_potential_is_the_integral_of_the_radial_formula(parametrization):
    grid = Grid((301, 240), (0.05, 0.06))
    x0, y0 = 0.413, -0.827  # between pixels
    potential = AtomicPotential.create(grid, 1.0, np.array([14]), parametrization)
    sliced = potential.slices(np.array([[x0, y0, 0.2]]), np.array([14]))
    y, x = grid.coordinates(0).numpy(), grid.coordinates(1).numpy()
    for row, column in [(150, 130), (140, 120), (128, 131), (110, 150)]:
        radius = np.hypot(y[row] - y0, x[column] - x0)
        expected = 2 * quad(lambda z, r=radius: potential_3d(14, np.hypot(r, z), parametrization), 0, 20)[0]
        assert float(sliced.potential[0, row, column]) == pytest.approx(expected, rel=0.02, abs=0.03)


def test_integral_over_the_plane_is_the_forward_scattering_factor():
    grid = Grid((45, 32), (0.2, 0.25))
    numbers = np.array([13, 8, 8])
    positions = np.array([[0.1, 0.2, -0.4], [1.0, -2.0, -0.9], [-1.3, 0.4, 0.6]])
    sliced = AtomicPotential.create(grid, 1.0, numbers).slices(positions, numbers)
    pixel = grid.pixel_size[0] * grid.pixel_size[1]
    f0 = {z: SCATTERING_TO_VOLT * float(scattering_factor(z, np.zeros(1))[0]) for z in (8, 13)}
    assert sliced.z.tolist() == [-0.5, 0.5]
    assert (sliced.potential.sum((1, 2)) * pixel).tolist() == pytest.approx([f0[13] + f0[8], f0[8]], rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 33), (33, 40)])
def test_atom_on_the_axis_peaks_at_the_centre(shape):
    grid = Grid(shape, 0.2)
    potential = AtomicPotential.create(grid, 1.0, np.array([6]))
    sliced = potential.slices(np.zeros((1, 3)), np.array([6]))
    assert np.unravel_index(int(sliced.potential[0].argmax()), shape) == (shape[0] // 2, shape[1] // 2)
    moved = potential.slices(np.array([[3 * 0.2, -5 * 0.2, 0.0]]), np.array([6]))
    expected = torch.roll(sliced.potential, (-5, 3), (1, 2))
    torch.testing.assert_close(moved.potential, expected, atol=1e-3, rtol=1e-4)


def test_atoms_off_the_grid_do_not_wrap_into_it():
    grid = Grid((40, 32), 0.2)
    positions, numbers = np.array([[0.0, 5.0, 0.0], [0.0, 0.0, 3.0]]), np.array([6, 6])
    sliced = AtomicPotential.create(grid, 1.0, numbers).slices(positions, numbers)
    assert sliced.z.tolist() == [3.5]
