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

from petomo.physics.resample import SliceGeometry
from petomo.physics.scattering_factors import SCATTERING_TO_VOLT, scattering_factor


@lru_cache(maxsize=64)
def projected_factor(atomic_number: int, shape: tuple[int, int], voxel: float) -> Tensor:
    """Transform of an atom's projected potential in V angstrom^3, ``(ky, kx)`` with kx >= 0, FFT order.

    Kirkland 2020, Eq. 5.9: ``h^2 / (2 pi m e) f_e(q)``.
    """
    qy, qx = np.fft.fftfreq(shape[0], voxel)[:, None], np.fft.rfftfreq(shape[1], voxel)[None]
    return torch.as_tensor(SCATTERING_TO_VOLT * scattering_factor(atomic_number, qy**2 + qx**2))


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


def _line(frequency: Tensor, place: Tensor, variance: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(-2 pi i q x - 2 pi^2 u^2 q^2)``, complex ``(frequency, atom)``; pixels."""
    angle = -2 * math.pi * frequency * place
    size = torch.exp(-2 * math.pi**2 * variance * frequency**2)
    return torch.complex((size * angle.cos()).to(dtype), (size * angle.sin()).to(dtype))
