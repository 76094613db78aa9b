"""Poses of a tilt series: the one definition of the rotation convention.

``r_lab = Rz(psi) Ry(theta) Rx(phi) r_sample + (tau_x, tau_y, 0)`` with column
vectors (x, y, z) and right-hand positive angles (paper Eq. 11, RELION-5).
theta is the stage tilt about y.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import roma
import torch
from torch import Tensor


def rotation_matrices(phi: Tensor, theta: Tensor, psi: Tensor) -> Tensor:
    """Rz(psi) Ry(theta) Rx(phi), shape ``(..., 3, 3)``, acting on (x, y, z) (paper Eq. 11)."""
    return roma.euler_to_rotmat("ZYX", torch.stack([psi, theta, phi], dim=-1))


@dataclass(frozen=True)
class Poses:
    """Orientation and shift of the specimen at every tilt.

    Parameters
    ----------
    phi, theta, psi : Tensor
        Euler angles in radian, shape ``(tilt,)``.
    tau : Tensor
        Shift (x, y) in angstrom, shape ``(tilt, 2)``.
    """

    phi: Tensor
    theta: Tensor
    psi: Tensor
    tau: Tensor

    def __post_init__(self):
        if not (self.phi.shape == self.theta.shape == self.psi.shape == self.tau.shape[:-1]):
            raise ValueError("phi, theta, psi need one value and tau one (x, y) pair per tilt")

    def __len__(self) -> int:
        return len(self.theta)

    @classmethod
    def from_tilts(cls, theta: Tensor) -> Poses:
        """Poses of a perfect goniometer: nominal stage tilts (radian), no shift."""
        theta = torch.as_tensor(theta, dtype=torch.float64)
        zero = torch.zeros_like(theta)
        return cls(zero, theta, zero.clone(), theta.new_zeros(len(theta), 2))

    @classmethod
    def from_matrices(cls, matrices: Tensor, tau: Tensor) -> Poses:
        """Poses from rotation matrices ``(tilt, 3, 3)`` and shifts."""
        psi, theta, phi = torch.unbind(roma.rotmat_to_euler("ZYX", matrices), -1)  # pyright: ignore
        return cls(phi, theta, psi, tau)

    def matrices(self) -> Tensor:
        """Rotation matrices ``(tilt, 3, 3)``, sample to lab."""
        return rotation_matrices(self.phi, self.theta, self.psi)

    def apply(self, points: Tensor) -> Tensor:
        """Lab coordinates ``(tilt, point, 3)`` of sample points ``(point, 3)`` in angstrom."""
        lab = torch.einsum("tij,pj->tpi", self.matrices(), points)
        return lab + torch.nn.functional.pad(self.tau, (0, 1))[:, None]

    def regauged(self, rotation: Tensor, shift: Tensor) -> Poses:
        """Same lab images after the specimen frame moves by ``r' = rotation r + shift``.

        A shift along the beam has no effect on a projection, so only (x, y) of the
        rotated shift enters tau.
        """
        matrices = self.matrices() @ rotation.T
        return Poses.from_matrices(matrices, self.tau - (matrices @ shift)[:, :2])

    def seen_from(self, scans: Iterable[Tensor]) -> Poses:
        """Copy whose shifts count from the middle of every scan ``(position, 2)``, in angstrom.

        Patterns tell only where the specimen lies in the scan: both may be moved together.
        """
        return self.replace(tau=self.tau - torch.stack([scan.double().mean(0) for scan in scans]))

    def to_dict(self) -> dict[str, Tensor]:
        """Tensors by name, for checkpoints."""
        return {"phi": self.phi, "theta": self.theta, "psi": self.psi, "tau": self.tau}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Poses:
        """Poses from what `to_dict` gave, among whatever else."""
        return cls(*(torch.as_tensor(state[name]) for name in ("phi", "theta", "psi", "tau")))

    def replace(self, **changes: Tensor) -> Poses:
        """Copy with some fields changed."""
        return replace(self, **changes)

    def detach(self) -> Poses:
        """Copy cut from the graph, in float64."""
        return Poses(
            *(t.detach().to("cpu", torch.float64).clone() for t in (self.phi, self.theta, self.psi, self.tau))
        )


def fit_rigid(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and shift with ``target = rotation source + shift`` in least squares.

    Parameters
    ----------
    source, target : Tensor
        Paired points, shape ``(point, 3)``, in angstrom.
    """
    return roma.rigid_points_registration(source, target)  # pyright: ignore[reportReturnType]


def fit_gauge(found: Poses, truth: Poses) -> tuple[Tensor, Tensor]:
    """One rigid motion of the specimen frame that best maps ``found`` onto ``truth``.

    Returns the rotation and shift to pass to `Poses.regauged`. The motion of the
    specimen frame common to all tilts cannot be seen in the data, so pose errors
    are quoted after it has been removed.
    """
    a, b = found.matrices(), truth.matrices()
    # R_found Q^T = R_truth for all tilts: Q^T = procrustes(sum R_found^T R_truth)
    rotation = roma.special_procrustes((a.transpose(1, 2) @ b).sum(0)).T  # pyright: ignore
    # tau_found - (R_found Q^T s)_xy = tau_truth, linear in s
    design = (a @ rotation.T)[:, :2].reshape(-1, 3)
    shift = torch.linalg.lstsq(design, (found.tau - truth.tau).reshape(-1, 1)).solution[:, 0]
    return rotation, shift


def pose_errors(found: Poses, truth: Poses) -> dict[str, Tensor]:
    """Errors per tilt after the gauge is removed.

    Returns
    -------
    dict
        ``shift`` (angstrom, length of the tau error), ``angle`` (radian, geodesic
        distance of the rotations), and the signed ``tau``, ``phi``, ``theta``, ``psi``.
    """
    aligned = found.regauged(*fit_gauge(found, truth))
    tau = aligned.tau - truth.tau
    return {
        "shift": tau.norm(dim=-1),
        "angle": roma.rotmat_geodesic_distance(aligned.matrices(), truth.matrices()),
        "tau": tau,
        "phi": _wrapped(aligned.phi - truth.phi),
        "theta": _wrapped(aligned.theta - truth.theta),
        "psi": _wrapped(aligned.psi - truth.psi),
    }


def _wrapped(angle: Tensor) -> Tensor:
    """The same angle within half a turn of zero."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
