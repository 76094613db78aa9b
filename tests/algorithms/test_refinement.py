import math

import pytest
import torch

from helpers import relative_error
from petomo.algorithms.descent import reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.algorithms.refinement import (
    affine_basis,
    angle_curvature,
    damped_solve,
    pooled_step,
    position_curvature,
    single_steps,
    turn_scan,
)
from petomo.objectives.losses import Amplitude, Poisson
from ptycho_problems import end_to_end_problem, one_tilt_problem, patterns_of, reader_of

STILL = Schedule(0.0)
MOVES = Schedule(1.0)


def problem():
    return end_to_end_problem(window=(24, 24), field=(27, 29), scan=(7, 7), step=(0.8, 0.8))


def refine(model, iterations=10, **schedules):
    """Let some of the geometry go, the volume and the probes held."""
    patterns = patterns_of(problem())
    held = dict.fromkeys(("volume", "probe", "positions", "affine", "poses"), STILL)
    options = DescentOptions(
        iterations, batch_size=64, prior_angstrom=10.0, curvature_every=1, **(held | schedules)
    )
    return [s.loss for s in reconstruct(model, reader_of(patterns), Amplitude(1e-3), options)]


def seen(model, tilt):
    """Where the scan lies on the specimen."""
    return (model.positions[tilt] - model.tau[tilt]).detach()


def worst_position(model):
    return max(float((seen(model, t) - seen(problem(), t)).norm(dim=1).max()) for t in range(2))


def test_shifts_are_found():
    model = problem()
    model.tau.data += torch.tensor([[0.2, -0.25], [-0.3, 0.1]])
    kept = [p.detach().clone() for p in model.positions]
    loss = refine(model, affine=MOVES)
    assert (model.tau - problem().tau).abs().max() < 1e-3
    assert loss[-1] < 1e-4 * loss[0]
    assert all((p - k).abs().max() < 1e-3 for p, k in zip(model.positions, kept, strict=True)), "tau took it"


def test_scan_distortions_are_found():
    model = problem()
    for p, sign in zip(model.positions, (1, -1), strict=True):
        p.data = p.data @ (torch.eye(2) + sign * torch.tensor([[0.02, 0.01], [-0.015, 0.012]])).double()
    assert worst_position(model) > 0.05
    refine(model, affine=MOVES)
    assert worst_position(model) < 1e-3


def test_single_positions_are_found():
    model, noise = problem(), torch.Generator().manual_seed(0)
    for p in model.positions:
        p.data += 0.08 * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    assert worst_position(model) > 0.15
    refine(model, positions=MOVES)
    assert worst_position(model) < 2e-3


def test_angles_are_found():
    model = problem()
    model.angles.data += torch.tensor([[0.01, -0.012, 0.015], [-0.008, 0.01, -0.012]])
    refine(model, iterations=25, poses=MOVES, affine=MOVES)
    error = torch.rad2deg((model.angles - problem().angles).detach().abs())
    assert error.max() < 0.05
    assert worst_position(model) < 0.01


@pytest.mark.parametrize("loss", [Amplitude(1e-4), Poisson(1e-4)])
def test_position_curvature_is_the_hessian_at_a_perfect_fit(loss):
    model = problem()
    index = torch.arange(49)
    measured = model.predict(0, index)
    found = position_curvature(model, 0, loss.curvature)
    k = 24
    start, move = model.positions[0].data[k].clone(), 0.01

    def value(dx, dy):
        model.positions[0].data[k] = start + torch.tensor([dx, dy])
        out = float(model(0, index[k : k + 1], measured[k : k + 1], loss).detach())
        model.positions[0].data[k] = start
        return out

    xx, yy = (
        (value(*(move * e)) + value(*(-move * e))) / move**2
        for e in torch.eye(2, dtype=torch.float64).numpy()
    )
    xy = (value(move, move) + value(-move, -move) - value(move, -move) - value(-move, move)) / (4 * move**2)
    hessian = torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64)
    assert relative_error(found[k], hessian) < 0.05


@pytest.mark.parametrize("sample", [2, 4, 60])
def test_some_positions_stand_for_those_after_them(sample):
    model = problem()
    every = position_curvature(model, 0, 2.0)
    some = position_curvature(model, 0, 2.0, sample)
    for k in range(49):
        torch.testing.assert_close(some[k], every[k - k % sample])


@pytest.mark.parametrize("loss", [Amplitude(1e-4), Poisson(1e-4)])
def test_angle_curvature_is_the_hessian_at_a_perfect_fit(loss):
    model = problem()
    index = torch.arange(49)
    measured = model.predict(0, index)
    found = angle_curvature(model, 0, loss.curvature, sample=1)
    angles, positions, move = model.angles.data[0].clone(), model.positions[0].data.clone(), 5e-4

    def value(step):
        model.angles.data[0] = angles + step
        model.positions[0].data.copy_(turn_scan(positions, model.tau.data[0], step[2]))
        out = float(model(0, index, measured, loss).detach())
        model.angles.data[0] = angles
        model.positions[0].data.copy_(positions)
        return out

    units = move * torch.eye(3, dtype=torch.float64)
    hessian = torch.empty(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            a, b = units[i], units[j]
            hessian[i, j] = (value(a + b) + value(-a - b) - value(a - b) - value(b - a)) / (4 * move**2)
    assert relative_error(found, hessian) < 0.05
    some = angle_curvature(model, 0, loss.curvature, sample=2)
    assert relative_error(some, hessian) < 0.5, "a sample stands for all positions"


@pytest.mark.parametrize("measure", [position_curvature, angle_curvature])
def test_measuring_a_curvature_leaves_the_model_alone(measure):
    model = problem()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure(model, 1, 2.0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_one_tilt_alone_keeps_its_scan_in_place():
    model, truth = one_tilt_problem(), one_tilt_problem()
    model.positions[0].data += 0.1  # what all share cannot be told from a moved object
    options = DescentOptions(6, volume=STILL, probe=STILL, positions=MOVES, affine=STILL, poses=MOVES)
    for _ in reconstruct(model, reader_of(patterns_of(truth)), Amplitude(), options):
        torch.testing.assert_close(
            model.positions[0].detach().mean(0), truth.positions[0].detach().mean(0) + 0.1
        )


def test_the_scan_turns_about_the_specimens_origin():
    tau, angle = torch.tensor([1.0, -2.0], dtype=torch.float64), math.pi / 2
    points = torch.tensor([[1.0, -2.0], [2.0, -2.0], [1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, -2.0], [1.0, -1.0], [-1.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(turn_scan(points, tau, angle), expected)
    torch.testing.assert_close(turn_scan(turn_scan(points, tau, 0.3), tau, -0.3), points)
    assert turn_scan(points.float(), tau, 0.3).dtype == torch.float32


def test_turning_specimen_and_scan_together_turns_the_patterns():
    """psi with its scan moves no atom under the beam: a round probe sees turned patterns, of equal sums."""
    model = problem()
    before, angle = model.predict(0, torch.arange(49)), 0.02
    model.angles.data[0, 2] += angle
    alone = model.predict(0, torch.arange(49))
    model.positions[0].data = turn_scan(model.positions[0].data, model.tau.data[0], angle)
    together = model.predict(0, torch.arange(49))
    low = [0, 1, 2, -1, -2]  # few pixels about the axis are nearly round
    centre = [p[:, low][:, :, low].sum((1, 2)) for p in (before, alone, together)]
    assert (centre[2] - centre[0]).norm() < 0.3 * (centre[1] - centre[0]).norm()


def test_steps_solve_their_equations():
    normal = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    right = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        damped_solve(normal, right, 0.0), torch.linalg.solve(normal, right), rtol=1e-6, atol=0
    )
    unknown = damped_solve(torch.diag(torch.tensor([4.0, 0.0])), torch.tensor([1.0, 0.0]), 1e-3)
    assert unknown[1] == 0
    assert torch.isfinite(damped_solve(torch.zeros(2, 2), torch.zeros(2), 1e-3)).all()
    curvature = normal.expand(5, 2, 2)
    torch.testing.assert_close(
        single_steps(curvature, right.expand(5, 2), 0.0, 0.0)[3],
        -torch.linalg.solve(normal, right),
        rtol=1e-5,
        atol=0,
    )
    held = single_steps(torch.zeros(1, 2, 2), torch.ones(1, 2), prior=50.0)
    torch.testing.assert_close(held, torch.full((1, 2), -1 / 50)), "only the prior holds it"


def test_a_pooled_step_is_the_best_common_motion():
    torch.manual_seed(3)
    positions = torch.randn(20, 2, dtype=torch.float64) * torch.tensor([5.0, 2.0]) + 7
    basis = affine_basis(positions)
    motion = torch.tensor([0.1, -0.2, 0.02, -0.01, 0.005, 0.03], dtype=torch.float64)
    root = torch.randn(20, 2, 2, dtype=torch.float64)
    curvature = root @ root.mT + 0.1 * torch.eye(2)
    gradient = -(curvature @ (basis @ motion)[..., None])[..., 0]
    torch.testing.assert_close(pooled_step(basis, curvature, gradient, 0.0), motion, rtol=1e-5, atol=1e-8)
    shift = basis @ torch.tensor([0.3, -0.4, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(shift, torch.tensor([0.3, -0.4]).double().expand(20, 2))
