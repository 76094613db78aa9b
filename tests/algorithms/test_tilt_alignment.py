"""Alignment of a tilt series made from rotated Gaussian atoms, by closed form."""

import math

import pytest
import torch

from petomo.algorithms.coarse_alignment import (
    coarse_poses,
    downsample,
    flatten_background,
    is_isolated,
    specimen_support,
)
from petomo.algorithms.registration import (
    common_line_misfit,
    masked_correlation,
    masked_spectra,
    register_neighbours,
)
from petomo.algorithms.tilt_alignment import AlignmentOptions, AlignmentStage, align
from petomo.core.grid import Grid
from petomo.core.pose import Poses, pose_errors, rotation_matrices

PIXEL, SIGMA = 0.5, 0.45
DEGREE = math.pi / 180


def gaussian_images(points, shape, pixel=PIXEL):
    y, x = (Grid(shape, pixel).coordinates(a, dtype=torch.float64) for a in range(2))
    images = []
    for p in points:
        gx = torch.exp(-((x - p[:, :1]) ** 2) / (2 * SIGMA**2))
        gy = torch.exp(-((y - p[:, 1:2]) ** 2) / (2 * SIGMA**2))
        images.append(gy.T @ gx / (2 * math.pi * SIGMA**2))
    return torch.stack(images).float()


@pytest.fixture(scope="module")
def series():
    """A ball of 70 atoms, 13 tilts, the axis 2 degrees off y; noise and a constant per tilt."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    atoms = 9 * (torch.rand(400, 3, generator=generator, dtype=torch.float64) - 0.5)
    atoms = atoms[atoms.norm(dim=1) < 4.5][:70]
    atoms -= atoms.mean(0)
    nominal = torch.linspace(-48, 48, 13, dtype=torch.float64) * DEGREE
    truth = Poses(
        0.1 * DEGREE * normal(13),
        nominal + 0.2 * DEGREE * normal(13),
        2 * DEGREE + 0.1 * DEGREE * normal(13),
        1.2 * normal(13, 2).clamp(-1.5, 1.5),
    )
    images = gaussian_images(truth.apply(atoms), (37, 42))
    images = images + 0.02 * normal(*images.shape) + 0.2 * normal(13, 1, 1)
    weights = torch.zeros_like(images)
    weights[:, 2:-2, 2:-2] = 1
    return torch.where(weights > 0, images, 3.0).float(), weights.float(), nominal, truth


STAGES = (
    AlignmentStage(1.0, ("shifts",), 3),
    AlignmentStage(0.5, ("shifts", "psi"), 4),
    AlignmentStage(0.5, ("shifts", "psi", "theta", "phi"), 3),
)


def test_alignment_finds_shifts_and_axis(series):
    images, weights, nominal, truth = series
    statuses = list(align(images, weights, nominal, PIXEL, options=AlignmentOptions(stages=STAGES)))
    errors = pose_errors(Poses.from_dict(statuses[-1].state), truth)
    assert errors["shift"].median() < 0.03
    assert errors["shift"].max() < 0.1
    assert Poses.from_dict(statuses[-1].state).psi.mean() == pytest.approx(2 * DEGREE, abs=0.25 * DEGREE)
    assert errors["angle"].square().mean().sqrt() < 0.3 * DEGREE
    within = [s.loss for s in statuses if s.extras["alignment_stage"] == 2]
    assert within == sorted(within, reverse=True)
    poses = Poses.from_dict(statuses[-1].state)
    assert poses.phi.mean().abs() < 1e-9
    assert (poses.theta - nominal).mean().abs() < 1e-9


def test_resuming_changes_nothing(series):
    images, weights, nominal, _ = series
    stages = (AlignmentStage(1.0, ("shifts",), 2), AlignmentStage(1.0, ("shifts", "theta"), 2))
    options = AlignmentOptions(stages=stages, tolerance=0, inner_iterations=3, joint_iterations=3)
    whole = list(align(images, weights, nominal, PIXEL, options=options))
    assert [s.iteration for s in whole] == [1, 2, 3, 4]
    for cut in (0, 1, 2):
        rest = list(align(images, weights, nominal, PIXEL, options=options, state=whole[cut].state))
        assert torch.equal(Poses.from_dict(rest[-1].state).tau, Poses.from_dict(whole[-1].state).tau)
        assert torch.equal(rest[-1].state["volume"], whole[-1].state["volume"])


def test_coarse_poses_without_a_volume(series):
    images, weights, nominal, truth = series
    poses = coarse_poses(images, weights, nominal, PIXEL)
    errors = pose_errors(poses, truth)
    assert errors["shift"].median() < 0.2
    assert poses.psi[0] == pytest.approx(2 * DEGREE, abs=0.8 * DEGREE)
    still = coarse_poses(images, weights, nominal, PIXEL, axis_span=0)
    assert not still.psi.any()


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("shape", [(36, 41), (37, 40)])
def test_downsampling_keeps_the_origin(factor, shape):
    point = torch.tensor([[[1.3, -0.7, 0.0]]], dtype=torch.float64)
    image = gaussian_images(point, shape, 0.25)
    small = downsample(image, factor)
    grid = Grid(tuple(small.shape[-2:]), 0.25 * factor)
    y, x = (grid.coordinates(a) for a in range(2))
    assert (small[0] * x).sum() / small.sum() == pytest.approx(1.3, abs=0.01)
    assert (small[0].T * y).sum() / small.sum() == pytest.approx(-0.7, abs=0.01)
    assert small.sum() * factor**2 == pytest.approx(image.sum().item(), rel=0.01)


def test_correlation_of_what_two_masks_allow():
    """Against the definition, shift by shift."""
    generator = torch.Generator().manual_seed(5)
    image, reference = torch.rand(2, 6, 7, generator=generator, dtype=torch.float64)
    mask, reference_mask = (torch.rand(2, 6, 7, generator=generator) > 0.2).double()
    found = masked_correlation(masked_spectra(image, mask), masked_spectra(reference, reference_mask))
    most = 0.4 * (mask * reference_mask).sum()
    for y, x in [(0, 0), (1, 0), (0, -1), (-2, 1), (1, 2)]:
        pairs = [
            (float(image[i + y, j + x]), float(reference[i, j]))
            for i in range(6) for j in range(7)
            if 0 <= i + y < 6 and 0 <= j + x < 7 and mask[i + y, j + x] and reference_mask[i, j]
        ]  # fmt: skip
        assert len(pairs) > most
        expected = torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1]
        assert found[y, x] == pytest.approx(float(expected), abs=1e-6), (y, x)
    assert found[5, 6] == -1, "hardly any overlap"


def test_neighbours_are_registered():
    generator = torch.Generator().manual_seed(2)
    atoms = 14 * (torch.rand(120, 3, generator=generator, dtype=torch.float64) - 0.5)
    atoms[:, 2] *= 0.05
    tilts = torch.linspace(-30, 30, 7, dtype=torch.float64) * DEGREE
    across = torch.tensor([0.8, -0.5, 0.3, 0.0, -0.9, 0.4, 0.6], dtype=torch.float64)
    along = torch.tensor([-0.7, 0.4, 0.9, 0.0, 1.3, -0.6, 0.2], dtype=torch.float64)
    poses = Poses.from_tilts(tilts).replace(tau=torch.stack([across, along], 1))
    images = gaussian_images(poses.apply(atoms), (40, 50))
    found = register_neighbours(images, torch.ones_like(images), tilts, PIXEL)
    assert (found - poses.tau).abs().max() < 0.15


def test_a_part_that_fits_better_than_the_whole_is_not_followed():
    points = torch.tensor([[[-4.0, 0.0, 0.0]], [[4.0, 0.0, 0.0]]], dtype=torch.float64)
    left, right = (gaussian_images(p[None], (40, 40))[0] for p in points)
    images = torch.stack([left + right, left + 0.6 * right])
    found = register_neighbours(images, torch.ones_like(images), torch.tensor([0.0, 0.01]), PIXEL)
    assert found.abs().max() < 0.3


def test_common_lines_tell_shifts_and_agreement():
    generator = torch.Generator().manual_seed(3)
    atoms = 8 * (torch.rand(30, 3, generator=generator, dtype=torch.float64) - 0.5)
    tilts = torch.linspace(-40, 40, 5, dtype=torch.float64) * DEGREE
    along = torch.tensor([0.5, -1.0, 0.0, 1.2, -0.4], dtype=torch.float64)
    poses = Poses.from_tilts(tilts).replace(tau=torch.stack([0 * along, along], 1))
    images = gaussian_images(poses.apply(atoms), (44, 40))
    whole = torch.ones_like(images)
    assert common_line_misfit(images, whole, along, PIXEL) < 0.01
    assert common_line_misfit(images, whole, 0 * along, PIXEL) > 0.1
    assert common_line_misfit(images, 0 * whole, along, PIXEL) == float("inf")


def lattice_and_wall(psi):
    """A crystal beside a wall that runs out of the scan, as a Te particle on a nanotube."""
    generator = torch.Generator().manual_seed(6)
    cell = torch.tensor([2.6, 3.0, 2.8], dtype=torch.float64)
    nodes = torch.stack(torch.meshgrid(*[torch.arange(-1.0, 3.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    turned = rotation_matrices(*torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64))
    crystal = ((nodes - 0.5).double() * cell) @ turned.T + torch.tensor([3.0, 0.0, 0.0])
    wall = 30 * (torch.rand(260, 3, generator=generator, dtype=torch.float64) - 0.5)
    wall = wall * torch.tensor([0.05, 1.0, 0.1]) - torch.tensor([6.0, 0.0, 0.0])
    tilts = torch.linspace(-50, 50, 21, dtype=torch.float64) * DEGREE
    tau = 4 * (torch.rand(21, 2, generator=generator, dtype=torch.float64) - 0.5)
    truth = Poses(0 * tilts, tilts, torch.full_like(tilts, psi), tau)
    images = gaussian_images(truth.apply(torch.cat([crystal, wall])), (46, 60))
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    weights = torch.zeros_like(images)
    weights[:, 7:-7, 4:-4] = 1
    return images * weights, weights, tilts, truth


@pytest.mark.parametrize("degrees", [0.8, -4.0])
def test_a_crystal_that_is_not_alone_in_the_scan(degrees):
    images, weights, tilts, truth = lattice_and_wall(degrees * DEGREE)
    assert not is_isolated(flatten_background(images, weights, PIXEL, 0.1), weights, PIXEL)
    found = coarse_poses(images, weights, tilts, PIXEL)
    errors = pose_errors(found, truth)
    assert found.psi[0] == pytest.approx(degrees * DEGREE, abs=1.5 * DEGREE)
    assert errors["shift"].max() < 0.8, "no tilt is a lattice translation off"


def test_outline_and_support(series):
    images, weights, _, truth = series
    flat = flatten_background(images, weights, PIXEL, 0.1)
    assert is_isolated(flat, weights, PIXEL)
    grid = Grid((42, 37, 42), PIXEL)
    support = specimen_support(flat, weights, truth, grid, 1.0)
    z, y, x = torch.meshgrid(*(grid.coordinates(a) for a in range(3)), indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    assert support[radius < 4].all()
    assert not support[(radius > 8) & (z.abs() < 4)].any()
    full = torch.ones_like(flat)
    assert specimen_support(full, weights, truth, grid, 1.0).all()
