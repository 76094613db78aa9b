"""A share of a batch on its way through the slices and back, one wave at a time, compiled by numba.

For single precision on a processor with MKL. A wave stays in the core's nearest cache from its transform
to the slice behind it; patches are read from the field itself and gradients added to it, so that neither is
copied. numba is optional and needs no compiler; what it makes is kept beside this file, or else in the user's
cache folder.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petomo.physics import mkl
from petomo.physics.jit import inlined, jit
from petomo.physics.multislice_share import Bench

#: sides of windows that MKL's own 2D transforms are slower at on AMD's processors, see docs/studies/speed.md
FASTER_BY_ROWS = (64, 256, 512, 1024)

#: pixels of the waves that go through a slice together, whose patch then stays in the cache as well
NEAR = 1 << 16

_dft, _inverse_dft = mkl.forward, mkl.backward


@lru_cache
def _rows_are_faster() -> bool:
    """Whether this is one of the processors that MKL does not do its best on."""
    described = Path("/proc/cpuinfo")
    return described.is_file() and "AuthenticAMD" in described.read_text()


@inlined
def _fft(handle, wave):
    _dft(handle, wave.ctypes.data, wave.ctypes.data)


@inlined
def _fft_to(handle, wave, out):
    _dft(handle, wave.ctypes.data, out.ctypes.data)


@inlined
def _ifft(handle, wave):
    _inverse_dft(handle, wave.ctypes.data, wave.ctypes.data)


@inlined
def _transpose(out, wave):
    # eight rows at a time, so that whole cache lines are written
    rows, columns = wave.shape
    whole = rows - rows % 8
    for i in range(0, whole, 8):
        a, b, c, d = wave[i], wave[i + 1], wave[i + 2], wave[i + 3]
        e, f, g, h = wave[i + 4], wave[i + 5], wave[i + 6], wave[i + 7]
        for j in range(columns):
            line = out[j]
            va, vb, vc, vd, ve, vf, vg, vh = a[j], b[j], c[j], d[j], e[j], f[j], g[j], h[j]
            line[i], line[i + 1], line[i + 2], line[i + 3] = va, vb, vc, vd
            line[i + 4], line[i + 5], line[i + 6], line[i + 7] = ve, vf, vg, vh
    for i in range(whole, rows):
        for j in range(columns):
            out[j, i] = wave[i, j]


@inlined
def _multiply(wave, factors):
    for i in range(wave.shape[0]):
        line, factor = wave[i], factors[i]
        for j in range(wave.shape[1]):
            line[j] *= factor[j]


@inlined
def _transmit(wave, field, y, x):
    # row by row, since the compiler knows of these that they are contiguous
    rows, columns = wave.shape
    for i in range(rows):
        line, factor = wave[i], field[y + i, x : x + columns]
        for j in range(columns):
            line[j] *= factor[j]


@inlined
def _shift(wave, spectrum, first, last):
    for i in range(wave.shape[0]):
        line, source, factor = wave[i], spectrum[i], first[i]
        for j in range(wave.shape[1]):
            line[j] = source[j] * (factor * last[j])


@inlined
def _propagate(out, wave, spare, propagator, plan):
    """To the next slice; by rows the propagator is transposed."""
    whole, apart, rows, columns = plan
    if not rows:
        _fft_to(apart, wave, out)
        _multiply(out, propagator)
        _ifft(whole, out)
        return
    out[:] = wave
    _fft(rows, out)
    _transpose(spare, out)
    _fft(columns, spare)
    _multiply(spare, propagator)
    _ifft(columns, spare)
    _transpose(out, spare)
    _ifft(rows, out)


@inlined
def _propagate_back(adjoint, spare, propagator, plan):
    """The conjugate adjoint wave to the slice before, in place."""
    whole, _, rows, columns = plan
    if not rows:
        _ifft(whole, adjoint)
        _multiply(adjoint, propagator)
        _fft(whole, adjoint)
        return
    _ifft(rows, adjoint)
    _transpose(spare, adjoint)
    _ifft(columns, spare)
    _multiply(spare, propagator)
    _fft(columns, spare)
    _transpose(adjoint, spare)
    _fft(rows, adjoint)


@inlined
def _detect(intensity, far, scale):
    for i in range(far.shape[0]):
        line, wave = intensity[i], far[i]
        for j in range(far.shape[1]):
            line[j] += scale * (wave[j].real * wave[j].real + wave[j].imag * wave[j].imag)


@inlined
def _conjugate(far, weight):
    for i in range(far.shape[0]):
        line, factor = far[i], weight[i]
        for j in range(far.shape[1]):
            line[j] = factor[j] * line[j].conjugate()


@inlined
def _absorb(absorption, adjoint, wave, y, x):
    rows, columns = wave.shape
    for i in range(rows):
        line, exit_wave, gain = adjoint[i], wave[i], absorption[y + i, x : x + columns]
        for j in range(columns):
            w, c = exit_wave[j], line[j]
            gain[j] -= w.real * c.real - w.imag * c.imag


@inlined
def _pull_back(phase, adjoint, wave, field, y, x):
    # two loops a row, which the compiler does better than one
    rows, columns = wave.shape
    for i in range(rows):
        line, exit_wave, gain = adjoint[i], wave[i], phase[y + i, x : x + columns]
        for j in range(columns):
            w, c = exit_wave[j], line[j]
            gain[j] -= w.real * c.imag + w.imag * c.real
        factor = field[y + i, x : x + columns]
        for j in range(columns):
            line[j] *= factor[j]


@inlined
def _collect(adjoint, spectrum, first, last, gradient, along_first, along_last):
    """Adjoint of `_shift`, and the overlap summed to both axes."""
    for i in range(adjoint.shape[0]):
        line, source, target, factor = adjoint[i], spectrum[i], gradient[i], first[i]
        total = np.float32(0.0)
        for j in range(adjoint.shape[1]):
            c = line[j] * (factor * last[j])
            target[j] += c
            overlap = c.real * source[j].imag + c.imag * source[j].real
            along_last[j] += overlap
            total += overlap
        along_first[i] += total


@jit
def _forward(
    exits, far, intensity, spectrum, first, last, field, corner, propagator, spare, plan, group, scale
):
    """Intensities of some patterns; keeps as many exit waves of each mode as there is room for."""
    number, modes, kept = exits.shape[:3]
    for k in range(number):
        y, x = corner[k]
        intensity[k] = 0
        for start in range(0, modes, group):
            some = range(start, min(start + group, modes))
            for m in some:
                _shift(exits[k, m, 0], spectrum[m], first[k], last[k])
                _ifft(plan[0], exits[k, m, 0])
                _transmit(exits[k, m, 0], field[0], y, x)
            for s in range(1, len(field)):
                for m in some:
                    wave, out = exits[k, m, (s - 1) % kept], exits[k, m, s % kept]
                    _propagate(out, wave, spare, propagator, plan)
                    _transmit(out, field[s], y, x)
            for m in some:
                _fft_to(plan[1], exits[k, m, (len(field) - 1) % kept], far[k, m])
                _detect(intensity[k], far[k, m], scale)


@jit
def _adjoint(exits, far, weight, field, corner, propagator, spare, plan, group, phase, absorption):
    """Adds to the object's gradients that are not empty; ``far`` becomes the waves before the first slice.

    Those are conjugate adjoint waves, because then no factor on the way need be conjugated.
    """
    number, modes = far.shape[:2]
    for k in range(number):
        y, x = corner[k]
        for start in range(0, modes, group):
            some = range(start, min(start + group, modes))
            for m in some:
                _conjugate(far[k, m], weight[k])
                _fft(plan[0], far[k, m])
            for s in range(len(field) - 1, -1, -1):
                for m in some:
                    adjoint, wave = far[k, m], exits[k, m, s]
                    if absorption.size:
                        _absorb(absorption[s], adjoint, wave, y, x)
                    if phase.size:
                        _pull_back(phase[s], adjoint, wave, field[s], y, x)
                    else:
                        _transmit(adjoint, field[s], y, x)
                    if s:
                        _propagate_back(adjoint, spare, propagator, plan)


@jit
def _illuminate(far, spectrum, first, last, gradient, along_first, along_last, plan):
    """Gradients of probe and positions from what `_adjoint` leaves, which is used up."""
    number, modes = far.shape[:2]
    for k in range(number):
        for m in range(modes):
            _ifft(plan[0], far[k, m])
            _collect(far[k, m], spectrum[m], first[k], last[k], gradient[m], along_first[k], along_last[k])


def _aligned(*shape: int) -> np.ndarray:
    """Empty complex64 at the start of a cache line, where MKL takes three quarters of the time."""
    return torch.empty(shape, dtype=torch.complex64).numpy()


class FusedBench(Bench):
    """`Bench` for complex64 on a processor with MKL."""

    def __init__(self, field, corner, probe, fraction, optics, wants=(False,) * 4) -> None:
        super().__init__(field, corner, probe, fraction, optics, wants)
        by_rows = all(n in FASTER_BY_ROWS for n in self.window) and _rows_are_faster()
        propagator = self.propagator.mT if by_rows else self.propagator
        group = max(1, NEAR // propagator.numel())
        spare = _aligned(*propagator.shape)
        self._way = propagator.contiguous().numpy(), spare, mkl.plan(*self.window, by_rows), group
        self._buffers = np.empty((0,) * 5, np.complex64), np.empty((0,) * 4, np.complex64)
        nothing = torch.empty(len(field), 0, 0)
        self._gains = [(nothing if gain is None else gain).numpy() for gain in self.gains]

    def _forward(self, part: slice, keep: bool) -> Tensor:
        down, across = (line[part].numpy() for line in self.lines)
        exits, far = self._room(len(down), len(self.field) if keep else min(2, len(self.field)))
        intensity = torch.empty(len(far), *self.window)
        ground = self.field.numpy(), self.corner[part].numpy()
        light = self.spectrum.numpy(), down, across
        _forward(exits, far, intensity.numpy(), *light, *ground, *self._way, np.float32(self.scale))
        self._waves = exits, far, ground, light
        return intensity

    def _room(self, number: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
        """For exit and far waves; the same for every chunk, since its memory is in the cache."""
        exits, far = self._buffers
        if exits.shape[2] != kept or len(exits) < number:
            modes = len(self.spectrum)
            exits = _aligned(number, modes, kept, *self.window)
            far = _aligned(number, modes, *self.window)
            self._buffers = exits, far
        return exits[:number], far[:number]

    def _adjoint(self, part: slice, weight: Tensor) -> None:
        exits, far, ground, light = self._waves
        _adjoint(exits, far, weight.contiguous().numpy(), *ground, *self._way, *self._gains)
        if self.want_illumination:
            down, across = (overlap[part].numpy() for overlap in self.overlaps)
            _illuminate(far, *light, self.spectrum_gain.numpy(), down, across, self._way[2])
