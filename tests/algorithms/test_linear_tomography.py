"""Projections, their adjoint and slopes, and the tomography solver, against closed forms."""

import itertools
import math

import pytest
import torch

from petomo.algorithms.linear_tomography import TomographyOptions, linear_tomography, reconstruct_linear
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.models.projections import (
    POSE_PARAMETERS,
    ProjectionGeometry,
    back_project,
    pose_derivatives,
    project,
    project_tilt,
)

VOXEL, SIGMA = 0.5, 0.6
ATOMS = torch.tensor(
    [[1.5, -2.0, 1.0], [-2.5, 1.0, -1.5], [0.5, 2.5, 2.0], [2.0, 0.0, -2.5]], dtype=torch.float64
)
HEIGHTS = torch.tensor([1.0, 2.0, 1.5, 0.8], dtype=torch.float64)


def volume_of(geometry):
    z, y, x = (geometry.volume.coordinates(a, dtype=torch.float64) for a in range(3))
    out = torch.zeros(geometry.volume.shape, dtype=torch.float64)
    for atom, height in zip(ATOMS, HEIGHTS, strict=True):
        lines = [
            torch.exp(-((c - p) ** 2) / (2 * SIGMA**2)) for c, p in zip((z, y, x), atom.flip(0), strict=True)
        ]
        out += height * torch.einsum("z,y,x->zyx", *lines) / (2 * math.pi * SIGMA**2) ** 1.5
    return out


def images_of(poses, geometry):
    y, x = (Grid(geometry.image_shape, VOXEL).coordinates(a, dtype=torch.float64) for a in range(2))
    images = []
    for points in poses.apply(ATOMS):
        gx = torch.exp(-((x - points[:, :1]) ** 2) / (2 * SIGMA**2))
        gy = torch.exp(-((y - points[:, 1:2]) ** 2) / (2 * SIGMA**2))
        images.append((HEIGHTS[:, None] * gy).T @ gx / (2 * math.pi * SIGMA**2))
    return geometry.scale * torch.stack(images)


def some_poses(count=9, generator=None):
    generator = generator or torch.Generator().manual_seed(3)
    theta = torch.deg2rad(torch.linspace(-60, 60, count, dtype=torch.float64))
    phi, psi = 0.03 * torch.randn(2, count, generator=generator, dtype=torch.float64)
    return Poses(phi, theta, psi, 0.4 * torch.randn(count, 2, generator=generator, dtype=torch.float64))


@pytest.fixture
def geometry():
    return ProjectionGeometry(Grid((24, 27, 26), VOXEL), (25, 30), scale=0.7)


def test_projections_of_gaussians_are_gaussians(geometry):
    poses = some_poses()
    expected = images_of(poses, geometry)
    assert (project(volume_of(geometry), poses, geometry) - expected).abs().max() < 0.01 * expected.max()


@pytest.mark.parametrize("phi", [None, 0.004, 0.3])
def test_back_projection_is_the_adjoint(geometry, phi):
    generator = torch.Generator().manual_seed(0)
    poses = some_poses(3)
    if phi is not None:
        poses = poses.replace(phi=torch.full_like(poses.phi, phi))
    volume = torch.randn(geometry.volume.shape, generator=generator, dtype=torch.float64)
    images = torch.randn(3, *geometry.image_shape, generator=generator, dtype=torch.float64)
    left = (project(volume, poses, geometry) * images).sum()
    right = (volume * back_project(images, poses, geometry)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-10)
    # tilts may share the spline's coefficients
    alone = torch.stack([project_tilt(volume, poses, t, geometry) for t in range(3)])
    torch.testing.assert_close(project(volume, poses, geometry), alone)


@pytest.mark.parametrize("parameter", range(5), ids=POSE_PARAMETERS)
def test_slopes_are_those_of_the_closed_form(geometry, parameter):
    poses, step = some_poses(), 1e-4

    def moved(sign):
        values = torch.cat([torch.stack([poses.phi, poses.theta, poses.psi], 1), poses.tau], 1)
        values[:, parameter] += sign * step
        return images_of(Poses(*values[:, :3].unbind(1), values[:, 3:]), geometry)

    expected = (moved(1) - moved(-1)) / (2 * step)
    _, slopes = pose_derivatives(volume_of(geometry), poses, geometry)
    assert (slopes[:, parameter] - expected).norm() < 0.02 * expected.norm()


def test_volume_comes_back_and_loss_falls(geometry):
    poses = some_poses(25)
    images = images_of(poses, geometry).float() + 0.3 * torch.randn(
        25, 1, 1, generator=torch.Generator().manual_seed(1)
    )
    options = TomographyOptions(iterations=30, fit_offsets=True)
    statuses = list(linear_tomography(images, poses, geometry, options))
    losses = [s.loss for s in statuses]
    assert losses[-1] < 1e-3 * losses[0]
    assert all(later < 1.05 * earlier for earlier, later in itertools.pairwise(losses))
    volume, truth = statuses[-1].state["volume"], volume_of(geometry)
    assert volume.min() >= 0
    assert (volume - truth).norm() < 0.25 * truth.norm()  # the missing wedge remains


def test_weights_hide_bad_pixels(geometry):
    poses = some_poses(15)
    images = images_of(poses, geometry).float()
    weights = torch.ones_like(images)
    weights[:, :, :4] = 0
    spoilt = torch.where(weights > 0, images, 50.0)
    options = TomographyOptions(iterations=15)
    found = reconstruct_linear(spoilt, poses, geometry, options, weights)
    expected = reconstruct_linear(images, poses, geometry, options, weights)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.sum() == pytest.approx(volume_of(geometry).sum().item(), rel=0.06)


def test_resuming_changes_nothing(geometry):
    poses = some_poses(5)
    images = images_of(poses, geometry).float()
    options = TomographyOptions(iterations=8, shrinkage=0.01)
    whole = list(linear_tomography(images, poses, geometry, options))
    rest = list(linear_tomography(images, poses, geometry, options, state=whole[2].state))
    assert [s.iteration for s in rest] == [4, 5, 6, 7, 8]
    assert torch.equal(rest[-1].state["volume"], whole[-1].state["volume"])


def test_support_prox_and_shrinkage_act(geometry):
    poses = some_poses(5)
    images = images_of(poses, geometry).float()
    support = torch.zeros(geometry.volume.shape, dtype=torch.bool)
    support[8:16, 8:18, 8:18] = True
    options = TomographyOptions(iterations=4, support=support, prox=lambda v, _: v.clamp_max(0.05))
    volume = reconstruct_linear(images, poses, geometry, options)
    assert volume[~support].abs().max() == 0
    assert volume.max() <= 0.05
    plain = reconstruct_linear(images, poses, geometry, TomographyOptions(iterations=10))
    sparse = reconstruct_linear(images, poses, geometry, TomographyOptions(iterations=10, shrinkage=0.1))
    assert (sparse > 0).sum() < 0.7 * (plain > 0).sum()


def test_voxels_must_be_cubic():
    with pytest.raises(ValueError, match="cubic"):
        ProjectionGeometry(Grid((4, 5, 6), (1.0, 1.0, 2.0)), (5, 6))
