"""How much the phases that two atoms add to an image have in common, and their derivatives."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from petomo.models.atomic_tomography import AtomicTomography
from petomo.physics.atomic_potential import half_plane, half_plane_weight, projected_factor

#: Shape of `transfer`: 1/angstrom, a share and a power. With these, most curvatures of the likelihood on a
#: simulated series are met within a factor of 2: of Pt, Al and O that move, grow or swell, each alone or all
#: together, and of two behind each other that grow one at the other's cost.
_SLOWEST, _LEAST, _POWER = 0.1, 0.1, 0.7

_STEP = 0.02  # angstrom between entries of a table


def transfer(model: AtomicTomography, q2: Tensor) -> Tensor:
    """How well the patterns show a phase of squared frequency ``q2`` (1/angstrom^2), about 0 to 1.

    By what two copies of the aperture, shifted by the frequency, have in common. What varies slowly shows
    little, and a strong scatterer shows beyond twice the aperture as well.
    """
    pupil = torch.fft.fft2(model.probe(0).cpu()).abs().square().sum(0).double()
    common = torch.fft.fft2(torch.fft.ifft2(pupil).abs().square()).real.flatten()
    frequencies = (
        torch.fft.fftfreq(n, pixel, dtype=torch.float64)
        for n, pixel in zip(pupil.shape, model.geometry.optics.window.pixel_size, strict=True)
    )
    q = torch.cartesian_prod(*frequencies).norm(dim=1).numpy()
    width = float(q[q > 0].min())
    ring = np.rint(q / width).astype(int)
    profile = np.bincount(ring, common.numpy()) / np.bincount(ring).clip(1)
    share = np.interp(q2.sqrt().numpy(), width * np.arange(len(profile)), profile / profile[0])
    return torch.as_tensor((share.clip(0) ** _POWER).clip(_LEAST)) * q2 / (q2 + _SLOWEST**2)


def overlap_tables(model: AtomicTomography, reach: float) -> tuple[Tensor, dict[tuple[int, int], int]]:
    """Integrals of products of two whole atoms' phases, as functions of their distance in the image.

    With ``A`` the integral of the product of the phases as the patterns show them, ``L`` half its Laplacian,
    which is its derivative in a variance, and ``Q`` that of ``L``: A, A', A'', A' / distance, L, L', Q.

    Parameters
    ----------
    reach : float
        Largest distance in angstrom.

    Returns
    -------
    Tensor, dict
        ``(couple of elements, 7, distance)``, and where each couple is. `look_up` reads them.
    """
    (ny, nx), voxel = model.geometry.slices.shape, model.pixel_size
    q2 = half_plane((ny, nx), voxel)
    weight = model.sigma**2 * half_plane_weight((ny, nx), voxel) * transfer(model, q2)
    factors = {}
    for z in np.unique(model.numbers):
        u2 = float(model.variance.data[torch.as_tensor(model.numbers == z)].mean())
        factors[int(z)] = projected_factor(int(z), (ny, nx), voxel) * torch.exp(-2 * math.pi**2 * u2 * q2)
    qx = 2 * math.pi * torch.fft.rfftfreq(nx, voxel, dtype=torch.float64)
    # on the x axis: a second derivative across it is the first over the distance
    across, fade = 4 * math.pi**2 * q2 - qx**2, -2 * math.pi**2 * q2
    angle = qx[:, None] * torch.arange(0, reach + 2 * _STEP, _STEP, dtype=torch.float64)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    tables, place, elements = [], {}, list(factors)
    for k, a in enumerate(elements):
        for b in elements[k:]:
            power = factors[a] * factors[b] * weight
            p, swollen = power.sum(0), (power * fade).sum(0)
            rows = [p @ cosine, -(p * qx) @ sine, -(p * qx**2) @ cosine, -(power * across).sum(0) @ cosine]
            rows += [swollen @ cosine, -(swollen * qx) @ sine, (power * fade**2).sum(0) @ cosine]
            place[a, b] = place[b, a] = len(tables)
            tables.append(torch.stack(rows))
    return torch.stack(tables), place


def look_up(tables: Tensor, couple: Tensor, distance: Tensor) -> Tensor:
    """Entries of `overlap_tables` for pairs of atoms, ``(pair, 7)``, linear between distances."""
    place = (distance / _STEP).clamp_max(tables.shape[-1] - 2.0)
    low = place.long()
    share = (place - low)[:, None]
    return (1 - share) * tables[couple, :, low] + share * tables[couple, :, low + 1]


def overlap_blocks(entries: Tensor, offset: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Integrals of products of the derivatives of two atoms' phases, ``(pair, 4, 4)``.

    Derivatives in x, y, occupancy and variance, of the first along the rows.

    Parameters
    ----------
    entries : Tensor
        From `look_up`, ``(pair, 7)``.
    offset : Tensor
        From the first to the second in the image, angstrom ``(pair, 2)``.
    one, other : Tensor
        Their occupancies ``(pair,)``.
    """
    a, slope, bend, side, swollen, swollen_slope, twice = entries.unbind(-1)
    unit = offset / offset.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    both = one * other
    second = side[:, None, None] * torch.eye(2, dtype=torch.float64)
    second = second + (bend - side)[:, None, None] * unit[:, :, None] * unit[:, None, :]
    out = torch.empty(len(a), 4, 4, dtype=torch.float64)
    out[:, :2, :2] = -both[:, None, None] * second
    out[:, :2, 2], out[:, 2, :2] = -(one * slope)[:, None] * unit, (other * slope)[:, None] * unit
    out[:, 3, :2] = (both * swollen_slope)[:, None] * unit
    out[:, :2, 3] = -out[:, 3, :2]
    out[:, 2, 2], out[:, 3, 3] = a, both * twice
    out[:, 2, 3], out[:, 3, 2] = other * swollen, one * swollen
    return out
