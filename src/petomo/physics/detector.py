"""Detector plane: centred storage, FFT-order computation, virtual extension."""

from __future__ import annotations

import torch
from torch import Tensor


def to_fft_order(patterns: Tensor, model_shape: tuple[int, int] | None = None) -> Tensor:
    """Centred patterns into the model's FFT order, zero-padded to a larger detector if asked.

    Parameters
    ----------
    patterns : Tensor
        ``(..., ky, kx)``, zero frequency at ``n // 2``.
    model_shape : (int, int), optional
        Shape of the model's detector; at least the recorded one. The part beyond the recorded
        angle is unmeasured: use `detector_mask` to leave it out of the loss.
    """
    ky, kx = patterns.shape[-2:]
    my, mx = model_shape or (ky, kx)
    if my < ky or mx < kx:
        raise ValueError(f"the model's detector {my} x {mx} is smaller than the recorded {ky} x {kx}")
    top, left = my // 2 - ky // 2, mx // 2 - kx // 2
    padded = torch.nn.functional.pad(patterns, (left, mx - kx - left, top, my - ky - top))
    return torch.fft.ifftshift(padded, dim=(-2, -1))


def from_fft_order(patterns: Tensor, recorded_shape: tuple[int, int] | None = None) -> Tensor:
    """Inverse of `to_fft_order`: centred patterns, cropped to the recorded detector."""
    centred = torch.fft.fftshift(patterns, dim=(-2, -1))
    my, mx = centred.shape[-2:]
    ky, kx = recorded_shape or (my, mx)
    top, left = my // 2 - ky // 2, mx // 2 - kx // 2
    return centred[..., top : top + ky, left : left + kx]


def detector_mask(
    recorded_shape: tuple[int, int], model_shape: tuple[int, int], bad_pixels: Tensor | None = None
) -> Tensor:
    """1 where the detector measured, 0 beyond its edge or on bad pixels; FFT order, bool."""
    mask = torch.ones(recorded_shape) if bad_pixels is None else 1.0 - bad_pixels.float()
    return to_fft_order(mask, model_shape) > 0.5
