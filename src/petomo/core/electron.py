"""Relativistic electron optics constants (CODATA values through scipy)."""

import math

from scipy import constants

_REST_ENERGY_EV = constants.electron_mass * constants.c**2 / constants.e


def wavelength(energy_ev: float) -> float:
    """Relativistic de Broglie wavelength in angstrom (lambda of paper Eq. 1).

    ``lambda = h c / sqrt(E (E + 2 m c^2))`` (Kirkland 2020, Eq. 2.5).
    """
    if not energy_ev > 0:
        raise ValueError(f"energy_ev must be positive, got {energy_ev}")
    hc_ev_angstrom = constants.h * constants.c / constants.e * 1e10
    return hc_ev_angstrom / math.sqrt(energy_ev * (energy_ev + 2 * _REST_ENERGY_EV))


def interaction_constant(energy_ev: float) -> float:
    """Beam-sample interaction constant sigma in rad / (V angstrom) (paper Eq. 1).

    ``sigma = 2 pi m e lambda / h^2`` with the relativistic mass (Kirkland 2020, Eq. 5.6).
    """
    lam_m = wavelength(energy_ev) * 1e-10
    mass = constants.electron_mass * (1 + energy_ev / _REST_ENERGY_EV)
    return 2 * math.pi * mass * constants.e * lam_m / constants.h**2 * 1e-10


def mrad_to_inverse_angstrom(angle_mrad: float, energy_ev: float) -> float:
    """Spatial frequency q = alpha / lambda in 1/angstrom of a scattering angle."""
    return angle_mrad * 1e-3 / wavelength(energy_ev)


def defocus_in_words(defocus: float | None, unit: str = "Å") -> str:
    """A defocus in angstrom (positive = underfocus) with its sign as a word."""
    if defocus is None or not math.isfinite(defocus):
        return "defocus unknown"
    if round(abs(defocus), 1) == 0:
        return "in focus"
    return f"{abs(defocus):.4g} {unit} {'underfocus' if defocus > 0 else 'overfocus'}"
