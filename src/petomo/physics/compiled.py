"""The passes of `petomo.physics.passes` fused by numba, for single precision on a processor.

Each goes through the waves once; patches are read from the field itself and gradients added to it, so that
neither is copied. Where that is faster, a 2D transform is rows, a transposition and rows again, and
spectra stay transposed. numba is optional and needs no compiler; what it makes is kept beside this file, or
else in the user's cache folder.
"""

# ruff: noqa: D102  (the methods are described in `Passes`)
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor
from torch.fft import fft, ifft

from petomo.physics.passes import Lines, Passes

#: sides of windows that MKL's own 2D transforms are slower at on AMD's processors, see docs/studies/speed.md
FASTER_BY_ROWS = (64, 256, 512, 1024)


@lru_cache
def _rows_are_faster() -> bool:
    """Whether this is one of the processors that MKL does not do its best on."""
    described = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available() and described.is_file() and "AuthenticAMD" in described.read_text()
    )


_jit = partial(numba.njit, cache=True, nogil=True, fastmath=True, error_model="numpy")


@_jit
def _transpose(out, waves):
    # eight rows at a time, so that whole cache lines are written
    number, rows, columns = waves.shape
    whole = rows - rows % 8
    for k in range(number):
        for i in range(0, whole, 8):
            a, b, c, d = waves[k, i], waves[k, i + 1], waves[k, i + 2], waves[k, i + 3]
            e, f, g, h = waves[k, i + 4], waves[k, i + 5], waves[k, i + 6], waves[k, i + 7]
            for j in range(columns):
                line = out[k, j]
                va, vb, vc, vd, ve, vf, vg, vh = a[j], b[j], c[j], d[j], e[j], f[j], g[j], h[j]
                line[i], line[i + 1], line[i + 2], line[i + 3] = va, vb, vc, vd
                line[i + 4], line[i + 5], line[i + 6], line[i + 7] = ve, vf, vg, vh
        for i in range(whole, rows):
            for j in range(columns):
                out[k, j, i] = waves[k, i, j]


@_jit
def _transmit(waves, field, corner):
    modes, number, rows, columns = waves.shape
    for k in range(number):
        y, x = corner[k]
        for m in range(modes):
            for i in range(rows):
                line, patch = waves[m, k, i], field[y + i, x : x + columns]
                for j in range(columns):
                    line[j] *= patch[j]


@_jit
def _pull_back(phase, waves, adjoint, field, corner):
    # wave after wave, since the exit waves come from far and should stream
    modes, number, rows, columns = waves.shape
    for k in range(number):
        y, x = corner[k]
        for m in range(modes):
            for i in range(rows):
                wave, line, patch = waves[m, k, i], adjoint[m, k, i], field[y + i, x : x + columns]
                gain = phase[y + i, x : x + columns]
                for j in range(columns):
                    w, c = wave[j], line[j]
                    gain[j] -= w.real * c.imag + w.imag * c.real
                    line[j] = c * patch[j]


@_jit
def _absorb(absorption, waves, adjoint, corner):
    modes, number, rows, columns = waves.shape
    for k in range(number):
        y, x = corner[k]
        for m in range(modes):
            for i in range(rows):
                wave, line, gain = waves[m, k, i], adjoint[m, k, i], absorption[y + i, x : x + columns]
                for j in range(columns):
                    gain[j] -= wave[j].real * line[j].real - wave[j].imag * line[j].imag


@_jit
def _shift(out, spectrum, first, last):
    modes, number, rows, columns = out.shape
    for m in range(modes):
        for k in range(number):
            for i in range(rows):
                line, source, factor = out[m, k, i], spectrum[m, i], first[k, i]
                for j in range(columns):
                    line[j] = source[j] * (factor * last[k, j])


@_jit
def _collect(adjoint, spectrum, first, last, gradient, along_first, along_last):
    modes, number, rows, columns = adjoint.shape
    for k in range(number):
        sums = along_last[k]
        for m in range(modes):
            for i in range(rows):
                line, source, target, factor = adjoint[m, k, i], spectrum[m, i], gradient[m, i], first[k, i]
                total = np.float32(0.0)
                for j in range(columns):
                    c = line[j] * (factor * last[k, j])
                    target[j] += c
                    overlap = c.real * source[j].imag + c.imag * source[j].real
                    sums[j] += overlap
                    total += overlap
                along_first[k, i] += total


@_jit
def _intensity(out, far, scale):
    modes, number, rows, columns = far.shape
    for k in range(number):
        for i in range(rows):
            line = out[k, i]
            line[:] = 0
            for m in range(modes):
                wave = far[m, k, i]
                for j in range(columns):
                    line[j] += scale * (wave[j].real * wave[j].real + wave[j].imag * wave[j].imag)


@_jit
def _conjugate(far, weight):
    modes, number, rows, columns = far.shape
    for m in range(modes):
        for k in range(number):
            for i in range(rows):
                line, factor = far[m, k, i], weight[k, i]
                for j in range(columns):
                    line[j] = factor[j] * line[j].conjugate()


class CompiledPasses(Passes):
    """Passes of one batch, complex64."""

    def __init__(
        self,
        field: Tensor,
        corner: Tensor,
        window: Sequence[int],
        phase: Tensor | None = None,
        absorption: Tensor | None = None,
    ) -> None:
        super().__init__(field, corner, window, phase, absorption)
        self._field, self._corners = field.numpy(), corner.numpy()
        self.turned = all(n in FASTER_BY_ROWS for n in window) and _rows_are_faster()
        self._scratch: dict[torch.Size, Tensor] = {}

    def start(self, part: slice) -> None:
        self._corner = self._corners[part]

    def transmit_(self, s: int, wave: Tensor) -> Tensor:
        _transmit(wave.numpy(), self._field[s], self._corner)
        return wave

    def pull_back_(self, s: int, exit_wave: Tensor, adjoint: Tensor) -> Tensor:
        wave, line = exit_wave.numpy(), adjoint.numpy()
        if self.absorption is not None:
            _absorb(self.absorption[s].numpy(), wave, line, self._corner)
        if self.phase is None:
            _transmit(line, self._field[s], self._corner)
        else:
            _pull_back(self.phase[s].numpy(), wave, line, self._field[s], self._corner)
        return adjoint

    def finish(self) -> None:
        pass  # gradients were added slice by slice

    def _turn(self, waves: Tensor) -> Tensor:
        out = self._scratch.get(waves.shape)
        if out is None:
            out = self._scratch[waves.shape] = waves.new_empty(*waves.shape[:-2], *waves.shape[:-3:-1])
        rows, columns = waves.shape[-2:]
        # as floats of the same width, which move faster than pairs
        source, target = waves.numpy().view(np.float64), out.numpy().view(np.float64)
        _transpose(target.reshape(-1, columns, rows), source.reshape(-1, rows, columns))
        return out

    def to_fourier(self, wave: Tensor) -> Tensor:
        return fft(self._turn(fft(wave))) if self.turned else super().to_fourier(wave)

    def to_real(self, spectrum: Tensor) -> Tensor:
        if not self.turned:
            return super().to_real(spectrum)
        return ifft(self._turn(ifft(spectrum, norm="forward")), norm="forward")

    def shift(self, spectrum: Tensor, lines: Lines) -> Tensor:
        out = spectrum.new_empty(len(spectrum), len(lines[0]), *spectrum.shape[1:])
        _shift(out.numpy(), spectrum.numpy(), lines[0].numpy(), lines[1].numpy())
        return out

    def collect(self, adjoint: Tensor, spectrum: Tensor, lines: Lines, gradient: Tensor) -> Lines:
        first, last = (torch.zeros_like(line.real) for line in lines)
        arrays = (x.numpy() for x in (adjoint, spectrum, *lines, gradient, first, last))
        _collect(*arrays)
        return first, last

    def intensity(self, far: Tensor, scale: float) -> Tensor:
        out = torch.empty(far.shape[1:], dtype=far.real.dtype)
        _intensity(out.numpy(), far.numpy(), np.float32(scale))
        return out

    def conjugate_(self, far: Tensor, weight: Tensor) -> Tensor:
        _conjugate(far.numpy(), weight.contiguous().numpy())
        return far
