"""The end-to-end model of a specimen made of atoms: no voxels, so that poses cannot hide in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petomo.core.electron import interaction_constant
from petomo.core.memory import patterns_at_once
from petomo.core.pose import Poses, rotation_matrices
from petomo.core.scan import affine_basis, turn_scan
from petomo.models.ptycho_tomography import TomographyGeometry
from petomo.physics.atomic_potential import atomic_slices
from petomo.physics.multislice import Loss, diffract, multislice_loss


@dataclass(frozen=True)
class Sites:
    """Atoms: what they are, where, how much of them, how much they move.

    Parameters
    ----------
    numbers : np.ndarray
        Atomic numbers ``(atom,)``.
    positions : Tensor
        ``(atom, 3)`` as (x, y, z) in angstrom, sample frame.
    occupancy : Tensor
        ``(atom,)``; 1 is a whole atom.
    variance : Tensor
        Mean squared displacement u^2 along one axis in square angstrom, ``(atom,)``.
    """

    numbers: np.ndarray
    positions: Tensor
    occupancy: Tensor
    variance: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, index: np.ndarray) -> Sites:
        """Some of the sites."""
        chosen = torch.as_tensor(index)
        return Sites(
            self.numbers[index], self.positions[chosen], self.occupancy[chosen], self.variance[chosen]
        )


class AtomicTomography(nn.Module):
    """Atoms, poses and scans seen by given probes (paper Eq. 14, with a sum of atoms for the volume).

    The scan of a tilt is the start scan, distorted (``affine``), with single positions off (``stray``), and
    turned by as much as psi has turned since the start: psi then changes nothing but the specimen's
    orientation on the detector, and does not compete with a rotation of the scan.

    Parameters
    ----------
    sites : Sites
        The specimen.
    poses : Poses
        Start poses, one per tilt.
    probes : sequence of Tensor
        ``(mode, y, x)`` complex at the plane z = 0, in root electrons, for every tilt. Slices and patterns
        are computed on their device; what is refined stays on the processor.
    positions : sequence of Tensor
        Start positions ``(k, 2)`` as (x, y) in angstrom for every tilt.
    geometry : TomographyGeometry
        Slices and optics.
    distortion : Tensor, optional
        How far the start positions of each tilt are distorted already, ``(tilt, 2, 2)``; for the priors.
    """

    def __init__(
        self,
        sites: Sites,
        poses: Poses,
        probes: Sequence[Tensor],
        positions: Sequence[Tensor],
        geometry: TomographyGeometry,
        distortion: Tensor | None = None,
    ):
        super().__init__()
        self.geometry, self.numbers = geometry, np.asarray(sites.numbers)
        self.sigma = interaction_constant(geometry.optics.energy_ev)
        self.sites = nn.Parameter(sites.positions.double().clone())
        self.occupancy = nn.Parameter(sites.occupancy.double().clone())
        self.variance = nn.Parameter(sites.variance.double().clone())
        self.angles = nn.Parameter(torch.stack([poses.phi, poses.theta, poses.psi], dim=-1).double())
        self.tau = nn.Parameter(poses.tau.double().clone())
        self.affine = nn.Parameter(torch.zeros(len(poses), 2, 2, dtype=torch.float64))
        self.register_buffer(
            "start_affine", self.affine.data.clone() if distortion is None else distortion.double()
        )
        self.stray = nn.ParameterList([torch.zeros_like(p, dtype=torch.float64) for p in positions])
        self.register_buffer("start_psi", poses.psi.double().clone())
        self.register_buffer("start_tau", poses.tau.double().clone())
        for tilt, (scan, probe) in enumerate(zip(positions, probes, strict=True)):
            self.register_buffer(f"scan_{tilt}", scan.double() - poses.tau[tilt].double())
            self.register_buffer(f"probe_{tilt}", probe.clone())
            self._weigh(tilt, torch.eye(2, dtype=torch.float64).expand(len(scan), 2, 2))

    @property
    def pixel_size(self) -> float:
        """Pixel of the slices and the probes in angstrom."""
        return self.geometry.slices.voxel

    @property
    def device(self) -> torch.device:
        """Where slices and patterns are computed."""
        return self.probe(0).device

    @property
    def poses(self) -> Poses:
        """Poses as they stand now (detached, float64)."""
        phi, theta, psi = self.angles.unbind(-1)
        return Poses(phi, theta, psi, self.tau).detach()

    def probe(self, tilt: int) -> Tensor:
        """Probe modes of a tilt ``(mode, y, x)``."""
        return self.get_buffer(f"probe_{tilt}")

    def illuminate(self, tilt: int, probe: Tensor) -> None:
        """Replace the probe of a tilt; the number of modes may change."""
        self.register_buffer(f"probe_{tilt}", probe.to(self.device))

    def current_sites(self) -> Sites:
        """Copy of the specimen as it stands now."""
        moving = (self.sites, self.occupancy, self.variance)
        return Sites(self.numbers, *(p.detach().clone() for p in moving))

    def subset(self, tilts: Sequence[int]) -> AtomicTomography:
        """A copy that sees some of the tilts only."""
        index, start = torch.as_tensor(list(tilts)), self.get_buffer("start_tau")
        phi, theta, _ = self.angles.detach()[index].unbind(-1)
        part = AtomicTomography(
            self.current_sites(),
            Poses(phi, theta, self.get_buffer("start_psi")[index], start[index]),
            [self.probe(t) for t in tilts],
            [self.get_buffer(f"scan_{t}") + start[t] for t in tilts],
            self.geometry,
            self.get_buffer("start_affine")[index],
        )
        for name in ("angles", "tau", "affine"):
            part.get_parameter(name).data.copy_(self.get_parameter(name).data[index])
        for number, tilt in enumerate(tilts):
            part.stray[number].data.copy_(self.stray[tilt].data)
            part.register_buffer(f"weights_{number}", self.get_buffer(f"weights_{tilt}"))
        return part

    def lab(self, tilt: int) -> Tensor:
        """Atoms in the beam's frame, relative to the specimen's shifted origin, ``(atom, 3)``."""
        return self.sites @ rotation_matrices(*self.angles[tilt]).T

    def phase(self, tilt: int) -> Tensor:
        """Phase shifts of the slices, ``(slice, y, x)`` in radian (paper Eq. 5)."""
        dtype, slices = self.probe(tilt).real.dtype, self.geometry.slices
        lab, occupancy, variance = (
            x.to(self.device) for x in (self.lab(tilt), self.occupancy, self.variance)
        )
        return atomic_slices(lab, occupancy, variance, self.numbers, slices, dtype) * self.sigma

    def pixels(self, tilt: int, index: Tensor) -> Tensor:
        """Probe positions in pixels of the slices ``(k, 2)``."""
        return (self.relative_scan(tilt)[index] / self.pixel_size).to(self.device)

    def relative_scan(self, tilt: int) -> Tensor:
        """Probe positions relative to the specimen's origin ``(k, 2)`` in angstrom."""
        start = self.get_buffer(f"scan_{tilt}")
        centred = start - start.mean(0)
        scan = start + centred @ self.affine[tilt].T + self._single(tilt)
        turn = self.angles[tilt, 2] - self.get_buffer("start_psi")[tilt]
        turned = turn_scan(scan, torch.zeros_like(scan[0]), turn)
        return turned - (self.tau[tilt] - self.get_buffer("start_tau")[tilt])

    def _single(self, tilt: int) -> Tensor:
        """Strays without what they share: shifts and distortions have parameters of their own."""
        shared = affine_basis(self.get_buffer(f"scan_{tilt}"))
        return self.stray[tilt] - shared @ self._common(tilt, shared)

    def _common(self, tilt: int, shared: Tensor) -> Tensor:
        weighted = self.get_buffer(f"weights_{tilt}") @ shared
        right = torch.einsum("kip,ki->p", weighted, self.stray[tilt])
        return torch.linalg.solve(torch.einsum("kip,kiq->pq", weighted, shared), right)

    @torch.no_grad()
    def weigh_positions(self, tilt: int, curvature: Tensor) -> None:
        """Let positions count by how well they are seen, ``(k, 2, 2)``, in what strays have in common.

        No position moves: what they then have in common goes over to shift and distortion.
        """
        single = self._single(tilt)
        self._weigh(tilt, curvature)
        self.stray[tilt].copy_(single)
        shared = affine_basis(self.get_buffer(f"scan_{tilt}"))
        common = self._common(tilt, shared)
        self.stray[tilt].sub_(shared @ common)
        turn = self.angles[tilt, 2] - self.get_buffer("start_psi")[tilt]
        self.tau[tilt].sub_(turn_scan(common[None, :2], torch.zeros_like(common[:2]), turn)[0])
        self.affine[tilt].add_(common[2:].view(2, 2))

    def _weigh(self, tilt: int, curvature: Tensor) -> None:
        self.register_buffer(f"weights_{tilt}", curvature + 1e-6 * torch.eye(2, dtype=torch.float64))

    def positions(self, tilt: int) -> Tensor:
        """Probe positions on the scan's axes ``(k, 2)`` in angstrom (detached)."""
        return (self.relative_scan(tilt) + self.tau[tilt]).detach()

    def parts(self, tilt: int, index: Tensor) -> Sequence[Tensor]:
        """Patterns of a tilt, as many at a time as are read at once."""
        return index.split(patterns_at_once(self.probe(tilt)[0].numel()))

    def forward(
        self, tilt: int, index: Tensor, measured: Tensor, loss: Loss, phase: Tensor | None = None
    ) -> Tensor:
        """Loss summed over the patterns ``index`` of one tilt; ``measured`` in FFT order.

        ``phase`` is what `phase` gave.
        """
        phase = self.phase(tilt) if phase is None else phase
        waves = phase, None, self.probe(tilt), self.pixels(tilt, index)
        return multislice_loss(*waves, measured, self.geometry.optics, loss)

    @torch.no_grad()
    def predict(self, tilt: int, index: Tensor, phase: Tensor | None = None) -> Tensor:
        """Model intensities ``(k, ky, kx)`` in FFT order, electrons; ``phase`` is what `phase` gave."""
        phase = self.phase(tilt) if phase is None else phase
        waves = phase, None, self.probe(tilt), self.pixels(tilt, index)
        return diffract(*waves, self.geometry.optics)
