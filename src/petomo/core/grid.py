"""A regular grid whose origin is the voxel ``n // 2`` on each axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Shape and pixel size of an array in any number of dimensions.

    Parameters
    ----------
    shape : tuple of int
        Number of pixels along each axis, in array order (``z y x`` or ``y x``).
    pixel_size : tuple of float
        Pixel size in angstrom along each axis; a single number serves all axes.
    """

    shape: tuple[int, ...]
    pixel_size: tuple[float, ...]

    def __init__(self, shape: tuple[int, ...], pixel_size: float | tuple[float, ...]):
        sizes = (
            (float(pixel_size),) * len(shape) if isinstance(pixel_size, (int, float)) else tuple(pixel_size)
        )
        if len(sizes) != len(shape) or any(n < 1 for n in shape) or any(not p > 0 for p in sizes):
            raise ValueError(
                f"grid needs one positive size per axis, got shape {shape}, pixel_size {pixel_size}"
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        object.__setattr__(self, "pixel_size", sizes)

    @property
    def extent(self) -> tuple[float, ...]:
        """Length of each axis in angstrom."""
        return tuple(n * p for n, p in zip(self.shape, self.pixel_size, strict=True))

    def coordinates(self, axis: int, **kwargs) -> Tensor:
        """Pixel centres along one axis in angstrom, zero at ``n // 2``."""
        n = self.shape[axis]
        return (torch.arange(n, **kwargs) - n // 2) * self.pixel_size[axis]

    def frequencies(self, axis: int, **kwargs) -> Tensor:
        """Frequencies along one axis in 1/angstrom, in FFT order."""
        return torch.fft.fftfreq(self.shape[axis], self.pixel_size[axis], **kwargs)
