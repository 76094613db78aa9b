"""Multislice diffraction of mixed-state probes and its hand-written gradient (paper Eq. 4-10, 18, 19).

The gradient holds the waves of a small chunk of patterns at a time, never of a batch; the transmission
functions are computed once per batch for the whole field, and the propagation behind the last slice is
left out, since it only changes phases on the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fft import fft2, ifft2

from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.core.threads import shares, spread
from petomo.physics.fourier import phase_ramp
from petomo.physics.multislice_share import Bench, choose_bench
from petomo.physics.patches import corners, crop, required_margin, split_positions
from petomo.physics.propagation import fresnel

#: ``loss(intensity, measured) -> (value per pattern, d value / d intensity)``, over ``(k, ky, kx)``.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: Phase and, if modelled, absorption, both ``(slice, y, x)`` in radian.
Slices = tuple[Tensor, Tensor | None]


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
        return _kernel(self.window, self.energy_ev, self.thickness, self.band_limit, like.device, like.dtype)

    def entrance(self, slices: int, like: Tensor) -> Tensor:
        """From the plane z = 0, where probes are kept, to the first of ``slices``."""
        distance = -(slices - 1) / 2 * self.thickness
        return _kernel(self.window, self.energy_ev, distance, None, like.device, like.dtype)


@lru_cache(maxsize=16)
def _kernel(window, energy_ev, distance, band_limit, device, dtype) -> Tensor:
    """Propagator, kept because every batch asks for the same; not to be written to."""
    return fresnel(window, wavelength(energy_ev), distance, band_limit).to(device, dtype)


def transmission(phase: Tensor, absorption: Tensor | None = None) -> Tensor:
    """``exp(i (phase + i absorption))`` (paper Eq. 5), phase = sigma V dz in radian.

    Cosine and sine are taken apart because the complex exponential is several times slower on a CPU.
    """
    amplitude = torch.ones_like(phase) if absorption is None else torch.exp(-absorption)
    return torch.complex(amplitude * torch.cos(phase), amplitude * torch.sin(phase))


def default_chunk(window: Sequence[int], modes: int = 3, device: torch.device | None = None) -> int:
    """Patterns at a time: what a core's cache holds, 8 of 3 modes at 64 x 64, or enough to busy a GPU."""
    pixels = 24 << 12 if device is None or device.type == "cpu" else 1 << 24
    return max(1, round(pixels / (modes * window[0] * window[1])))


def _field(stack: Tensor, corner: Tensor, window: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Grow a transmission stack by vacuum so that every patch lies inside; its rows are contiguous."""
    left, right, top, bottom = required_margin(corner, stack.shape[-2:], window)
    if left or right or top or bottom:
        stack = torch.nn.functional.pad(stack, (left, right, top, bottom), value=1.0)
        corner = corner + torch.tensor([top, left], device=corner.device)
    return stack.contiguous(), corner, (top, left)


def diffract(
    phase: Tensor, absorption: Tensor | None, probe: Tensor, positions: Tensor, optics: MultisliceOptics
) -> Tensor:
    """Model intensities ``(k, ky, kx)`` in FFT order (paper Eq. 6-10).

    Differentiable by plain autograd, which keeps all waves; `multislice_loss` has the gradient that does not.

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
    field, corner, _ = _field(
        transmission(phase, absorption), corners(whole, phase.shape[-2:], window), window
    )
    if torch.is_grad_enabled() and (field.requires_grad or probe.requires_grad or fraction.requires_grad):
        return _diffract_by_autograd(field, corner, probe, fraction, optics)
    chunk, kind = default_chunk(window, len(probe), probe.device), choose_bench(probe)

    def part_of(share: slice) -> Tensor:
        bench = kind(field, corner[share], probe, fraction[share], optics)
        return torch.cat([bench.intensity(part) for part in bench.chunks(chunk)])

    return torch.cat(spread(part_of, shares(len(positions), chunk, probe.device)))


def _diffract_by_autograd(field, corner, probe, fraction, optics):
    window, out = probe.shape[-2:], []
    chunk = default_chunk(window, len(probe), probe.device)
    spectrum, propagator = fft2(probe) * optics.entrance(len(field), probe), optics.propagator(probe)
    for part in torch.arange(len(corner), device=corner.device).split(chunk):
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
    chunk = chunk or default_chunk(probe.shape[-2:], len(probe), probe.device)
    return _MultisliceLoss.apply(phase, absorption, probe, positions, measured, optics, loss, chunk)  # pyright: ignore


def _value_and_gradients(phase, absorption, probe, positions, measured, optics, loss, chunk, wants):
    """Loss of each pattern, and gradients where wanted, else None."""
    window = probe.shape[-2:]
    whole, fraction = split_positions(positions.detach())
    field, corner, (top, left) = _field(
        transmission(phase, absorption), corners(whole, phase.shape[-2:], window), window
    )

    kind = choose_bench(probe, loss)

    def part_of(share: slice) -> tuple[Tensor, Bench]:
        bench = kind(field, corner[share], probe, fraction[share], optics, wants)
        values = [bench.visit(part, measured[share][part], loss) for part in bench.chunks(chunk)]
        return torch.cat(values), bench

    # half a chunk is worth a thread: a batch may be small
    values, benches = zip(
        *spread(part_of, shares(len(positions), (chunk + 1) // 2, probe.device)), strict=True
    )
    inside = (..., slice(top, top + phase.shape[1]), slice(left, left + phase.shape[2]))
    gains = zip(*(b.gains for b in benches), strict=True)
    grads = [None if some[0] is None else _sum(some)[inside] for some in gains]
    grads += [_sum([b.probe_gradient() for b in benches]) if wants[2] else None]
    moved = torch.cat([b.position_gradient() for b in benches])
    grads += [moved.to(positions.dtype) if wants[3] else None]
    return torch.cat(values), grads


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """In order; uses up the first."""
    total = tensors[0]
    for other in tensors[1:]:
        total += other
    return total
