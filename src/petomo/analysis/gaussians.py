"""Gaussian atoms: rendering them into a volume and fitting them to one, all neighbours together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_WIDTH_SPREAD = 0.1  # prior spread of ln(sigma): one resolution for all, slightly different atoms
_SIGMA_RANGE = (0.12, 1.2)
_RELAXATION = 0.8  # neighbours move at the same time, so each takes a part of its Newton step
_MAX_STEP, _MAX_DRIFT = 0.15, 0.6  # angstrom: a sweep's step, and the way from the starting peak
_CHUNK = 1024


@dataclass(frozen=True)
class GaussianAtoms:
    """Gaussian atoms ``V(r) = height exp(-(x^2 + y^2) / 2 sigma^2 - z^2 / 2 sigma_z^2)``.

    Parameters
    ----------
    positions : np.ndarray
        (x, y, z) in angstrom, origin at voxel ``n // 2``, shape ``(atom, 3)``.
    height : np.ndarray
        Peak potential in volts, shape ``(atom,)``.
    sigma, sigma_z : np.ndarray
        Widths across and along z in angstrom, shape ``(atom,)``.
    """

    positions: np.ndarray
    height: np.ndarray
    sigma: np.ndarray
    sigma_z: np.ndarray

    def __len__(self) -> int:
        return len(self.height)

    def select(self, index: np.ndarray) -> GaussianAtoms:
        """Atoms picked by a mask or by indices."""
        return GaussianAtoms(
            self.positions[index], self.height[index], self.sigma[index], self.sigma_z[index]
        )

    @property
    def intensity(self) -> np.ndarray:
        """Integrated potential in V angstrom^3, shape ``(atom,)``."""
        return (2 * np.pi) ** 1.5 * self.height * self.sigma**2 * self.sigma_z


@dataclass(frozen=True)
class _Patches:
    """A box of voxels about each atom, in a volume padded so that no box leaves it."""

    shape: tuple[int, int, int]
    voxel_size: np.ndarray  # z y x
    half: np.ndarray  # voxels each side, z y x

    @classmethod
    def about(cls, shape: tuple[int, ...], voxel_size: np.ndarray, radius: np.ndarray) -> _Patches:
        half = np.ceil(radius / voxel_size).astype(int)
        return cls(tuple((np.asarray(shape) + 2 * half).tolist()), voxel_size, half)

    def pad(self, volume: np.ndarray) -> np.ndarray:
        return np.pad(volume, [(int(w), int(w)) for w in self.half])

    def crop(self, padded: np.ndarray) -> np.ndarray:
        return padded[tuple(slice(int(w), n - int(w)) for w, n in zip(self.half, self.shape, strict=True))]

    def evaluate(self, atoms: GaussianAtoms) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Flat voxel indices per atom, offsets z y x from the atom in angstrom, and exp(...) there."""
        centre = (np.asarray(self.shape) - 2 * self.half) // 2 + self.half
        where = atoms.positions[:, ::-1] / self.voxel_size + centre
        nearest = np.clip(np.rint(where).astype(int), self.half, np.asarray(self.shape) - 1 - self.half)
        widths = (atoms.sigma_z, atoms.sigma, atoms.sigma)
        offsets, factors, index = [], [], np.zeros((len(atoms), 1, 1, 1), dtype=np.intp)
        for axis in range(3):
            steps = np.arange(-self.half[axis], self.half[axis] + 1)
            voxel = nearest[:, axis, None] + steps
            distance = (voxel - where[:, axis, None]) * self.voxel_size[axis]
            lift = (slice(None), *(slice(None) if i == axis else None for i in range(3)))
            offsets.append(distance[lift])
            factors.append(np.exp(-0.5 * (distance / widths[axis][:, None]) ** 2)[lift])
            index = index * self.shape[axis] + voxel[lift]
        value = factors[0] * factors[1] * factors[2]
        return index, offsets, value

    def render(self, atoms: GaussianAtoms) -> np.ndarray:
        out = np.zeros(int(np.prod(self.shape)))
        for part in _chunks(len(atoms)):
            index, _, value = self.evaluate(atoms.select(part))
            value *= atoms.height[part, None, None, None]
            out += np.bincount(index.ravel(), weights=value.ravel(), minlength=len(out))
        return out.reshape(self.shape)


def render_atoms(atoms: GaussianAtoms, shape: tuple[int, int, int], voxel_size: np.ndarray) -> np.ndarray:
    """Potential ``z y x`` in volts of Gaussian atoms, each cut off at four of its widths.

    Parameters
    ----------
    atoms : GaussianAtoms
        Atoms in the frame of the volume.
    shape : (int, int, int)
        Voxels along z y x.
    voxel_size : np.ndarray
        Angstrom along z y x.
    """
    widest = max((float(s.max()) for s in (atoms.sigma, atoms.sigma_z) if len(s)), default=0.1)
    patches = _Patches.about(shape, voxel_size, np.full(3, 4 * widest))
    return patches.crop(patches.render(atoms))


def fit_gaussians(
    volume: np.ndarray, voxel_size: np.ndarray, start: GaussianAtoms, *, sweeps: int = 15, radius: float = 1.0
) -> tuple[GaussianAtoms, np.ndarray]:
    """Least-squares fit of Gaussian atoms, each to what the others leave over.

    Every sweep subtracts all atoms from the volume and takes one damped Gauss-Newton step for each atom
    on its own patch of the residual. The widths carry a prior about their common median, as strong as
    the residual's noise makes it: bright atoms set the resolution, faint ones take it over.

    Parameters
    ----------
    volume : np.ndarray
        Potential ``z y x`` in volts, background removed.
    voxel_size : np.ndarray
        Angstrom along z y x.
    start : GaussianAtoms
        One atom per peak.
    sweeps : int
        Number of sweeps.
    radius : float
        Half width of a patch in angstrom; along z scaled by the start's sigma_z / sigma.

    Returns
    -------
    GaussianAtoms, np.ndarray
        Fitted atoms, in the same order, and the residual volume.
    """
    if len(start) == 0:
        return start, volume
    stretch = float(np.median(start.sigma_z / start.sigma))
    patches = _Patches.about(volume.shape, voxel_size, radius * np.array([stretch, 1.0, 1.0]))
    padded, atoms = patches.pad(volume), start
    for _ in range(sweeps):
        residual = padded - patches.render(atoms)
        atoms = _sweep(residual.ravel(), patches, atoms, start.positions)
    return atoms, volume - render_atoms(atoms, volume.shape, voxel_size)


def _sweep(
    residual: np.ndarray, patches: _Patches, atoms: GaussianAtoms, anchor: np.ndarray
) -> GaussianAtoms:
    centre = [_weighted_median(np.log(s), atoms.height) for s in (atoms.sigma, atoms.sigma_z)]
    steps = np.concatenate(
        [_steps(residual, patches, atoms.select(part), centre) for part in _chunks(len(atoms))]
    )
    steps *= _RELAXATION
    position = atoms.positions + np.clip(steps[:, 1:4], -_MAX_STEP, _MAX_STEP)
    position = anchor + np.clip(position - anchor, -_MAX_DRIFT, _MAX_DRIFT)
    height = np.maximum(atoms.height + steps[:, 0], 1e-3 * np.abs(atoms.height))
    widths = [
        np.clip(s * np.exp(np.clip(d, -0.2, 0.2)), *_SIGMA_RANGE)
        for s, d in ((atoms.sigma, steps[:, 4]), (atoms.sigma_z, steps[:, 5]))
    ]
    return GaussianAtoms(position, height, *widths)


def _steps(residual: np.ndarray, patches: _Patches, atoms: GaussianAtoms, centre: list[float]) -> np.ndarray:
    """Gauss-Newton steps ``(atom, 6)`` in height, x, y, z, ln sigma, ln sigma_z."""
    index, (z, y, x), value = patches.evaluate(atoms)
    left = residual[index].reshape(len(atoms), -1)
    height, sigma, sigma_z = (v[:, None, None, None] for v in (atoms.height, atoms.sigma, atoms.sigma_z))
    peak = height * value
    columns = [
        value,
        peak * x / sigma**2,
        peak * y / sigma**2,
        peak * z / sigma_z**2,
        peak * (x**2 + y**2) / sigma**2,
        peak * z**2 / sigma_z**2,
    ]
    jacobian = np.stack([c.reshape(len(atoms), -1) for c in columns], axis=1)
    gradient = jacobian @ left[..., None]
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    noise = np.sqrt(np.mean(left**2))
    pull = (noise / _WIDTH_SPREAD) ** 2
    for column, (width, mean) in enumerate(zip((atoms.sigma, atoms.sigma_z), centre, strict=True), start=4):
        normal[:, column, column] += pull
        gradient[:, column, 0] += pull * (mean - np.log(width))
    diagonal = np.arange(6)
    normal[:, diagonal, diagonal] *= 1 + 1e-3
    normal[:, diagonal, diagonal] += 1e-12 * normal[:, diagonal, diagonal].max(1, keepdims=True)
    return np.linalg.solve(normal, gradient)[..., 0]


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(np.maximum(weights[order], 0))
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _chunks(n: int) -> Iterator[np.ndarray]:
    return (np.arange(i, min(i + _CHUNK, n)) for i in range(0, n, _CHUNK))
