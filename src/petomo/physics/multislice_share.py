"""A share of a batch on its way through the slices and back (paper Eq. 6-10, 18, 19); see `multislice`.

The propagation behind the last slice is left out, since it only changes phases on the detector.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fft import fft2, ifft2

from petomo.physics.fourier import phase_line
from petomo.physics.passes import Lines, Passes, choose_passes


class Bench:
    """What one thread needs to send its patterns through the field, and the gradients it finds."""

    def __init__(self, field, corner, probe, fraction, optics, wants=(False,) * 4) -> None:
        self.slices, self.scale = len(field), 1.0 / (probe.shape[-2] * probe.shape[-1])
        self.want_object, self.want_illumination = any(wants[:2]), any(wants[2:4])
        self.gains = [torch.zeros_like(field.real) if wanted else None for wanted in wants[:2]]
        self.passes = choose_passes(probe)(field, corner, probe.shape[-2:], *self.gains)
        entrance = optics.entrance(self.slices, probe) * self.scale
        self.illumination = Illumination(probe, fraction, entrance, self.passes)
        propagator = optics.propagator(probe) * self.scale  # carries the 1/N of an unscaled inverse FFT
        self.propagator = propagator.mT.contiguous() if self.passes.turned else propagator
        self.count = len(corner)

    def chunks(self, size: int) -> list[slice]:
        """Its patterns, ``size`` at a time."""
        return [slice(start, start + size) for start in range(0, self.count, size)]

    def intensity(self, part: slice) -> Tensor:
        """Model intensities ``(k, y, x)`` of the patterns ``part``."""
        (last,) = deque(self._exit_waves(part), maxlen=1)
        return self._detected(last)[0]

    def _exit_waves(self, part: slice) -> Iterator[Tensor]:
        """Wave behind each slice ``(mode, k, y, x)``."""
        passes = self.passes
        passes.start(part)
        wave = passes.transmit_(0, passes.to_real(self.illumination.shifted(part)))
        yield wave
        for s in range(1, self.slices):
            wave = passes.transmit_(s, passes.to_real(passes.to_fourier(wave).mul_(self.propagator)))
            yield wave

    def _detected(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Intensity and wave on the detector."""
        far = fft2(wave)  # sqrt(N) times the unitary transform
        return self.passes.intensity(far, self.scale), far

    def visit(self, part: slice, measured: Tensor, loss) -> Tensor:
        """Loss of the patterns ``part``; adds to the gradients."""
        waves = list(self._exit_waves(part))
        intensity, far = self._detected(waves[-1])
        value, weight = loss(intensity, measured)
        if self.want_object or self.want_illumination:
            # the conjugate of the adjoint wave is carried: with it no factor need be conjugated
            adjoint = fft2(self.passes.conjugate_(far, weight.mul(2 * self.scale)))
            adjoint = self._pull_back(waves, adjoint)
            self.passes.finish()
            if self.want_illumination:
                self.illumination.collect(part, adjoint)
        return value

    def _pull_back(self, waves: list[Tensor], adjoint: Tensor) -> Tensor:
        """Conjugate adjoint wave before the first slice; uses up the waves."""
        for s in range(len(waves) - 1, -1, -1):
            adjoint = self.passes.pull_back_(s, waves.pop(), adjoint)
            if s:
                adjoint = self.passes.to_fourier(self.passes.to_real(adjoint).mul_(self.propagator))
        return adjoint


class Illumination:
    """The probe moved to every position, and the gradients of both."""

    def __init__(self, probe: Tensor, fraction: Tensor, entrance: Tensor, passes: Passes) -> None:
        spectrum = fft2(probe) * entrance
        self.spectrum = spectrum.mT.contiguous() if passes.turned else spectrum
        self.fraction = fraction.to(probe.real.dtype)
        self.entrance, self.passes = entrance, passes
        self.gradient, self.positions = torch.zeros_like(self.spectrum), torch.zeros_like(self.fraction)
        # which of the positions' columns (x, y) belongs to the last but one and to the last axis
        self.axes = (0, 1) if passes.turned else (1, 0)

    def _lines(self, part: slice) -> Lines:
        rows, columns = self.spectrum.shape[-2:]
        first, last = self.axes
        return phase_line(self.fraction[part, first], rows), phase_line(self.fraction[part, last], columns)

    def shifted(self, part: slice) -> Tensor:
        """Spectra of the patterns ``part``."""
        return self.passes.shift(self.spectrum, self._lines(part))

    def collect(self, part: slice, adjoint: Tensor) -> None:
        """Add what the conjugate adjoint wave before the first slice means to probe and positions."""
        adjoint = self.passes.to_real(adjoint)
        sums = self.passes.collect(adjoint, self.spectrum, self._lines(part), self.gradient)
        for axis, along in zip(self.axes, sums, strict=True):
            q = torch.fft.fftfreq(along.shape[-1], dtype=along.dtype, device=along.device)
            self.positions[part, axis] = along @ (2 * math.pi * q)

    def probe_gradient(self) -> Tensor:
        """Of ``spectrum = fft2(probe) * entrance``, in real space."""
        # the adjoint of the unscaled fft2 is its unscaled inverse
        gradient = self.gradient.mT if self.passes.turned else self.gradient
        return ifft2(torch.conj_physical(gradient * self.entrance), norm="forward")
