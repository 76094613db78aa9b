"""A share of a batch on its way through the slices and back, one wave at a time, compiled by numba.

For single precision on a processor with MKL. A wave stays in the core's nearest cache from its transform
to the slice behind it; patches are read from the field itself and gradients added to it, so that neither is
copied. A pattern is compared with the measured one and goes back at once, while its waves are in the next
cache. numba is optional and needs no compiler; what it makes is kept beside this file, or else in the user's
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
from petomo.physics.waves import (
    absorb,
    collect,
    conjugate,
    detect,
    fft,
    fft_to,
    ifft,
    overlook,
    propagate,
    propagate_back,
    pull_back,
    shift,
    transmit,
    weigh_amplitude,
    weigh_poisson,
)

#: sides of windows that MKL's own 2D transforms are slower at on AMD's processors, see docs/studies/speed.md
FASTER_BY_ROWS = (64, 256, 512, 1024)

#: pixels of the waves that go through a slice together, whose patch then stays in the cache as well
NEAR = 1 << 16

#: patterns between two looks at the interpreter: for interrupts and other threads
PATTERNS_A_CALL = 64

_NOTHING = np.empty((0, 0, 0), np.float32)


@lru_cache
def _rows_are_faster() -> bool:
    """Whether this is one of the processors that MKL does not do its best on."""
    described = Path("/proc/cpuinfo")
    return described.is_file() and "AuthenticAMD" in described.read_text()


@inlined
def _forth(waves, intensity, spectrum, first, last, field, y, x, way, scale):
    """Intensity of one pattern; keeps as many exit waves of each mode as there is room for."""
    (exits, far), (propagator, spare, plan, group) = waves, way
    modes, kept = exits.shape[:2]
    intensity[:] = 0
    for start in range(0, modes, group):
        some = range(start, min(start + group, modes))
        for m in some:
            shift(exits[m, 0], spectrum[m], first, last)
            ifft(plan[0], exits[m, 0])
            transmit(exits[m, 0], field[0], y, x)
        for s in range(1, len(field)):
            for m in some:
                wave, out = exits[m, (s - 1) % kept], exits[m, s % kept]
                propagate(out, wave, spare, propagator, plan)
                transmit(out, field[s], y, x)
        for m in some:
            fft_to(plan[1], exits[m, (len(field) - 1) % kept], far[m])
            detect(intensity, far[m], scale)


@inlined
def _back(waves, weight, field, y, x, way, gains):
    """Adds to the object's gradients that are not empty; the far waves become those before the first slice.

    Those are conjugate adjoint waves, because then no factor on the way need be conjugated.
    """
    (exits, far), (propagator, spare, plan, group), (phase, absorption) = waves, way, gains
    modes, kept = exits.shape[:2]
    for start in range(0, modes, group):
        some = range(start, min(start + group, modes))
        for m in some:
            conjugate(far[m], weight)
            fft(plan[0], far[m])
        for s in range(len(field) - 1, -1, -1):
            for m in some:
                adjoint, wave = far[m], exits[m, s % kept]
                if absorption.size:
                    absorb(absorption[s], adjoint, wave, y, x)
                if phase.size:
                    pull_back(phase[s], adjoint, wave, field[s], y, x)
                else:
                    transmit(adjoint, field[s], y, x)
                if s:
                    propagate_back(adjoint, spare, propagator, plan)


@jit
def _image(intensities, waves, ground, light, way, scale):
    """Intensities of some patterns."""
    (field, corner), (spectrum, down, across) = ground, light
    for k in range(len(corner)):
        y, x = corner[k]
        _forth(waves, intensities[k], spectrum, down[k], across[k], field, y, x, way, scale)


@jit
def _visit(values, waves, intensity, measured, loss, ground, light, way, scale, gains, shares):
    """Losses of some patterns; adds to the gradients that are not empty, one pattern after the other."""
    (field, corner), (spectrum, down, across) = ground, light
    (poisson, epsilon, mask, weight), (gradient, along_down, along_across) = loss, shares
    for k in range(len(corner)):
        y, x = corner[k]
        _forth(waves, intensity, spectrum, down[k], across[k], field, y, x, way, scale)
        overlook(intensity, measured[k], mask)
        if poisson:
            values[k] = weigh_poisson(intensity, measured[k], epsilon, weight)
        else:
            values[k] = weigh_amplitude(intensity, measured[k], epsilon, weight)
        if gains[0].size or gains[1].size or gradient.size:
            _back(waves, intensity, field, y, x, way, gains)
        for m in range(len(gradient)):
            wave = waves[1][m]
            ifft(way[2][0], wave)
            collect(wave, spectrum[m], down[k], across[k], gradient[m], along_down[k], along_across[k])


def _aligned(*shape: int) -> np.ndarray:
    """Empty complex64 at the start of a cache line, where MKL takes three quarters of the time."""
    return torch.empty(shape, dtype=torch.complex64).numpy()


class FusedBench(Bench):
    """`Bench` for complex64 on a processor with MKL and the losses of `FORMULAS`."""

    def __init__(self, field, corner, probe, fraction, optics, wants=(False,) * 4) -> None:
        super().__init__(field, corner, probe, fraction, optics, wants)
        by_rows = all(n in FASTER_BY_ROWS for n in self.window) and _rows_are_faster()
        propagator = self.propagator.mT if by_rows else self.propagator
        group = max(1, NEAR // propagator.numel())
        spare = _aligned(*propagator.shape)
        self._way = propagator.contiguous().numpy(), spare, mkl.plan(*self.window, by_rows), group
        kept = len(field) if self.want_object else min(2, len(field))
        self._waves = _aligned(len(probe), kept, *self.window), _aligned(*probe.shape)
        self._gains = tuple(_NOTHING if gain is None else gain.numpy() for gain in self.gains)

    def chunks(self, size: int) -> list[slice]:
        """Its patterns, many at a time: the waves of one are held, whatever their number."""
        return super().chunks(max(size, PATTERNS_A_CALL))

    def intensity(self, part: slice) -> Tensor:
        """Model intensities ``(k, y, x)`` of the patterns ``part``."""
        ground, light = self._place(part)
        intensity = torch.empty(len(ground[1]), *self.window)
        _image(intensity.numpy(), self._waves, ground, light, self._way, np.float32(self.scale))
        return intensity

    def visit(self, part: slice, measured: Tensor, loss) -> Tensor:
        """Loss of the patterns ``part``; adds to the gradients."""
        ground, light = self._place(part)
        values, intensity = torch.empty(len(ground[1])), np.empty(self.window, np.float32)
        counts = measured.to(values.dtype).contiguous().numpy()
        mask = torch.empty(0, 0, dtype=torch.bool) if loss.mask is None else loss.mask.contiguous()
        scale, weight, epsilon = (np.float32(x) for x in (self.scale, 2 * self.scale, loss.epsilon))
        formula = loss.formula == "poisson", epsilon, mask.numpy(), weight
        gradient = self.spectrum_gain if self.want_illumination else self.spectrum_gain[:0]
        shares = gradient.numpy(), *(overlap[part].numpy() for overlap in self.overlaps)
        given = self._waves, intensity, counts, formula, ground, light, self._way, scale
        _visit(values.numpy(), *given, self._gains, shares)
        return values

    def _place(self, part: slice) -> tuple[tuple, tuple]:
        """Field and corners, and the probe's spectrum with the factors that move it."""
        down, across = (line[part].numpy() for line in self.lines)
        return (self.field.numpy(), self.corner[part].numpy()), (self.spectrum.numpy(), down, across)
