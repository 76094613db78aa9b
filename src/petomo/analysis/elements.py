"""Which peaks are atoms and of which element: a mixture model of their potentials.

The peak potential of an atom seen at atomic resolution grows about as Z^0.6 (between the
f_e(0) of its whole cloud and the Z of its core), so the mean height of an element's atoms is
``exp(c + slope ln Z)`` with common c and slope. About it they scatter normally, since noise adds
to the potential: by their logarithm the faint ones of a light element would look like a class of
their own. False peaks form one more class below the lightest element, normal in ln height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers

_SLOPE, _SLOPE_SPREAD = 0.6, 0.1
_MEAN_SPREAD = 0.1  # elements lie within 10 % of the line
_WIDTHS = (0.06, 0.3)  # range of the scatter of heights in an element, as a share of their mean
_NOISE_WIDTHS = (0.1, 0.7)
_NOISE_GAP = 0.35  # the noise class lies at least this far below the lightest element
_MIN_WEIGHT = 1e-3
_SWEEPS = 150


@dataclass(frozen=True)
class PeakClasses:
    """Classes of peaks, from the lightest element to the heaviest, and noise.

    Parameters
    ----------
    mean, width, weight : np.ndarray
        Logarithm of the mean height, scatter as a share of it (noise: of ln height), share of the peaks;
        noise first, then the elements by atomic number. Without a noise class its weight is 0.
    symbols : tuple of str
        The elements in that order.
    log_posterior : float
        Log likelihood of the heights and log prior of the means.
    """

    mean: np.ndarray
    width: np.ndarray
    weight: np.ndarray
    symbols: tuple[str, ...]
    log_posterior: float

    def responsibilities(self, height: np.ndarray) -> np.ndarray:
        """Probability of each class, noise first, shape ``(peak, 1 + element)``."""
        density = _densities(np.log(height), self.mean, self.width, self.weight)
        out = np.exp(density - np.logaddexp.reduce(density, axis=1, keepdims=True))
        return _monotonic(out, np.log(height), self.mean)

    def threshold(self, height: np.ndarray, false_share: float) -> float:
        """Lowest height that is rather an atom than noise and keeps the expected share of noise in bounds.

        Parameters
        ----------
        height : np.ndarray
            All peak heights, noise included.
        false_share : float
            Expected share of noise among the peaks above the threshold.
        """
        ordered = np.sort(height)[::-1]
        noise = self.responsibilities(ordered)[:, 0]
        share = np.cumsum(noise) / np.arange(1, len(ordered) + 1)
        good = np.flatnonzero((noise <= 0.5) & (share <= false_share))
        return float(ordered[good[-1] if len(good) else 0])

    def elements(self, height: np.ndarray) -> list[str]:
        """Most probable element of each peak, taking it for an atom."""
        best = self.responsibilities(height)[:, 1:].argmax(axis=1)
        return [self.symbols[i] for i in best]


def classify_peaks(height: np.ndarray, elements: Sequence[str] | None = None) -> PeakClasses:
    """Fit the mixture to peak heights, with and without a noise class, and keep the better one (BIC).

    Parameters
    ----------
    height : np.ndarray
        Positive peak heights in any unit, shape ``(peak,)``.
    elements : sequence of str, optional
        Chemical symbols in the specimen. Without them one to three classes of unknown atoms are
        tried, all called ``"X"``.

    Raises
    ------
    ValueError
        If a symbol is no element or there are no peaks.
    """
    if len(height) == 0:
        raise ValueError("there are no peaks to classify")
    x, candidates = np.log(height), []
    for ladder in _ladders(elements):
        for noise in (False, True):
            for top in np.quantile(x, (0.5, 0.7, 0.9, 0.97, 1.0)):
                for slope in ladder.slopes:
                    fit = _expectation_maximisation(x, ladder, noise, float(top), slope)
                    parameters = 3 * (noise + len(ladder.symbols)) - 1
                    candidates.append((parameters * np.log(len(x)) - 2 * fit.log_posterior, fit))
    return min(candidates, key=lambda c: c[0])[1]


@dataclass(frozen=True)
class _Ladder:
    """Where the class means are expected: ``c + slope log_z``, within the prior's spread."""

    symbols: tuple[str, ...]
    log_z: np.ndarray
    slopes: tuple[float, float]
    slope_spread: float
    spread: float


def _ladders(elements: Sequence[str] | None) -> list[_Ladder]:
    if not elements:  # any means at all
        return [_Ladder(("X",) * k, np.arange(k, dtype=float), (0.5, 1.0), 1.0, 10.0) for k in (1, 2, 3)]
    unknown = [s for s in elements if s not in atomic_numbers or s == "X"]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no chemical element")
    symbols = tuple(sorted(dict.fromkeys(elements), key=atomic_numbers.__getitem__))
    log_z = np.log([atomic_numbers[s] for s in symbols])
    slopes = (_SLOPE - _SLOPE_SPREAD, _SLOPE + _SLOPE_SPREAD)
    return [_Ladder(symbols, log_z, slopes, _SLOPE_SPREAD, _MEAN_SPREAD)]


def _expectation_maximisation(
    x: np.ndarray, ladder: _Ladder, noise: bool, top: float, slope: float
) -> PeakClasses:
    levels = top + slope * (ladder.log_z - ladder.log_z[-1])
    mean = np.concatenate([[min(levels[0] - 2 * _NOISE_GAP, float(np.quantile(x, 0.3)))], levels])
    width = np.full(len(mean), 0.25)
    weight = np.full(len(mean), 1 / len(mean))
    weight[0] *= noise
    weight /= weight.sum()
    for _ in range(_SWEEPS):
        density = _densities(x, mean, width, weight)
        share = np.exp(density - np.logaddexp.reduce(density, axis=1, keepdims=True))
        count = share.sum(axis=0)
        weight = np.maximum(count, _MIN_WEIGHT * len(x))
        weight[0] *= noise
        weight /= weight.sum()
        own = np.log(np.maximum(share.T @ np.exp(x), 1e-12) / np.maximum(count, 1e-9))
        own[0] = share[:, 0] @ x / max(count[0], 1e-9)
        mean, penalty = _means(own, count, width, ladder)
        if not noise:
            mean[0] = mean[1] - 2 * _NOISE_GAP
        spread = np.sqrt((share * _deviations(x, mean) ** 2).sum(axis=0) / np.maximum(count, 1e-9))
        width = np.clip(spread, *_WIDTHS)
        width[0] = np.clip(spread[0], *_NOISE_WIDTHS)
    total = np.logaddexp.reduce(_densities(x, mean, width, weight), axis=1).sum()
    return PeakClasses(mean, width, weight, ladder.symbols, float(total - penalty))


def _means(
    own: np.ndarray, count: np.ndarray, width: np.ndarray, ladder: _Ladder
) -> tuple[np.ndarray, float]:
    """Class means between each class's own mean and the ladder, and minus the log of their prior."""
    precision, stiffness = np.maximum(count[1:], 1e-6) / width[1:] ** 2, 1 / ladder.spread**2
    w = precision * stiffness / (precision + stiffness)
    z = ladder.log_z - (w @ ladder.log_z) / w.sum()
    prior = 1 / ladder.slope_spread**2
    slope = (w @ (z * own[1:]) + _SLOPE * prior) / (w @ z**2 + prior)
    line = (w @ own[1:]) / w.sum() + slope * z
    levels = np.maximum.accumulate((precision * own[1:] + stiffness * line) / (precision + stiffness))
    penalty = 0.5 * (prior * (slope - _SLOPE) ** 2 + stiffness * ((levels - line) ** 2).sum())
    return np.concatenate([[min(own[0], levels[0] - _NOISE_GAP)], levels]), float(penalty)


def _densities(x: np.ndarray, mean: np.ndarray, width: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Logarithm of each class's density in ln height, ``(peak, class)``."""
    z = _deviations(x, mean) / width
    out = np.log(np.maximum(weight, 1e-300)) - np.log(width * np.sqrt(2 * np.pi)) - 0.5 * z**2
    out[:, 1:] += x[:, None] - mean[1:]  # from height to its logarithm
    return out


def _deviations(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of ln height from the noise class's mean, and of height from the elements' as shares of these."""
    out = x[:, None] - mean
    out[:, 1:] = np.expm1(out[:, 1:])
    return out


def _monotonic(share: np.ndarray, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Beyond the heaviest mean a peak is the heaviest element, however wide another class is."""
    out = share.copy()
    beyond = x > mean[-1]
    out[beyond] = 0
    out[beyond, -1] = 1
    above_lightest = (x > mean[1]) & ~beyond
    out[above_lightest, 0] *= np.exp(-((x[above_lightest] - mean[1]) ** 2) / 0.1)
    return out / out.sum(axis=1, keepdims=True)
