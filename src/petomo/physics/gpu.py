"""A share of a batch on its way through the slices and back on a GPU, by cuFFT and kernels in Triton.

A wave is read and written once between two transforms, whatever is done to it there; patches are read from
the field itself and gradients added to it, whatever the number of patterns, so that nothing is launched for
each. Triton comes with torch for CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.fft import fft2, ifft2

from petomo.physics.multislice_share import Bench

#: pixels of a pattern that one program of a kernel works on
BLOCK = 512


@triton.jit
def _load(waves, index, inside):
    """Real and imaginary parts of complex numbers, kept in pairs."""
    pairs = 2 * index[:, None] + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(waves + pairs, mask=inside[:, None], other=0.0))


@triton.jit
def _store(waves, index, inside, real, imaginary):
    pairs = 2 * index[:, None] + tl.arange(0, 2)[None, :]
    tl.store(waves + pairs, tl.join(real, imaginary), mask=inside[:, None])


@triton.jit
def _pixels(size, block: tl.constexpr):
    """Pixels of the pattern that are this program's, and which of them there are."""
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    return pixel, pixel < size


@triton.jit
def _places(corner, pixel, columns, width):
    """Where in a slice of the field these pixels of the program's pattern lie."""
    k = tl.program_id(0)
    row = tl.load(corner + 2 * k) + pixel // columns
    return row * width + tl.load(corner + 2 * k + 1) + pixel % columns


@triton.jit
def _wave(mode, size):
    """Where the wave of this program's pattern begins."""
    return (mode * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * size


@triton.jit
def _transmit(waves, field, corner, modes, size, columns, width, block: tl.constexpr):
    """Times the patch of the field that belongs to the pattern."""
    pixel, inside = _pixels(size, block)
    real, imaginary = _load(field, _places(corner, pixel, columns, width), inside)
    for m in range(modes):
        index = _wave(m, size) + pixel
        a, b = _load(waves, index, inside)
        _store(waves, index, inside, a * real - b * imaginary, a * imaginary + b * real)


@triton.jit
def _pull_back(
    adjoints, waves, field, phase, absorption, corner, modes, size, columns, width,
    to_phase: tl.constexpr, to_absorption: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add to the gradients of a slice, and take the conjugate adjoint waves to before it."""
    pixel, inside = _pixels(size, block)
    place = _places(corner, pixel, columns, width)
    real, imaginary = _load(field, place, inside)
    along = tl.zeros((block,), tl.float32)
    across = tl.zeros((block,), tl.float32)
    for m in range(modes):
        index = _wave(m, size) + pixel
        a, b = _load(waves, index, inside)
        c, d = _load(adjoints, index, inside)
        along += a * c - b * d
        across += a * d + b * c
        _store(adjoints, index, inside, c * real - d * imaginary, c * imaginary + d * real)
    if to_phase:
        tl.atomic_add(phase + place, -across, mask=inside)
    if to_absorption:
        tl.atomic_add(absorption + place, -along, mask=inside)


@triton.jit
def _compare(
    far, measured, mask, values, modes, size, epsilon, scale,
    poisson: tl.constexpr, masked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Losses of a block of pixels (`petomo.objectives.losses`); far waves become conjugate adjoint ones."""
    pixel, inside = _pixels(size, block)
    intensity = tl.zeros((block,), tl.float32)
    for m in range(modes):
        a, b = _load(far, _wave(m, size) + pixel, inside)
        intensity += a * a + b * b
    k = tl.program_id(0)
    model = scale * intensity + epsilon
    data = tl.load(measured + k.to(tl.int64) * size + pixel, mask=inside, other=0.0) + epsilon
    if poisson:
        share = data / model
        value = model - data + data * tl.log(share)
        slope = 1.0 - share
    else:
        root = tl.sqrt(model)
        residual = root - tl.sqrt(data)
        value = residual * residual
        slope = residual / root
    seen = inside
    if masked:
        seen = inside & (tl.load(mask + pixel, mask=inside, other=0) != 0)
    tl.store(values + k * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.where(seen, value, 0.0)))
    weight = tl.where(seen, 2.0 * scale * slope, 0.0)
    for m in range(modes):
        index = _wave(m, size) + pixel
        a, b = _load(far, index, inside)
        _store(far, index, inside, weight * a, -weight * b)


class GpuBench(Bench):
    """`Bench` for complex64 on a GPU and losses of `petomo.physics.multislice_share.FORMULAS`.

    Gradients of the object are added up in no particular order, so that they round differently each time.
    """

    def _forward(self, part: slice, keep: bool) -> Tensor:
        far = self._to_detector(part, keep)
        return torch.view_as_real(far).square_().sum((0, -1)).mul_(self.scale)

    def visit(self, part: slice, measured: Tensor, loss) -> Tensor:
        """Loss of the patterns ``part``; adds to the gradients."""
        far = self._to_detector(part, keep=self.want_object)
        values = self._compare(far, measured, loss)
        if self.want_object or self.want_illumination:
            self._back(part, far)
        return values

    def _to_detector(self, part: slice, keep: bool) -> Tensor:
        """Far waves; the exit waves of all slices are held, or of the last only."""
        down, across = (line[part] for line in self.lines)
        wave = self.spectrum[:, None] * (down[:, :, None] * across[:, None, :])
        self._waves = []
        for s in range(len(self.field)):
            if s:
                wave = fft2(wave).mul_(self.propagator)
            wave = ifft2(wave, norm="forward")
            self._launch(_transmit, part, (wave,), s)
            if keep:
                self._waves.append(wave)
        return fft2(wave)

    def _compare(self, far: Tensor, measured: Tensor, loss) -> Tensor:
        """Losses; far waves become the conjugate adjoint ones."""
        modes, patterns, size = len(far), far.shape[1], far[0, 0].numel()
        blocks = triton.cdiv(size, BLOCK)
        values = torch.empty(patterns, blocks, device=far.device)
        counts, pairs = measured.to(values).contiguous(), torch.view_as_real(far)
        mask = pairs if loss.mask is None else loss.mask.to(far.device, torch.uint8).contiguous()
        numbers = modes, size, loss.epsilon, self.scale
        flags: tuple[Any, ...] = loss.formula == "poisson", loss.mask is not None, BLOCK
        with torch.cuda.device_of(far):  # Triton looks at the current device only
            _compare[patterns, blocks](pairs, counts, mask, values, *numbers, *flags)
        # near the truth a difference of logarithms rounds below zero
        return values.sum(1).clamp_min_(0)

    def _back(self, part: slice, adjoint: Tensor) -> None:
        """Add the gradients of the patterns that went forward last."""
        adjoint = fft2(adjoint)
        for s in range(len(self.field) - 1, -1, -1):
            if self.want_object:
                gains = tuple(None if gain is None else gain[s] for gain in self.gains)
                self._launch(_pull_back, part, (adjoint, self._waves.pop()), s, gains)
            else:
                self._launch(_transmit, part, (adjoint,), s)
            if s:
                adjoint = fft2(ifft2(adjoint, norm="forward").mul_(self.propagator))
        if self.want_illumination:
            self._illuminate(part, ifft2(adjoint, norm="forward"))

    def _launch(self, kernel, part: slice, waves: tuple[Tensor, ...], s: int, gains=()) -> None:
        """A kernel over blocks of pixels of all patterns, between the waves and slice ``s``."""
        field, corner = torch.view_as_real(self.field[s]), self.corner[part]
        modes, patterns, rows, columns = waves[0].shape
        size = rows * columns, columns, field.shape[1]
        # a kernel that does not write there still takes an address
        targets = tuple(field if gain is None else gain for gain in gains)
        flags = tuple(gain is not None for gain in gains)
        grid = patterns, triton.cdiv(rows * columns, BLOCK)
        pairs = (torch.view_as_real(wave) for wave in waves)
        with torch.cuda.device_of(field):
            kernel[grid](*pairs, field, *targets, corner, modes, *size, *flags, BLOCK)
