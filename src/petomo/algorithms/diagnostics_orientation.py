"""How the detector lies against the scan, voted by all tilts of a series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from petomo.algorithms.bright_field_shifts import com_rotation, fit_parallax
from petomo.algorithms.bright_field_stack import BrightFieldStack

Flip = tuple[bool, bool, bool]


@dataclass(frozen=True)
class Orientation:
    """How the detector lies against the scan, voted by all tilts.

    Parameters
    ----------
    mirrored : bool
        Detector's axes have to be exchanged.
    rotation : float
        Scan rotation in radian, of the exchanged detector if mirrored.
    error : float
        Standard error of the rotation in radian.
    handedness_confidence, turn_confidence : float
        0 to 1: of ``mirrored``, and of the rotation against the one half a turn away.
    C10 : float
        Median in angstrom at this rotation, NaN where the images do not shift; strong atoms make it
        some tens of angstrom too large.
    votes : int
        Tilts that agree in handedness and rotation.
    """

    mirrored: bool
    rotation: float
    error: float
    handedness_confidence: float
    turn_confidence: float
    C10: float
    votes: int


def detrended(stack: BrightFieldStack) -> BrightFieldStack:
    """Images and centres of mass less their plane over the scan, which descan and beam current put in."""
    ny, nx = stack.geometry.scan_shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, ny), torch.linspace(-1, 1, nx), indexing="ij")
    basis = torch.linalg.qr(torch.stack([torch.ones_like(y), y, x], -1).reshape(-1, 3)).Q
    images, com = stack.images.flatten(1), stack.com.reshape(-1, 2)
    return replace(
        stack,
        images=(images - images @ basis @ basis.T).reshape(stack.images.shape),
        com=(com - basis @ (basis.T @ com)).reshape(stack.com.shape),
    )


@dataclass(frozen=True)
class _Vote:
    mirrored: bool
    rotation: float
    weight: float
    C10: float = math.nan


def _shift_vote(stack: BrightFieldStack) -> _Vote:
    """Rotation modulo half a turn: the weight is the shift across the disk over what remains unexplained."""
    fit = fit_parallax(stack)
    shift = abs(fit.C10) * stack.wavelength * stack.cutoff
    # an astigmatism as large as the defocus leaves rotation and handedness open
    clear = max(0.0, 1 - fit.C12 / max(abs(fit.C10), 1e-9)) ** 2
    return _Vote(fit.transposed, fit.rotation, clear * max(0.0, shift / max(fit.residual, 1e-9) - 2), fit.C10)


def vote_orientation(stacks: Sequence[BrightFieldStack]) -> Orientation | None:
    """Handedness and rotation from the shifts of the bright-field images and the curl of the centre of mass.

    The shifts, where there is a defocus, give both sharply, but for half a turn together with the defocus'
    sign; the centre of mass breaks that tie, since atoms attract, and serves alone in focus.

    Parameters
    ----------
    stacks : sequence of BrightFieldStack
        One a tilt, `detrended`.

    Returns
    -------
    Orientation or None
        None if the data do not tell.
    """
    checks = [com_rotation(stack) for stack in stacks]
    curls = [_Vote(check.transposed, check.rotation, check.confidence) for check in checks]
    shifts = [_shift_vote(stack) for stack in stacks]
    axial = sum(vote.weight for vote in shifts) > 2 * len(shifts)
    votes = shifts if axial else curls
    strength = {side: sum(v.weight for v in votes if v.mirrored == side) for side in (False, True)}
    if not axial and max(strength.values()) < 0.05 * len(votes):
        return None
    mirrored = strength[True] > strength[False]
    confidence = abs(strength[True] - strength[False]) / max(sum(strength.values()), 1e-12)
    voters = [vote for vote in votes if vote.mirrored == mirrored and vote.weight > 0]
    rotation, error, agree = _mean_angle(voters, 2 if axial else 1)
    turn = sum(
        v.weight * math.copysign(1.0, math.cos(v.rotation - rotation))
        for v in curls
        if v.mirrored == mirrored
    )
    turn /= max(sum(v.weight for v in curls if v.mirrored == mirrored), 1e-12)
    if turn < 0:
        rotation += math.pi
    c10 = [v.C10 * math.copysign(1.0, math.cos(v.rotation - rotation)) for v in voters] if axial else []
    return Orientation(
        mirrored=mirrored,
        rotation=math.remainder(rotation, 2 * math.pi),
        error=error,
        handedness_confidence=confidence,
        turn_confidence=abs(turn),
        C10=float(np.median(c10)) if c10 else math.nan,
        votes=agree,
    )


def _mean_angle(votes: Sequence[_Vote], fold: int) -> tuple[float, float, int]:
    """Weighted mean modulo ``2 pi / fold`` without outliers beyond 20 degrees; its error; votes left."""
    angles, weights = (np.array([getattr(vote, name) for vote in votes]) for name in ("rotation", "weight"))
    # the vote that most others share is a start no outlier can spoil
    spread = np.cos(fold * (angles[:, None] - angles[None])) @ weights
    mean, keep, away = angles[int(np.argmax(spread))], np.ones(len(angles), bool), np.zeros(len(angles))
    for _ in range(3):
        away = np.angle(np.exp(1j * fold * (angles - mean))) / fold
        keep = np.abs(away) < math.radians(20)
        mean = mean + np.average(away[keep], weights=weights[keep])
    scatter = math.sqrt(np.average(away[keep] ** 2, weights=weights[keep]))
    return float(mean), scatter / math.sqrt(max(1, int(keep.sum()) - 1)), int(keep.sum())


def flip_matrix(flip: Flip) -> np.ndarray:
    """What flip up-down, left-right, then transpose do to a detector vector (x, y)."""
    up_down, left_right, transpose = flip
    matrix = np.diag([-1 if left_right else 1, -1 if up_down else 1])
    return matrix[::-1] if transpose else matrix


def suggest_flip(found: Orientation, flip: Flip, rotation: float) -> tuple[Flip, float]:
    """``data.flip`` that agrees with the data, and the scan rotation (radian) that belongs to it.

    Turning the detector by quarter turns and the scan's rotation with it changes nothing, so that the flip
    whose rotation is nearest to the given one is returned.

    Parameters
    ----------
    found : Orientation
        Measured on patterns under ``flip``.
    flip : (bool, bool, bool)
        Up-down, left-right, transpose, as the data were read.
    rotation : float
        Scan rotation given, in radian.
    """
    exchange = np.array([[0, 1], [1, 0]]) if found.mirrored else np.eye(2, dtype=int)
    quarter = np.array([[0, -1], [1, 0]])
    turns = min(
        range(4), key=lambda m: abs(math.remainder(found.rotation + m * math.pi / 2 - rotation, 2 * math.pi))
    )
    wanted = np.linalg.matrix_power(quarter, turns) @ exchange @ flip_matrix(flip)
    every: list[Flip] = [(bool(n & 1), bool(n & 2), bool(n & 4)) for n in range(8)]
    chosen = next(other for other in every if np.array_equal(flip_matrix(other), wanted))
    return chosen, math.remainder(found.rotation + turns * math.pi / 2, 2 * math.pi)
