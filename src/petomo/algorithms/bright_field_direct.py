"""Direct phase retrieval of weak objects from the bright-field disk: SSB, weak phase, parallax.

With the probe ``A(q) = aperture(q) exp(-i chi(q))`` at position R and a weak object ``1 + i phi(r)``
the relative bright-field signal, Fourier transformed over R, is to first order

``G(k, Q) = i phi(Q) Gamma(k, Q),   Gamma = [A*(k) A(k - Q) - A(k) A*(k + Q)] / |A(k)|^2``

(Rodenburg, McCallum and Nellist 1993; Pennycook et al. 2015; Yang et al. 2016; Pelz et al. 2022). The
three methods differ in Gamma only:

- ``weak_phase`` takes it as it stands;
- ``ssb`` keeps the trotters, where exactly one of ``k - Q`` and ``k + Q`` lies in the aperture, and drops
  the double overlap;
- ``parallax`` takes the aperture as endless: for a quadratic chi,
  ``chi(k) - chi(k -+ Q) = +-grad chi . Q - chi(Q)``, so that
  ``Gamma = -2i sin(chi(Q)) exp(i grad chi(k) . Q)``: every pixel sees the same image, moved by
  ``-grad chi / 2 pi = -lambda C10 k`` (underfocus moves it along +k) (Varnavides et al. 2024).

A scan coarser than the object's detail folds several frequencies ``Q + m / step`` onto one scan frequency.
They have different Gamma(k), so that the many pixels of the disk can tell them apart: with ``upsample``
they are solved for together by regularised least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from petomo.algorithms.bright_field_stack import BrightFieldStack, ScanGeometry, bright_field_stack
from petomo.core.dataset import FourDSTEM
from petomo.physics.probe import aberration_phase, aperture

Method = Literal["ssb", "weak_phase", "parallax"]
Aberrations = Mapping[str, float]

#: Complex numbers of Gamma held at once: what a core's cache holds is done a quarter faster.
_CHUNK = 1 << 17


def reconstruct_ssb(
    patterns: Tensor | FourDSTEM,
    geometry: ScanGeometry,
    aberrations: Aberrations,
    upsample: tuple[int, int] = (1, 1),
) -> Tensor:
    """Single-sideband phase image.

    Parameters
    ----------
    patterns : Tensor or FourDSTEM
        Electrons ``(scan_y, scan_x, ky, kx)``, centred.
    geometry : ScanGeometry
        Calibration of the scan.
    aberrations : mapping
        ``C10``, ``C12`` (angstrom), ``phi12`` (radian), in the detector's frame; C10 = -defocus.
    upsample : (int, int)
        Output pixels per scan step along (y, x).

    Returns
    -------
    Tensor
        Phase in radian, ``(scan_y * upsample_y, scan_x * upsample_x)``, zero mean; the first pixel is the
        first scan position.
    """
    return reconstruct(bright_field_stack(patterns, geometry), "ssb", aberrations, upsample)


def reconstruct_weak_phase(
    patterns: Tensor | FourDSTEM,
    geometry: ScanGeometry,
    aberrations: Aberrations,
    upsample: tuple[int, int] = (1, 1),
) -> Tensor:
    """Weak-phase least-squares image from single and double overlaps; arguments as `reconstruct_ssb`."""
    return reconstruct(bright_field_stack(patterns, geometry), "weak_phase", aberrations, upsample)


def reconstruct_parallax(
    patterns: Tensor | FourDSTEM,
    geometry: ScanGeometry,
    aberrations: Aberrations,
    upsample: tuple[int, int] = (1, 1),
) -> Tensor:
    """Parallax (tilt-corrected bright-field) phase image; arguments as `reconstruct_ssb`.

    Its contrast transfer ``2 sin chi(Q)`` is undone. It needs a defocus: with chi = 0 there is no contrast
    and the image is zero.
    """
    return reconstruct(bright_field_stack(patterns, geometry), "parallax", aberrations, upsample)


def transfer(stack: BrightFieldStack, q: Tensor, method: Method, aberrations: Aberrations) -> Tensor:
    """Gamma(k, Q) of the module's equation, complex64 ``(..., pixel)`` for frequencies ``q`` ``(..., 2)``."""
    lam = stack.wavelength

    def chi(v: Tensor) -> Tensor:
        return aberration_phase(v[..., 1], v[..., 0], lam, aberrations)

    def inside(v: Tensor) -> Tensor:
        return aperture(v[..., 1], v[..., 0], stack.cutoff, stack.edge)

    k, q = stack.q.float(), q[..., None, :].float()
    if method == "parallax":
        # chi is even and at most quadratic here, so half its central difference is grad chi . Q exactly
        slope = (chi(k + q) - chi(k - q)) / 2
        return 1j * torch.polar(-2 * torch.sin(chi(q)).expand(slope.shape).contiguous(), slope)
    minus, plus = inside(k - q), inside(k + q)
    if method == "ssb":
        minus, plus = minus * (plus == 0), plus * (minus == 0)
    own, scale = chi(k), inside(k).clamp_min(0.5)
    return torch.polar(minus / scale, own - chi(k - q)) - torch.polar(plus / scale, chi(k + q) - own)


def reconstruct(
    stack: BrightFieldStack,
    method: Method,
    aberrations: Aberrations,
    upsample: tuple[int, int] = (1, 1),
    ridge: float = 1e-2,
    cutoff: float = 2.0,
) -> Tensor:
    """Phase image of a stack by one of the three methods; see the module's equation and `reconstruct_ssb`.

    Parameters
    ----------
    ridge : float
        Regularisation as a share of the number of pixels: frequencies with less transfer are damped.
    cutoff : float
        Highest frequency in units of the aperture radius; nothing is transferred above 2.
    """
    if method == "parallax":
        aberrations = {key: aberrations.get(key, 0.0) for key in ("C10", "C12", "phi12")}
    (ny, nx), (uy, ux) = stack.geometry.scan_shape, upsample
    folded, q = _folds(stack, upsample), folded_frequencies(stack, upsample)
    spectrum = torch.zeros(folded.numel(), dtype=torch.complex64)
    for index, solution, _ in solve(stack, method, aberrations, q, ridge, cutoff):
        spectrum[folded[index]] = solution
    spectrum[0] = 0
    phase = torch.fft.ifft2(spectrum.reshape(ny * uy, nx * ux))
    return phase.real * (uy * ux)


def solve(
    stack: BrightFieldStack,
    method: Method,
    aberrations: Aberrations,
    q: Tensor,
    ridge: float,
    cutoff: float,
    signal: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Least-squares spectrum at groups of folded frequencies, in blocks.

    Parameters
    ----------
    q : Tensor
        ``(group, alias, 2)``: frequencies that share one scan frequency.
    signal : Tensor, optional
        Images' spectrum ``(group, pixel)``; by default that of the whole scan.

    Yields
    ------
    (slice, Tensor, Tensor)
        Groups of this block, ``phi(Q)`` ``(group, alias)``, and the signal energy it explains ``(group,)``.
    """
    if signal is None:
        signal = stack.spectrum.flatten(1).T
    root = stack.weights.sqrt()
    damping = ridge * float(stack.weights.sum())
    step = max(1, _CHUNK // (q.shape[1] * len(stack.q)))
    eye = torch.eye(q.shape[1])
    for start in range(0, len(q), step):
        block = slice(start, min(start + step, len(q)))
        # columns of frequencies that are not asked for stay zero, and so does their solution
        wanted = (q[block].norm(dim=-1) < cutoff * stack.cutoff).float()
        gamma = 1j * transfer(stack, q[block], method, aberrations) * (wanted[..., None] * root)
        right = torch.einsum("gap,gp->ga", gamma.conj(), signal[block] * root)
        gram = torch.einsum("gap,gbp->gab", gamma.conj(), gamma) + damping * eye
        solution = torch.linalg.solve(gram, right)
        yield block, solution, (right.conj() * solution).real.sum(1)


def folded_frequencies(stack: BrightFieldStack, upsample: tuple[int, int]) -> Tensor:
    """Frequencies ``(scan frequency, alias, 2)``: those in a row look the same to the scan."""
    return stack.frequencies(upsample).reshape(-1, 2)[_folds(stack, upsample)]


def _folds(stack: BrightFieldStack, upsample: tuple[int, int]) -> Tensor:
    """Flat indices ``(scan frequency, alias)`` into the refined frequency grid."""
    (ny, nx), (uy, ux) = stack.geometry.scan_shape, upsample
    index = torch.arange(ny * uy * nx * ux).reshape(uy, ny, ux, nx)
    return index.permute(1, 3, 0, 2).reshape(ny * nx, uy * ux)
