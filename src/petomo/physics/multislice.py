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
from petomo.physics.fourier import phase_ramp
from petomo.physics.patches import corners, crop, required_margin, scatter_add_, split_positions
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
    want_phase, want_absorption, want_probe, want_positions = wants[:4]
    want_object, want_illumination = want_phase or want_absorption, want_probe or want_positions
    window, slices = probe.shape[-2:], len(phase)
    scale = 1.0 / (window[0] * window[1])
    whole, fraction = split_positions(positions)
    transmitted = transmission(phase, absorption)
    field, corner, (top, left) = _field(transmitted, corners(whole, phase.shape[-2:], window), window)
    propagator = optics.propagator(probe) * scale  # carries the 1/N of an unscaled inverse FFT
    entrance = optics.entrance(slices, probe) * scale
    spectrum = fft2(probe) * entrance
    qy, qx = (torch.fft.fftfreq(n, dtype=phase.dtype, device=phase.device) * 2 * math.pi for n in window)
    grad_field = torch.zeros_like(field) if want_object else None
    grad_spectrum = torch.zeros_like(spectrum)
    grad_positions = torch.zeros(len(positions), 2, dtype=phase.dtype, device=phase.device)
    values = []
    for start in range(0, len(positions), chunk):
        part = slice(start, start + chunk)
        patches = crop(field, corner[part], window).unsqueeze(2)
        ramp = phase_ramp(fraction[part], window, probe.real.dtype)[:, None]
        shifted = spectrum * ramp
        waves = [ifft2(shifted, norm="forward")]
        exit_wave = waves[0] * patches[0]
        for s in range(1, slices):
            waves.append(ifft2(fft2(exit_wave).mul_(propagator), norm="forward"))
            torch.mul(waves[s], patches[s], out=exit_wave)
        far = fft2(exit_wave)  # sqrt(N) times the unitary transform
        re, im = far.real, far.imag
        value, weight = loss(torch.mul(re, re).addcmul_(im, im).sum(1).mul_(scale), measured[part])
        values.append(value)
        if not (want_object or want_illumination):
            continue
        # c is the conjugate of the adjoint wave: with it no conjugation is needed in the loop
        factor = weight.mul(2 * scale).to(probe.dtype).unsqueeze(1)
        c = fft2(torch.conj_physical(far).mul_(factor))
        for s in range(slices - 1, -1, -1):
            if grad_field is not None:
                scatter_add_(grad_field[s : s + 1], (waves[s] * c).sum(1)[None], corner[part])
            c.mul_(patches[s])
            if s:
                c = fft2(ifft2(c, norm="forward").mul_(propagator))
        if want_illumination:
            c = ifft2(c, norm="forward")
            overlap = (c * shifted).sum(1).imag
            grad_positions[part, 0] = overlap.sum(1) @ qx
            grad_positions[part, 1] = overlap.sum(2) @ qy
            grad_spectrum += c.mul_(ramp).sum(0)
    grads: list[Tensor | None] = [None, None, None, None]
    if grad_field is not None:
        inner = grad_field[:, top : top + phase.shape[1], left : left + phase.shape[2]] * transmitted
        grads[0] = -inner.imag if want_phase else None
        grads[1] = -inner.real if want_absorption else None
    if want_probe:
        # spectrum = fft2(probe) * entrance; adjoint of the unscaled fft2 is the unscaled inverse
        grads[2] = ifft2(torch.conj_physical(grad_spectrum * entrance), norm="forward")
    if want_positions:
        grads[3] = grad_positions.to(positions.dtype)
    return torch.cat(values), grads
