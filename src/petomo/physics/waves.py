"""What is done to one wave on its way through the slices and back, compiled into `petomo.physics.fused`.

Waves are complex64 ``(y, x)`` and changed in place. A condition inside a loop, even one that never changes,
costs a sixth of a pass.
"""

from __future__ import annotations

import numpy as np

from petomo.physics import mkl
from petomo.physics.jit import inlined
from petomo.physics.vectors import WIDTH, multiply_at, subtract_imaginary_at

_dft, _inverse_dft = mkl.forward, mkl.backward


@inlined
def fft(handle, wave):
    """Unscaled transform, in place."""
    _dft(handle, wave.ctypes.data, wave.ctypes.data)


@inlined
def fft_to(handle, wave, out):
    """Unscaled transform from one wave to another."""
    _dft(handle, wave.ctypes.data, out.ctypes.data)


@inlined
def ifft(handle, wave):
    """Unscaled inverse transform, in place."""
    _inverse_dft(handle, wave.ctypes.data, wave.ctypes.data)


@inlined
def transpose(out, wave):
    """``out[j, i] = wave[i, j]``."""
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
def transmit(wave, field, y, x):
    """Times the patch of the field whose corner is (y, x)."""
    # row by row, since the compiler knows of these that they are contiguous
    rows, columns = wave.shape
    whole = columns - columns % WIDTH
    for i in range(rows):
        line, factor = wave[i], field[y + i, x : x + columns]
        for j in range(0, whole, WIDTH):
            multiply_at(line, factor, j)
        for j in range(whole, columns):
            line[j] *= factor[j]


@inlined
def multiply(wave, factors):
    """Times factors on the same grid."""
    transmit(wave, factors, 0, 0)


@inlined
def shift(wave, spectrum, first, last):
    """The spectrum of the probe times a factor for each row and each column."""
    for i in range(wave.shape[0]):
        line, source, factor = wave[i], spectrum[i], first[i]
        for j in range(wave.shape[1]):
            line[j] = source[j] * (factor * last[j])


@inlined
def propagate(out, wave, spare, propagator, plan):
    """To the next slice; by rows the propagator is transposed."""
    whole, apart, rows, columns = plan
    if not rows:
        fft_to(apart, wave, out)
        multiply(out, propagator)
        ifft(whole, out)
        return
    out[:] = wave
    fft(rows, out)
    transpose(spare, out)
    fft(columns, spare)
    multiply(spare, propagator)
    ifft(columns, spare)
    transpose(out, spare)
    ifft(rows, out)


@inlined
def propagate_back(adjoint, spare, propagator, plan):
    """The conjugate adjoint wave to the slice before, in place."""
    whole, _, rows, columns = plan
    if not rows:
        ifft(whole, adjoint)
        multiply(adjoint, propagator)
        fft(whole, adjoint)
        return
    ifft(rows, adjoint)
    transpose(spare, adjoint)
    ifft(columns, spare)
    multiply(spare, propagator)
    fft(columns, spare)
    transpose(adjoint, spare)
    fft(rows, adjoint)


@inlined
def detect(intensity, far, scale):
    """Add the intensity of a mode."""
    for i in range(far.shape[0]):
        line, wave = intensity[i], far[i]
        for j in range(far.shape[1]):
            line[j] += scale * (wave[j].real * wave[j].real + wave[j].imag * wave[j].imag)


@inlined
def conjugate(far, weight):
    """The conjugate adjoint of `detect`."""
    for i in range(far.shape[0]):
        line, factor = far[i], weight[i]
        for j in range(far.shape[1]):
            line[j] = factor[j] * line[j].conjugate()


@inlined
def absorb(absorption, adjoint, wave, y, x):
    """Add to the gradient of the absorption in the patch at (y, x)."""
    rows, columns = wave.shape
    for i in range(rows):
        line, exit_wave, gain = adjoint[i], wave[i], absorption[y + i, x : x + columns]
        for j in range(columns):
            w, c = exit_wave[j], line[j]
            gain[j] -= w.real * c.real - w.imag * c.imag


@inlined
def pull_back(phase, adjoint, wave, field, y, x):
    """Add to the gradient of the phase, and take the adjoint wave to before the slice."""
    rows, columns = wave.shape
    whole = columns - columns % WIDTH
    for i in range(rows):
        line, exit_wave = adjoint[i], wave[i]
        gain, factor = phase[y + i, x : x + columns], field[y + i, x : x + columns]
        for j in range(0, whole, WIDTH):
            subtract_imaginary_at(gain, exit_wave, line, j)
            multiply_at(line, factor, j)
        for j in range(whole, columns):
            w, c = exit_wave[j], line[j]
            gain[j] -= w.real * c.imag + w.imag * c.real
            line[j] = c * factor[j]


@inlined
def collect(adjoint, spectrum, first, last, gradient, along_first, along_last):
    """Adjoint of `shift`, and the overlap summed to both axes."""
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


@inlined
def overlook(intensity, measured, mask):
    """Where nothing was measured the model is right."""
    for i in range(mask.shape[0]):
        line, counts, seen = intensity[i], measured[i], mask[i]
        for j in range(mask.shape[1]):
            if not seen[j]:
                line[j] = counts[j]


@inlined
def weigh_amplitude(intensity, measured, epsilon, scale):
    """`petomo.objectives.losses.Amplitude`; its derivative times ``scale`` replaces the intensity."""
    value = 0.0
    for i in range(intensity.shape[0]):
        line, counts, total = intensity[i], measured[i], np.float32(0.0)
        for j in range(intensity.shape[1]):
            model = np.sqrt(line[j] + epsilon)
            residual = model - np.sqrt(counts[j] + epsilon)
            total += residual * residual
            line[j] = scale * residual / model
        value += total
    return value


@inlined
def weigh_poisson(intensity, measured, epsilon, scale):
    """`petomo.objectives.losses.Poisson`, likewise."""
    one, value = np.float32(1.0), 0.0
    for i in range(intensity.shape[0]):
        line, counts, total = intensity[i], measured[i], np.float32(0.0)
        for j in range(intensity.shape[1]):
            model, data = line[j] + epsilon, counts[j] + epsilon
            share = data / model
            total += model - data + data * np.log(share)
            line[j] = scale * (one - share)
        value += total
    # near the truth a difference of logarithms rounds below zero
    return max(value, 0.0)
