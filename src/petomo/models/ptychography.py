"""The model of one tilt: an object in slices seen by mixed-state probes (paper Eq. 8-10, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petomo.core.parallel import ALONE, Team
from petomo.physics.multislice import Loss, MultisliceOptics, Slices, diffract, multislice_loss


class Ptychography(nn.Module):
    """Object slices, probe and positions of one tilt.

    Parameters
    ----------
    volume : Tensor
        Phase of every slice in radian, ``(slice, y, x)``, optical axis at ``n // 2``.
    probe : Tensor
        ``(mode, y, x)`` complex at the plane z = 0, in root electrons.
    positions : Tensor
        ``(k, 2)`` as (x, y) in angstrom.
    optics : MultisliceOptics
        Window, energy, slice thickness; square pixels.
    absorption : Tensor, optional
        Imaginary part, like ``volume``.
    """

    def __init__(
        self,
        volume: Tensor,
        probe: Tensor,
        positions: Tensor,
        optics: MultisliceOptics,
        absorption: Tensor | None = None,
    ):
        super().__init__()
        self.optics = optics
        self.pixel_size = optics.window.pixel_size[0]
        self.volume = nn.Parameter(volume.clone())
        self.absorption = None if absorption is None else nn.Parameter(absorption.clone())
        self.probes = nn.ParameterList([probe.clone()])
        self.positions = nn.ParameterList([positions.to(volume.dtype).clone()])
        self.register_buffer("scan_0", positions.to(volume.dtype).clone())

    def scan(self, tilt: int) -> Tensor:
        """Nominal scan positions ``(k, 2)``, from which the refined ones should not stray without reason."""
        return self.get_buffer(f"scan_{tilt}")

    def lipschitz(self, fluence: float) -> float:
        """Bound on the curvature of the amplitude loss in the object for this many electrons a pixel."""
        return 2 * fluence * len(self.volume)

    def phase(self, _tilt: int, team: Team = ALONE) -> Slices:
        """Phase and, if modelled, absorption of every slice, ``(slice, y, x)`` in radian."""

        def whole(part: Tensor) -> Tensor:
            return team.join(team.slab(part, dim=1), part.shape[1], dim=1)

        return whole(self.volume), None if self.absorption is None else whole(self.absorption)

    def pixels(self, tilt: int, index: Tensor) -> Tensor:
        """Probe positions in pixels."""
        return self.positions[tilt][index] / self.pixel_size

    def forward(
        self, tilt: int, index: Tensor, measured: Tensor, loss: Loss, slices: Slices | None = None
    ) -> Tensor:
        """Loss summed over the patterns ``index``; ``measured`` in FFT order, ``tilt`` is 0.

        ``slices`` is what `phase` gave.
        """
        phase, absorption = slices or self.phase(tilt)
        return multislice_loss(
            phase, absorption, self.probes[tilt], self.pixels(tilt, index), measured, self.optics, loss
        )

    @torch.no_grad()
    def predict(self, tilt: int, index: Tensor, slices: Slices | None = None) -> Tensor:
        """Model intensities ``(k, ky, kx)`` in FFT order, electrons; ``slices`` is what `phase` gave."""
        phase, absorption = slices or self.phase(tilt)
        return diffract(phase, absorption, self.probes[tilt], self.pixels(tilt, index), self.optics)

    def projection(self) -> Tensor:
        """Phase summed over the slices, ``(y, x)`` in radian (paper: V_tot)."""
        return self.volume.detach().sum(0)
