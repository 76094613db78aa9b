"""Pairing atoms one to one, and the rigid motion between two sets."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from petomo.analysis.matching import RigidMotion, match_atoms, register


def _cloud(seed, count=120, box=(18.0, 14.0, 11.0), spacing=1.7):
    rng, points = np.random.default_rng(seed), []
    while len(points) < count:
        p = rng.uniform(-0.5, 0.5, 3) * box
        if all(np.linalg.norm(p - q) > spacing for q in points):
            points.append(p)
    return np.array(points)


def test_pairs_are_one_to_one_and_as_many_as_possible():
    # the nearest pair (found 0, true 1) must give way so that both find a partner
    true = np.array([[0.0, 0, 0], [0.6, 0, 0]])
    found = np.array([[0.5, 0, 0], [1.2, 0, 0], [0.62, 5, 0]])
    match = match_atoms(found, true, 0.7)
    assert dict(zip(match.found.tolist(), match.true.tolist(), strict=True)) == {0: 0, 1: 1}
    np.testing.assert_allclose(sorted(match.distance), [0.5, 0.6])


def test_two_found_atoms_cannot_share_a_true_one():
    match = match_atoms([[0.1, 0, 0], [-0.2, 0, 0]], [[0.0, 0, 0]], 0.7)
    assert match.found.tolist() == [0]


@pytest.mark.parametrize("found", [np.zeros((0, 3)), np.array([[9.0, 9, 9]])])
def test_nothing_within_reach_gives_no_pairs(found):
    assert len(match_atoms(found, [[0.0, 0, 0]])) == 0


@pytest.mark.parametrize(
    ("shift", "degrees"), [((0, 0, 0), 0.0), ((2.7, -2.2, 1.4), 2.0), ((-1.9, 0.4, 2.9), 1.5)]
)
def test_register_recovers_a_rigid_motion_despite_missing_and_invented_atoms(shift, degrees):
    true = _cloud(0)
    rng = np.random.default_rng(1)
    axis = np.array([0.48, 0.6, 0.64])
    rotation = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    found = RigidMotion(rotation, np.array(shift)).apply(true[:100] + rng.normal(0, 0.03, (100, 3)))
    found = np.concatenate([found, rng.uniform(-8, 8, (12, 3))])
    motion = register(found, true)
    assert motion.angle == pytest.approx(np.deg2rad(degrees), abs=3e-3)
    np.testing.assert_allclose(motion.apply(found[:100]), true[:100], atol=0.15)


def test_register_uses_the_start_given_beyond_its_own_search():
    true = _cloud(3, 60)
    rotation = Rotation.from_euler("z", 40, degrees=True).as_matrix()
    found = true @ rotation.T + np.array([6.0, -7.0, 1.0])
    start = RigidMotion(rotation.T, -rotation.T @ np.array([5.8, -7.1, 1.2]))
    motion = register(found, true, start=start)
    np.testing.assert_allclose(motion.apply(found), true, atol=1e-6)


def test_register_leaves_two_atoms_alone():
    motion = register([[1.0, 0, 0], [2, 0, 0]], [[0.0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(motion.rotation, np.eye(3))
