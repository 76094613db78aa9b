import math

import pytest
import roma
import torch
from hypothesis import given
from hypothesis import strategies as st

from petomo.core.pose import Poses, fit_gauge, fit_rigid, pose_errors, rotation_matrices

angle = st.floats(-3.1, 3.1)
tilt = st.floats(-1.4, 1.4)


def rx(a):
    c, s = math.cos(a), math.sin(a)
    return torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)


def ry(a):
    c, s = math.cos(a), math.sin(a)
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


def rz(a):
    c, s = math.cos(a), math.sin(a)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def random_poses(n, seed=0, spread=0.4):
    g = torch.Generator().manual_seed(seed)
    phi, psi = spread * torch.randn(2, n, generator=g, dtype=torch.float64)
    theta = torch.linspace(-1.1, 1.1, n, dtype=torch.float64)
    return Poses(phi, theta, psi, torch.randn(n, 2, generator=g, dtype=torch.float64))


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@given(phi=angle, theta=angle, psi=angle)
def test_matrices_written_out_by_hand(phi, theta, psi):
    found = rotation_matrices(double(phi), double(theta), double(psi))
    torch.testing.assert_close(found, rz(psi) @ ry(theta) @ rx(phi))


def test_positive_angles_are_right_handed():
    # a stage tilt about y carries +z to +x; phi carries +y to +z; psi carries +x to +y
    x, y, z = torch.eye(3, dtype=torch.float64)
    quarter, zero = double(math.pi / 2), double(0.0)
    torch.testing.assert_close(rotation_matrices(zero, quarter, zero) @ z, x)
    torch.testing.assert_close(rotation_matrices(quarter, zero, zero) @ y, z)
    torch.testing.assert_close(rotation_matrices(zero, zero, quarter) @ x, y)


@given(phi=angle, theta=tilt, psi=angle)
def test_angles_survive_matrices(phi, theta, psi):
    matrix = rotation_matrices(double([phi]), double([theta]), double([psi]))
    tau = double([[0.5, -2.0]])
    poses = Poses.from_matrices(matrix, tau)
    torch.testing.assert_close(poses.phi, double([phi]))
    torch.testing.assert_close(poses.theta, double([theta]))
    torch.testing.assert_close(poses.psi, double([psi]))
    torch.testing.assert_close(poses.tau, tau)


def test_apply_is_rotation_then_shift():
    poses = random_poses(3)
    points = torch.randn(5, 3, dtype=torch.float64)
    lab = poses.apply(points)
    for t in range(3):
        r = rz(float(poses.psi[t])) @ ry(float(poses.theta[t])) @ rx(float(poses.phi[t]))
        for p in range(5):
            expected = r @ points[p] + torch.tensor([*poses.tau[t].tolist(), 0.0], dtype=torch.float64)
            torch.testing.assert_close(lab[t, p], expected)


def test_goniometer_turns_about_y_alone():
    poses = Poses.from_tilts(double([0.3, -0.2]))
    assert len(poses) == 2
    torch.testing.assert_close(poses.matrices(), torch.stack([ry(0.3), ry(-0.2)]))
    assert not poses.tau.any()


@given(seed=st.integers(0, 10**6))
def test_regauging_leaves_lab_images_alone(seed):
    g = torch.Generator().manual_seed(seed)
    poses = random_poses(4, seed)
    rotation = roma.rotvec_to_rotmat(torch.randn(3, generator=g, dtype=torch.float64))
    shift = torch.randn(3, generator=g, dtype=torch.float64)
    points = torch.randn(6, 3, generator=g, dtype=torch.float64)
    moved = poses.regauged(rotation, shift).apply(points @ rotation.T + shift)
    torch.testing.assert_close(moved[..., :2], poses.apply(points)[..., :2])


@given(seed=st.integers(0, 10**6))
def test_regauge_and_back(seed):
    g = torch.Generator().manual_seed(seed)
    poses = random_poses(4, seed)
    rotation = roma.rotvec_to_rotmat(0.2 * torch.randn(3, generator=g, dtype=torch.float64))
    shift = torch.randn(3, generator=g, dtype=torch.float64)
    back = poses.regauged(rotation, shift).regauged(rotation.T, -rotation.T @ shift)
    torch.testing.assert_close(back.matrices(), poses.matrices())
    torch.testing.assert_close(back.tau, poses.tau)


@given(seed=st.integers(0, 10**6))
def test_gauge_of_two_pose_sets_is_found(seed):
    g = torch.Generator().manual_seed(seed)
    poses = random_poses(5, seed)
    rotation = roma.rotvec_to_rotmat(0.3 * torch.randn(3, generator=g, dtype=torch.float64))
    shift = torch.randn(3, generator=g, dtype=torch.float64)
    found_rotation, found_shift = fit_gauge(poses, poses.regauged(rotation, shift))
    torch.testing.assert_close(found_rotation, rotation)
    torch.testing.assert_close(found_shift, shift)


def test_pose_errors_do_not_see_the_gauge():
    truth, g = random_poses(7), torch.Generator().manual_seed(3)
    found = truth.replace(
        theta=truth.theta + 0.01 * torch.randn(7, generator=g, dtype=torch.float64),
        tau=truth.tau + 0.3 * torch.randn(7, 2, generator=g, dtype=torch.float64),
    )
    rotation = roma.rotvec_to_rotmat(double([0.1, -0.2, 0.05]))
    plain, moved = (
        pose_errors(found, truth),
        pose_errors(found.regauged(rotation, double([1.0, 2.0, -3.0])), truth),
    )
    for key in plain:
        torch.testing.assert_close(moved[key], plain[key], rtol=1e-8, atol=1e-10)
    assert plain["angle"].max() > 1e-3
    assert plain["shift"].max() > 0.1


def test_pose_errors_count_one_bad_tilt():
    truth = random_poses(15)
    tau = truth.tau.clone()
    tau[4, 0] += 1.0
    errors = pose_errors(truth.replace(tau=tau), truth)
    assert errors["shift"].argmax() == 4
    assert 0.5 < errors["shift"][4] < 1.0  # the gauge may take up a part
    assert errors["angle"].max() < 1e-7


def test_pose_errors_across_half_a_turn():
    # psi = +180 and -180 degrees are the same angle
    truth = Poses.from_tilts(torch.linspace(-1, 1, 5)).replace(
        psi=torch.full((5,), math.pi - 1e-3, dtype=torch.float64)
    )
    found = truth.replace(psi=truth.psi + 2e-3 * torch.tensor([1, -1, 1, -1, 0], dtype=torch.float64))
    assert pose_errors(found, truth)["psi"].abs().max() < 5e-3


def test_rigid_motion_of_points():
    points = torch.randn(8, 3, dtype=torch.float64)
    rotation, shift = rz(0.4) @ rx(-1.0), double([1.0, -2.0, 0.5])
    found = fit_rigid(points, points @ rotation.T + shift)
    torch.testing.assert_close(found[0], rotation)
    torch.testing.assert_close(found[1], shift)


def test_gradients_reach_the_angles():
    poses = random_poses(3)
    points = torch.randn(2, 3, dtype=torch.float64)
    leaves = [getattr(poses, k).clone().requires_grad_() for k in ("phi", "theta", "psi", "tau")]
    assert torch.autograd.gradcheck(lambda *p: Poses(*p).apply(points), leaves)
    copy = Poses(*leaves).detach()
    assert not copy.phi.requires_grad
    assert copy.tau.dtype == torch.float64


def test_every_tilt_needs_a_shift():
    zero = torch.zeros(3)
    with pytest.raises(ValueError, match="per tilt"):
        Poses(zero, zero, zero, torch.zeros(2, 2))


def test_what_drifted_with_its_scans_is_brought_back():
    """Atoms, poses and scans that drifted together, by turn and shift, are seen as before."""
    theta = torch.linspace(-0.7, 0.7, 7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    small = 0.01 * torch.randn(2, 7, generator=generator, dtype=torch.float64)
    tau = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    begun = Poses(small[0], theta, small[1], tau)
    scans = [torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in theta]
    rotation = rotation_matrices(*torch.tensor([0.003, -0.002, 0.004], dtype=torch.float64))
    drifted = begun.regauged(rotation, torch.tensor([0.1, -0.2, 0.15], dtype=torch.float64))
    # a shift of both scan and specimen is seen by no pattern
    drifted = drifted.replace(tau=drifted.tau + 0.3)
    seen = drifted.seen_from([p + 0.3 for p in scans])
    found = drifted.regauged(*fit_gauge(seen, begun.seen_from(scans)))
    assert (found.matrices() - begun.matrices()).abs().max() < 1e-9
    assert (found.tau - 0.3 - begun.tau).abs().max() < 1e-9
