import math

import pytest
import torch

from helpers import assert_backward_is_adjoint, assert_gradients, relative_error
from petomo.core.pose import Poses, rotation_matrices
from petomo.physics import resample, tilt
from petomo.physics.resample import (
    SliceGeometry,
    rotate_and_bin,
    rotate_and_bin_reference,
)

KERNELS = ("linear", "cubic", "spline")
VOXEL, SIGMA = 0.3, 0.35
ZERO = torch.zeros(2, dtype=torch.float64)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def axis(n):
    return (torch.arange(n, dtype=torch.float64) - n // 2) * VOXEL


def blob_volume(shape, atoms, sigma=SIGMA):
    """Gaussian atoms of height 1 at (x, y, z) in angstrom, sampled at the voxels."""
    z, y, x = (axis(n) for n in shape)
    g = [torch.exp(-((c - atoms[:, i : i + 1]) ** 2) / (2 * sigma**2)) for c, i in ((z, 2), (y, 1), (x, 0))]
    return torch.einsum("az,ay,ax->zyx", *g)


def blob_slices(geometry, atoms, sigma=SIGMA):
    """The same atoms integrated over each slice, in closed form."""
    y, x = (axis(n) for n in geometry.shape)
    gy, gx = (torch.exp(-((c - atoms[:, i : i + 1]) ** 2) / (2 * sigma**2)) for c, i in ((y, 1), (x, 0)))
    edge = (torch.arange(geometry.slices + 1, dtype=torch.float64) - geometry.slices / 2) * geometry.thickness
    below = torch.erf((edge - atoms[:, 2:]) / (math.sqrt(2) * sigma)) / 2
    return torch.einsum("as,ay,ax->syx", sigma * math.sqrt(2 * math.pi) * below.diff(dim=1), gy, gx)


def some_atoms(radius=2.5, n=6):
    direction = torch.randn(n, 3, dtype=torch.float64)
    return direction / direction.norm(dim=1, keepdim=True) * radius * torch.rand(n, 1, dtype=torch.float64)


def moved(atoms, phi, theta, psi, tau):
    return atoms @ rotation_matrices(phi, theta, psi).T + torch.cat([tau, tau.new_zeros(1)])


POSES = [
    (0.0, 0.0, 0.0),
    (0.0, 0.5, 0.0),
    (0.03, -1.1, -0.02),
    (1.2, 0.4, -2.0),
    (-2.7, 1.9, 0.8),
    (0.7, -2.8, 3.0),
]


# within slices the cut through an atom adds the error of the midpoint rule along the beam
ACCURACY = {
    (1, 11.9): {"linear": 0.06, "cubic": 0.014, "spline": 0.004},
    (7, 1.7): {"linear": 0.08, "cubic": 0.018, "spline": 0.010},
}


@pytest.mark.parametrize("angles", POSES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cut", ACCURACY)
def test_atoms_integrated_over_slices(angles, kernel, cut):
    # odd, even, non-cubic; seven slices of 1.7 A do not divide the depth
    phi, theta, psi = map(double, angles)
    tau, atoms = double([0.23, -0.41]), some_atoms()
    geometry = SliceGeometry(*cut, (41, 38), VOXEL)
    volume = blob_volume((37, 40, 39), atoms)
    found = rotate_and_bin(volume, phi, theta, psi, tau, geometry, kernel)
    assert found.shape == (cut[0], 41, 38)
    expected = blob_slices(geometry, moved(atoms, phi, theta, psi, tau))
    assert relative_error(found, expected) < ACCURACY[cut][kernel]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("thickness", [0.3, 0.5, 4.4])
def test_slice_thickness_is_free(kernel, thickness):
    slices = math.ceil(9.0 / thickness)
    geometry = SliceGeometry(slices, thickness, (36, 35), VOXEL)
    volume, theta = blob_volume((36, 33, 35), some_atoms()), double(0.6)
    found = rotate_and_bin(volume, double(0.1), theta, double(-0.1), ZERO, geometry, kernel)
    # all of the potential's integral arrives, whatever the slices
    assert found.sum() * VOXEL**2 == pytest.approx(float(volume.sum()) * VOXEL**3, rel=3e-3)


def test_coarse_slices_are_sums_of_fine_ones():
    volume, theta = blob_volume((36, 33, 35), some_atoms()), double(0.6)
    fine = rotate_and_bin(
        volume, double(0.0), theta, double(0.1), ZERO, SliceGeometry(12, 0.9, (36, 35), VOXEL)
    )
    coarse = rotate_and_bin(
        volume, double(0.0), theta, double(0.1), ZERO, SliceGeometry(4, 2.7, (36, 35), VOXEL)
    )
    torch.testing.assert_close(fine.view(4, 3, 36, 35).sum(1), coarse)


@pytest.mark.parametrize("angles", POSES)
def test_agrees_with_direct_interpolation(angles):
    phi, theta, psi = map(double, angles)
    tau, atoms = double([-0.5, 0.3]), some_atoms()
    volume = blob_volume((37, 40, 39), atoms, sigma=0.9)  # smooth enough for trilinear interpolation
    geometry = SliceGeometry(5, 2.6, (41, 42), VOXEL)
    found = rotate_and_bin(volume, phi, theta, psi, tau, geometry, "linear")
    assert relative_error(found, rotate_and_bin_reference(volume, phi, theta, psi, tau, geometry)) < 0.02


def test_centre_stays_through_any_rotation():
    volume = blob_volume((25, 26, 27), torch.zeros(1, 3, dtype=torch.float64), sigma=0.5)
    geometry = SliceGeometry(3, 2.4, (24, 27), VOXEL)
    expected = blob_slices(geometry, torch.zeros(1, 3, dtype=torch.float64), sigma=0.5)
    for angles in 2 * math.pi * torch.rand(100, 3, dtype=torch.float64) - math.pi:
        assert relative_error(rotate_and_bin(volume, *angles, ZERO, geometry), expected) < 3e-3


def test_an_atom_goes_where_the_poses_say():
    angles = 6 * torch.rand(3, 20, dtype=torch.float64) - 3
    poses = Poses(*angles, 2 * torch.rand(20, 2, dtype=torch.float64) - 1)
    atom = double([[0.9, -1.2, 0.7]])
    volume = blob_volume((35, 36, 37), atom, sigma=0.5)
    geometry = SliceGeometry(9, 0.8, (36, 39), VOXEL)
    z = (torch.arange(9, dtype=torch.float64) - 4) * 0.8
    for t, lab in enumerate(poses.apply(atom)[:, 0]):
        slices = rotate_and_bin(volume, poses.phi[t], poses.theta[t], poses.psi[t], poses.tau[t], geometry)
        mass = slices / slices.sum()
        found = torch.stack([(mass.sum((0, 1)) * axis(39)).sum(), (mass.sum((0, 2)) * axis(36)).sum()])
        torch.testing.assert_close(found, lab[:2], rtol=0, atol=0.01)
        assert (mass.sum((1, 2)) * z).sum().item() == pytest.approx(float(lab[2]), abs=0.02)


def test_untouched_by_a_zero_pose():
    volume = torch.rand(6, 7, 8, dtype=torch.float64)
    geometry = SliceGeometry(6, VOXEL, (7, 8), VOXEL)
    # six slices about z = 0 fall between the voxels of an even volume; five coincide with an odd one's
    found = rotate_and_bin(
        volume[:5], *torch.zeros(3, dtype=torch.float64), ZERO, SliceGeometry(5, VOXEL, (7, 8), VOXEL)
    )
    torch.testing.assert_close(found, volume[:5] * VOXEL)
    assert rotate_and_bin(volume, *torch.zeros(3, dtype=torch.float64), ZERO, geometry).shape == (6, 7, 8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_field_may_be_larger_or_smaller_than_the_volume(kernel):
    volume, theta = blob_volume((24, 25, 26), some_atoms(radius=1.2)), double(0.4)
    zero = double(0.0)
    large = rotate_and_bin(volume, zero, theta, zero, ZERO, SliceGeometry(4, 2.0, (41, 44), VOXEL), kernel)
    small = rotate_and_bin(volume, zero, theta, zero, ZERO, SliceGeometry(4, 2.0, (22, 19), VOXEL), kernel)
    rows, columns = 41 // 2 - 22 // 2, 44 // 2 - 19 // 2
    torch.testing.assert_close(large[:, rows : rows + 22, columns : columns + 19], small)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("angles", [(0.0, 0.4, 0.0), (0.2, -0.9, 0.1), (-2.0, 2.2, 1.5)])
def test_backward_is_the_adjoint(kernel, angles):
    geometry = SliceGeometry(3, 0.8, (7, 8), VOXEL)
    pose = (*map(double, angles), double([0.2, -0.1]))
    assert_backward_is_adjoint(
        lambda v: rotate_and_bin(v, *pose, geometry, kernel), torch.randn(6, 5, 9, dtype=torch.float64)
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.2, -0.91, 0.13), (-2.0, 2.23, 1.5)])
def test_gradients_for_volume_and_pose(kernel, angles):
    if kernel == "linear" and not any(angles):
        angles = (0.0, 0.05, 0.0)  # linear weights have a kink where samples fall on voxels
    geometry = SliceGeometry(2, 0.8, (5, 6), VOXEL)
    volume = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    pose = [double(a).requires_grad_() for a in angles] + [double([0.2, -0.1]).requires_grad_()]
    assert_gradients(lambda v, *p: rotate_and_bin(v, *p, geometry, kernel), volume, *pose)


def test_gradient_of_a_pose_alone():
    volume, geometry = (
        blob_volume((15, 16, 17), some_atoms(radius=1.0)),
        SliceGeometry(2, 1.6, (16, 17), VOXEL),
    )
    theta = double(0.3).requires_grad_()
    assert_gradients(lambda t: rotate_and_bin(volume, double(0.0), t, double(0.0), ZERO, geometry), theta)


def test_single_precision():
    volume, geometry = (
        blob_volume((20, 21, 22), some_atoms(radius=1.5)),
        SliceGeometry(3, 2.0, (21, 22), VOXEL),
    )
    pose = (double(0.1), double(-0.7), double(0.05), double([0.3, 0.1]))
    found = rotate_and_bin(volume.float(), *pose, geometry)
    assert found.dtype == torch.float32
    assert relative_error(found.double(), rotate_and_bin(volume, *pose, geometry)) < 1e-5


def test_samples_are_never_coarser_than_voxels():
    assert SliceGeometry(3, 1.7, (4, 4), 0.3).samples == 6
    assert SliceGeometry(3, 0.3 * 4, (4, 4), 0.3).samples == 4
    assert SliceGeometry(3, 0.1, (4, 4), 0.3).samples == 1


def test_matrices_are_kept_only_for_angles_that_stay():
    geometry = SliceGeometry(2, 1.2, (6, 7), VOXEL)
    volume = torch.rand(4, 6, 7, dtype=torch.float64)
    before = tilt._known_tilt_operator.cache_info()
    for angle in (0.111, 0.222, 0.333):
        theta = double(angle).requires_grad_()
        rotate_and_bin(volume, double(0.0), theta, double(0.0), ZERO, geometry).sum().backward()
    assert tilt._known_tilt_operator.cache_info() == before
    for _ in range(2):
        rotate_and_bin(volume, double(0.0), double(0.444), double(0.0), ZERO, geometry)
    after = tilt._known_tilt_operator.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses + 1)


@pytest.mark.parametrize(
    "angles", [(0.004, 0.9, -0.03), (-0.009, -1.3, 0.4), (0.006, 0.2, 2.0), (0.009, 2.8, 0.1)]
)
def test_a_small_phi_is_shifts_of_slices(monkeypatch, angles):
    angles, tau, atoms = map(double, angles), double([0.3, 0.2]), some_atoms(radius=5.0, n=40)
    phi, theta, psi = angles
    geometry = SliceGeometry(3, 4.5, (44, 45), VOXEL)
    volume = blob_volume((44, 43, 45), atoms)
    assert resample._thinner(float(resample._phi_last(phi, theta, psi)[0]), 43, geometry) is not None
    quick = rotate_and_bin(volume, phi, theta, psi, tau, geometry)
    monkeypatch.setattr(resample, "_thinner", lambda *_: None)
    whole = rotate_and_bin(volume, phi, theta, psi, tau, geometry)
    # what the whole turn gets wrong itself is as much
    expected = blob_slices(geometry, moved(atoms, phi, theta, psi, tau))
    assert relative_error(quick, expected) < relative_error(whole, expected) + 0.01
    assert relative_error(quick.sum(0), whole.sum(0)) < 4e-3


def test_coefficients_are_refused_where_the_volume_is_turned():
    volume, geometry = torch.rand(9, 10, 11, dtype=torch.float64), SliceGeometry(1, 4.5, (10, 11), VOXEL)
    pose = double(0.002), double(0.5), double(0.1), ZERO
    found = rotate_and_bin(tilt.prefilter(volume), *pose, geometry, filtered=True)
    torch.testing.assert_close(found, rotate_and_bin(volume, *pose, geometry))
    with pytest.raises(ValueError, match="cannot be turned by a large phi"):
        rotate_and_bin(tilt.prefilter(volume), double(0.5), *pose[1:], geometry, filtered=True)


def test_angles_in_another_order_are_the_same_rotation():
    for angles in 6 * torch.rand(50, 3, dtype=torch.float64) - 3:
        x, y, z = resample._phi_last(*angles)
        still = torch.zeros((), dtype=torch.float64)
        turned = rotation_matrices(x, still, z) @ rotation_matrices(still, y, still)
        torch.testing.assert_close(turned, rotation_matrices(*angles))
