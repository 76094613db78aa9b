"""Settings of the minibatch solver."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """When a variable moves, and how far.

    Parameters
    ----------
    step : float
        Fraction of the full (Lipschitz or Gauss-Newton) step; 0 holds the variable.
    start, stop : int
        First pass, and the pass at which it is held again.
    """

    step: float
    start: int = 0
    stop: int = 10**9

    def active(self, iteration: int) -> bool:
        """Whether the variable moves in this pass (counted from 0)."""
        return self.step > 0 and self.start <= iteration < self.stop


@dataclass(frozen=True)
class DescentOptions:
    """Settings of `petomo.algorithms.descent.reconstruct`.

    Parameters
    ----------
    iterations : int
        Passes over the data.
    batch_size : int, optional
        Patterns per volume step; None takes one step for all patterns of a tilt.
    solver : {"preconditioned", "sgd"}
        Steps scaled by curvature and momentum, or the paper's plain gradient descent with
        ``volume.step`` and ``probe.step`` used as they are.
    volume, probe, positions, affine, poses : Schedule
        ``affine`` moves all positions of a tilt together (shift and linear distortion), ``positions``
        each by itself, ``poses`` the three angles.
    momentum : float
        Share of a pass's change of the volume by which it goes on before the next, from the third on (as
        the extrapolation of Nesterov's method); below 1.
    final_step : float
        Volume and probe steps fall to this share of their start along a half cosine.
    prior_angstrom : float
        Standard deviation expected of single positions about the affine scan.
    curvature_every : int
        Passes between measurements of the geometry's curvature.
    seed : int
        Of the tilt and batch order.
    """

    iterations: int = 30
    batch_size: int | None = 128
    solver: str = "preconditioned"
    volume: Schedule = field(default_factory=lambda: Schedule(1.0))
    probe: Schedule = field(default_factory=lambda: Schedule(0.5, start=1))
    positions: Schedule = field(default_factory=lambda: Schedule(0.5, start=6))
    affine: Schedule = field(default_factory=lambda: Schedule(0.7, start=3))
    poses: Schedule = field(default_factory=lambda: Schedule(0.7, start=3))
    momentum: float = 0.9
    final_step: float = 0.05
    prior_angstrom: float = 0.1
    curvature_every: int = 4
    seed: int = 0

    def batches(self, patterns: int) -> int:
        """How many steps a visit to a tilt of so many patterns takes."""
        return 1 if self.batch_size is None else max(1, round(patterns / self.batch_size))
