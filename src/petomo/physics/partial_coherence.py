"""Probes blurred by the source's size and the beam's energy spread, as few orthogonal modes.

A finite source shifts the coherent probe, an energy spread defocuses it; the patterns of all shifts and
defoci add up. The ensemble's density matrix has few eigenvectors that matter, and these are the modes of
the mixed state (paper Eq. 10; Thibault and Menzel 2013).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from petomo.core.grid import Grid
from petomo.physics.probe import make_probe, shift_probe

_SHIFTS, _DEFOCI = 5, 3  # nodes of the quadratures, enough for blurs below the probe's width


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

    def modes(self, grid: Grid, energy_ev: float, count: int) -> Tensor:
        """The ``count`` strongest modes ``(mode, y, x)``, complex128, centred, strongest first.

        Their sum is scaled to ``electrons``: what is left out counts for a few percent at most.
        """
        ensemble = self._ensemble(grid, energy_ev)
        flat = ensemble.flatten(1)
        _, vectors = torch.linalg.eigh(flat @ flat.conj().T)
        modes = (vectors.flip(1)[:, :count].conj().T @ flat).view(-1, *grid.shape)
        return modes * math.sqrt(self.electrons / float(modes.abs().square().sum()))

    def _ensemble(self, grid: Grid, energy_ev: float) -> Tensor:
        """Weighted coherent probes at the nodes of Gauss-Hermite quadratures."""
        shifts, weights = self._shifts()
        pixels = shifts / torch.tensor(grid.pixel_size[::-1], dtype=torch.float64)
        spread = math.sqrt(max(self.focal_variance, 0.0))
        f, wf = _nodes(_DEFOCI if spread else 1)
        polar, parts = to_polar(self.aberrations), []
        for node, weight in zip(f, wf, strict=True):
            focus = polar | {"C10": polar.get("C10", 0.0) + spread * float(node)}
            probe = make_probe(grid, energy_ev, self.semiangle_mrad, focus)
            parts.append(shift_probe(probe[None], pixels)[:, 0] * (weights * weight).sqrt()[:, None, None])
        return torch.cat(parts)

    def _shifts(self) -> tuple[Tensor, Tensor]:
        """Nodes ``(k, 2)`` as (x, y) in angstrom and weights of a normal distribution of probe positions."""
        xx, yy, xy = self.source
        values, axes = torch.linalg.eigh(torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64))
        reach = values.clamp_min(0).sqrt()
        (a, wa), (b, wb) = (_nodes(_SHIFTS if r > 0 else 1) for r in reach)
        nodes = torch.stack(torch.meshgrid(a * reach[0], b * reach[1], indexing="ij"), dim=-1).view(-1, 2)
        return nodes @ axes.T, (wa[:, None] * wb).flatten()


def to_polar(cartesian: Mapping[str, float]) -> dict[str, float]:
    """Krivanek polar coefficients from Cartesian ones (``C12a``, ``C12b`` to ``C12``, ``phi12``)."""
    polar = {name: value for name, value in cartesian.items() if name[-1] not in "ab"}
    for name in {name[:-1] for name in cartesian if name[-1] in "ab"}:
        a, b = cartesian.get(f"{name}a", 0.0), cartesian.get(f"{name}b", 0.0)
        polar[name] = math.hypot(a, b)
        polar[name.replace("C", "phi")] = math.atan2(b, a) / int(name[2])
    return polar


def _nodes(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Hermite rule for a unit normal distribution."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    return torch.as_tensor(x), torch.as_tensor(w / w.sum())
