"""The passes over memory of one multislice chunk, between its FFTs, in plain torch.

`petomo.physics.compiled` has the same passes fused into fewer; `choose_passes` takes those where they run.
Waves are ``(mode, k, y, x)``, with modes first so that patches broadcast over one contiguous block.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.fft import fft2, ifft2

from petomo.physics.patches import crop, scatter_add_

#: Fourier lines of a chunk along the last but one and the last axis, complex ``(k, n)`` each
Lines = tuple[Tensor, Tensor]


class Passes:
    """Passes of one batch.

    Parameters
    ----------
    field : Tensor
        Transmission functions, complex ``(slice, Y, X)``; every patch lies inside.
    corner : Tensor
        First (row, column) of every patch, ``(k, 2)``.
    window : (int, int)
        Shape ``y x`` of a patch.
    phase, absorption : Tensor, optional
        Real ``(slice, Y, X)``; gradients are added to those given.
    """

    #: are spectra kept ``(mode, k, x, y)``?
    turned: bool = False

    def __init__(
        self,
        field: Tensor,
        corner: Tensor,
        window: Sequence[int],
        phase: Tensor | None = None,
        absorption: Tensor | None = None,
    ) -> None:
        self.field, self.corner, self.window = field, corner, window
        self.phase, self.absorption = phase, absorption

    def start(self, part: slice) -> None:
        """Take up the patterns ``part`` of the batch."""
        self.part = part
        self.patches = crop(self.field, self.corner[part], self.window)

    def transmit_(self, s: int, wave: Tensor) -> Tensor:
        """Multiply a wave by slice ``s`` in place."""
        return wave.mul_(self.patches[s])

    def pull_back_(self, s: int, exit_wave: Tensor, adjoint: Tensor) -> Tensor:
        """Take the conjugate adjoint wave back through slice ``s`` in place; ``exit_wave`` is used up.

        What the slice gains, minus the imaginary (phase) and real part (absorption) of their product, is
        kept where its patches were until `finish`.
        """
        exit_wave.mul_(adjoint)
        adjoint.mul_(self.patches[s])
        torch.sum(exit_wave, 0, out=self.patches[s])
        return adjoint

    def finish(self) -> None:
        """Add the gradients of the patterns at hand."""
        corner = self.corner[self.part]
        if self.phase is not None:
            scatter_add_(self.phase, self.patches.imag.neg(), corner)
        if self.absorption is not None:
            scatter_add_(self.absorption, self.patches.real.neg(), corner)

    # ---- spectra

    def to_fourier(self, wave: Tensor) -> Tensor:
        """Unscaled Fourier transform over the last two axes."""
        return fft2(wave)

    def to_real(self, spectrum: Tensor) -> Tensor:
        """Unscaled inverse Fourier transform, the adjoint of `to_fourier`."""
        return ifft2(spectrum, norm="forward")

    def shift(self, spectrum: Tensor, lines: Lines) -> Tensor:
        """Spectra ``(mode, y, x)`` moved to each of k places."""
        return spectrum[:, None] * (lines[0][:, :, None] * lines[1][:, None, :])

    def collect(self, adjoint: Tensor, spectrum: Tensor, lines: Lines, gradient: Tensor) -> Lines:
        """Adjoint of `shift`, added to ``gradient`` ``(mode, y, x)``.

        Returns the imaginary part of adjoint times shifted spectrum, summed to both axes ``(k, n)``.
        """
        adjoint.mul_(lines[0][:, :, None] * lines[1][:, None, :])
        gradient += adjoint.sum(1)
        overlap = adjoint.mul_(spectrum[:, None]).sum(0).imag
        return overlap.sum(2), overlap.sum(1)

    # ---- detector

    def intensity(self, far: Tensor, scale: float) -> Tensor:
        """``scale`` times the intensity ``(k, y, x)`` of all modes."""
        parts = torch.view_as_real(far)
        squares = torch.view_as_complex(parts * parts).sum(0)
        return (squares.real + squares.imag).mul_(scale)

    def conjugate_(self, far: Tensor, weight: Tensor) -> Tensor:
        """Conjugate of ``far`` in place, times a real weight ``(k, y, x)``."""
        return far.conj_physical_().mul_(weight.to(far.dtype))


@lru_cache
def _compiled() -> type[Passes]:
    try:
        from petomo.physics.compiled import CompiledPasses
    except (ImportError, RuntimeError):  # no numba, or nowhere to keep what it compiles
        return Passes
    return CompiledPasses


@lru_cache
def keep_freed_memory(size: int = 1 << 28) -> bool:
    """Let this process keep freed memory up to ``size`` bytes; True where the C library has a say (glibc).

    A chunk frees as much as it takes, and by default its pages go back to the system and are cleared
    anew for the next chunk, at the cost of a fifth of a pass.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its largest
    return bool(mallopt(-1, size)) and bool(mallopt(-3, 1 << 25))


def choose_passes(probe: Tensor) -> type[Passes]:
    """The fastest passes for waves like ``probe``: compiled in single precision on one or two threads."""
    keep_freed_memory()
    few = torch.get_num_threads() <= 2
    return _compiled() if few and probe.device.type == "cpu" and probe.dtype == torch.complex64 else Passes
