"""How the detector lies against the scan, voted by all tilts of a series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from petomo.algorithms.bright_field_fit import ExplainedSignal, explained_signal, fit_astigmatism
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
    if int((stack.q.norm(dim=-1) <= 0.3 * stack.cutoff).sum()) < 3:
        return _Vote(False, stack.rotation, 0.0, 0.0)
    fit = fit_parallax(stack)
    shift = abs(fit.C10) * stack.wavelength * stack.cutoff
    # an astigmatism as large as the defocus leaves rotation and handedness open
    clear = max(0.0, 1 - fit.C12 / max(abs(fit.C10), 1e-9)) ** 2
    return _Vote(fit.transposed, fit.rotation, clear * max(0.0, shift / max(fit.residual, 1e-9) - 2), fit.C10)


def find_orientation(stacks: Sequence[BrightFieldStack]) -> Orientation | None:
    """Handedness, rotation and sign of the defocus.

    The shifts of the bright-field images, where there is a defocus, give handedness and rotation sharply, but
    for half a turn together with the defocus' sign. If the tilts' votes do not plainly confirm what is given,
    the signal that a weak object explains (`ExplainedSignal`) decides. The centre of mass then breaks the tie
    of the half turn, since atoms attract.

    Parameters
    ----------
    stacks : sequence of BrightFieldStack
        One a tilt, `detrended`, under the rotation given.

    Returns
    -------
    Orientation or None
        None if the data do not tell.
    """
    checks = [com_rotation(stack) for stack in stacks]
    curls = [_Vote(check.transposed, check.rotation, check.confidence) for check in checks]
    shifts = [_shift_vote(stack) for stack in stacks]
    found = _vote(shifts) if sum(vote.weight for vote in shifts) > 2 * len(shifts) else None
    if found is None or not _plain(found, stacks[0].rotation, len(stacks)):
        found = _arbitrate(stacks, shifts, curls)
    return None if found is None else _broken_tie(found, curls)


def _plain(found: Orientation, given: float, tilts: int) -> bool:
    """Whether the vote is as good as unanimous, or confirms what is given."""
    if found.handedness_confidence > 0.8 and found.votes >= 0.6 * tilts and found.error < math.radians(2.5):
        return True
    near = _away(found.rotation, given) < max(math.radians(5), 3 * found.error)
    return found.handedness_confidence > 0.5 and not found.mirrored and near


def _away(rotation: float, given: float) -> float:
    """Angle between two rotations, half turns aside."""
    return abs(math.remainder(rotation - given, math.pi))


def _vote(votes: Sequence[_Vote]) -> Orientation:
    strength = {side: sum(v.weight for v in votes if v.mirrored == side) for side in (False, True)}
    mirrored = strength[True] > strength[False]
    voters = [vote for vote in votes if vote.mirrored == mirrored and vote.weight > 0]
    rotation, error, agree = _mean_angle(voters)
    c10 = [v.C10 * math.copysign(1.0, math.cos(v.rotation - rotation)) for v in voters]
    sure = abs(strength[True] - strength[False]) / sum(strength.values())
    return Orientation(mirrored, rotation, error, sure, 0.0, float(np.median(c10)), agree)


def _arbitrate(
    stacks: Sequence[BrightFieldStack], shifts: Sequence[_Vote], curls: Sequence[_Vote]
) -> Orientation | None:
    """Orientation that explains most of the bright field of the three clearest tilts.

    What is given stands unless another explains 2 % more, astigmatism fitted for both. None if neither
    handedness is better, or none better than chance.
    """
    order = sorted(range(len(stacks)), key=lambda i: -shifts[i].weight - curls[i].weight)[:3]
    chosen, given = [stacks[i] for i in order], (False, stacks[0].rotation)
    sides = {False: chosen, True: [stack.transpose() for stack in chosen]}
    signals = {side: [explained_signal(stack, 60, 50) for stack in own] for side, own in sides.items()}
    if math.prod(signals[False][0].upsample) > 36:
        return None  # far too coarse a scan for its frequencies to be told apart
    samples = _c10_samples(chosen[0], [abs(vote.C10) for vote in shifts if vote.weight > 0])
    scores = {key: _scan_c10(signals[key[0]], key[1], samples) for key in _candidates(given, shifts, curls)}
    best = max(scores, key=lambda key: scores[key][0])
    if scores[best][0] < 2 * _by_chance(chosen, samples):
        return None
    other = max(score for (side, _), (score, _) in scores.items() if side != best[0])
    sure = 1 - math.exp(-max(0.0, scores[best][0] / other - 1) / 0.015)
    fitted = {
        key: [
            fit_astigmatism(_turned(s, key[1]), c)
            for s, c in zip(signals[key[0]], scores[key][1], strict=True)
        ]
        for key in {best, given}
    }
    shares = {key: _explained(signals[key[0]], fitted[key], key[1]) for key in fitted}
    if shares[best] < 1.02 * shares[given]:
        sure, best = (0.0 if best[0] else sure), given
    if sure < 0.3:
        return None
    mirrored, rotation = best
    refined = minimize_scalar(
        lambda angle: -_explained(signals[mirrored], fitted[best], float(angle)),
        bounds=(rotation - math.radians(12), rotation + math.radians(12)),
        method="bounded",
        options={"xatol": 3e-3},
    )
    rotation = float(refined.x)  # pyright: ignore[reportAttributeAccessIssue]
    agree = [v for v in shifts if v.mirrored == mirrored and _away(v.rotation, rotation) < math.radians(20)]
    c10 = float(np.median([aberrations["C10"] for aberrations in fitted[best]]))
    return Orientation(mirrored, rotation, math.radians(1), sure, 0.0, c10, len(agree))


def _candidates(
    given: tuple[bool, float], shifts: Sequence[_Vote], curls: Sequence[_Vote]
) -> list[tuple[bool, float]]:
    """Handedness and rotation worth trying: quarter turns of what is given, and what the tilts vote for."""
    tried = [given, (False, given[1] + math.pi / 2), (True, given[1]), (True, given[1] + math.pi / 2)]
    for votes in (shifts, curls):
        for side in (False, True):
            voters = [vote for vote in votes if vote.mirrored == side and vote.weight > 0]
            if voters:
                rotation = _mean_angle(voters)[0]
                if all(s != side or _away(r, rotation) > math.radians(6) for s, r in tried):
                    tried.append((side, rotation))
    return tried


def _c10_samples(stack: BrightFieldStack, seen: Sequence[float]) -> np.ndarray:
    depth = 1 / (stack.wavelength * stack.cutoff**2)
    reach = min(max(4 * depth, 1.5 * float(np.median(seen)) if seen else 0.0), 10 * depth)
    return np.linspace(-reach, reach, 2 * math.ceil(reach / (0.6 * depth)) + 1)


def _turned(signal: ExplainedSignal, rotation: float) -> ExplainedSignal:
    return replace(signal, stack=signal.stack.turned(rotation))


def _scan_c10(
    signals: Sequence[ExplainedSignal], rotation: float, samples: np.ndarray
) -> tuple[float, list[float]]:
    """Mean signal explained at the best C10 of each, and these C10."""
    found = []
    for signal in signals:
        shares = [signal({"C10": float(c10)}, rotation) for c10 in samples]
        found.append((max(shares), float(samples[int(np.argmax(shares))])))
    return float(np.mean([share for share, _ in found])), [c10 for _, c10 in found]


def _by_chance(stacks: Sequence[BrightFieldStack], samples: np.ndarray) -> float:
    """Signal explained after the images have been dealt to the detector's pixels at random."""
    deal = torch.Generator().manual_seed(0)
    dealt = [replace(stack, q=stack.q[torch.randperm(len(stack.q), generator=deal)]) for stack in stacks]
    return _scan_c10([explained_signal(stack, 60, 50) for stack in dealt], stacks[0].rotation, samples)[0]


def _explained(
    signals: Sequence[ExplainedSignal], aberrations: Sequence[dict[str, float]], rotation: float
) -> float:
    pairs = zip(signals, aberrations, strict=True)
    return sum(signal(values, rotation) for signal, values in pairs) / len(signals)


def _broken_tie(found: Orientation, curls: Sequence[_Vote]) -> Orientation:
    """Of two opposite rotations the one the centre of mass is for; C10 goes with it."""
    near = [
        v for v in curls if v.mirrored == found.mirrored and _away(v.rotation, found.rotation) < math.pi / 4
    ]
    turn = sum(v.weight * math.copysign(1.0, math.cos(v.rotation - found.rotation)) for v in near)
    # fields with as much curl as divergence are noise, whichever way they point
    sure = abs(turn) / max(sum(v.weight for v in near), 0.05 * len(curls))
    rotation, c10 = (found.rotation + math.pi, -found.C10) if turn < 0 else (found.rotation, found.C10)
    return replace(found, rotation=math.remainder(rotation, 2 * math.pi), C10=c10, turn_confidence=sure)


def _mean_angle(votes: Sequence[_Vote]) -> tuple[float, float, int]:
    """Weighted mean modulo half a turn without outliers beyond 20 degrees; its error; votes left."""
    angles, weights = (np.array([getattr(vote, name) for vote in votes]) for name in ("rotation", "weight"))
    # the vote that most others share is a start no outlier can spoil
    spread = np.cos(2 * (angles[:, None] - angles[None])) @ weights
    mean, keep, away = angles[int(np.argmax(spread))], np.ones(len(angles), bool), np.zeros(len(angles))
    for _ in range(3):
        away = np.angle(np.exp(2j * (angles - mean))) / 2
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
