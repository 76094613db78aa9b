"""Second thoughts about atoms: their elements, false ones, missing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from scipy.spatial import KDTree
from torch import Tensor

from petomo.algorithms.bundle_preconditioner import atom_sensitivity
from petomo.models.atomic_tomography import AtomicTomography, Sites
from petomo.physics.atomic_potential import projected_factor
from petomo.physics.multislice import multislice_loss
from petomo.physics.resample import rotate_and_bin


@dataclass(frozen=True)
class Candidates:
    """Where missing atoms may be.

    Parameters
    ----------
    shape : (int, int, int)
        Voxels ``z y x`` of the volume to look through; the voxel is the model's.
    min_distance : float
        Least distance to other atoms in angstrom.
    """

    shape: tuple[int, int, int]
    min_distance: float = 1.3


def strength(model: AtomicTomography, number: int) -> float:
    """Root of the integrated square of a whole atom's projected potential, unit as in `projected_factor`."""
    return float(projected_factor(int(number), model.geometry.slices.shape, model.pixel_size).norm())


def strengths(model: AtomicTomography) -> np.ndarray:
    """The model's atoms' strengths ``(atom,)``, occupancies included."""
    whole = {z: strength(model, z) for z in np.unique(model.numbers)}
    return np.array([whole[z] for z in model.numbers]) * model.occupancy.detach().numpy()


def name_elements(model: AtomicTomography, elements: Sequence[int]) -> int:
    """Give every atom the element whose strength is nearest to its own; returns how many changed."""
    own, whole = strengths(model), np.array([strength(model, z) for z in elements])
    nearest = np.abs(np.log(np.maximum(own, 1e-9))[:, None] - np.log(whole)).argmin(axis=1)
    numbers = np.asarray(elements)[nearest]
    changed = numbers != model.numbers
    typical = float(model.variance.data.median())
    with torch.no_grad():
        where = torch.as_tensor(changed)
        model.occupancy[where] = torch.as_tensor((own / whole[nearest])[changed], dtype=torch.float64)
        model.variance[where] = typical  # it had made up for the wrong element
    model.numbers = numbers
    return int(changed.sum())


def keep_sites(model: AtomicTomography, sites: Sites) -> None:
    """Replace the model's atoms."""
    model.numbers = np.asarray(sites.numbers)
    model.sites = torch.nn.Parameter(sites.positions.double().clone())
    model.occupancy = torch.nn.Parameter(sites.occupancy.double().clone())
    model.variance = torch.nn.Parameter(sites.variance.double().clone())


def drop_weak(model: AtomicTomography, least: float, min_distance: float) -> int:
    """Remove atoms of less than ``least`` occupancy, and the weaker of two that met; returns how many."""
    occupancy, positions = model.occupancy.detach().numpy(), model.sites.detach().numpy()
    own = strengths(model)
    keep = occupancy >= least
    for i, j in KDTree(positions).query_pairs(min_distance):
        keep[i if own[i] < own[j] else j] = False
    keep_sites(model, model.current_sites().select(np.flatnonzero(keep)))
    return int((~keep).sum())


def add_missing(
    model: AtomicTomography,
    read: Callable,
    loss,
    element: int,
    candidates: Candidates,
    least: float,
    shapes: Tensor,
) -> int:
    """Add atoms of one element where `occupancy_wanted` is at least ``least``; returns how many.

    Parameters
    ----------
    shapes : Tensor
        Curvature of the loss per square radian of phase, for atoms that grow, ``(tilt,)``.
    """
    if not (model.numbers == element).any():
        return 0  # nothing to compare with
    asked = occupancy_wanted(model, read, loss, element, candidates, shapes)
    top = (asked == maximum_filter(asked, 5)) & (asked >= least)
    index = np.argwhere(top)
    index = index[np.argsort(-asked[tuple(index.T)], kind="stable")]
    places = ((index - np.asarray(candidates.shape) // 2) * model.pixel_size)[:, ::-1].astype(float)
    found = model.current_sites()
    others, chosen = found.positions.numpy(), []
    for place in places:
        if np.linalg.norm(others - place, axis=1).min() >= candidates.min_distance:
            others = np.vstack([others, place])
            chosen.append(place)
    if chosen:
        new = torch.as_tensor(np.array(chosen))
        count = len(chosen)
        variance = torch.full((count,), float(found.variance.median()), dtype=torch.float64)
        keep_sites(
            model,
            Sites(
                np.concatenate([found.numbers, np.full(count, element)]),
                torch.cat([found.positions, new]),
                torch.cat([found.occupancy, torch.full((count,), 0.7, dtype=torch.float64)]),
                torch.cat([found.variance, variance]),
            ),
        )
    return len(chosen)


def occupancy_wanted(
    model: AtomicTomography, read: Callable, loss, element: int, candidates: Candidates, shapes: Tensor
) -> np.ndarray:
    """One Newton step from nothing for an atom at every voxel, ``z y x``.

    The gradient of the loss in the volume, matched with the atom's shape, over the curvature.
    """
    gradient = volume_gradient(model, read, loss, candidates.shape)
    depth, (ny, nx), voxel = candidates.shape[0], candidates.shape[1:], model.pixel_size
    u2 = float(model.variance.data.median())
    qz = torch.fft.fftfreq(depth, voxel, dtype=torch.float64)[:, None, None]
    qy = torch.fft.fftfreq(ny, voxel, dtype=torch.float64)[:, None]
    qx = torch.fft.rfftfreq(nx, voxel, dtype=torch.float64)
    q2 = qz**2 + qy**2 + qx**2
    # the 3D transform of an atom is its projected one, as a function of |q|
    line = projected_factor(element, (4096, 1), voxel / 8)[:, 0]
    q = torch.fft.fftfreq(4096, voxel / 8, dtype=torch.float64)[:2048].numpy()
    factor = torch.as_tensor(np.interp(q2.sqrt().numpy(), q, line[:2048].numpy()))
    factor = factor * torch.exp(-2 * np.pi**2 * u2 * q2) * (q2 < (0.5 / voxel) ** 2)
    matched = torch.fft.irfftn(torch.fft.rfftn(gradient) * factor, s=gradient.shape) / voxel**3
    _, shape = atom_sensitivity(model)
    typical = shape[torch.as_tensor(model.numbers == element), 0, 0]
    curvature = float(typical.mean()) * float(shapes.sum())
    return (-matched / curvature).numpy()


def volume_gradient(model: AtomicTomography, read: Callable, loss, shape: tuple[int, int, int]) -> Tensor:
    """Gradient of the loss in the potential of every voxel, ``z y x`` per volt, at the model's atoms."""
    probe = model.probe(0)
    volume = torch.zeros(shape, dtype=probe.real.dtype, requires_grad=True)
    origin, total = torch.zeros(2, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for tilt in range(len(model.stray)):
        index = torch.arange(len(model.stray[tilt]))
        phase = model.phase(tilt).detach().requires_grad_(True)
        pixels = model.relative_scan(tilt).detach()[index] / model.pixel_size
        optics = model.geometry.optics
        value = multislice_loss(phase, None, model.probe(tilt), pixels, read(tilt, index), optics, loss)
        (slope,) = torch.autograd.grad(value, phase)
        phi, theta, psi = model.angles.detach()[tilt]
        stack = rotate_and_bin(volume, phi, theta, psi, origin, model.geometry.slices)
        (back,) = torch.autograd.grad(stack, volume, slope * model.sigma)
        total += back
    return total
