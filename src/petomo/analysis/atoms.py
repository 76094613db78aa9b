"""Atom tracing: from a potential volume to atoms with positions, intensities and elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import KDTree

from petomo.analysis.elements import PeakClasses, classify_peaks
from petomo.analysis.gaussians import GaussianAtoms, fit_gaussians

VoxelSize = float | Sequence[float] | np.ndarray
_START_SIGMA, _START_STRETCH = 0.4, 1.2
_CANDIDATE_FLOOR = 0.02  # of the brightest peaks: far below the faintest element beside the heaviest
_DROP = 0.25  # of that floor: fitted atoms below it have shrunk away
_SHORT_BONDED = frozenset({"H", "B", "C", "N"})
_BOND_FACTOR = 0.85  # shortest bond to a larger atom over the sum of covalent radii
_LARGER = 1.3  # radii over the smallest: C, N and O are alike and form double bonds, Al is not


def find_peaks(
    volume: ArrayLike, voxel_size: VoxelSize, *, threshold: float, min_distance: float = 1.3
) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima above a threshold, the higher one of each pair closer than ``min_distance``.

    Parameters
    ----------
    volume : array_like
        Potential ``z y x`` in volts.
    voxel_size : float or sequence of float
        Angstrom, one number or one per axis z y x.
    threshold : float
        Least height in volts.
    min_distance : float
        Angstrom.

    Returns
    -------
    np.ndarray, np.ndarray
        Positions (x, y, z) in angstrom ``(peak, 3)``, refined by a parabola along each axis, and heights
        ``(peak,)``; the highest peak first. The outermost voxels are left out.
    """
    volume, size = np.asarray(volume, dtype=float), _voxel(voxel_size)
    top = (volume == maximum_filter(volume, 3)) & (volume > threshold)
    inside = np.zeros_like(top)
    inside[1:-1, 1:-1, 1:-1] = True
    index = np.argwhere(top & inside)
    height = volume[tuple(index.T)]
    order = np.argsort(-height, kind="stable")
    index, height = index[order], height[order]
    offset = np.zeros(index.shape)
    for axis, unit in enumerate(np.eye(3, dtype=int)):
        before, after = volume[tuple((index - unit).T)], volume[tuple((index + unit).T)]
        curvature = before - 2 * height + after
        offset[:, axis] = 0.5 * (before - after) / np.where(curvature < 0, curvature, -np.inf)
    position = ((index + offset - np.asarray(volume.shape) // 2) * size)[:, ::-1]
    keep = _highest_of_neighbours(position, np.full(len(position), min_distance))
    return position[keep], height[keep]


def nearest_neighbours(elements: Sequence[str] | None = None) -> float:
    """Distance in angstrom below which two peaks are taken for one atom, if nobody says otherwise.

    1.5, which oxides and metals keep; 1.0 where H, B, C or N may bond among themselves (C=C 1.34, and traced
    positions scatter).
    """
    return 1.0 if _SHORT_BONDED.intersection(elements or ()) else 1.5


def trace_atoms(
    volume: ArrayLike,
    voxel_size: VoxelSize,
    elements: Sequence[str] | None = None,
    *,
    min_distance: float | None = None,
    threshold: float | None = None,
    false_share: float = 0.08,
    smoothing: float = 0.25,
) -> Atoms:
    """Trace atoms: peaks, Gaussians fitted to all of them together, then peaks of what is left over.

    The peaks' heights fall into noise and elements (`petomo.analysis.elements`), which gives the threshold.
    With elements given, pairs closer than 0.85 x (covalent radius of the brighter one + the smallest radius
    in the list) lose the fainter one: the streaks beside heavy atoms look like light ones. Atoms hardly
    larger than the smallest may come as close as ``min_distance``, as in double bonds.

    Parameters
    ----------
    volume : array_like
        Potential ``z y x`` in volts; its median is taken for the background.
    voxel_size : float or sequence of float
        Angstrom, one number or one per axis z y x.
    elements : sequence of str, optional
        Chemical symbols in the specimen. Without them all atoms are ``"X"``.
    min_distance : float, optional
        Shortest distance of two atoms in angstrom, by default that of `nearest_neighbours`.
    threshold : float, optional
        Least peak height in volts in the smoothed volume. By default set from ``false_share``.
    false_share : float
        Share of noise peaks that the mixture model may expect among the atoms.
    smoothing : float
        Standard deviation in angstrom of the Gaussian filter that precedes peak search and fit; the
        widths are quoted with it removed.

    Returns
    -------
    ase.Atoms
        Positions in the sample frame (x, y, z, angstrom, origin at voxel ``n // 2``) with the arrays
        ``intensity`` (integrated potential, V angstrom^3), ``height`` (V, smoothed volume), ``sigma`` and
        ``sigma_z`` (angstrom, across and along z); ``info["threshold_volt"]``. The highest atom first.

    Raises
    ------
    ValueError
        If the volume is not 3D or not finite, or an element is unknown.
    """
    size, volume = _voxel(voxel_size), np.asarray(volume, dtype=float)
    min_distance = nearest_neighbours(elements) if min_distance is None else min_distance
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise ValueError(f"atom tracing needs a finite volume z y x, got shape {volume.shape}")
    smooth = gaussian_filter(volume - np.median(volume), smoothing / size)
    floor = max(_CANDIDATE_FLOOR * float(np.quantile(smooth, 0.9999)), 1e-9)
    peaks = find_peaks(smooth, size, threshold=floor, min_distance=min_distance)
    found, residual = _fit(_join(_empty(), peaks, smoothing), smooth, size, floor, min_distance)
    if len(found) == 0:
        return _as_atoms(found, [], smoothing, floor)
    classes = classify_peaks(found.height, elements)
    limit = classes.threshold(found.height, false_share) if threshold is None else threshold
    hidden = find_peaks(residual, size, threshold=limit, min_distance=min_distance)
    free = KDTree(found.positions).query(hidden[0])[0] >= min_distance
    if free.any():
        more = _join(found, (hidden[0][free], hidden[1][free]), smoothing)
        found, _ = _fit(more, smooth, size, floor, min_distance)
    found = found.select(np.flatnonzero(found.height >= limit))
    found, symbols = _apart(found, classes, min_distance)
    return _as_atoms(found, symbols, smoothing, limit)


def _join(found: GaussianAtoms, peaks: tuple[np.ndarray, np.ndarray], smoothing: float) -> GaussianAtoms:
    """Atoms so far and new peaks as atoms of the usual width."""
    sigma = np.full(len(peaks[1]), np.hypot(_START_SIGMA, smoothing))
    new = (*peaks, sigma, sigma * _START_STRETCH)
    old = (found.positions, found.height, found.sigma, found.sigma_z)
    return GaussianAtoms(*(np.concatenate(pair) for pair in zip(old, new, strict=True)))


def _fit(
    start: GaussianAtoms, smooth: np.ndarray, size: np.ndarray, floor: float, min_distance: float
) -> tuple[GaussianAtoms, np.ndarray]:
    """Fitted atoms, the highest first, without those that shrank away or met a higher one; the residual."""
    found, residual = fit_gaussians(smooth, size, start)
    found = _sorted(found.select(found.height >= _DROP * floor))
    return found.select(_highest_of_neighbours(found.positions, np.full(len(found), min_distance))), residual


def _apart(
    found: GaussianAtoms, classes: PeakClasses, min_distance: float
) -> tuple[GaussianAtoms, list[str]]:
    """Drop what lies closer to a brighter atom than any bond, and name the elements."""
    found = _sorted(found)
    symbols = classes.elements(found.height)
    radii = np.array([covalent_radii[atomic_numbers[s]] for s in symbols])
    known = "X" not in symbols
    smallest = min((covalent_radii[atomic_numbers[s]] for s in classes.symbols), default=0.0)
    bond = known * (radii > _LARGER * smallest) * _BOND_FACTOR * (radii + smallest)
    reach = np.maximum(min_distance, bond)
    keep = _highest_of_neighbours(found.positions, reach)
    return found.select(keep), [symbols[i] for i in keep]


def _as_atoms(found: GaussianAtoms, symbols: list[str], smoothing: float, threshold: float) -> Atoms:
    def sharpened(sigma: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(sigma**2 - smoothing**2, 0.05**2))

    atoms = Atoms(symbols, positions=found.positions, info={"threshold_volt": float(threshold)})
    atoms.set_array("intensity", found.intensity)
    atoms.set_array("height", found.height)
    atoms.set_array("sigma", sharpened(found.sigma))
    atoms.set_array("sigma_z", sharpened(found.sigma_z))
    return atoms


def _highest_of_neighbours(position: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Indices of points, sorted from high to low, that no higher kept point has within its reach."""
    if len(position) == 0:
        return np.zeros(0, dtype=int)
    tree, keep = KDTree(position), np.ones(len(position), dtype=bool)
    for i in range(len(position)):
        if keep[i]:
            near = np.array(tree.query_ball_point(position[i], reach[i]))
            keep[near[near > i]] = False
    return np.flatnonzero(keep)


def _sorted(atoms: GaussianAtoms) -> GaussianAtoms:
    return atoms.select(np.argsort(-atoms.height, kind="stable"))


def _empty() -> GaussianAtoms:
    return GaussianAtoms(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0))


def _voxel(voxel_size: VoxelSize) -> np.ndarray:
    return np.broadcast_to(np.asarray(voxel_size, dtype=float), (3,)).copy()
