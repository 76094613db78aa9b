"""Fourier helpers: unitary transforms and exact sub-pixel motions of band-limited images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fft2(wave: Tensor) -> Tensor:
    """Unitary 2D Fourier transform over the last two axes, FFT order in and out."""
    return torch.fft.fft2(wave, norm="ortho")


def ifft2(wave: Tensor) -> Tensor:
    """Inverse of `fft2`."""
    return torch.fft.ifft2(wave, norm="ortho")


def phase_ramp(shift: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Factors on the FFT grid that move an image by sub-pixel shifts.

    Parameters
    ----------
    shift : Tensor
        ``(k, 2)`` as (x, y) in pixels.
    shape : (int, int)
        ``y x`` of the image.
    dtype : torch.dtype
        Real type to compute in.

    Returns
    -------
    Tensor
        Complex ``(k, y, x)``, FFT order.
    """
    ry, rx = (phase_line(shift[:, axis].to(dtype), n) for axis, n in zip((1, 0), shape, strict=True))
    return ry[:, :, None] * rx[:, None, :]


def phase_line(shift: Tensor, n: int) -> Tensor:
    """Factors ``(k, n)`` on the FFT grid of one axis that move along it by ``shift`` ``(k,)`` pixels."""
    q = torch.fft.fftfreq(n, dtype=shift.dtype, device=shift.device)
    angle = -2 * math.pi * shift[:, None] * q
    return torch.complex(angle.cos(), angle.sin())


def translate_lines(image: Tensor, shift: Tensor, dim: int) -> Tensor:
    """Shift every line of a real image along ``dim`` by its own number of pixels (periodic).

    Parameters
    ----------
    image : Tensor
        Real image or stack.
    shift : Tensor
        Pixels, broadcastable against ``image`` with size 1 along ``dim``.
    dim : int
        Axis along which the lines run.
    """
    return _TranslateLines.apply(image, shift, dim)  # pyright: ignore[reportReturnType]


def _line_factors(image: Tensor, shift: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Angular frequencies of `rfft` along ``dim``, and the factors of the shift."""
    q = 2 * math.pi * torch.fft.rfftfreq(image.shape[dim], dtype=image.dtype, device=image.device)
    q = q.view(-1, *([1] * (-1 - dim if dim < 0 else image.ndim - 1 - dim)))
    angle = -q * shift
    return q, torch.complex(torch.cos(angle), torch.sin(angle))


class _TranslateLines(torch.autograd.Function):
    """`translate_lines` with its adjoint, the shift back: autograd's own is a full complex transform."""

    @staticmethod
    def forward(ctx, image, shift, dim):
        moved = torch.fft.rfft(image, dim=dim).mul_(_line_factors(image, shift, dim)[1])
        out = torch.fft.irfft(moved, n=image.shape[dim], dim=dim)
        ctx.save_for_backward(shift, moved if ctx.needs_input_grad[1] else None)
        ctx.dim = dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (shift, moved), dim, n = ctx.saved_tensors, ctx.dim, gradient.shape[ctx.dim]
        q, factors = _line_factors(gradient, shift, dim)
        spectrum = torch.fft.rfft(gradient, dim=dim)
        along = None
        if moved is not None:
            # d out / d shift = -d out / d x by Parseval; every frequency but Nyquist's stands for two
            weight = q * (2.0 / n)
            if n % 2 == 0:
                weight[-1] /= 2
            along = (weight * (moved * spectrum.conj()).imag).sum_to_size(shift.shape)
        back = torch.fft.irfft(spectrum.mul_(factors.conj()), n=n, dim=dim)
        return back, along, None


def rotate_plane(
    image: Tensor, angle: Tensor, shift: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
) -> Tensor:
    """Rotate the last two axes (v, u) about pixel ``n // 2``, then shift, by three Fourier shears.

    ``out(R r + s) = image(r)`` with ``r = (u, v)`` and ``R`` the rotation by ``angle`` that carries
    +u towards +v. Exact for band-limited images with an empty margin (Unser 1995; Larkin 1997).

    Parameters
    ----------
    image : Tensor
        Real, ``(..., v, u)``.
    angle : Tensor
        Radian, any value: whole quarter turns are done by indexing, the rest by shears.
    shift : (u, v)
        Pixels, applied after the rotation.
    """
    turns = int(torch.round(angle.detach() / (math.pi / 2)))
    if turns % 4:
        image = quarter_turns(image, turns)
        angle = angle - turns * (math.pi / 2)
    v = torch.arange(image.shape[-2], dtype=image.dtype, device=image.device)[:, None] - image.shape[-2] // 2
    u = torch.arange(image.shape[-1], dtype=image.dtype, device=image.device)[None, :] - image.shape[-1] // 2
    angle = angle.to(image.dtype)
    slope = -torch.tan(angle / 2)
    out = translate_lines(image, slope * v, dim=-1)
    out = translate_lines(out, torch.sin(angle) * u + shift[1], dim=-2)
    # the first shear must act on the unshifted v, so the shift along v is undone inside the slope
    return translate_lines(out, slope * (v - shift[1]) + shift[0], dim=-1)


def quarter_turns(image: Tensor, turns: int) -> Tensor:
    """Rotate the last two axes by ``turns`` x 90 degrees about pixel ``n // 2``; zeros from outside."""
    (nv, nu), turns = image.shape[-2:], turns % 4
    v = torch.arange(nv, device=image.device)[:, None] - nv // 2
    u = torch.arange(nu, device=image.device)[None, :] - nu // 2
    # r = R^-1 r_out
    cos, sin = (1, 0, -1, 0)[turns], (0, 1, 0, -1)[turns]
    source_u, source_v = cos * u + sin * v + nu // 2, -sin * u + cos * v + nv // 2
    inside = (source_u >= 0) & (source_u < nu) & (source_v >= 0) & (source_v < nv)
    flat = (source_v.clamp(0, nv - 1) * nu + source_u.clamp(0, nu - 1)).expand(nv, nu)
    return image.flatten(-2)[..., flat] * inside
