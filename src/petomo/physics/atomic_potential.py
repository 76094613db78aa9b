"""Slices of the potential of atoms, differentiable in everything an atom is described by.

An atom at depth z is shared between the two slices next to it, in proportion to how near they are, so
that the slices' mean depth is the atom's and the derivative in z exists. Laterally it is drawn in
Fourier space at its exact place, as a product of two small matrices.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from petomo.core.grid import Grid
from petomo.physics.resample import SliceGeometry
from petomo.physics.scattering_factors import SCATTERING_TO_VOLT, Parametrization, scattering_factor

_TOGETHER = 256  # atoms drawn into a volume at a time, so that their plane waves need little memory


def half_plane_weight(shape: tuple[int, int], voxel: float) -> Tensor:
    """Weight of each frequency of `half_plane` in the sum over an image's pixels, by Parseval."""
    weight = torch.full((shape[0], shape[1] // 2 + 1), 2.0, dtype=torch.float64)
    weight /= shape[0] * shape[1] * voxel**4
    weight[:, 0] /= 2
    if shape[1] % 2 == 0:
        weight[:, -1] /= 2  # Nyquist's column is its own mirror image
    return weight


def half_plane(shape: tuple[int, int], voxel: float) -> Tensor:
    """Squared frequencies in 1/angstrom^2, ``(ky, kx)`` with kx >= 0, FFT order."""
    qy = torch.fft.fftfreq(shape[0], voxel, dtype=torch.float64)[:, None]
    return qy**2 + torch.fft.rfftfreq(shape[1], voxel, dtype=torch.float64) ** 2


@lru_cache(maxsize=64)
def projected_factor(atomic_number: int, shape: tuple[int, int], voxel: float) -> Tensor:
    """Transform of an atom's projected potential in V angstrom^3, ``(ky, kx)`` with kx >= 0, FFT order.

    Kirkland 2020, Eq. 5.9: ``h^2 / (2 pi m e) f_e(q)``.
    """
    factor = scattering_factor(atomic_number, half_plane(shape, voxel).numpy())
    return torch.as_tensor(SCATTERING_TO_VOLT * factor)


def slice_shares(z: Tensor, geometry: SliceGeometry) -> tuple[Tensor, Tensor]:
    """Slice in front of each atom and the share of the atom that goes into the next one.

    Atoms beyond the middle of the first or last slice go there whole.
    """
    if geometry.slices == 1:
        return torch.zeros_like(z, dtype=torch.long), torch.zeros_like(z)
    place = (z / geometry.thickness + (geometry.slices - 1) / 2).clamp(0, geometry.slices - 1)
    first = place.detach().floor().clamp(max=geometry.slices - 2)
    return first.long(), place - first


def atomic_slices(
    lab: Tensor,
    occupancy: Tensor,
    variance: Tensor,
    numbers: np.ndarray,
    geometry: SliceGeometry,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Potential of atoms integrated over slices, ``(slice, y, x)`` in volt angstrom.

    ``V_s(q) = sum_Z f_Z(q) sum_{j in Z} share_js occ_j exp(-2 pi i q.r_j - 2 pi^2 u_j^2 q^2)``
    (Kirkland 2020, Eq. 5.9 and 5.19, with the Debye-Waller factor). Periodic across the beam: leave
    vacuum around the specimen.

    Parameters
    ----------
    lab : Tensor
        ``(atom, 3)`` as (x, y, z) along the beam's frame in angstrom, origin on the optical axis.
    occupancy : Tensor
        ``(atom,)``; 1 is a whole atom.
    variance : Tensor
        Mean squared displacement u^2 along one axis in square angstrom, ``(atom,)``.
    numbers : np.ndarray
        Atomic numbers ``(atom,)``.
    geometry : SliceGeometry
        Slices to make.
    dtype : torch.dtype
        Real type of the result.
    """
    (ny, nx), voxel, device = geometry.shape, geometry.voxel, lab.device
    first, share = slice_shares(lab[:, 2], geometry)
    rows = torch.fft.fftfreq(ny, dtype=torch.float64, device=device)[:, None]
    columns = torch.fft.rfftfreq(nx, dtype=torch.float64, device=device)[:, None]
    along_y = _line(rows, lab[:, 1] / voxel + ny // 2, variance / voxel**2, dtype)
    along_x = _line(columns, lab[:, 0] / voxel + nx // 2, variance / voxel**2, dtype)
    weights = torch.stack([occupancy * (1 - share), occupancy * share]).to(dtype)
    factors = {int(z): projected_factor(int(z), (ny, nx), voxel) for z in np.unique(numbers)}
    element = torch.as_tensor(np.asarray(numbers), device=device)
    stack = []
    for s in range(geometry.slices):
        spectrum = torch.zeros(ny, nx // 2 + 1, dtype=along_y.dtype, device=device)
        for z, factor in factors.items():
            parts = [torch.nonzero((first == s - shift) & (element == z))[:, 0] for shift in (0, 1)]
            index = torch.cat(parts)
            if len(index):
                weight = torch.cat([weights[shift, part] for shift, part in enumerate(parts)])
                total = (along_y[:, index] * weight) @ along_x[:, index].T
                spectrum = spectrum + total * factor.to(device, dtype)
        stack.append(torch.fft.irfft2(spectrum, s=(ny, nx)))
    return torch.stack(stack) / voxel**2


def atomic_volume(
    positions: np.ndarray,
    occupancy: np.ndarray,
    variance: np.ndarray,
    numbers: np.ndarray,
    grid: Grid,
    parametrization: Parametrization = "lobato",
) -> np.ndarray:
    """Potential of atoms in volts ``z y x``, periodic, band limited, origin at voxel ``n // 2``.

    ``V(q) = h^2 / (2 pi m e) sum_j f_j(q) occ_j exp(-2 pi i q.r_j - 2 pi^2 u_j^2 q^2)`` (Kirkland 2020,
    Eq. 5.9).

    Parameters
    ----------
    positions : np.ndarray
        ``(atom, 3)`` as (x, y, z) in angstrom.
    occupancy : np.ndarray
        ``(atom,)``; 1 is a whole atom.
    variance : np.ndarray
        Mean squared displacement u^2 along one axis in square angstrom, ``(atom,)``.
    numbers : np.ndarray
        Atomic numbers ``(atom,)``.
    grid : Grid
        ``z y x``.
    """
    axes = list(zip(grid.shape, grid.pixel_size, strict=True))
    qz, qy, qx = (
        np.fft.rfftfreq(n, p) if axis == 2 else np.fft.fftfreq(n, p) for axis, (n, p) in enumerate(axes)
    )
    q2 = qz[:, None, None] ** 2 + qy[:, None] ** 2 + qx**2
    z, y, x = (positions[:, 2 - axis] + (n // 2) * p for axis, (n, p) in enumerate(axes))
    spectrum = np.zeros(q2.shape, dtype=complex)
    for number in np.unique(numbers):
        of_element, total = np.flatnonzero(numbers == number), np.zeros(q2.shape, dtype=complex)
        for some in np.split(of_element, range(_TOGETHER, len(of_element), _TOGETHER)):
            along_z, along_y, along_x = (
                np.exp(-2j * np.pi * np.outer(q, place[some]) - 2 * np.pi**2 * np.outer(q**2, variance[some]))
                for q, place in ((qz, z), (qy, y), (qx, x))
            )
            total += ((along_z * occupancy[some])[:, None] * along_y) @ along_x.T
        spectrum += scattering_factor(int(number), q2, parametrization) * total
    return np.fft.irfftn(
        spectrum * (SCATTERING_TO_VOLT / np.prod(grid.pixel_size)), s=grid.shape, axes=(0, 1, 2)
    )


def _line(frequency: Tensor, place: Tensor, variance: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(-2 pi i q x - 2 pi^2 u^2 q^2)``, complex ``(frequency, atom)``; pixels."""
    angle = -2 * math.pi * frequency * place
    size = torch.exp(-2 * math.pi**2 * variance * frequency**2)
    return torch.complex((size * angle.cos()).to(dtype), (size * angle.sin()).to(dtype))
