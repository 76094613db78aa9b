"""Free-space propagation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petomo.core.grid import Grid


def fresnel(
    grid: Grid, wavelength: float, dz: float | Tensor, band_limit: float | None = None, **kwargs
) -> Tensor:
    """Fresnel propagator ``exp(-i pi lambda q^2 dz)`` on the FFT grid (paper Eq. 3, 4).

    Parameters
    ----------
    grid : Grid
        Grid of the wave, ``y x``.
    wavelength, dz : float
        Angstrom.
    band_limit : float, optional
        Keep frequencies below this share of Nyquist (2/3 avoids aliasing, Kirkland 2020, section 6.8).

    Returns
    -------
    Tensor
        Complex ``(y, x)``, FFT order.
    """
    qy = grid.frequencies(0, dtype=torch.float64)[:, None]
    qx = grid.frequencies(1, dtype=torch.float64)[None, :]
    kernel = torch.exp(-1j * math.pi * wavelength * (qy**2 + qx**2) * dz)
    if band_limit is not None:
        ny, nx = (0.5 / p for p in grid.pixel_size)
        kernel = kernel * ((qy / ny) ** 2 + (qx / nx) ** 2 <= band_limit**2)
    return kernel.to(**kwargs) if kwargs else kernel
