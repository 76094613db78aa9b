"""Data terms: value per pattern and derivative with respect to the model intensity.

Each loss is ``loss(intensity, measured) -> (value (k,), derivative (k, ky, kx))`` over electrons, the
form `petomo.physics.multislice.multislice_loss` takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor


@dataclass(frozen=True)
class Amplitude:
    """``sum (sqrt(I_model + eps) - sqrt(I + eps))^2`` (paper Eq. 16).

    Over electrons its variance per pixel is close to 1/4, whatever the dose.

    Parameters
    ----------
    epsilon : float
        Electrons; keeps the derivative finite in the dark field.
    mask : Tensor, optional
        Bool ``(ky, kx)`` in FFT order, True where the detector measured.
    """

    epsilon: float = 0.05
    mask: Tensor | None = field(default=None, repr=False)
    curvature: ClassVar[float] = 2.0
    formula: ClassVar[str] = "amplitude"

    def __call__(self, intensity: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Value per pattern and its derivative in the model intensity, electrons ``(k, ky, kx)``."""
        model = (intensity + self.epsilon).sqrt_()
        residual = model - (measured + self.epsilon).sqrt_()
        if self.mask is not None:
            residual = residual * self.mask
        return residual.square().sum((-2, -1)), residual / model

    def noise_floor(self, expected: Tensor) -> Tensor:
        """Mean value per pattern of a perfect model of Poisson counts with these means."""
        return _floor(self, expected)


@dataclass(frozen=True)
class Poisson:
    """Negative log-likelihood ``sum I_m + eps - (I + eps) log(I_m + eps)``, less its value at I_m = I.

    Half the deviance: zero for a perfect noise-free model, about 1/2 per pixel at high dose.

    Parameters
    ----------
    epsilon, mask
        As in `Amplitude`.
    """

    epsilon: float = 0.05
    mask: Tensor | None = field(default=None, repr=False)
    curvature: ClassVar[float] = 4.0
    formula: ClassVar[str] = "poisson"

    def __call__(self, intensity: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Value per pattern and its derivative in the model intensity, electrons ``(k, ky, kx)``."""
        model, data = intensity + self.epsilon, measured + self.epsilon
        slope = 1 - data / model
        value = model - data - data * torch.log(model / data)
        if self.mask is not None:
            slope, value = slope * self.mask, value * self.mask
        # near the truth a difference of logarithms rounds below zero
        return value.sum((-2, -1)).clamp_min(0), slope

    def noise_floor(self, expected: Tensor) -> Tensor:
        """Mean value per pattern of a perfect model of Poisson counts with these means."""
        return _floor(self, expected)


@lru_cache
def _floor_table(kind: type, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Means, and the expectation of the loss of one pixel over Poisson counts with these means."""
    means = np.concatenate([[0.0], np.geomspace(1e-4, 2000.0, 400)])
    loss, table = kind(epsilon), np.empty_like(means)
    for i, mean in enumerate(means):
        width = 12 * np.sqrt(mean) + 12
        counts = np.arange(max(0, int(mean - width)), int(mean + width) + 1)
        pixels = torch.as_tensor(counts, dtype=torch.float64)[:, None, None]
        value, _ = loss(torch.full_like(pixels, mean), pixels)
        table[i] = (poisson.pmf(counts, mean) * value.numpy()).sum()
    return means, table


def _floor(loss: Amplitude | Poisson, expected: Tensor) -> Tensor:
    means, table = _floor_table(type(loss), loss.epsilon)
    value = torch.as_tensor(np.interp(expected.detach().cpu().double().numpy(), means, table))
    if loss.mask is not None:
        value = value * loss.mask.cpu()
    return value.sum((-2, -1)).mean()


LOSSES = {"amplitude": Amplitude, "poisson": Poisson}
