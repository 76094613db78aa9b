"""Probes blurred by the source's size and the beam's energy spread, as few coherent ones.

A finite source shifts the coherent probe, an energy spread defocuses it; the patterns of all shifts and
defoci add up (paper Eq. 10; Thibault and Menzel 2013). A cubature rule stands for the sum. Behind
atoms its 12 members err less than as many of the strongest orthogonal modes, which leave intensity out;
for an object that scatters a large share far beyond the aperture modes would be the better choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from petomo.core.grid import Grid
from petomo.physics.probe import make_probe, shift_probe


@dataclass(frozen=True)
class ProbeModel:
    """A mixed-state probe (paper Eq. 10) described by what the microscope does.

    Parameters
    ----------
    semiangle_mrad : float
        Convergence semi-angle.
    source : (float, float, float)
        Covariance (xx, yy, xy) of the source's image in square angstrom: its size, and any vibration.
    focal_variance : float
        Square of the rms focal spread in square angstrom.
    aberrations : mapping
        Coefficients in angstrom, Cartesian: ``C10``, ``C12a`` = C12 cos(2 phi12), ``C12b`` = C12 sin(2 phi12)
        and so on.
    electrons : float
        Electrons per pattern.
    """

    semiangle_mrad: float
    source: tuple[float, float, float] = (0.0, 0.0, 0.0)
    focal_variance: float = 0.0
    aberrations: Mapping[str, float] = field(default_factory=dict)
    electrons: float = 1.0

    def to_dict(self) -> dict:
        """Plain numbers, for a checkpoint; `from_dict` gives the probe back."""
        return asdict(self) | {"aberrations": dict(self.aberrations), "source": list(self.source)}

    @classmethod
    def from_dict(cls, values: Mapping) -> ProbeModel:
        """The probe that `to_dict` described."""
        return cls(
            **{**values, "source": tuple(values["source"]), "aberrations": dict(values["aberrations"])}
        )

    def ensemble(self, grid: Grid, energy_ev: float, count: int) -> Tensor:
        """Coherent probes ``(member, y, x)``, complex128, whose intensities add up to the blurred one.

        A cubature rule: the normal distribution of source points and foci is replaced by a few points with
        the same moments. They lie on rings, in two foci by turns; a point or two rings for 8 and 12
        members. The sum is scaled to ``electrons``.
        """
        points, weights = cubature(count)
        xx, yy, xy = self.source
        values, axes = torch.linalg.eigh(torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64))
        shifts = (points[:, :2] * values.clamp_min(0).sqrt()) @ axes.T
        pixels = shifts / torch.tensor(grid.pixel_size[::-1], dtype=torch.float64)
        spread, polar = math.sqrt(max(self.focal_variance, 0.0)), to_polar(self.aberrations)
        members = torch.empty(count, *grid.shape, dtype=torch.complex128)
        for side in (-1.0, 1.0):
            here = points[:, 2] == side
            focus = polar | {"C10": polar.get("C10", 0.0) + spread * side}
            probe = make_probe(grid, energy_ev, self.semiangle_mrad, focus)
            members[here] = shift_probe(probe[None], pixels[here])[:, 0]
        members *= weights.sqrt()[:, None, None]
        return members * math.sqrt(self.electrons / float(members.abs().square().sum()))


@lru_cache
def cubature(count: int) -> tuple[Tensor, Tensor]:
    """Points ``(count, 3)`` and weights for a unit normal distribution of (x, y, focus), for Eq. 10.

    Across, points lie on rings (Stroud 1971). Twelve, with Gauss-Laguerre radii, are exact for polynomials
    of degree 5; eight are so for degree 3, with a ring that was found to err least for sources of a
    fifth of the probe's width. Alternate points of a ring lie in the two foci, which keeps focus and place
    uncorrelated up to their third moments.

    Raises
    ------
    ValueError
        If there is no rule of ``count`` points.
    """
    if count == 8:
        rings = [(0.0, 0.4, 2), (math.sqrt(2 / 0.6), 0.6, 6)]
    elif count == 12:
        half_squares, shares = np.polynomial.laguerre.laggauss(2)
        rings = [(math.sqrt(2 * u), float(share), 6) for u, share in zip(half_squares, shares, strict=True)]
    else:
        raise ValueError(f"no cubature rule of {count} points; there are 8 and 12")
    points, weights = [], []
    for number, (radius, share, size) in enumerate(rings):
        for k in range(size):
            angle = 2 * math.pi * (k + 0.5 * number) / size
            points.append([radius * math.cos(angle), radius * math.sin(angle), 1.0 if k % 2 else -1.0])
            weights.append(share / size)
    return torch.tensor(points, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def to_polar(cartesian: Mapping[str, float]) -> dict[str, float]:
    """Krivanek polar coefficients from Cartesian ones (``C12a``, ``C12b`` to ``C12``, ``phi12``)."""
    polar = {name: value for name, value in cartesian.items() if name[-1] not in "ab"}
    for name in {name[:-1] for name in cartesian if name[-1] in "ab"}:
        a, b = cartesian.get(f"{name}a", 0.0), cartesian.get(f"{name}b", 0.0)
        polar[name] = math.hypot(a, b)
        polar[name.replace("C", "phi")] = math.atan2(b, a) / int(name[2])
    return polar
