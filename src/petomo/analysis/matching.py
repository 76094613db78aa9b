"""One rigid motion between two sets of atoms, and their pairing one to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import uniform_filter
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from petomo.core.pose import fit_rigid

_VOTE_BIN = 0.25  # angstrom
_GATES = (1.5, 1.0)  # angstrom: nearest pairs that the first passes of the registration believe
_PASSES = 12


@dataclass(frozen=True)
class Match:
    """Pairs of atoms, one to one.

    Parameters
    ----------
    found, true : np.ndarray
        Indices into the two sets, shape ``(pair,)``.
    distance : np.ndarray
        Angstrom.
    """

    found: np.ndarray
    true: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.distance)


@dataclass(frozen=True)
class RigidMotion:
    """``r' = rotation r + shift``; ``rotation`` (3, 3) on (x, y, z), ``shift`` (3,) in angstrom."""

    rotation: np.ndarray
    shift: np.ndarray

    def apply(self, points: ArrayLike) -> np.ndarray:
        """Moved points ``(point, 3)``."""
        return np.asarray(points) @ self.rotation.T + self.shift

    @property
    def angle(self) -> float:
        """Rotation angle in radian."""
        return float(np.arccos(np.clip((np.trace(self.rotation) - 1) / 2, -1, 1)))


def match_atoms(found: ArrayLike, true: ArrayLike, radius: float = 0.7) -> Match:
    """Pair as many atoms as possible, each at most once, no pair farther apart than ``radius``.

    Among pairings with the same number of pairs, the one with the least sum of distances.

    Parameters
    ----------
    found, true : array_like
        Positions ``(atom, 3)`` in angstrom, in one frame.
    radius : float
        Angstrom.
    """
    found, true = (np.asarray(p, dtype=float).reshape(-1, 3) for p in (found, true))
    if len(found) == 0 or len(true) == 0:
        none = np.zeros(0, dtype=int)
        return Match(none, none, np.zeros(0))
    near = KDTree(found).query_ball_tree(KDTree(true), radius)
    i = np.repeat(np.arange(len(found)), [len(n) for n in near])
    j = np.array([k for n in near for k in n], dtype=int)
    distance = np.linalg.norm(found[i] - true[j], axis=1)
    size = len(found) + len(true)
    graph = coo_matrix((np.ones(len(i)), (i, j + len(found))), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label[i], kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[i[order]])) + 1) if len(i) else []
    chosen = np.concatenate(
        [_assign(i[g], j[g], distance[g], g, radius) for g in groups] or [np.zeros(0, int)]
    )
    return Match(i[chosen], j[chosen], distance[chosen])


def _assign(
    i: np.ndarray, j: np.ndarray, distance: np.ndarray, edge: np.ndarray, radius: float
) -> np.ndarray:
    """Edges of the best pairing within one cluster of atoms."""
    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    forbidden = 2 * radius * min(len(rows), len(columns)) + 1  # dearer than any number of allowed pairs
    cost = np.full((len(rows), len(columns)), forbidden)
    name = np.full(cost.shape, -1)
    cost[row, column], name[row, column] = distance, edge
    picked = name[linear_sum_assignment(cost)]
    return picked[picked >= 0]


def register(
    found: ArrayLike,
    true: ArrayLike,
    *,
    start: RigidMotion | None = None,
    max_shift: float = 4.0,
    radius: float = 0.7,
) -> RigidMotion:
    """Rigid motion that takes found atoms to true ones (iterative closest point; Besl & McKay 1992).

    Tried from the start given, from where the sets lie, and from the shifts that most pairs of atoms vote
    for; the end with most pairs within ``radius`` wins.

    Parameters
    ----------
    found, true : array_like
        Positions ``(atom, 3)`` in angstrom.
    start : RigidMotion, optional
        A first guess.
    max_shift : float
        Largest shift per axis in angstrom that the votes consider.
    radius : float
        Angstrom within which a pair counts in the end.
    """
    found, true = (np.asarray(p, dtype=float).reshape(-1, 3) for p in (found, true))
    guesses = [start or RigidMotion(np.eye(3), np.zeros(3))]
    if min(len(found), len(true)) < 3:
        return guesses[0]
    if start is not None:
        guesses.append(RigidMotion(np.eye(3), np.zeros(3)))
    for base in list(guesses):
        votes = _voted_shifts(base.apply(found), true, max_shift)
        guesses += [RigidMotion(base.rotation, base.shift + shift) for shift in votes]
    tree = KDTree(true)
    ends = [_closest_points(found, true, tree, guess, radius) for guess in guesses]
    return max(ends, key=lambda end: _quality(end, found, true, radius))


def _voted_shifts(found: np.ndarray, true: np.ndarray, max_shift: float, count: int = 4) -> np.ndarray:
    """Most frequent differences of a true and a found position, shape ``(count, 3)``."""
    near = KDTree(found).query_ball_tree(KDTree(true), max_shift * np.sqrt(3))
    i = np.repeat(np.arange(len(found)), [len(n) for n in near])
    j = np.array([k for n in near for k in n], dtype=int)
    edges = np.arange(-max_shift, max_shift + _VOTE_BIN, _VOTE_BIN)
    votes, _ = np.histogramdd(true[j] - found[i], bins=[edges] * 3)
    smooth = uniform_filter(votes, 3, mode="constant")
    best = np.argsort(-smooth, axis=None, kind="stable")[:count]
    centre = (edges[:-1] + edges[1:]) / 2
    return np.stack([centre[k] for k in np.unravel_index(best, smooth.shape)], axis=1)


def _closest_points(
    found: np.ndarray, true: np.ndarray, tree: KDTree, motion: RigidMotion, radius: float
) -> RigidMotion:
    for gate in (*_GATES, radius, radius):
        for _ in range(_PASSES):
            distance, nearest = map(np.asarray, tree.query(motion.apply(found), distance_upper_bound=gate))
            pair = np.flatnonzero(np.isfinite(distance))
            if len(pair) < 3:
                return motion
            new = _fit(found[pair], true[nearest[pair]])
            still = np.abs(new.apply(found) - motion.apply(found)).max() < 1e-6
            motion = new
            if still:
                break
    match = match_atoms(motion.apply(found), true, radius)
    return _fit(found[match.found], true[match.true]) if len(match) >= 3 else motion


def _quality(motion: RigidMotion, found: np.ndarray, true: np.ndarray, radius: float) -> tuple[int, float]:
    match = match_atoms(motion.apply(found), true, radius)
    return len(match), -float((match.distance**2).sum())


def _fit(found: np.ndarray, true: np.ndarray) -> RigidMotion:
    rotation, shift = fit_rigid(torch.from_numpy(found), torch.from_numpy(true))
    return RigidMotion(rotation.numpy(), shift.numpy())
