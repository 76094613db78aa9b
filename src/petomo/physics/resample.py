"""A_theta,tau and B_b: the rotated, translated volume binned into slices (paper Eq. 12 and 14).

The rotation is ``Rz(psi) Ry(theta) Rx(phi)``. Each factor turns one plane, so no 3D interpolation is
needed: phi is a Fourier rotation of the (z, y) planes, theta and the binning along the beam are one
sparse matrix (`petomo.physics.tilt`), and psi and tau act on the few binned slices by Fourier shears. A small
phi is no work of its own: after theta it shifts whole slices along y, by their height.
`rotate_and_bin_reference` does the same by 3D interpolation, as a check.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from petomo.core.parallel import ALONE, Team
from petomo.core.pose import rotation_matrices
from petomo.physics.fourier import rotate_plane
from petomo.physics.interpolation import Interpolation
from petomo.physics.tilt import SliceGeometry, tilt_and_bin

#: angstrom that a point may be shifted amiss where a turn by a small phi is done slice by slice, or one by a
#: small psi by two shears
_BLUR = 0.01


def rotate_and_bin(
    volume: Tensor,
    phi: Tensor,
    theta: Tensor,
    psi: Tensor,
    tau: Tensor,
    geometry: SliceGeometry,
    interpolation: Interpolation = "spline",
    team: Team = ALONE,
    filtered: bool = False,
) -> Tensor:
    """Slices ``B_b A_Theta,tau V`` (paper Eq. 12, 14): volt angstrom, the potential integrated over a slice.

    Differentiable once with respect to everything but the geometry. Outside the volume is vacuum, but
    phi, psi and tau move it periodically: leave a margin as wide as the motion, both in the volume and
    in the geometry's lateral shape.

    Parameters
    ----------
    volume : Tensor
        Real potential in volts, ``z y x``, origin at ``n // 2``.
    phi, theta, psi : Tensor
        Angles in radian (0-dim), paper Eq. 11.
    tau : Tensor
        Shift (x, y) in angstrom.
    geometry : SliceGeometry
        Slices to make.
    interpolation : {"spline", "cubic", "linear"}
        Kernel in the (z, x) plane: cubic B-spline with prefilter, Keys' cubic convolution, or linear.
    team : Team
        Processes that share the work and all get all slices. Each has the same arguments, but looks at its
        own rows of the volume only (``team.slab(volume, dim=1)``), and the gradient of those comes to it,
        summed over all processes; the gradients of the angles and of tau remain to be summed.
    filtered : bool
        Whether a volume for splines holds their coefficients already (`petomo.physics.tilt.prefilter`), so
        that many poses share them; only for those that `turns_by_slices`.

    Returns
    -------
    Tensor
        ``(slice, y, x)``; slice ``s`` is centred on the beam at ``z = (s - (S - 1) / 2) thickness``.
    """
    height, turned = volume.shape[1], _phi_last(phi, theta, psi)
    cuts = _thinner(float(turned[0].detach()), height, geometry)
    if cuts is None:
        if filtered:
            raise ValueError("coefficients cannot be turned by a large phi; give the volume itself")
        stack = _tilt(_turn_planes(volume, phi, team), height, theta, geometry, interpolation, team)
        return _turn_slices(stack, psi, tau, None, geometry.voxel)
    thin = replace(geometry, slices=geometry.slices * cuts, thickness=geometry.thickness / cuts)
    stack = _tilt(team.slab(volume, dim=1), height, turned[1], thin, interpolation, team, filtered)
    z = (
        torch.arange(thin.slices, dtype=phi.dtype, device=phi.device) - (thin.slices - 1) / 2
    ) * thin.thickness
    rise = -torch.sin(turned[0]) * z
    return _turn_slices(stack, turned[2], tau, rise, geometry.voxel, cuts)


def _turn_planes(volume: Tensor, phi: Tensor, team: Team) -> Tensor:
    """``Rx(phi)`` of a volume, of which this process has, and gets, its slab of y."""
    slab, (_, height, width) = team.slab(volume, dim=1), volume.shape
    if not phi.requires_grad and float(phi) == 0.0:
        return slab
    # Rx turns +y towards +z: planes (z, y) for every x
    slab = team.exchange(slab, height, have=1, want=2)
    slab = rotate_plane(slab.permute(2, 0, 1), phi).permute(1, 2, 0)
    return team.exchange(slab, width, have=2, want=1)


def _tilt(
    part: Tensor,
    height: int,
    theta: Tensor,
    geometry: SliceGeometry,
    interpolation: Interpolation,
    team: Team,
    filtered: bool = False,
) -> Tensor:
    """``Ry(theta)`` and the slices, from this process' slab of ``height`` rows; all get all slices."""
    stack = tilt_and_bin(part, theta, geometry, interpolation, filtered)
    return _fit(team.join(stack, height, dim=1), geometry.shape[0], dim=1) * geometry.voxel


def _turn_slices(
    stack: Tensor, psi: Tensor, tau: Tensor, rise: Tensor | None, voxel: float, cuts: int = 1
) -> Tensor:
    """Slices risen along y and ``cuts`` of them added up, turned by psi, shifted by tau; angstrom."""
    angles = (psi, tau) if rise is None else (psi, tau, rise)
    if not any(a.requires_grad or bool(a.any()) for a in angles):
        return stack.contiguous()
    lift = None if rise is None else rise / voxel
    return rotate_plane(stack, psi, tau / voxel, lift, cuts, _BLUR / voxel)


def _phi_last(phi: Tensor, theta: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angles (x, y, z) with ``Rz(z) Rx(x) Ry(y) = Rz(psi) Ry(theta) Rx(phi)``."""
    s, c = torch.sin(phi), torch.cos(phi)
    return (
        torch.asin(torch.cos(theta) * s),
        torch.atan2(torch.sin(theta), torch.cos(theta) * c),
        psi - torch.atan2(torch.sin(theta) * s, c),
    )


def turns_by_slices(phi: Tensor, theta: Tensor, psi: Tensor, height: int, geometry: SliceGeometry) -> bool:
    """Whether phi is so small that `rotate_and_bin` only shifts slices by it; ``height`` in voxels."""
    return _thinner(float(_phi_last(phi, theta, psi)[0].detach()), height, geometry) is not None


def _thinner(angle: float, height: int, geometry: SliceGeometry) -> int | None:
    """Into how many to cut each slice so that a turn by ``angle`` about x only shifts them along y.

    None where that would not do: where what moves along the beam gets into other slices, or y is
    foreshortened.
    """
    reach = abs(math.sin(angle)) * height * geometry.voxel / 2
    if abs(angle) * reach > 2 * _BLUR or (geometry.slices > 1 and reach > geometry.thickness / 24):
        return None
    return max(1, math.ceil(abs(math.sin(angle)) * geometry.thickness / 2 / _BLUR))


def _fit(stack: Tensor, size: int, dim: int) -> Tensor:
    """Crop or zero-pad one axis, keeping ``n // 2`` where it is."""
    have = stack.shape[dim]
    before = size // 2 - have // 2
    after = size - have - before
    pad = [0] * (2 * (stack.ndim - dim))
    pad[-2], pad[-1] = before, after
    return torch.nn.functional.pad(stack, pad)


def rotate_and_bin_reference(
    volume: Tensor, phi: Tensor, theta: Tensor, psi: Tensor, tau: Tensor, geometry: SliceGeometry
) -> Tensor:
    """The same operator by one trilinear 3D interpolation: slow and blurring, for tests and comparisons."""
    dtype, device = volume.dtype, volume.device
    rotation = rotation_matrices(phi, theta, psi).to(dtype)
    s, n, (ny, nx) = geometry.slices, geometry.samples, geometry.shape
    step = geometry.thickness / n / geometry.voxel
    z = (torch.arange(s * n, dtype=dtype, device=device) - (s * n - 1) / 2) * step
    y = torch.arange(ny, dtype=dtype, device=device) - ny // 2
    x = torch.arange(nx, dtype=dtype, device=device) - nx // 2
    shift = tau.to(dtype) / geometry.voxel
    zz, yy, xx = torch.meshgrid(z, y, x, indexing="ij")
    lab = torch.stack([xx - shift[0], yy - shift[1], zz], dim=-1)
    sample = lab @ rotation  # R^T applied to row vectors
    size = torch.tensor(volume.shape[::-1], dtype=dtype, device=device)
    normalised = 2 * (sample + size.div(2, rounding_mode="floor")) / (size - 1) - 1
    out = torch.nn.functional.grid_sample(volume[None, None], normalised[None], align_corners=True)[0, 0]
    return out.view(s, n, ny, nx).sum(1) * step * geometry.voxel
