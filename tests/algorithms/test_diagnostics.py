"""Pieces of the diagnosis on made-up numbers; the whole is tested on simulated series in tests/workflow."""

import math
from itertools import product

import numpy as np
import pytest

from petomo.algorithms.diagnostics import TiltSurvey, bad_pixels, fit_disk, saturation
from petomo.algorithms.diagnostics_orientation import Orientation, flip_matrix, suggest_flip
from petomo.algorithms.diagnostics_tilts import misfits

FLIPS = list(product([False, True], repeat=3))


def test_flip_matrices_do_what_the_dataset_does():
    image = np.zeros((5, 5))
    image[1, 4] = 1  # y = -1, x = +2 from the centre
    for flip in FLIPS:
        seen = image[::-1] if flip[0] else image
        seen = seen[:, ::-1] if flip[1] else seen
        seen = seen.T if flip[2] else seen
        y, x = np.argwhere(seen)[0] - 2
        assert (flip_matrix(flip) @ [2, -1]).tolist() == [x, y]


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("degrees", [0, 12, 90, -100, 180])
def test_the_flip_suggested_is_the_one_whose_rotation_is_nearest(flip, degrees):
    """Data right under ``flip`` and 12 degrees, read without flips: the flip is found, and 12 degrees."""
    true = math.radians(12)
    # in the frame of the data as read a vector is F^T k; exchanged if F mirrors, it is turned by the rest
    back = flip_matrix(flip).T
    mirrored = bool(np.linalg.det(back) < 0)
    turn = back[::-1] if mirrored else back
    rotation = true + math.atan2(turn[1, 0], turn[0, 0])
    found = Orientation(mirrored, rotation, 0.0, 1.0, 1.0, -60.0, 5)
    chosen, angle = suggest_flip(found, (False, False, False), math.radians(degrees))
    assert abs(math.remainder(angle - math.radians(degrees), 2 * math.pi)) <= math.radians(45) + 1e-9
    if abs(degrees - 12) < 45:
        assert chosen == flip
        assert angle == pytest.approx(true)


def test_a_hot_pair_does_not_hide_itself_and_a_bright_rim_is_not_dead():
    y, x = np.meshgrid(np.arange(21) - 10, np.arange(25) - 12, indexing="ij")
    disk = np.where(np.hypot(y, x) < 6, 1000.0, 1.0)
    assert not np.any(bad_pixels([disk, disk]))
    spoilt = disk.copy()
    spoilt[10, 12:14], spoilt[1, 1], spoilt[9, 9] = 9000, 300, 0
    hot, dead = bad_pixels([spoilt, spoilt])
    assert np.argwhere(hot).tolist() == [[1, 1], [10, 12], [10, 13]]
    assert np.argwhere(dead).tolist() == [[9, 9]]
    # a Bragg peak that is there in one tilt of three is no hot pixel
    assert not np.any(bad_pixels([disk, disk, np.where(hot, spoilt, disk)])[0])


def test_the_disk_is_found_to_a_tenth_of_a_pixel():
    y, x = np.meshgrid(np.arange(41) - 20.0, np.arange(48) - 24.0, indexing="ij")
    r = np.hypot((y - 1.3) / 10.2, (x + 2.6) / 12.0)
    found = fit_disk(np.clip((1 - r) * 11 + 0.5, 0.0, 1) * 500 + 3, (10.0, 12.5))
    assert found.centre == pytest.approx((1.3, -2.6), abs=0.1)
    assert found.radius == pytest.approx(math.sqrt(10.2 * 12.0 / (10 * 12.5)), rel=0.01)
    assert found.stretch == pytest.approx(10.2 / 12.0 * 1.25, rel=0.01)
    with pytest.raises(ValueError, match="no bright-field disk"):
        fit_disk(np.ones((41, 48)), (10.0, 12.5))


@pytest.mark.parametrize("mean", [0.5, 3.0, 70.0])
def test_poisson_counts_are_not_saturated_until_they_are_clipped(mean):
    lit = np.where(np.arange(17) < 9, mean, mean / 30)
    counts = np.random.default_rng(0).poisson(np.broadcast_to(lit, (400, 15, 17))).astype(float)

    def survey(values):
        peak = values.max(0)
        return TiltSurvey(values.sum(0)[None], np.zeros((1, 2)), len(values), peak, (values == peak).sum(0))

    assert saturation(survey(counts)) == (math.inf, 0)
    if mean > 3:
        level, pixels = saturation(survey(np.minimum(counts, 80)))
        assert (level, pixels) == (80, 15 * 9)


def banded(order):
    """Correlations that fall with the distance in ``order``."""
    place = np.argsort(order)
    return 0.2 + 0.8 * 0.6 ** np.abs(place[:, None] - place[None])


def test_tilts_out_of_place():
    angles = np.radians(np.linspace(-50, 50, 11))
    assert misfits(banded(range(11)), angles) == []
    exchanged = [0, 8, 2, 3, 4, 5, 6, 7, 1, 9, 10]
    found = misfits(banded(exchanged), angles)
    assert {misfit.tilt for misfit in found} == {1, 8}
    assert all(misfit.here < misfit.expected for misfit in found)
    foreign = banded(range(11))
    foreign[4, :], foreign[:, 4] = 0.1, 0.1
    (only,) = misfits(foreign, angles)
    assert (only.tilt, only.like) == (4, None)
