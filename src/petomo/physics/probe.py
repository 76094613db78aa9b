"""Probes: aberrations, apertures, starts from data, orthogonal modes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.core.least_squares import least_squares
from petomo.physics.fourier import fft2, ifft2, phase_ramp

#: Krivanek coefficients Cnm: radial order n + 1, azimuthal symmetry m.
ABERRATIONS = {
    name: (int(name[1]), int(name[2]))
    for name in [
        "C10",
        "C12",
        "C21",
        "C23",
        "C30",
        "C32",
        "C34",
        "C41",
        "C43",
        "C45",
        "C50",
        "C52",
        "C54",
        "C56",
    ]
}


def aberration_phase(
    qy: Tensor, qx: Tensor, wavelength: float, coefficients: Mapping[str, float | Tensor]
) -> Tensor:
    """Aberration function chi in radian (Krivanek polar notation, as abTEM).

    ``chi = 2 pi / lambda sum_nm C_nm (lambda q)^(n+1) cos(m (azimuth - phi_nm)) / (n + 1)``

    Parameters
    ----------
    qy, qx : Tensor
        Frequencies in 1/angstrom, broadcastable.
    wavelength : float
        Angstrom.
    coefficients : mapping
        ``C10``, ``C12``, ``phi12`` ... in angstrom and radian; C10 = -defocus.
    """
    unknown = [k for k in coefficients if k.replace("phi", "C") not in ABERRATIONS]
    if unknown:
        raise ValueError(
            f"unknown aberration {unknown[0]!r}; known are {', '.join(ABERRATIONS)} and angles phi12 ..."
        )
    ay, ax = wavelength * qy, wavelength * qx
    alpha2 = ay**2 + ax**2
    chi = torch.zeros_like(alpha2)
    for name, (n, m) in ABERRATIONS.items():
        value = coefficients.get(name, 0.0)
        if isinstance(value, float | int) and value == 0:
            continue
        term = value / (n + 1) * alpha2 ** ((n + 1 - m) // 2)
        if m:
            turn = m * torch.as_tensor(coefficients.get(name.replace("C", "phi"), 0.0), dtype=torch.float64)
            cosine, sine = _harmonic(ay, ax, m)
            term = term * (cosine * torch.cos(turn) + sine * torch.sin(turn))
        chi = chi + term
    return 2 * math.pi / wavelength * chi


def _harmonic(y: Tensor, x: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """``r^m cos(m azimuth)`` and ``r^m sin(m azimuth)`` as polynomials: the arctangent is slow."""
    cosine, sine = x, y
    for _ in range(order - 1):
        cosine, sine = cosine * x - sine * y, cosine * y + sine * x
    return cosine, sine


def aperture(qy: Tensor, qx: Tensor, cutoff: float, edge: float | tuple[float, float]) -> Tensor:
    """Round aperture with a soft edge: 1 inside, 0 outside, linear over about one pixel.

    Parameters
    ----------
    qy, qx : Tensor
        Frequencies in 1/angstrom.
    cutoff : float
        Semi-angle / wavelength in 1/angstrom.
    edge : float or (y, x)
        Width of the edge in 1/angstrom, usually the detector pixel.
    """
    ey, ex = (edge, edge) if isinstance(edge, int | float) else edge
    q = torch.sqrt(qy**2 + qx**2)
    # width of the edge along this direction, for pixels that are not square
    width = torch.sqrt((qy * ey) ** 2 + (qx * ex) ** 2) / q.clamp_min(1e-12)
    return ((cutoff - q) / width.clamp_min(1e-12) + 0.5).clamp(0, 1)


def make_probe(
    grid: Grid,
    energy_ev: float,
    semiangle_mrad: float,
    coefficients: Mapping[str, float | Tensor],
    intensity: float = 1.0,
) -> Tensor:
    """Coherent probe in real space, centred at ``n // 2``, summing to ``intensity``.

    Parameters
    ----------
    grid : Grid
        Real-space window ``y x``.
    energy_ev, semiangle_mrad : float
        Beam energy and convergence semi-angle.
    coefficients : mapping
        Aberrations at the plane z = 0, see `aberration_phase`.
    intensity : float
        Electrons per pattern.

    Returns
    -------
    Tensor
        Complex128 ``(y, x)``.
    """
    lam = wavelength(energy_ev)
    qy = grid.frequencies(0, dtype=torch.float64)[:, None]
    qx = grid.frequencies(1, dtype=torch.float64)[None, :]
    edge = tuple(1 / e for e in grid.extent)
    pupil = aperture(qy, qx, semiangle_mrad * 1e-3 / lam, edge)  # pyright: ignore[reportArgumentType]
    spectrum = pupil * torch.exp(-1j * aberration_phase(qy, qx, lam, coefficients))
    return _to_real_space(spectrum, intensity)


def probe_from_pattern(
    pattern: Tensor, grid: Grid, energy_ev: float, coefficients: Mapping[str, float | Tensor]
) -> Tensor:
    """Probe whose Fourier amplitude is the root of a measured pattern (vacuum, or the mean of a scan).

    Algorithm 1 starts from the mean pattern; its amplitude is that of the probe blurred by the specimen.

    Parameters
    ----------
    pattern : Tensor
        Electrons, ``(ky, kx)``, centred.
    grid, energy_ev, coefficients
        As in `make_probe`.
    """
    lam = wavelength(energy_ev)
    qy = grid.frequencies(0, dtype=torch.float64)[:, None]
    qx = grid.frequencies(1, dtype=torch.float64)[None, :]
    amplitude = torch.fft.ifftshift(pattern.to(torch.float64)).clamp_min(0).sqrt()
    spectrum = amplitude * torch.exp(-1j * aberration_phase(qy, qx, lam, coefficients))
    return _to_real_space(spectrum, float(pattern.sum()))


def _to_real_space(spectrum: Tensor, intensity: float) -> Tensor:
    spectrum = spectrum * math.sqrt(intensity) / torch.linalg.vector_norm(spectrum)
    return torch.fft.fftshift(ifft2(spectrum))


def hermite_modes(probe: Tensor, modes: int, grid: Grid, power: float = 0.05) -> Tensor:
    """Start for mixed states: probe times Hermite polynomials, orthogonalised (cf. Thibault and Menzel 2013).

    Parameters
    ----------
    probe : Tensor
        Complex ``(y, x)``, centred.
    modes : int
        How many.
    power : float
        Share of the intensity given to each mode after the first.
    """
    y = grid.coordinates(0, dtype=torch.float64)[:, None]
    x = grid.coordinates(1, dtype=torch.float64)[None, :]
    weight = probe.abs() ** 2
    width = torch.sqrt((weight * (x**2 + y**2)).sum() / weight.sum() / 2).clamp_min(min(grid.pixel_size))
    stack = []
    order = 0
    while len(stack) < modes:
        stack += [probe * _hermite(i, y / width) * _hermite(order - i, x / width) for i in range(order + 1)]
        order += 1
    shares = torch.full((modes,), power, dtype=torch.float64)
    shares[0] = 1 - power * (modes - 1)
    basis = []
    for mode in stack[:modes]:  # Gram-Schmidt keeps the first mode the probe itself
        for other in basis:
            mode = mode - (other.conj() * mode).sum() * other
        basis.append(mode / torch.linalg.vector_norm(mode))
    total = torch.linalg.vector_norm(probe)
    return torch.stack(basis) * (total * shares.sqrt())[:, None, None]


def _hermite(n: int, t: Tensor) -> Tensor:
    previous, current = torch.zeros_like(t), torch.ones_like(t)
    for k in range(n):
        previous, current = current, t * current - k * previous
    return current


def orthogonalise(modes: Tensor) -> Tensor:
    """Same mixed state as orthogonal modes of falling power, by SVD.

    The intensity sum over modes is unchanged, since only a unitary mixes them. Their phases, which mean
    nothing, are the same for modes that differ by rounding.
    """
    flat = modes.flatten(-2)
    gram = flat @ flat.mH
    vectors = torch.linalg.eigh(gram).eigenvectors
    # a sum whose weights do not cancel in modes that are odd in the old ones
    weights = 1 / torch.arange(1, len(modes) + 1, dtype=modes.real.dtype, device=modes.device)
    vectors = vectors * torch.sgn((weights[:, None] * vectors).sum(0)).conj()
    mixed = vectors.flip(-1).mH @ flat
    return mixed.reshape(modes.shape)


def shift_probe(probe: Tensor, shift: Tensor) -> Tensor:
    """Sub-pixel shift of probe modes by a phase ramp (paper, after Eq. 9).

    Parameters
    ----------
    probe : Tensor
        ``(mode, y, x)``.
    shift : Tensor
        ``(k, 2)`` as (x, y) in pixels.

    Returns
    -------
    Tensor
        ``(k, mode, y, x)``.
    """
    return ifft2(fft2(probe) * phase_ramp(shift, probe.shape[-2:], shift.dtype)[:, None])


def fit_defocus(probe: Tensor, grid: Grid, energy_ev: float, semiangle_mrad: float) -> dict[str, float]:
    """C10, C12 and phi12 of a probe mode from the curvature of its Fourier phase.

    Weighted least squares on phase differences of neighbouring pixels inside the aperture, so that no
    phase unwrapping is needed; a shift of the probe and a constant phase are fitted along.

    Returns
    -------
    dict
        ``C10``, ``C12`` (angstrom), ``phi12`` (radian).
    """
    lam = wavelength(energy_ev)
    spectrum = torch.fft.fftshift(fft2(torch.fft.ifftshift(probe.to(torch.complex128))))
    qy = torch.fft.fftshift(grid.frequencies(0, dtype=torch.float64))[:, None].expand(spectrum.shape)
    qx = torch.fft.fftshift(grid.frequencies(1, dtype=torch.float64))[None, :].expand(spectrum.shape)
    inside = torch.sqrt(qy**2 + qx**2) < 0.95 * semiangle_mrad * 1e-3 / lam
    spectrum = spectrum * inside
    rows, values, weights = [], [], []
    for dim in (0, 1):
        n = spectrum.shape[dim] - 1
        a, b = spectrum.narrow(dim, 0, n), spectrum.narrow(dim, 1, n)
        product = b * a.conj()
        # -chi = pi lambda (-C10 q^2 - C12a (qx^2 - qy^2) - C12b 2 qx qy) + linear
        terms = [qx**2 + qy**2, qx**2 - qy**2, 2 * qx * qy, qy, qx]
        rows.append(torch.stack([(t.narrow(dim, 1, n) - t.narrow(dim, 0, n)).flatten() for t in terms], -1))
        values.append(product.angle().flatten())
        weights.append(product.abs().flatten())
    design, target, weight = torch.cat(rows), torch.cat(values), torch.cat(weights).sqrt()
    root = weight[:, None]
    solution = least_squares(design * root, target[:, None] * root)[:, 0]
    c10, c12a, c12b = (float(-s / (math.pi * lam)) for s in solution[:3])
    return {"C10": c10, "C12": math.hypot(c12a, c12b), "phi12": math.atan2(c12b, c12a) / 2}
