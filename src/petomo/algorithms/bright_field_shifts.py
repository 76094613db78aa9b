"""Scan rotation, handedness and aberrations from moments and shifts of the bright-field images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from petomo.algorithms.bright_field_stack import BrightFieldStack
from petomo.core.least_squares import least_squares


@dataclass(frozen=True)
class RotationCheck:
    """Scan rotation from the centre of mass.

    Parameters
    ----------
    rotation : float
        Radian, from the scan's fast axis to the detector's x axis, in [-pi, pi).
    transposed : bool
        True if the field is closer to a gradient with the detector's axes exchanged; the rotation is then
        that of the exchanged detector.
    confidence : float
        0 to 1: how much less curl the better handedness has than the other, as a share of the field.
    """

    rotation: float
    transposed: bool
    confidence: float


def com_rotation(stack: BrightFieldStack) -> RotationCheck:
    """Rotation and handedness that leave the centre-of-mass field with the least curl.

    The mean diffraction vector at position R is ``(1 / 2 pi) int |probe(r - R)|^2 grad phi`` (Ehrenfest), a
    gradient in the detector's frame. Turned back by the scan rotation rho it must be one in the scan's
    frame: with L and T its parts along and across the scan's frequencies, the curl becomes
    ``cos(rho) T - sin(rho) L``, whose energy has its minimum in closed form. The curl does not see a turn
    by 180 degrees: of the two, the one is taken that skews the phase to positive values, as atoms do.
    """
    straight, flipped = _least_curl(stack.com, stack), _least_curl(stack.com.flip(-1), stack)
    transposed = flipped[1] < straight[1]
    better, worse = (flipped, straight) if transposed else (straight, flipped)
    return RotationCheck(better[0], transposed, worse[1] - better[1])


def _least_curl(com: Tensor, stack: BrightFieldStack) -> tuple[float, float]:
    """Rotation, and the curl's share of the field that remains."""
    q = stack.turned(0.0).frequencies()
    field = torch.fft.fft2((com - com.mean((0, 1))).double(), dim=(0, 1))
    length = q.norm(dim=-1)
    unit = q / length.clamp_min(1e-12)[..., None]
    along = (unit * field).sum(-1)
    across = unit[..., 0] * field[..., 1] - unit[..., 1] * field[..., 0]
    t2, l2 = float(across.abs().square().sum()), float(along.abs().square().sum())
    cross = float((across.conj() * along).real.sum())
    a, b = (t2 - l2) / 2, -cross
    rotation = (math.atan2(b, a) + math.pi) / 2
    gradient = math.cos(rotation) * along + math.sin(rotation) * across
    phase = torch.fft.ifft2(-1j * gradient / length.clamp_min(1e-12) * (length > 0)).real
    if float((phase - phase.mean()).pow(3).sum()) < 0:
        rotation += math.pi
    residual = ((t2 + l2) / 2 - math.hypot(a, b)) / max(t2 + l2, 1e-300)
    return (rotation + math.pi) % (2 * math.pi) - math.pi, residual


@dataclass(frozen=True)
class ParallaxFit:
    """Aberrations and rotation from the shifts of the bright-field images.

    Parameters
    ----------
    C10, C12, phi12 : float
        Angstrom and radian, in the frame of the (if need be, exchanged) detector.
    rotation : float
        Scan rotation in radian.
    transposed : bool
        The detector's axes had to be exchanged.
    residual : float
        Root mean square of shifts not explained, in angstrom.
    """

    C10: float
    C12: float
    phi12: float
    rotation: float
    transposed: bool
    residual: float


def fit_parallax(
    stack: BrightFieldStack,
    growth: tuple[float, ...] = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0, 1.0),
    max_shift: float | None = None,
) -> ParallaxFit:
    """C10, C12, scan rotation and handedness from the shifts between bright-field images.

    The image of pixel k is the axial one moved by ``d(k) = M k``,
    ``M = -lambda Rot(-rotation) (C10 + C12 S)`` with
    ``S = [[cos 2 phi12, sin 2 phi12], [sin 2 phi12, -cos 2 phi12]]``: ``-grad chi / 2 pi`` turned into the
    scan's frame, so that underfocus moves images along +k. Each shift is the sub-pixel peak of the
    cross-correlation with the mean of the other aligned images; M is their weighted linear least-squares
    fit, repeated over a growing part of the disk, outliers left out. The polar decomposition of M parts
    rotation and aberrations; of its two solutions (rotation, C10) and (rotation + 180 degrees, -C10) the
    one nearer to the stack's rotation is returned.

    It tells handedness and rotation without knowing them before. Strongly scattering atoms act as lenses
    that add to the shifts, and its C10 can then be some tens of angstrom too large in size; `fit_c10` is
    not misled in this way.

    Parameters
    ----------
    growth : tuple of float
        Radius of the part of the disk used in each pass, in aperture radii.
    max_shift : float, optional
        Longest shift in angstrom, a quarter of the scan by default.
    """
    spectrum, k = stack.spectrum, stack.q
    q = stack.turned(0.0).frequencies()
    matrix, residual = torch.zeros(2, 2, dtype=torch.float64), math.nan
    ny, nx = stack.geometry.scan_shape
    if max_shift is None:
        max_shift = min(ny * stack.geometry.scan_step[0], nx * stack.geometry.scan_step[1]) / 4
    for radius in growth:
        used = k.norm(dim=-1) <= radius * stack.cutoff
        images, kk, weights = spectrum[used], k[used], stack.weights[used].double()
        back = torch.exp(2j * math.pi * torch.einsum("yxi,ij,pj->pyx", q, matrix, kk)).to(images.dtype)
        aligned = images * back
        weighted = aligned * weights[:, None, None].float()
        # leaving each image out of its own reference keeps its noise from pulling the peak to zero shift
        reference = weighted.sum(0) - weighted
        shifts = kk @ matrix.T + _peaks(aligned * reference.conj(), stack, max_shift)
        matrix, residual = _robust_fit(kk, shifts, weights)
    return _decompose(matrix, residual, stack)


def _peaks(cross: Tensor, stack: BrightFieldStack, max_shift: float, zoom: int = 4) -> Tensor:
    """Position (x, y) in angstrom of the highest cross-correlation, ``(pixel, 2)``."""
    ny, nx = cross.shape[-2:]
    padded = cross.new_zeros(len(cross), ny * zoom, nx * zoom)
    ys, xs = (torch.fft.fftfreq(n, 1 / n).round().long() for n in (ny, nx))
    padded[:, ys[:, None], xs[None]] = cross
    correlation = torch.fft.fftshift(torch.fft.ifft2(padded).real, dim=(-2, -1))
    hy, hx = (s / zoom for s in stack.geometry.scan_step)
    cy, cx = ny * zoom // 2, nx * zoom // 2
    ry, rx = min(int(max_shift / hy), cy - 2), min(int(max_shift / hx), cx - 2)
    window = correlation[:, cy - ry : cy + ry + 1, cx - rx : cx + rx + 1]
    best = window.flatten(1).argmax(1)
    y, x = best // window.shape[2] + cy - ry, best % window.shape[2] + cx - rx
    p = torch.arange(len(cross))
    dy = _vertex(*(correlation[p, y + i, x] for i in (-1, 0, 1)))
    dx = _vertex(*(correlation[p, y, x + i] for i in (-1, 0, 1)))
    return torch.stack([(x - cx + dx) * hx, (y - cy + dy) * hy], dim=-1).double()


def _vertex(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    curvature = (left - 2 * middle + right).clamp_max(-1e-30)
    return (0.5 * (left - right) / curvature).clamp(-0.5, 0.5)


def _robust_fit(k: Tensor, shifts: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """M of ``shifts = M k`` with outliers beyond 3 robust deviations left out."""
    keep = torch.ones(len(k), dtype=torch.bool)
    matrix, miss = torch.zeros(2, 2, dtype=torch.float64), shifts.norm(dim=-1)
    for _ in range(5):
        root = weights[keep].sqrt()[:, None]
        matrix = least_squares(k[keep] * root, shifts[keep] * root).T
        miss = (shifts - k @ matrix.T).norm(dim=-1)
        keep = miss <= 3 * miss.median() + 1e-9
    return matrix, float(miss[keep].square().mean().sqrt())


def _decompose(matrix: Tensor, residual: float, stack: BrightFieldStack) -> ParallaxFit:
    transposed = bool(torch.linalg.det(matrix) < 0)
    if transposed:
        matrix = matrix.flip(1)
    u, s, vh = torch.linalg.svd(matrix)
    turn, stretch = u @ vh, vh.T @ torch.diag(s) @ vh
    # turn = +-Rot(-rotation) goes with -lambda (C10 + C12 S) = +-stretch
    rotation = math.atan2(float(turn[0, 1]), float(turn[0, 0]))
    if math.cos(rotation - stack.rotation) < 0:
        rotation, stretch = rotation + math.pi, -stretch
    tensor = -stretch / stack.wavelength
    c12 = (float(tensor[0, 0] - tensor[1, 1]) / 2, float(tensor[0, 1]))
    return ParallaxFit(
        C10=float(tensor.trace()) / 2,
        C12=math.hypot(*c12),
        phi12=math.atan2(c12[1], c12[0]) / 2,
        rotation=(rotation + math.pi) % (2 * math.pi) - math.pi,
        transposed=transposed,
        residual=residual,
    )
