"""The end-to-end model: one volume, seen at every tilt by mixed-state probes (paper Eq. 14, 15)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from petomo.core.electron import interaction_constant
from petomo.core.parallel import ALONE, Team
from petomo.core.pose import Poses
from petomo.physics.multislice import Loss, MultisliceOptics, Slices, diffract, multislice_loss
from petomo.physics.resample import Interpolation, SliceGeometry, rotate_and_bin
from petomo.physics.tilt import rows_last


@dataclass(frozen=True)
class TomographyGeometry:
    """How the volume is cut into slices and how the beam runs through them.

    Parameters
    ----------
    slices : SliceGeometry
        Slices that `rotate_and_bin` makes of the volume.
    optics : MultisliceOptics
        Probe window, energy and slice thickness; its pixel is the volume's voxel.
    interpolation : str
        See `rotate_and_bin`.
    """

    slices: SliceGeometry
    optics: MultisliceOptics
    interpolation: Interpolation = "spline"

    def __post_init__(self):
        if any(abs(p / self.slices.voxel - 1) > 1e-3 for p in self.optics.window.pixel_size):
            raise ValueError(
                f"the probe's pixel {self.optics.window.pixel_size} A "
                f"must equal the voxel {self.slices.voxel} A"
            )


class PtychoTomography(nn.Module):
    """Volume, probes, positions and poses: the end-to-end model (paper Eq. 14, 15), one line per equation.

    Parameters
    ----------
    volume : Tensor
        Potential in volts, ``z y x``.
    poses : Poses
        One per tilt; tau acts on the probe positions, which is exact.
    probes : Tensor or sequence of Tensor
        ``(tilt, mode, y, x)`` complex at the plane z = 0, in root electrons.
    positions : sequence of Tensor
        ``(k, 2)`` as (x, y) in angstrom for every tilt.
    geometry : TomographyGeometry
        Slices and optics.
    absorption : Tensor, optional
        Imaginary part of the potential in volts.
    scan : list of Tensor, optional
        Nominal scan positions; default: ``positions``.
    """

    def __init__(
        self,
        volume: Tensor,
        poses: Poses,
        probes: Tensor | Sequence[Tensor],
        positions: Sequence[Tensor],
        geometry: TomographyGeometry,
        absorption: Tensor | None = None,
        scan: list[Tensor] | None = None,
    ):
        super().__init__()
        real = volume.dtype
        self.geometry = geometry
        self.sigma = interaction_constant(geometry.optics.energy_ev)
        self.volume = nn.Parameter(rows_last(volume))
        self.absorption = None if absorption is None else nn.Parameter(rows_last(absorption))
        self.probes = nn.ParameterList([p.clone() for p in probes])
        self.positions = nn.ParameterList([p.to(real).clone() for p in positions])
        for tilt, nominal in enumerate(scan or positions):
            self.register_buffer(f"scan_{tilt}", nominal.to(real).clone())
        # angles and shifts stay in double precision: their steps are small against their values
        self.angles = nn.Parameter(torch.stack([poses.phi, poses.theta, poses.psi], dim=-1).to(torch.float64))
        self.tau = nn.Parameter(poses.tau.to(torch.float64).clone())

    @property
    def pixel_size(self) -> float:
        """Voxel of the volume and pixel of the probes in angstrom."""
        return self.geometry.slices.voxel

    def scan(self, tilt: int) -> Tensor:
        """Nominal scan positions ``(k, 2)``, from which the refined ones should not stray without reason."""
        return self.get_buffer(f"scan_{tilt}")

    def lipschitz(self, fluence: float) -> float:
        """Bound on the curvature of the amplitude loss in the volume for this many electrons a pixel.

        One voxel turns the phase by sigma V voxel, and a beam crosses at most the whole depth.
        """
        return 2 * fluence * (self.sigma * self.pixel_size) ** 2 * self.volume.shape[0]

    @property
    def poses(self) -> Poses:
        """Poses as they stand now (detached, float64)."""
        phi, theta, psi = self.angles.unbind(-1)
        return Poses(phi, theta, psi, self.tau).detach()

    def phase(self, tilt: int, team: Team = ALONE) -> Slices:
        """``sigma B_b A_Theta V`` and, if modelled, the absorption, both ``(slice, y, x)`` in radian.

        Each process of a team goes on with patterns of its own: the gradients of the volume and of the
        absorption are then those of all patterns.
        """
        geometry, origin = self.geometry, torch.zeros(2, dtype=torch.float64, device=self.tau.device)
        phi, theta, psi = self.angles[tilt]
        args = (phi, theta, psi, origin, geometry.slices, geometry.interpolation, team)
        absorption = None if self.absorption is None else rotate_and_bin(self.absorption, *args) * self.sigma
        return rotate_and_bin(self.volume, *args) * self.sigma, absorption

    def pixels(self, tilt: int, index: Tensor) -> Tensor:
        """Probe positions in pixels of the slices: moving the specimen by tau moves the probe by -tau."""
        shifted = self.positions[tilt][index] - self.tau[tilt].to(self.positions[tilt].dtype)
        return shifted / self.pixel_size

    def forward(
        self, tilt: int, index: Tensor, measured: Tensor, loss: Loss, slices: Slices | None = None
    ) -> Tensor:
        """Loss summed over the patterns ``index`` of one tilt; ``measured`` in FFT order.

        ``slices`` is what `phase` gave.
        """
        phase, absorption = slices or self.phase(tilt)
        return multislice_loss(
            phase,
            absorption,
            self.probes[tilt],
            self.pixels(tilt, index),
            measured,
            self.geometry.optics,
            loss,
        )

    @torch.no_grad()
    def predict(self, tilt: int, index: Tensor, slices: Slices | None = None) -> Tensor:
        """Model intensities ``(k, ky, kx)`` in FFT order, electrons; ``slices`` is what `phase` gave."""
        phase, absorption = slices or self.phase(tilt)
        return diffract(phase, absorption, self.probes[tilt], self.pixels(tilt, index), self.geometry.optics)
