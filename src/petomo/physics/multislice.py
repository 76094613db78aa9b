"""Multislice diffraction of mixed-state probes and its hand-written gradient (paper Eq. 4-10, 18, 19).

The gradient holds the waves of a small chunk of patterns at a time, never of a batch; the transmission
functions are computed once per batch for the whole field, and the propagation behind the last slice is
left out, since it only changes phases on the detector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fft import fft2, ifft2

from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.physics.fourier import phase_line, phase_ramp
from petomo.physics.passes import Lines, Passes, choose_passes
from petomo.physics.patches import corners, crop, required_margin, split_positions
from petomo.physics.propagation import fresnel

#: ``loss(intensity, measured) -> (value per pattern, d value / d intensity)``, over ``(k, ky, kx)``.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MultisliceOptics:
    """What the electron does between slices.

    Parameters
    ----------
    window : Grid
        Grid of the probe, ``y x``.
    energy_ev : float
        Beam energy.
    thickness : float
        Slice thickness in angstrom.
    band_limit : float, optional
        Share of Nyquist kept by the propagator, see `petomo.physics.propagation.fresnel`.
    """

    window: Grid
    energy_ev: float
    thickness: float
    band_limit: float | None = None

    def propagator(self, like: Tensor) -> Tensor:
        """From one slice to the next, complex, FFT order."""
        kernel = fresnel(self.window, wavelength(self.energy_ev), self.thickness, self.band_limit)
        return kernel.to(like.device, like.dtype)

    def entrance(self, slices: int, like: Tensor) -> Tensor:
        """From the plane z = 0, where probes are kept, to the first of ``slices``."""
        distance = -(slices - 1) / 2 * self.thickness
        kernel = fresnel(self.window, wavelength(self.energy_ev), distance)
        return kernel.to(like.device, like.dtype)


def transmission(phase: Tensor, absorption: Tensor | None = None) -> Tensor:
    """``exp(i (phase + i absorption))`` (paper Eq. 5), phase = sigma V dz in radian.

    Cosine and sine are taken apart because the complex exponential is several times slower on a CPU.
    """
    amplitude = torch.ones_like(phase) if absorption is None else torch.exp(-absorption)
    return torch.complex(amplitude * torch.cos(phase), amplitude * torch.sin(phase))


def default_chunk(window: Sequence[int], threads: int | None = None) -> int:
    """Patterns whose waves still fit the cache: 16 at 64 x 64 on one thread, twice that on two."""
    threads = threads or torch.get_num_threads()
    return max(1, round(16 * 4096 / (window[0] * window[1]))) * min(2, max(1, threads))


def _field(stack: Tensor, corner: Tensor, window: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Grow a transmission stack by vacuum so that every patch lies inside."""
    left, right, top, bottom = required_margin(corner, stack.shape[-2:], window)
    if left or right or top or bottom:
        stack = torch.nn.functional.pad(stack, (left, right, top, bottom), value=1.0)
        corner = corner + torch.tensor([top, left], device=corner.device)
    return stack, corner, (top, left)


def diffract(
    phase: Tensor, absorption: Tensor | None, probe: Tensor, positions: Tensor, optics: MultisliceOptics
) -> Tensor:
    """Model intensities ``(k, ky, kx)`` in FFT order (paper Eq. 6-10); plain forward pass, no gradient kept.

    Parameters
    ----------
    phase, absorption : Tensor
        Slices ``(slice, y, x)`` in radian, optical axis at ``n // 2``; absorption may be None.
    probe : Tensor
        Modes ``(mode, y, x)`` at the plane z = 0, real space, centred.
    positions : Tensor
        ``(k, 2)`` as (x, y) in pixels from the optical axis.
    optics : MultisliceOptics
        Window, energy and slice thickness.
    """
    window = probe.shape[-2:]
    whole, fraction = split_positions(positions)
    corner = corners(whole, phase.shape[-2:], window)
    field, corner, _ = _field(transmission(phase, absorption), corner, window)
    spectrum = fft2(probe) * optics.entrance(len(phase), probe)
    propagator = optics.propagator(probe)
    out = []
    for part in torch.arange(len(positions), device=positions.device).split(default_chunk(window)):
        patches = crop(field, corner[part], window)[:, :, None]
        wave = ifft2(spectrum * phase_ramp(fraction[part], window, probe.real.dtype)[:, None]) * patches[0]
        for patch in patches[1:]:
            wave = ifft2(fft2(wave) * propagator) * patch
        far = fft2(wave, norm="ortho")
        out.append((far.real.square() + far.imag.square()).sum(1))
    return torch.cat(out)


class _MultisliceLoss(torch.autograd.Function):
    """Loss of a batch; the forward pass leaves all gradients behind (Eq. 18, 19)."""

    @staticmethod
    def forward(ctx, phase, absorption, probe, positions, measured, optics, loss, chunk):
        wants = ctx.needs_input_grad
        values, grads = _value_and_gradients(
            phase, absorption, probe, positions, measured, optics, loss, chunk, wants
        )
        ctx.save_for_backward(*grads)
        return values.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # pyright: ignore[reportIncompatibleMethodOverride]
        grads = [g * upstream if g is not None else None for g in ctx.saved_tensors]
        return (*grads, None, None, None, None)


def multislice_loss(
    phase: Tensor,
    absorption: Tensor | None,
    probe: Tensor,
    positions: Tensor,
    measured: Tensor,
    optics: MultisliceOptics,
    loss: Loss,
    chunk: int | None = None,
) -> Tensor:
    """Loss of a batch of patterns, summed, with hand-written gradients (paper Eq. 18, 19).

    Differentiable once with respect to phase, absorption, probe and positions. Parameters as in
    `diffract`; ``measured`` holds electrons in FFT order, ``loss`` is one of
    `petomo.objectives.losses`, ``chunk`` the number of patterns whose waves are held at a time.
    """
    chunk = chunk or default_chunk(probe.shape[-2:])
    return _MultisliceLoss.apply(phase, absorption, probe, positions, measured, optics, loss, chunk)  # pyright: ignore


def _value_and_gradients(phase, absorption, probe, positions, measured, optics, loss, chunk, wants):
    """Loss of each pattern, and gradients where wanted, else None."""
    want_object, want_illumination = any(wants[:2]), any(wants[2:4])
    window, scale = probe.shape[-2:], 1.0 / (probe.shape[-2] * probe.shape[-1])
    whole, fraction = split_positions(positions.detach())
    field, corner, (top, left) = _field(
        transmission(phase, absorption), corners(whole, phase.shape[-2:], window), window
    )
    gains = [torch.zeros_like(field.real) if wanted else None for wanted in wants[:2]]
    passes = choose_passes(probe)(field, corner, window, *gains)
    illumination = _Illumination(probe, fraction, optics.entrance(len(phase), probe) * scale, passes)
    propagator = optics.propagator(probe) * scale  # carries the 1/N of an unscaled inverse FFT
    propagator = propagator.mT.contiguous() if passes.turned else propagator
    values = []
    for start in range(0, len(positions), chunk):
        part = slice(start, start + chunk)
        passes.start(part)
        waves = _exit_waves(passes, illumination.shifted(part), propagator, len(phase))
        far = fft2(waves[-1])  # sqrt(N) times the unitary transform
        value, weight = loss(passes.intensity(far, scale), measured[part])
        values.append(value)
        if want_object or want_illumination:
            # the conjugate of the adjoint wave is carried: with it no factor need be conjugated
            adjoint = fft2(passes.conjugate_(far, weight.mul(2 * scale)))
            adjoint = _pull_back(passes, waves, adjoint, propagator)
            passes.finish()
        if want_illumination:
            illumination.collect(part, adjoint)
    inside = (..., slice(top, top + phase.shape[1]), slice(left, left + phase.shape[2]))
    grads = [gain[inside] if gain is not None else None for gain in gains]
    grads += [illumination.probe_gradient() if wants[2] else None]
    grads += [illumination.positions.to(positions.dtype) if wants[3] else None]
    return torch.cat(values), grads


def _exit_waves(passes: Passes, spectrum: Tensor, propagator: Tensor, slices: int) -> list[Tensor]:
    """Wave behind each slice ``(mode, k, y, x)``."""
    waves = [passes.transmit_(0, passes.to_real(spectrum))]
    for s in range(1, slices):
        wave = passes.to_real(passes.to_fourier(waves[-1]).mul_(propagator))
        waves.append(passes.transmit_(s, wave))
    return waves


def _pull_back(passes: Passes, waves: list[Tensor], adjoint: Tensor, propagator: Tensor) -> Tensor:
    """Conjugate adjoint wave before the first slice; uses up the waves."""
    for s in range(len(waves) - 1, -1, -1):
        adjoint = passes.pull_back_(s, waves.pop(), adjoint)
        if s:
            adjoint = passes.to_fourier(passes.to_real(adjoint).mul_(propagator))
    return adjoint


class _Illumination:
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
