"""Projected potentials of thin slices of atoms, at their exact positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from petomo.core.grid import Grid
from petomo.physics.scattering_factors import SCATTERING_TO_VOLT, Parametrization, scattering_factor


@dataclass(frozen=True)
class SlicedPotential:
    """Projected potentials of the slices that hold atoms.

    Parameters
    ----------
    z : np.ndarray
        Planes of the slices along the beam in angstrom, rising.
    potential : Tensor
        V angstrom, float32 ``(slice, y, x)``, periodic, optical axis at ``n // 2``.
    grid : Grid
        ``y x``.
    """

    z: np.ndarray
    potential: Tensor
    grid: Grid


@dataclass(frozen=True)
class AtomicPotential:
    """Potentials on one grid; the scattering factors are evaluated once.

    Parameters
    ----------
    grid : Grid
        ``y x``.
    slice_thickness : float
        Angstrom; slice i holds the atoms with ``i <= z / thickness < i + 1``.
    factors : dict
        Transform of the projected potential in V angstrom^2 by atomic number, ``(ky, kx)`` with kx >= 0.
    """

    grid: Grid
    slice_thickness: float
    factors: dict[int, Tensor]

    @classmethod
    def create(
        cls,
        grid: Grid,
        slice_thickness: float,
        numbers: np.ndarray,
        parametrization: Parametrization = "lobato",
        device: str = "cpu",
    ) -> AtomicPotential:
        """Evaluate the scattering factors of the elements in ``numbers``."""
        qy = np.fft.fftfreq(grid.shape[0], grid.pixel_size[0])[:, None]
        qx = np.fft.rfftfreq(grid.shape[1], grid.pixel_size[1])[None]
        factors = {
            int(z): torch.as_tensor(
                SCATTERING_TO_VOLT * scattering_factor(int(z), qy**2 + qx**2, parametrization),
                dtype=torch.float32,
                device=device,
            )
            for z in np.unique(numbers)
        }
        return cls(grid, slice_thickness, factors)

    def slices(self, positions: np.ndarray, numbers: np.ndarray) -> SlicedPotential:
        """Project atoms onto the middle planes of their slices.

        ``V(r) = h^2 / (2 pi m e) int d^2q exp(2 pi i q.r) sum_j f_j(q) exp(-2 pi i q.r_j)`` (Kirkland 2020,
        Eq. 5.9 and 5.19). The sum over atoms is a product of two small matrices, so that positions need no
        rounding to pixels. Atoms off the grid are left out; choose it wide enough.

        Parameters
        ----------
        positions : np.ndarray
            ``(atom, 3)`` as (x, y, z) in angstrom, origin on the optical axis.
        numbers : np.ndarray
            Atomic numbers ``(atom,)``.
        """
        half = np.array(self.grid.extent[::-1]) / 2
        on_grid = (np.abs(positions[:, :2]) <= half).all(axis=1)
        positions, numbers = positions[on_grid], np.asarray(numbers)[on_grid]
        index = np.floor(positions[:, 2] / self.slice_thickness).astype(int)
        occupied = np.unique(index)
        shape, area = self.grid.shape, math.prod(self.grid.extent)
        potential = torch.empty(len(occupied), *shape, device=next(iter(self.factors.values())).device)
        for out, i in zip(potential, occupied, strict=True):
            spectrum = self._spectrum(positions[index == i], numbers[index == i])
            torch.fft.irfft2(spectrum, s=shape, norm="forward", out=out)
            out /= area
        return SlicedPotential((occupied + 0.5) * self.slice_thickness, potential, self.grid)

    def _spectrum(self, positions: np.ndarray, numbers: np.ndarray) -> Tensor:
        (ny, nx), (py, px) = self.grid.shape, self.grid.pixel_size
        # the array's first pixel lies n // 2 pixels before the optical axis
        y = positions[:, 1] / py + ny // 2
        x = positions[:, 0] / px + nx // 2
        ramp_y = np.exp(-2j * np.pi * np.outer(np.fft.fftfreq(ny), y)).astype(np.complex64)
        ramp_x = np.exp(-2j * np.pi * np.outer(x, np.fft.rfftfreq(nx))).astype(np.complex64)
        total = None
        for z in np.unique(numbers):
            factor, of_element = self.factors[int(z)], numbers == z
            left = torch.from_numpy(ramp_y[:, of_element]).to(factor.device)
            right = torch.from_numpy(ramp_x[of_element]).to(factor.device)
            term = (left @ right) * factor
            total = term if total is None else total + term
        assert total is not None  # a slice in the list holds at least one atom
        return total
