import math

import pytest
import torch

from petomo.algorithms.bundle_adjustment import BundleOptions, adjust, find_blobs, poses_of
from petomo.core.grid import Grid
from petomo.core.pose import Poses, pose_errors

PIXEL, SHAPE, WIDTH = 0.4, (48, 52), 0.5
TILTS = torch.deg2rad(torch.linspace(-50, 50, 9, dtype=torch.float64))


def blobs(count=24, seed=0):
    """Points at least 2 angstrom apart within a ball, and unequal weights."""
    draw = torch.Generator().manual_seed(seed)
    points = []
    while len(points) < count:
        p = 12 * torch.rand(3, generator=draw, dtype=torch.float64) - 6
        if p.norm() < 6 and all((p - q).norm() > 2 for q in points):
            points.append(p)
    return torch.stack(points), 0.5 + torch.rand(count, generator=draw, dtype=torch.float64)


def scene(seed=0, noise=0.02):
    """Noisy projections of blobs, with their true poses and scan distortions."""
    points, weights = blobs(seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    angle = math.radians(0.3)
    nominal = Poses.from_tilts(TILTS)
    truth = nominal.replace(
        phi=angle * normal(9), theta=TILTS + angle * normal(9), psi=angle * normal(9), tau=0.3 * normal(9, 2)
    )
    stretch = 0.005 * normal(9, 3)
    stretch -= stretch.mean(0)
    x, y = truth.apply(points)[..., :2].unbind(-1)
    a, b, c = (v[:, None] for v in stretch.unbind(-1))
    x, y = x * (1 + a) + c * y, y * (1 + b) + c * x
    grid = Grid(SHAPE, PIXEL)
    gy, gx = (grid.coordinates(axis, dtype=torch.float64) for axis in (0, 1))
    row = torch.exp(-0.5 * ((gy - y[..., None]) / WIDTH) ** 2) * weights[:, None]
    images = row.mT @ torch.exp(-0.5 * ((gx - x[..., None]) / WIDTH) ** 2)
    return points, nominal, truth, stretch, images + noise * normal(9, *SHAPE)


def fit(images, points, nominal, mask=None, **options):
    mask = torch.ones_like(images) if mask is None else mask
    statuses = list(
        adjust(
            images,
            mask,
            PIXEL,
            points,
            nominal,
            nominal.theta,
            BundleOptions(**{"width_angstrom": WIDTH} | options),
        )
    )
    return statuses, statuses[-1].state


def start_near(points, error=0.2):
    return points + error * torch.randn(
        points.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )


def test_poses_and_distortions_are_found_in_noise():
    points, nominal, truth, stretch, images = scene()
    before = pose_errors(nominal, truth)
    statuses, state = fit(images, start_near(points), nominal, iterations=300)
    found = pose_errors(poses_of(state), truth)
    assert before["shift"].median() > 0.2
    assert found["shift"].max() < 0.05
    assert torch.rad2deg(found["angle"]).max() < 0.3, "0.02 angstrom at the rim"
    assert found["angle"].median() < 0.5 * before["angle"].median()
    assert (state["affine"] - stretch).norm() < 0.5 * stretch.norm(), "a stretch is partly a tilt"
    assert torch.corrcoef(torch.stack([state["affine"].flatten(), stretch.flatten()]))[0, 1] > 0.9
    assert [s.iteration for s in statuses] == list(range(1, 301))
    assert statuses[-1].loss < 0.1 * statuses[0].loss
    assert not any(s.state for s in statuses[:-1])


def test_a_blur_catches_tilts_that_are_far_off():
    points, _, truth, _, images = scene()
    tau = truth.tau.clone()
    tau[4, 0] += 2.0
    tau[1, 1] -= 2.0

    def shifts(start, **options):
        poses = poses_of(fit(images, start_near(points), start, iterations=150, **options)[1])
        return poses, pose_errors(poses, truth)["shift"].max()

    off = truth.replace(tau=tau)
    assert shifts(off)[1] > 1.5, "or it is not worth a blur"
    caught, error = shifts(off, blur_angstrom=0.5)
    assert error < 0.1
    assert shifts(caught)[1] < 0.03


def test_a_blur_takes_no_notice_of_what_the_scan_did_not_see():
    points, nominal, _, _, images = scene()
    mask = torch.ones_like(images)
    mask[:, :, :4] = mask[:, :3] = 0
    _, clean = fit(images, points, nominal, mask, iterations=10, blur_angstrom=0.5)
    images = torch.where(mask > 0, images, torch.full_like(images, 50.0))
    _, dirty = fit(images, points, nominal, mask, iterations=10, blur_angstrom=0.5)
    torch.testing.assert_close(clean["tau"], dirty["tau"], rtol=0, atol=2e-3)


def test_what_the_scan_did_not_see_counts_for_nothing():
    points, nominal, _, _, images = scene()
    mask = torch.ones_like(images)
    mask[:, :, :4] = mask[:, :3] = 0
    _, clean = fit(images, points, nominal, mask, iterations=30)
    images = torch.where(mask > 0, images, torch.full_like(images, 50.0))
    _, dirty = fit(images, points, nominal, mask, iterations=30)
    for key in ("points", "angles", "tau"):
        torch.testing.assert_close(clean[key], dirty[key], rtol=0, atol=2e-3)


def test_a_constant_per_tilt_does_not_matter():
    points, nominal, _, _, images = scene()
    _, plain = fit(images, points, nominal, iterations=30)
    _, raised = fit(images + torch.linspace(-0.1, 0.1, 9)[:, None, None], points, nominal, iterations=30)
    torch.testing.assert_close(plain["tau"], raised["tau"], rtol=0, atol=0.01)


def test_scans_share_no_stretch_and_may_be_rigid():
    points, nominal, _, _, images = scene()
    _, state = fit(images, points, nominal, iterations=50)
    assert state["affine"].mean(0).abs().max() < 1e-7
    assert state["affine"].abs().max() > 1e-3
    _, state = fit(images, points, nominal, iterations=50, affine=False)
    assert not state["affine"].any()


def test_blobs_that_explain_nothing_lose_their_weight():
    points, _, truth, _, images = scene()
    false = torch.tensor([[7.5, 0, 0], [0, 7.5, 0], [0.0, -7.5, 1], [-7.5, 0, -1]], dtype=torch.float64)
    _, state = fit(images, torch.cat([start_near(points, 0.1), false]), truth, iterations=300)
    real, empty = state["weights"][: len(points)], state["weights"][len(points) :]
    assert real.min() > 0.3
    assert empty.max() < 0.1
    assert (state["weights"] >= 0).all()


def test_widths_keep_near_the_first_guess():
    points, nominal, _, _, images = scene()
    for guess in (0.3, 0.9):
        _, state = fit(images, points, nominal, iterations=60, width_angstrom=guess)
        width = state["width"].exp()
        assert width.min() > guess / 2 - 1e-6
        assert width.max() < guess * 1.6 + 1e-6


@pytest.mark.parametrize("shape", [(21, 24, 27), (30, 23, 22)])
def test_blobs_of_a_volume_are_found_exactly(shape):
    grid, voxel, sigma = Grid(shape, 0.35), 0.35, 0.5
    points = torch.tensor([[-1.53, 0.4, 1.2], [1.61, 1.13, -0.95], [0.07, -2.02, 0.31]], dtype=torch.float64)
    heights = torch.tensor([3.0, 2.0, 1.0])
    z, y, x = (grid.coordinates(axis, dtype=torch.float64) for axis in range(3))
    distance = (
        (z[:, None, None, None] - points[:, 2]) ** 2
        + (y[:, None, None] - points[:, 1]) ** 2
        + (x[:, None] - points[:, 0]) ** 2
    )
    single = torch.exp(-0.5 * distance / sigma**2)
    for number in range(3):
        found, _ = find_blobs(single[..., number], voxel, 5, 1.0)
        torch.testing.assert_close(found, points[number : number + 1], rtol=0, atol=1e-9)
    volume = (single * heights).sum(-1)
    found, tops = find_blobs(volume, voxel, 10, 1.0, threshold=0.3)
    torch.testing.assert_close(found, points, rtol=0, atol=0.02)
    assert (tops[:-1] >= tops[1:]).all(), "the highest first"
    assert len(find_blobs(volume, voxel, 2, 1.0, threshold=0.3)[0]) == 2
    assert len(find_blobs(volume, voxel, 10, 1.0, threshold=1.5)[0]) == 2
    assert len(find_blobs(volume, voxel, 10, 12.0, threshold=0.3)[0]) == 1, "none near a higher one"


def test_no_blobs_at_the_edge():
    volume = torch.zeros(9, 9, 9)
    volume[0, 4, 4] = volume[4, 8, 4] = 5.0
    volume[4, 4, 4] = 1.0
    found, _ = find_blobs(volume, 1.0, 10, 2.0)
    torch.testing.assert_close(found, torch.zeros(1, 3, dtype=torch.float64))
