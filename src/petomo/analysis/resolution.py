"""Resolution measures: Fourier shell (ring) correlation and radial power spectra.

All of them take volumes ``z y x`` or images ``y x`` of any shape and pixel size. Shells are one
frequency step of the shortest axis wide, so that every shell below the Nyquist frequency is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import fft
from scipy.signal.windows import tukey

_FEWEST = 6  # coefficients in a shell that a crossing is read from
VoxelSize = float | Sequence[float] | np.ndarray


@dataclass(frozen=True)
class ShellCorrelation:
    """A Fourier shell correlation curve and its thresholds.

    Parameters
    ----------
    frequency : np.ndarray
        Mean ``|q|`` of each shell in 1/angstrom, shape ``(shell,)``; the zero frequency is left out.
    correlation : np.ndarray
        Correlation of the two half data sets in each shell.
    count : np.ndarray
        Independent Fourier coefficients in each shell (one of each Hermitian pair).
    """

    frequency: np.ndarray
    correlation: np.ndarray
    count: np.ndarray

    @property
    def half_bit(self) -> np.ndarray:
        """Half-bit information threshold (van Heel & Schatz 2005)."""
        return information_threshold(self.count, 0.5)

    @property
    def one_bit(self) -> np.ndarray:
        """One-bit information threshold (van Heel & Schatz 2005)."""
        return information_threshold(self.count, 1.0)

    def beyond(self, frequency: float) -> ShellCorrelation:
        """The shells from ``frequency`` (1/angstrom) on."""
        use = self.frequency >= frequency
        return ShellCorrelation(self.frequency[use], self.correlation[use], self.count[use])

    def threshold(self, kind: str | float) -> np.ndarray:
        """Threshold curve ``"half_bit"``, ``"one_bit"`` or a constant such as 0.143.

        Raises
        ------
        ValueError
            If a name is not known.
        """
        if isinstance(kind, str):
            if kind not in ("half_bit", "one_bit"):
                raise ValueError(f'threshold must be "half_bit", "one_bit" or a number, got {kind!r}')
            return getattr(self, kind)
        return np.full_like(self.correlation, kind)

    def crossing(self, kind: str | float = "one_bit") -> float | None:
        """Frequency in 1/angstrom where the curve first falls below a threshold; None if it never does.

        Linear interpolation between shells; 0 if already the first shell lies below. Shells of fewer than
        six independent coefficients, where the information thresholds near 1, are passed over.
        """
        enough = self.count >= _FEWEST
        above = np.where(enough, self.correlation - self.threshold(kind), 0.0)
        below = np.flatnonzero(above < 0)
        if len(below) == 0:
            return None
        i = int(below[0])
        if not enough[:i].any():
            return 0.0
        fraction = above[i - 1] / (above[i - 1] - above[i])
        return float(self.frequency[i - 1] + fraction * (self.frequency[i] - self.frequency[i - 1]))

    def resolution(self, kind: str | float = "one_bit") -> float:
        """Full period 1/q in angstrom at the first crossing.

        The period of the last shell where the curve never crosses (`crossing` is then None), and
        infinity where no shell lies above.
        """
        q = self.crossing(kind)
        if q is None:
            q = float(self.frequency[-1])
        return 1 / q if q > 0 else float("inf")


@dataclass(frozen=True)
class RadialSpectrum:
    """Mean power per Fourier coefficient in shells of ``|q|``, up to the corners of Fourier space.

    ``sum(power * count)`` is the sum of the squared volume (Parseval; unitary transform).
    """

    frequency: np.ndarray
    power: np.ndarray
    count: np.ndarray


def information_threshold(count: ArrayLike, bits: float) -> np.ndarray:
    """Correlation at which each half-set sum carries ``bits`` of information per coefficient.

    With ``snr = (2**bits - 1) / 2`` in each half set and ``n`` independent coefficients
    ``T = (snr + 2 sqrt(snr / n) + 1 / sqrt(n)) / (snr + 1 + 2 sqrt(snr / n))``
    (van Heel & Schatz 2005, J. Struct. Biol. 151, 250); capped at 1, which it passes for n = 1.
    """
    snr, root = (2**bits - 1) / 2, 1 / np.sqrt(np.asarray(count, dtype=float))
    cross = 2 * np.sqrt(snr) * root
    return np.minimum((snr + cross + root) / (snr + 1 + cross), 1.0)


def fourier_shell_correlation(
    a: ArrayLike,
    b: ArrayLike,
    voxel_size: VoxelSize,
    *,
    direction: Sequence[float] | None = None,
    half_angle: float = np.pi / 9,
    region: np.ndarray | None = None,
) -> ShellCorrelation:
    """Fourier shell correlation of two volumes, or ring correlation of two images.

    ``FSC = Re sum A B* / sqrt(sum |A|^2 sum |B|^2)`` over each shell (Harauz & van Heel 1986).

    Parameters
    ----------
    a, b : array_like
        Real volumes ``z y x`` or images ``y x`` of the same shape.
    voxel_size : float or sequence of float
        Angstrom, one number or one per axis in array order.
    direction : sequence of float, optional
        (x, y[, z]): take only coefficients within ``half_angle`` (radian) of this axis.
    half_angle : float
        Half opening of that double cone in radian.
    region : np.ndarray, optional
        Bool: the coefficients of ``rfftn`` to take, such as `missing_wedge` gives.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"the two half sets need the same shape, got {a.shape} and {b.shape}")
    q, weight = _half_space(a.shape, voxel_size)
    radius = np.sqrt(sum(c**2 for c in q))
    step = _shell_step(a.shape, voxel_size)
    shell = np.rint(radius / step).astype(np.intp)
    nyquist = min(0.5 / p for p in _sizes(voxel_size, a.ndim))
    use = (shell > 0) & (radius <= nyquist)
    if direction is not None:
        axis = np.asarray(direction, dtype=float)[::-1]
        along = sum(c * n for c, n in zip(q, axis / np.linalg.norm(axis), strict=True))
        use &= np.abs(along) >= np.cos(half_angle) * radius
    if region is not None:
        use &= region
    fa, fb = (np.asarray(fft.rfftn(v))[use] for v in (a, b))
    index, w = shell[use], np.broadcast_to(weight, a.shape[:-1] + weight.shape[-1:])[use]

    def shells(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=values * w)

    full, cross = shells(np.ones(len(w))), shells(np.real(fa * fb.conj()))
    power = np.sqrt(shells(np.abs(fa) ** 2) * shells(np.abs(fb) ** 2))
    keep = full > 0
    correlation = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    frequency = shells(radius[use])[keep] / full[keep]
    return ShellCorrelation(frequency, correlation[keep], np.maximum(full[keep] / 2, 1))


def directional_correlations(
    a: ArrayLike, b: ArrayLike, voxel_size: VoxelSize, half_angle: float = np.pi / 9
) -> dict[str, ShellCorrelation]:
    """`fourier_shell_correlation` of two volumes in the cones about ``x``, ``y`` and ``z``."""
    axes = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}
    return {
        name: fourier_shell_correlation(a, b, voxel_size, direction=axis, half_angle=half_angle)
        for name, axis in axes.items()
    }


def missing_wedge(
    shape: Sequence[int], voxel_size: VoxelSize, lowest: float, highest: float, margin: float = 0.0
) -> np.ndarray:
    """Coefficients of ``rfftn(volume)`` that no projection along the beam holds (Fourier slice theorem).

    A tilt by theta about y measures the plane ``q_z = q_x tan(theta)``, all tilts of a range two sectors of
    every plane (q_z, q_x); what is left is the missing wedge.

    Parameters
    ----------
    shape : sequence of int
        Of the volume ``z y x``.
    voxel_size : float or sequence of float
        Angstrom, one number or one per axis in array order.
    lowest, highest : float
        Ends of the tilt range in radian.
    margin : float
        Distance in 1/angstrom to keep from the nearest measured plane. A specimen of extent D blurs its
        transform by 1 / D.

    Returns
    -------
    np.ndarray
        Bool, shape of ``rfftn(volume)``.
    """
    (qz, qy, qx), _ = _half_space(shape, voxel_size)
    angle = np.arctan2(qz, qx)
    beyond = [np.abs((angle - end + np.pi / 2) % np.pi - np.pi / 2) for end in (lowest, highest)]
    width = highest - lowest
    outside = (angle - lowest) % np.pi > width
    away = np.hypot(qz, qx) * np.sin(np.minimum(*beyond))
    return np.broadcast_to(outside & (away > margin), np.broadcast_shapes(qz.shape, qy.shape, qx.shape))


@dataclass(frozen=True)
class RegionPower:
    """How much of a true volume's power in a region of Fourier space another volume holds.

    Parameters
    ----------
    truth_share : float
        The region's share of the truth's power, within the band.
    filled : float
        The volume's power there over its power elsewhere, as a multiple of the truth's: 1 if the region is
        as full as the rest, be it with signal or with artefacts.
    recovered : float
        Share of the truth's power there that the volume explains, with one scale for each shell:
        ``sum max(FSC, 0)^2 P / sum P`` with P the truth's power of a shell.
    elsewhere : float
        The same share outside the region.
    """

    truth_share: float
    filled: float
    recovered: float
    elsewhere: float


def power_in_region(
    volume: ArrayLike, truth: ArrayLike, voxel_size: VoxelSize, region: np.ndarray, band: tuple[float, float]
) -> RegionPower:
    """Power in a region of Fourier space, such as the missing wedge, against truth.

    Parameters
    ----------
    volume, truth : array_like
        Real volumes ``z y x`` in one frame.
    voxel_size : float or sequence of float
        Angstrom, one number or one per axis in array order.
    region : np.ndarray
        Bool, shape of ``rfftn(volume)``.
    band : (float, float)
        Lowest and highest ``|q|`` in 1/angstrom.
    """
    volume, truth = np.asarray(volume), np.asarray(truth)
    q, weight = _half_space(truth.shape, voxel_size)
    radius = np.sqrt(sum(c**2 for c in q))
    inside = (radius >= band[0]) & (radius <= band[1])
    shell = np.rint(radius / _shell_step(truth.shape, voxel_size)).astype(np.intp)
    fv, ft = np.asarray(fft.rfftn(volume)), np.asarray(fft.rfftn(truth))
    power, explained = {}, {}
    for name, use in (("there", inside & region), ("elsewhere", inside & ~region)):
        w, index = np.broadcast_to(weight, use.shape)[use], shell[use]
        v, t, cross = (
            np.bincount(index, weights=w * part)
            for part in (np.abs(fv[use]) ** 2, np.abs(ft[use]) ** 2, np.real(fv[use] * ft[use].conj()))
        )
        power[name] = v.sum(), t.sum()
        true = np.divide(np.maximum(cross, 0) ** 2, v, out=np.zeros_like(v), where=v > 0).sum()
        explained[name] = float(true / t.sum())
    (v_in, t_in), (v_out, t_out) = power["there"], power["elsewhere"]
    filled = float(v_in / v_out / (t_in / t_out)) if v_out > 0 else 0.0
    return RegionPower(float(t_in / (t_in + t_out)), filled, explained["there"], explained["elsewhere"])


def radial_power_spectrum(volume: ArrayLike, voxel_size: VoxelSize) -> RadialSpectrum:
    """Mean squared modulus of the unitary Fourier transform in shells of ``|q|``.

    Parameters
    ----------
    volume : array_like
        Real volume ``z y x`` or image ``y x``.
    voxel_size : float or sequence of float
        Angstrom, one number or one per axis in array order.
    """
    volume = np.asarray(volume)
    q, weight = _half_space(volume.shape, voxel_size)
    radius = np.sqrt(sum(c**2 for c in q))
    shell = np.rint(radius / _shell_step(volume.shape, voxel_size)).astype(np.intp).ravel()
    w = np.broadcast_to(weight, radius.shape).ravel()
    power = np.abs(np.asarray(fft.rfftn(volume, norm="ortho"))).ravel() ** 2
    count, total, r = (np.bincount(shell, weights=w * v) for v in (np.ones(w.shape), power, radius.ravel()))
    keep = count > 0
    return RadialSpectrum(r[keep] / count[keep], total[keep] / count[keep], count[keep])


def taper(shape: Sequence[int], edge: float = 0.2) -> np.ndarray:
    """Soft box mask that falls to zero at the faces, so that cut edges do not correlate.

    Parameters
    ----------
    shape : sequence of int
        Shape of the volume or image.
    edge : float
        Part of each axis taken by the two cosine flanks together, 0 to 1.
    """
    mask = np.ones(tuple(shape))
    for axis, n in enumerate(shape):
        mask *= tukey(n + 2, edge)[1:-1].reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return mask


def _sizes(voxel_size: VoxelSize, ndim: int) -> tuple[float, ...]:
    sizes = tuple(np.broadcast_to(np.asarray(voxel_size, dtype=float), (ndim,)).tolist())
    if not all(p > 0 for p in sizes):
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
    return sizes


def _shell_step(shape: Sequence[int], voxel_size: VoxelSize) -> float:
    return max(1 / (n * p) for n, p in zip(shape, _sizes(voxel_size, len(shape)), strict=True))


def _half_space(shape: Sequence[int], voxel_size: VoxelSize) -> tuple[list[np.ndarray], np.ndarray]:
    """Frequencies of a real transform along each axis, and each coefficient's number in the full one."""
    sizes, ndim = _sizes(voxel_size, len(shape)), len(shape)
    axes = [fft.fftfreq(n, p) for n, p in zip(shape[:-1], sizes, strict=False)]
    axes.append(fft.rfftfreq(shape[-1], sizes[-1]))
    weight = np.full(len(axes[-1]), 2.0)
    weight[0] = 1
    if shape[-1] % 2 == 0:
        weight[-1] = 1
    grids = [f.reshape([-1 if i == axis else 1 for i in range(ndim)]) for axis, f in enumerate(axes)]
    return grids, weight.reshape([1] * (ndim - 1) + [-1])
