"""Diffraction patterns of a focused probe: multislice, one window per scan position.

Written on its own and not with the operators of the reconstruction, so that a reconstruction of simulated
data tests those operators too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from petomo.core.electron import interaction_constant, wavelength
from petomo.core.grid import Grid
from petomo.physics.probe import aberration_phase, aperture
from petomo.simulation.potentials import SlicedPotential

#: Share of the Nyquist frequency kept in transmission and propagation (Kirkland 2020, section 6.8).
BAND_LIMIT = 2 / 3
BATCH = 32
"""Positions computed at a time."""


@dataclass(frozen=True)
class Optics:
    """What shapes the beam and records it.

    Parameters
    ----------
    energy_ev, semiangle_mrad : float
        Beam energy and convergence semi-angle.
    window : Grid
        Window ``y x`` of the wave.
    detector_shape : (int, int)
        Pixels recorded, as many about the zero frequency; the detector's pixel is 1 / window extent.
    """

    energy_ev: float
    semiangle_mrad: float
    window: Grid
    detector_shape: tuple[int, int]

    def frequencies(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """(qy, qx) in 1/angstrom in FFT order, float64, broadcastable."""
        qy, qx = (self.window.frequencies(i, dtype=torch.float64, device=device) for i in (0, 1))
        return qy[:, None], qx[None]

    def probe_spectrum(self, aberrations: Mapping[str, float], device: str = "cpu") -> Tensor:
        """Probe at z = 0 in reciprocal space, of intensity 1, centred at ``n // 2`` in real space."""
        qy, qx = self.frequencies(device)
        lam = wavelength(self.energy_ev)
        ey, ex = (1 / e for e in self.window.extent)
        pupil = aperture(qy, qx, self.semiangle_mrad * 1e-3 / lam, (ey, ex))
        chi = aberration_phase(qy, qx, lam, aberrations)
        cy, cx = (n // 2 * p for n, p in zip(self.window.shape, self.window.pixel_size, strict=True))
        spectrum = pupil * torch.exp(-1j * (chi + 2 * math.pi * (qy * cy + qx * cx)))
        return spectrum / torch.linalg.vector_norm(spectrum)

    def propagator(self, dz: float, device: str = "cpu") -> Tensor:
        """``exp(-i pi lambda q^2 dz)`` inside the band limit, complex64, FFT order."""
        qy, qx = self.frequencies(device)
        phase = -math.pi * wavelength(self.energy_ev) * dz * (qy**2 + qx**2)
        return (torch.exp(1j * phase) * _band(qy, qx, self.window)).to(torch.complex64)


def _band(qy: Tensor, qx: Tensor, grid: Grid) -> Tensor:
    return (qy * grid.pixel_size[0]) ** 2 + (qx * grid.pixel_size[1]) ** 2 <= (BAND_LIMIT / 2) ** 2


def transmissions(sliced: SlicedPotential, energy_ev: float) -> list[Tensor]:
    """Band-limited ``exp(i sigma V dz)`` of every slice, complex64 ``(y, x)`` (paper Eq. 5)."""
    phases = interaction_constant(energy_ev) * sliced.potential
    qy, qx = (sliced.grid.frequencies(i, device=phases.device) for i in (0, 1))
    band = _band(qy[:, None], qx[None], sliced.grid)
    waves = (torch.polar(torch.ones_like(phase), phase) for phase in phases)
    return [torch.fft.ifft2(torch.fft.fft2(wave) * band) for wave in waves]


def diffraction_patterns(
    sliced: SlicedPotential, optics: Optics, aberrations: Mapping[str, float], positions: np.ndarray
) -> Tensor:
    """Mean intensity on the detector for one electron per pattern.

    Parameters
    ----------
    sliced : SlicedPotential
        Wide enough for the window around every position; same pixel size as the window.
    optics : Optics
        Beam and detector.
    aberrations : mapping
        Krivanek coefficients at the plane z = 0; C10 = -defocus.
    positions : np.ndarray
        ``(k, 2)`` as (x, y) in angstrom.

    Returns
    -------
    Tensor
        float32 ``(k, ky, kx)``, zero frequency at ``n // 2``. What scatters beyond the detector is lost.
    """
    device = str(sliced.potential.device)
    objects = transmissions(sliced, optics.energy_ev)
    steps = np.diff(sliced.z)
    propagators = {dz: optics.propagator(dz, device) for dz in np.unique(steps)}
    spectrum = optics.probe_spectrum(aberrations, device)
    if len(sliced.z):
        spectrum = spectrum * optics.propagator(sliced.z[0], device)
    (py, px), (ny, nx) = optics.window.pixel_size, optics.window.shape
    pixels = positions[:, ::-1] / (py, px)
    nearest = np.rint(pixels).astype(int)
    last_corner = np.array(sliced.grid.shape) - optics.window.shape
    corners = nearest + np.array(sliced.grid.shape) // 2 - np.array(optics.window.shape) // 2
    if len(objects) and ((corners < 0) | (corners > last_corner)).any():
        raise ValueError("the potential does not cover the window around every scan position")
    out = torch.empty(len(positions), *optics.detector_shape, device=device)
    for start in range(0, len(positions), BATCH):
        batch = slice(start, start + BATCH)
        wave = _shifted(spectrum, torch.as_tensor(pixels[batch] - nearest[batch], device=device))
        for i, transmission in enumerate(objects):
            wave = torch.fft.ifft2(wave)
            for one, (y, x) in zip(wave, corners[batch], strict=True):
                one *= transmission[y : y + ny, x : x + nx]
            wave = torch.fft.fft2(wave)
            if i < len(steps):
                wave *= propagators[steps[i]]
        out[batch] = _detect(wave, optics.detector_shape)
    return out


def _shifted(spectrum: Tensor, shift: Tensor) -> Tensor:
    """Spectra ``(k, ky, kx)`` of probes moved by ``shift`` (y, x) in pixels."""
    ny, nx = spectrum.shape
    angle_y, angle_x = (
        -2 * math.pi * shift[:, i, None] * torch.fft.fftfreq(n, dtype=torch.float64, device=shift.device)
        for i, n in enumerate((ny, nx))
    )
    ramp = torch.exp(1j * angle_y)[:, :, None] * torch.exp(1j * angle_x)[:, None, :]
    return (spectrum * ramp).to(torch.complex64)


def _detect(wave: Tensor, shape: tuple[int, int]) -> Tensor:
    """Centred intensity, cut to the detector."""
    intensity = torch.fft.fftshift(wave.abs().square(), dim=(-2, -1))
    y, x = (n // 2 - m // 2 for n, m in zip(intensity.shape[-2:], shape, strict=True))
    return intensity[:, y : y + shape[0], x : x + shape[1]]
