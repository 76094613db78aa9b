"""Second thoughts about atoms: their elements, false ones, missing ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from scipy.spatial import KDTree
from torch import Tensor

from petomo.algorithms.bundle_preconditioner import atom_sensitivity
from petomo.core.parallel import ALONE, Team
from petomo.core.pose import rotation_matrices
from petomo.models.atomic_tomography import AtomicTomography, Sites
from petomo.physics.atomic_potential import half_plane, projected_factor
from petomo.physics.multislice import multislice_loss
from petomo.physics.resample import rotate_and_bin

#: 1/angstrom; what varies more slowly hardly shows in the patterns
_SLOWEST = 0.15

#: correlation from which on two atoms are named together
_LEAST_ALIKE = 0.3


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


def strengths(model: AtomicTomography) -> tuple[np.ndarray, np.ndarray]:
    """Strengths of the model's atoms ``(atom,)``: as they are, never below zero, and of whole ones."""
    each = {z: strength(model, z) for z in np.unique(model.numbers)}
    whole = np.array([each[z] for z in model.numbers])
    return whole * model.occupancy.detach().clamp_min(1e-9).numpy(), whole


def name_elements(model: AtomicTomography, elements: Sequence[int]) -> int:
    """Give every atom the element whose strength is nearest to its own; returns how many changed.

    Of two that overlap the patterns tell the sum better than the difference, so that they are named together.
    """
    own, whole = strengths(model)[0], np.array([strength(model, z) for z in elements])
    # relative to the geometric mean: the same for twice as much and for half
    off = (own[:, None] - whole) / np.sqrt(own[:, None] * whole)
    nearest = np.abs(off).argmin(axis=1)
    for i, j, alike in _couples(model):
        misfit = off[i][:, None] ** 2 + off[j] ** 2 + 2 * alike * off[i][:, None] * off[j]
        nearest[i], nearest[j] = np.unravel_index(misfit.argmin(), misfit.shape)
    numbers = np.asarray(elements)[nearest]
    changed = numbers != model.numbers
    typical = float(model.variance.data.median())
    with torch.no_grad():
        where = torch.as_tensor(changed)
        model.occupancy[where] = torch.as_tensor((own / whole[nearest])[changed], dtype=torch.float64)
        model.variance[where] = typical  # it had made up for the wrong element
    model.numbers = numbers
    return int(changed.sum())


def order_pairs(model: AtomicTomography, gradient: Callable[[], tuple[Tensor, Tensor]]) -> int:
    """Exchange overlapping atoms of two elements where the patterns ask for it; returns how many pairs.

    Which of two that overlap is the heavier shows in their third moment alone, so that their strengths come
    apart slowly. Halfway between both orders, at the same lower moments, the slope of the loss tells.

    Parameters
    ----------
    gradient : callable
        Of the loss where the model stands, without priors: in occupancies ``(atom,)`` and sites.
    """
    chosen = [(i, j) for i, j, _ in _couples(model) if model.numbers[i] != model.numbers[j]]
    if not chosen:
        return 0
    one, other = torch.as_tensor(np.array(chosen)).T
    kept, (own, whole) = model.current_sites(), map(torch.as_tensor, strengths(model))
    s, t, p, q = own[one, None], own[other, None], kept.positions[one], kept.positions[other]
    middle, centre = (s + t) / 2, (s * p + t * q) / (s + t)
    arm = (p - q) * (s * t).sqrt() / (s + t)
    with torch.no_grad():
        for pair, side in ((one, 1), (other, -1)):
            model.sites[pair] = centre + side * arm
            model.occupancy[pair] = middle[:, 0] / whole[pair]
    grown, moved = gradient()
    slope = grown[one] / whole[one] - grown[other] / whole[other]
    slope -= (arm / middle * (moved[one] + moved[other])).sum(1)
    swap = (slope < 0) != (whole[one] > whole[other])
    i, j = one[swap], other[swap]
    numbers, occupancy = model.numbers.copy(), kept.occupancy.clone()
    for pair, rest in ((i, j), (j, i)):
        numbers[pair], occupancy[pair] = model.numbers[rest], kept.occupancy[rest]
    keep_sites(model, Sites(numbers, kept.positions, occupancy, kept.variance))
    return len(i)


def _couples(model: AtomicTomography) -> Iterator[tuple[int, int, float]]:
    """Atoms that overlap and how much, each in one couple at most, those that overlap most first."""
    free = np.ones(len(model.numbers), dtype=bool)
    for (i, j), alike in zip(*overlaps(model), strict=True):
        if free[i] and free[j]:
            free[i] = free[j] = False
            yield i, j, alike


def overlaps(model: AtomicTomography, reach: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of atoms that the tilts show at nearly the same place, most alike first.

    Parameters
    ----------
    reach : float
        Most distance in angstrom.

    Returns
    -------
    np.ndarray, np.ndarray
        ``(pair, 2)``, and the correlation of their contributions to the patterns ``(pair,)``, at least
        `_LEAST_ALIKE`.
    """
    pairs = KDTree(model.sites.detach().numpy()).query_pairs(reach, output_type="ndarray")
    if len(pairs) == 0:
        return pairs, np.zeros(0)
    (ny, nx), voxel = model.geometry.slices.shape, model.pixel_size
    q2 = half_plane((ny, nx), voxel)
    power = projected_factor(int(model.numbers.min()), (ny, nx), voxel) ** 2 * q2 / (q2 + _SLOWEST**2)
    alike = torch.fft.irfft2(power, s=(ny, nx))[0, : nx // 2].numpy()
    lab = np.stack([model.lab(tilt).detach().numpy()[:, :2] for tilt in range(len(model.angles))])
    distance = np.linalg.norm(lab[:, pairs[:, 0]] - lab[:, pairs[:, 1]], axis=-1)
    share = np.interp(distance / voxel, np.arange(len(alike)), alike / alike[0]).mean(axis=0)
    order = np.argsort(-share, kind="stable")
    order = order[share[order] > _LEAST_ALIKE]
    return pairs[order], share[order]


def keep_sites(model: AtomicTomography, sites: Sites) -> None:
    """Replace the model's atoms."""
    model.numbers = np.asarray(sites.numbers)
    model.sites = torch.nn.Parameter(sites.positions.double().clone())
    model.occupancy = torch.nn.Parameter(sites.occupancy.double().clone())
    model.variance = torch.nn.Parameter(sites.variance.double().clone())


def drop_weak(model: AtomicTomography, least: float, min_distance: float) -> int:
    """Remove atoms of less than ``least`` occupancy, and the weaker of two that met; returns how many."""
    occupancy, positions = model.occupancy.detach().numpy(), model.sites.detach().numpy()
    own, _ = strengths(model)
    keep = occupancy >= least
    for i, j in KDTree(positions).query_pairs(min_distance):
        keep[i if own[i] < own[j] else j] = False
    keep_sites(model, model.current_sites().select(np.flatnonzero(keep)))
    return int((~keep).sum())


def split_heavy(model: AtomicTomography, most: float, apart: float) -> int:
    """Make two of every site with more than ``most`` atoms, one behind the other; returns how many.

    Where the tilts do not reach far, two neighbours along the beam look like one atom and a half between
    them, and no missing atom is added so near to it. A pair that was one atom draws together again.

    Parameters
    ----------
    most : float
        Occupancy, less what those that overlap lack; of the median where that is more than 1, because the
        model's scale may be off.
    apart : float
        Distance of the two in angstrom.
    """
    sites, (own, whole) = model.current_sites(), strengths(model)
    whole *= max(1.0, float(sites.occupancy.median()))
    excess, lack = own - whole, np.minimum(own - whole, 0)
    pairs, _ = overlaps(model)
    for one, other in (pairs.T, pairs.T[::-1]):
        np.add.at(excess, one, lack[other])
    heavy = torch.as_tensor(excess > (most - 1) * whole)
    if not heavy.any():
        return 0
    towards = rotation_matrices(*model.angles.detach().unbind(-1))[:, 2].mean(0)
    half = apart / 2 * towards / towards.norm()
    sites.positions[heavy] -= half
    sites.occupancy[heavy] /= 2
    new = sites.select(np.flatnonzero(heavy))
    new.positions.add_(2 * half)
    keep_sites(model, joined(sites, new))
    return len(new)


def joined(one: Sites, other: Sites) -> Sites:
    """The sites of both."""
    return Sites(
        np.concatenate([one.numbers, other.numbers]),
        torch.cat([one.positions, other.positions]),
        torch.cat([one.occupancy, other.occupancy]),
        torch.cat([one.variance, other.variance]),
    )


def add_missing(
    model: AtomicTomography,
    read: Callable,
    loss,
    element: int,
    candidates: Candidates,
    least: float,
    shapes: Tensor,
    team: Team = ALONE,
) -> int:
    """Add atoms of one element where `occupancy_wanted` is at least ``least``; returns how many.

    Parameters
    ----------
    shapes : Tensor
        Curvature of the loss per square radian of phase, for atoms that grow, ``(tilt,)``.
    team : Team
        Processes that take some of the patterns each; all have the same arguments and get the same.
    """
    if not (model.numbers == element).any():
        return 0  # nothing to compare with
    asked = occupancy_wanted(model, read, loss, element, candidates, shapes, team)
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
        whole = torch.ones(len(chosen), dtype=torch.float64)
        numbers, positions = np.full(len(chosen), element), torch.as_tensor(np.array(chosen))
        new = Sites(numbers, positions, 0.7 * whole, float(found.variance.median()) * whole)
        keep_sites(model, joined(found, new))
    return len(chosen)


def occupancy_wanted(
    model: AtomicTomography,
    read: Callable,
    loss,
    element: int,
    candidates: Candidates,
    shapes: Tensor,
    team: Team = ALONE,
) -> np.ndarray:
    """One Newton step from nothing for an atom at every voxel, ``z y x``.

    The gradient of the loss in the volume, matched with the atom's shape, over the curvature.
    """
    gradient = volume_gradient(model, read, loss, candidates.shape, team)
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


def volume_gradient(
    model: AtomicTomography, read: Callable, loss, shape: tuple[int, int, int], team: Team = ALONE
) -> Tensor:
    """Gradient of the loss in the potential of every voxel, ``z y x`` per volt, at the model's atoms."""
    real, device = model.probe(0).real.dtype, model.device
    volume = torch.zeros(shape, dtype=real, device=device, requires_grad=True)
    origin, total = torch.zeros(2, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for tilt, part in team.portions([len(s) for s in model.stray]):
        phase = model.phase(tilt).detach().requires_grad_(True)
        slope = torch.zeros_like(phase)
        for index in model.parts(tilt, torch.arange(part.start, part.stop)):
            waves = phase, None, model.probe(tilt), model.pixels(tilt, index).detach()
            value = multislice_loss(*waves, read(tilt, index), model.geometry.optics, loss)
            slope += torch.autograd.grad(value, phase)[0]
        phi, theta, psi = model.angles.detach()[tilt]
        stack = rotate_and_bin(volume, phi, theta, psi, origin, model.geometry.slices)
        (back,) = torch.autograd.grad(stack, volume, slope * model.sigma)
        total += back.cpu()
    team.sum_(total)
    return total
