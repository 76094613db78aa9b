"""Data terms: value per pattern and derivative with respect to the model intensity.

Each loss is ``loss(intensity, measured) -> (value (k,), derivative (k, ky, kx))`` over electrons, the
form `petomo.physics.multislice.multislice_loss` takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from scipy.special import gammaln
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

    def __call__(self, intensity: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        model = (intensity + self.epsilon).sqrt_()
        residual = model - (measured + self.epsilon).sqrt_()
        if self.mask is not None:
            residual = residual * self.mask
        return residual.square().sum((-2, -1)), residual / model

    def noise_floor(self, expected: Tensor) -> Tensor:
        """Mean value per pattern of a perfect model of Poisson counts with these means."""
        return _floor(
            expected, self.mask, lambda n, lam: (np.sqrt(lam + self.epsilon) - np.sqrt(n + self.epsilon)) ** 2
        )


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

    def __call__(self, intensity: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        model, data = intensity + self.epsilon, measured + self.epsilon
        slope = 1 - data / model
        value = model - data - data * torch.log(model / data)
        if self.mask is not None:
            slope, value = slope * self.mask, value * self.mask
        return value.sum((-2, -1)), slope

    def noise_floor(self, expected: Tensor) -> Tensor:
        """Mean value per pattern of a perfect model of Poisson counts with these means."""

        def deviance(n, lam):
            model, data = lam + self.epsilon, n + self.epsilon
            return model - data - data * np.log(model / data)

        return _floor(expected, self.mask, deviance)


def _floor(expected: Tensor, mask: Tensor | None, term) -> Tensor:
    """Expectation of ``term(n, lambda)`` over Poisson counts, by a table in lambda."""
    grid = np.concatenate([[0.0], np.geomspace(1e-4, 2000.0, 400)])
    table = np.empty_like(grid)
    for i, lam in enumerate(grid):
        width = 12 * np.sqrt(lam) + 12
        n = np.arange(max(0, int(lam - width)), int(lam + width) + 1)
        weight = np.exp(n * np.log(max(lam, 1e-300)) - lam - gammaln(n + 1)) if lam > 0 else (n == 0) * 1.0
        table[i] = (weight * term(n, lam)).sum()
    value = torch.as_tensor(np.interp(expected.detach().cpu().double().numpy(), grid, table))
    if mask is not None:
        value = value * mask.cpu()
    return value.sum((-2, -1)).mean()


LOSSES = {"amplitude": Amplitude, "poisson": Poisson}
