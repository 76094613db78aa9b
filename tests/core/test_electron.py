import pytest

from petomo.core.electron import interaction_constant, mrad_to_inverse_angstrom, wavelength


# Kirkland, Advanced Computing in Electron Microscopy, table of appendix; sigma in rad / (V angstrom)
@pytest.mark.parametrize(
    ("energy", "angstrom", "sigma"),
    [
        (80e3, 0.0417572, 1.0087e-3),
        (100e3, 0.0370144, 9.2440e-4),
        (200e3, 0.0250793, 7.2884e-4),
        (300e3, 0.0196875, 6.5262e-4),
    ],
)
def test_published_values(energy, angstrom, sigma):
    assert wavelength(energy) == pytest.approx(angstrom, abs=6e-8)
    assert interaction_constant(energy) == pytest.approx(sigma, rel=3e-5)


def test_semiangle():
    assert mrad_to_inverse_angstrom(25.0, 200e3) == pytest.approx(0.025 / 0.0250793, rel=1e-5)


@pytest.mark.parametrize("energy", [0.0, -2e5, float("nan")])
def test_no_wavelength_without_energy(energy):
    with pytest.raises(ValueError, match="energy_ev must be positive"):
        wavelength(energy)
