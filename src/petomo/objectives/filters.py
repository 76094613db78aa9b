"""Linear filters as regularisers: low-passes of the volume and the depth filter of its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

Voxel = float | tuple[float, ...]


@dataclass(frozen=True)
class Butterworth:
    """Radial low-pass ``1 / sqrt(1 + (q / cutoff)^(2 order))`` in 3D Fourier space.

    The gain at the cutoff is 1 / sqrt 2. The volume counts as periodic.

    Parameters
    ----------
    cutoff_per_angstrom : float
        1/angstrom.
    order : float
    voxel_size : float or tuple
        Angstrom.
    """

    cutoff_per_angstrom: float
    order: float
    voxel_size: Voxel
    name: str = field(default="butterworth", init=False)

    @torch.no_grad()
    def filter_(self, v: Tensor) -> None:
        """Low-pass in place."""
        q2 = sum(k * k for k in _frequencies(v, self.voxel_size))
        v.copy_(_filtered(v, (1 + (q2 / self.cutoff_per_angstrom**2) ** self.order).rsqrt_()))


@dataclass(frozen=True)
class Gaussian:
    """Convolution with a unit-mass Gaussian: ``exp(-2 pi^2 sigma^2 q^2)`` in Fourier space, periodic.

    Parameters
    ----------
    sigma_angstrom : float
        Standard deviation in angstrom.
    voxel_size : float or tuple
        Angstrom.
    """

    sigma_angstrom: float
    voxel_size: Voxel
    name: str = field(default="gaussian", init=False)

    @torch.no_grad()
    def filter_(self, v: Tensor) -> None:
        """Blur in place."""
        gain = torch.ones((), dtype=v.real.dtype, device=v.device)
        for k in _frequencies(v, self.voxel_size):
            gain = gain * torch.exp(-2 * (math.pi * self.sigma_angstrom * k) ** 2)
        v.copy_(_filtered(v, gain))


@dataclass(frozen=True)
class DepthKernel:
    """Missing-cone filter of the gradient along the beam.

    ``W(k) = [1 - (2/pi) atan((weight k_b)^2 / (k_t^2 + k_0^2))] exp(-alpha k_t^2)``

    with k_b along the beam, k_t across it, and k_0 half a frequency step of the longest axis, which
    keeps the line k_t = 0 finite. One tilt sees little at ``k_b > k_t / weight``: the filter
    keeps its update out of there, which evens out the intensity between slices (the layer
    regularisation of multislice ptychography, Chen et al. 2021, Science 372, 826, supplement; the
    paper uses weight 90). W is real, symmetric and in (0, 1]: a preconditioner, not a change of the optimum's
    equation.

    Parameters
    ----------
    weight : float
        Dimensionless, as long as all frequencies are in 1/angstrom; 0 switches the cone off.
    alpha : float
        Damping of high transverse frequencies in square angstrom.
    voxel_size : float or tuple
        Angstrom, ``z y x``; for a stack of slices its thickness comes first.
    beam : (float, float, float)
        Direction (x, y, z) in the array's frame, any length; the default is +z, right for a slice stack.
    keep_norm : bool
        Scale the filtered gradient back to the L2 norm it came with.
    """

    weight: float
    alpha: float
    voxel_size: Voxel
    beam: tuple[float, float, float] = (0.0, 0.0, 1.0)
    keep_norm: bool = False
    name: str = field(default="depth_kernel", init=False)

    @torch.no_grad()
    def filter_gradient(self, g: Tensor) -> Tensor:
        """Filtered copy of a gradient ``z y x``."""
        voxel = voxel_sizes(self.voxel_size, g.ndim)
        gain = _cone(
            self.weight,
            self.alpha,
            tuple(self.beam),
            tuple(g.shape),
            voxel,
            g.real.dtype,
            g.device,
            g.is_complex(),
        )
        out = _filtered(g, gain)
        if self.keep_norm:
            norm = torch.linalg.vector_norm(out)
            out *= torch.linalg.vector_norm(g) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return out


@lru_cache(maxsize=2)  # the same in every batch, and dearer than the transform it multiplies
def _cone(weight, alpha, beam, shape, voxel, dtype, device, is_complex) -> Tensor:
    kz, ky, kx = _frequency_axes(shape, voxel, dtype, device, is_complex)
    length = math.sqrt(sum(b * b for b in beam))
    if length == 0:
        raise ValueError("DepthKernel needs a beam direction (x, y, z) of non-zero length")
    along = (kx * beam[0] + ky * beam[1] + kz * beam[2]) / length
    across2 = (kx * kx + ky * ky + kz * kz - along * along).clamp_min_(0)
    floor = 0.5 / max(n * h for n, h in zip(shape, voxel, strict=True))
    cone = 1 - torch.atan((weight * along) ** 2 / (across2 + floor**2)) / (math.pi / 2)
    return cone * torch.exp(-alpha * across2)


def voxel_sizes(voxel_size: Voxel, ndim: int) -> tuple[float, ...]:
    """One voxel size per axis, from one number or from as many as there are axes."""
    sizes = (float(voxel_size),) * ndim if isinstance(voxel_size, int | float) else tuple(voxel_size)
    if len(sizes) != ndim:
        raise ValueError(f"voxel_size {sizes} has {len(sizes)} numbers for {ndim} axes")
    return sizes


def _frequency_axes(shape, sizes, dtype, device, is_complex) -> list[Tensor]:
    axes = []
    for i, (n, h) in enumerate(zip(shape, sizes, strict=True)):
        half = i == len(shape) - 1 and not is_complex
        k = (torch.fft.rfftfreq if half else torch.fft.fftfreq)(n, h, dtype=dtype, device=device)
        axes.append(k.reshape(*(-1 if j == i else 1 for j in range(len(shape)))))
    return axes


def _frequencies(v: Tensor, voxel_size: Voxel) -> list[Tensor]:
    return _frequency_axes(v.shape, voxel_sizes(voxel_size, v.ndim), v.real.dtype, v.device, v.is_complex())


def _filtered(v: Tensor, gain: Tensor) -> Tensor:
    if v.is_complex():
        return torch.fft.ifftn(torch.fft.fftn(v) * gain)
    return torch.fft.irfftn(torch.fft.rfftn(v) * gain, s=v.shape)
