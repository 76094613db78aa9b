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


def translate_lines(image: Tensor, *shifts: Tensor, dim: int, merge: int = 1) -> Tensor:
    """Shift every line of a real image along ``dim`` by its own number of pixels (periodic).

    Parameters
    ----------
    image : Tensor
        Real image or stack.
    *shifts : Tensor
        Pixels, broadcastable against ``image`` with size 1 along ``dim``; a line moves by their sum. One
        for every slice and one for every line cost less apart.
    dim : int
        Axis along which the lines run.
    merge : int
        So many slices of a stack are added up, after the first of the shifts.
    """
    return _TranslateLines.apply(image, dim, merge, *shifts)  # pyright: ignore[reportReturnType]


def _line_factors(image: Tensor, shifts: Sequence[Tensor], dim: int) -> tuple[Tensor, list[Tensor]]:
    """Angular frequencies of `rfft` along ``dim``, and the factors of each shift."""
    q = 2 * math.pi * torch.fft.rfftfreq(image.shape[dim], dtype=image.dtype, device=image.device)
    q = q.view(-1, *([1] * (-1 - dim if dim < 0 else image.ndim - 1 - dim)))
    return q, [torch.complex(torch.cos(q * shift), -torch.sin(q * shift)) for shift in shifts]


class _TranslateLines(torch.autograd.Function):
    """`translate_lines` with its adjoint, the shift back: autograd's own is a full complex transform."""

    @staticmethod
    def forward(ctx, image, dim, merge, *shifts):
        _, (first, *others) = _line_factors(image, shifts, dim)
        merged = single = torch.fft.rfft(image, dim=dim).mul_(first)
        if merge > 1:
            merged = single[::merge].clone()
            for other in range(1, merge):
                merged += single[other::merge]
        for factors in others:
            merged.mul_(factors)
        kept = (single, merged) if any(ctx.needs_input_grad[3:]) else (None, None)
        ctx.save_for_backward(*kept, *shifts)
        ctx.dim, ctx.merge = dim, merge
        return torch.fft.irfft(merged, n=image.shape[dim], dim=dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (single, merged, *shifts), dim, n = ctx.saved_tensors, ctx.dim, gradient.shape[ctx.dim]
        q, (first, *others) = _line_factors(gradient, shifts, dim)
        spectrum = torch.fft.rfft(gradient, dim=dim)
        along: list[Tensor | None] = [None] * len(shifts)

        def slopes(moved: Tensor) -> Tensor:
            # d out / d shift = -d out / d x by Parseval; every frequency but Nyquist's stands for two
            weight = q * (2.0 / n)
            if n % 2 == 0:
                weight[-1] /= 2
            return (weight * (moved * spectrum.conj()).imag).sum(dim, keepdim=True)

        if merged is not None:
            lines, start = slopes(merged), int(ctx.merge > 1)
            along[start:] = [lines.sum_to_size(shift.shape) for shift in shifts[start:]]
        for factors in others:
            spectrum.mul_(factors.conj())
        if ctx.merge > 1:
            spectrum = spectrum.repeat_interleave(ctx.merge, 0)
            along[0] = None if single is None else slopes(single).sum_to_size(shifts[0].shape)
        return torch.fft.irfft(spectrum.mul_(first.conj()), n=n, dim=dim), None, None, *along


def rotate_plane(
    image: Tensor,
    angle: Tensor,
    shift: Tensor | Sequence[Tensor | float] = (0.0, 0.0),
    rise: Tensor | None = None,
    merge: int = 1,
    blur: float = 0.0,
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
    rise : Tensor, optional
        Pixels along v that slices are moved by beforehand, ``(slice,)``.
    merge : int
        So many slices, risen, are added up.
    blur : float
        Pixels that a point may get amiss, where that saves one of the shears.
    """
    lift = [] if rise is None else [rise.to(image)[:, None, None]]
    turns = int(torch.round(angle.detach() / (math.pi / 2)))
    if turns % 4:
        image = translate_lines(image, *lift, dim=-2, merge=merge) if lift else image
        image, lift, merge = quarter_turns(image, turns), [], 1
        angle = angle - turns * (math.pi / 2)
    v, u = (torch.arange(n, dtype=image.dtype, device=image.device) - n // 2 for n in image.shape[-2:])
    v, reach = v[:, None], max(image.shape[-2:]) / 2
    across, down = (torch.as_tensor(s, dtype=image.dtype, device=image.device) for s in shift)
    sine, slope = torch.sin(angle).to(image.dtype), torch.tan(angle / 2).to(image.dtype)
    if float(sine.detach()) ** 2 / 2 * reach <= blur:
        # u and v are off by one minus the cosine, which a third shear would mend
        out = translate_lines(image, *lift, sine * u + down, dim=-2, merge=merge)
        return translate_lines(out, sine * (down - v) + across, dim=-1)
    out = translate_lines(image, *lift, slope * u, dim=-2, merge=merge)
    out = translate_lines(out, across - sine * v, dim=-1)
    # the first shear must act on the unshifted u, so the shift along u is undone inside the slope
    return translate_lines(out, slope * (u - across) + down, dim=-2)


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
