"""A share of a batch on its way through the slices and back (paper Eq. 6-10, 18, 19); see `multislice`.

`petomo.physics.fused` does the same in compiled code, one wave at a time, and `petomo.physics.gpu` on a GPU;
`choose_bench` takes them where they run. The propagation behind the last slice is left out, since it only
changes phases on the detector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fft import fft2, ifft2

from petomo.core.memory import keep_freed_memory
from petomo.physics.compiled import compiled
from petomo.physics.fourier import phase_line
from petomo.physics.patches import crop, scatter_add_

#: losses there is compiled code for
FORMULAS = ("amplitude", "poisson")


class Bench:
    """A thread's way through the field and back in plain torch, and the gradients it finds.

    Waves are ``(mode, k, y, x)``, with modes first so that patches broadcast over one contiguous block.

    Parameters
    ----------
    field : Tensor
        Transmission functions, complex ``(slice, Y, X)``; every patch lies inside.
    corner : Tensor
        First (row, column) of every patch, ``(k, 2)``.
    probe : Tensor
        Modes ``(mode, y, x)`` at the plane z = 0.
    fraction : Tensor
        What is left of the positions, ``(k, 2)`` as (x, y) in pixels.
    optics : MultisliceOptics
        Window, energy and slice thickness.
    wants : sequence of bool
        Which gradients are wanted: phase, absorption, probe, positions.
    """

    def __init__(self, field, corner, probe, fraction, optics, wants=(False,) * 4) -> None:
        self.field, self.corner, self.window = field, corner, probe.shape[-2:]
        self.scale = 1.0 / math.prod(self.window)
        self.want_object, self.want_illumination = any(wants[:2]), any(wants[2:4])
        self.gains = [torch.zeros_like(field.real) if wanted else None for wanted in wants[:2]]
        # both carry the 1/N of an unscaled inverse FFT
        self.entrance = optics.entrance(len(field), probe) * self.scale
        self.propagator = optics.propagator(probe) * self.scale
        self.spectrum = fft2(probe) * self.entrance
        self.spectrum_gain = torch.zeros_like(self.spectrum)
        # factors that move the spectrum to each pattern along y and along x, and their overlaps
        self.lines = [
            phase_line(fraction[:, axis].to(probe.real.dtype), n)
            for axis, n in zip((1, 0), self.window, strict=True)
        ]
        self.overlaps = [torch.zeros_like(line.real) for line in self.lines]

    def chunks(self, size: int) -> list[slice]:
        """Its patterns, ``size`` at a time."""
        return [slice(start, start + size) for start in range(0, len(self.corner), size)]

    def intensity(self, part: slice) -> Tensor:
        """Model intensities ``(k, y, x)`` of the patterns ``part``."""
        return self._forward(part, keep=False)

    def visit(self, part: slice, measured: Tensor, loss) -> Tensor:
        """Loss of the patterns ``part``; adds to the gradients."""
        value, weight = loss(self._forward(part, keep=True), measured)
        if self.want_object or self.want_illumination:
            self._adjoint(part, weight.mul(2 * self.scale))
        return value

    def probe_gradient(self) -> Tensor:
        """Of ``spectrum = fft2(probe) * entrance``, in real space."""
        # the adjoint of the unscaled fft2 is its unscaled inverse
        return ifft2(torch.conj_physical(self.spectrum_gain * self.entrance), norm="forward")

    def position_gradient(self) -> Tensor:
        """``(k, 2)`` as (x, y), per pixel."""
        return torch.stack([2 * math.pi * o @ _fftfreq(o) for o in reversed(self.overlaps)], 1)

    def _forward(self, part: slice, keep: bool) -> Tensor:
        """Intensities; what `_adjoint` needs is kept if it is to follow."""
        patches = crop(self.field, self.corner[part], self.window)
        down, across = (line[part] for line in self.lines)
        wave = self.spectrum[:, None] * (down[:, :, None] * across[:, None, :])
        waves = [ifft2(wave, norm="forward").mul_(patches[0])]
        for patch in patches[1:]:
            wave = fft2(waves[-1]).mul_(self.propagator)
            waves.append(ifft2(wave, norm="forward").mul_(patch))
            if not keep:
                del waves[0]
        far = fft2(waves[-1])  # sqrt(N) times the unitary transform
        self._held = patches, waves, far
        parts = torch.view_as_real(far)
        squares = torch.view_as_complex(parts * parts).sum(0)
        return (squares.real + squares.imag).mul_(self.scale)

    def _adjoint(self, part: slice, weight: Tensor) -> None:
        """Add the gradients of the patterns that went forward last, whose intensities weigh ``weight``."""
        patches, waves, far = self._held
        # the conjugate of the adjoint wave is carried: with it no factor need be conjugated
        adjoint = fft2(far.conj_physical_().mul_(weight.to(far.dtype)))
        for s in range(len(waves) - 1, -1, -1):
            product = waves.pop().mul_(adjoint)
            adjoint.mul_(patches[s])
            torch.sum(product, 0, out=patches[s])
            if s:
                adjoint = fft2(ifft2(adjoint, norm="forward").mul_(self.propagator))
        phase, absorption = self.gains
        if phase is not None:
            scatter_add_(phase, patches.imag.neg(), self.corner[part])
        if absorption is not None:
            scatter_add_(absorption, patches.real.neg(), self.corner[part])
        if self.want_illumination:
            self._illuminate(part, ifft2(adjoint, norm="forward"))

    def _illuminate(self, part: slice, adjoint: Tensor) -> None:
        """Add what the conjugate adjoint wave before the first slice means to probe and positions."""
        down, across = (line[part] for line in self.lines)
        adjoint.mul_(down[:, :, None] * across[:, None, :])
        self.spectrum_gain += adjoint.sum(1)
        overlap = adjoint.mul_(self.spectrum[:, None]).sum(0).imag
        for held, axis in zip(self.overlaps, (2, 1), strict=True):
            held[part] = overlap.sum(axis)


def _fftfreq(like: Tensor) -> Tensor:
    """Cycles per pixel along the last axis."""
    return torch.fft.fftfreq(like.shape[-1], dtype=like.dtype, device=like.device)


def choose_bench(probe: Tensor, loss: object = None) -> type[Bench]:
    """The fastest for waves like ``probe``: compiled in single precision, on a GPU or a processor with MKL.

    ``loss`` is what compares them with measured ones, if anything does; one without a compiled ``formula``
    takes plain torch.
    """
    keep_freed_memory()
    if probe.dtype != torch.complex64 or (
        loss is not None and getattr(loss, "formula", None) not in FORMULAS
    ):
        return Bench
    if probe.device.type == "cuda":
        gpu = compiled("gpu")
        return Bench if gpu is None else gpu.GpuBench
    fused = compiled("fused") if probe.device.type == "cpu" else None
    return Bench if fused is None or fused.mkl.find() is None else fused.FusedBench
