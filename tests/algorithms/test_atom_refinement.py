"""Atoms and poses refined through patterns of their own model."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import assert_gradients, relative_error
from petomo.algorithms.atom_curvatures import Curvatures
from petomo.algorithms.atom_objective import AtomOptions, Objective, adapted
from petomo.algorithms.atom_refinement import Level, refine_atoms, restore, snapshot
from petomo.algorithms.probe_fit import fit_probe
from petomo.algorithms.quasi_newton import minimise
from petomo.algorithms.site_errors import Halves, position_errors
from petomo.algorithms.site_review import (
    Candidates,
    add_missing,
    drop_weak,
    keep_sites,
    name_elements,
    occupancy_wanted,
    order_pairs,
    overlaps,
    split_heavy,
    strength,
    volume_gradient,
)
from petomo.analysis.matching import register
from petomo.core import memory
from petomo.core.scan import affine_basis
from petomo.models.atomic_tomography import AtomicTomography, Sites
from petomo.objectives.losses import Poisson
from petomo.physics.multislice import diffract
from petomo.physics.partial_coherence import ProbeModel
from ptycho_problems import ATOMS, ENERGY, end_to_end_problem

NUMBERS = np.array([13, 8, 8, 13, 8, 13])
TILTS = (-0.7, -0.3, 0.1, 0.5, 0.9)
ELECTRONS = 3e4


def sites(numbers=NUMBERS, points=ATOMS) -> Sites:
    count = len(numbers)
    return Sites(
        np.asarray(numbers),
        torch.as_tensor(points, dtype=torch.float64),
        torch.ones(count, dtype=torch.float64),
        torch.full((count,), 0.01, dtype=torch.float64),
    )


def probe_model(tilt: int) -> ProbeModel:
    return ProbeModel(28.0, (0.01, 0.015, 0.002), 100.0, {"C10": -25.0 - 5 * tilt}, ELECTRONS)


def truth(members: int = 8, atoms: Sites | None = None, tilts=TILTS, device="cpu") -> AtomicTomography:
    frame = end_to_end_problem(tilts=tilts, scan=(6, 6))
    window = frame.geometry.optics.window
    waves = [probe_model(t).ensemble(window, ENERGY, members).to(device) for t in range(len(tilts))]
    scans = [p.data for p in frame.positions]
    return AtomicTomography(atoms or sites(), frame.poses, waves, scans, frame.geometry)


def reader(model: AtomicTomography):
    patterns = [model.predict(t, torch.arange(len(model.stray[t]))) for t in range(len(model.stray))]
    return lambda tilt, index: patterns[tilt][index]


def objective(model, read, **options) -> Objective:
    nominal = model.angles.data[:, 1].clone()
    wide = {"phi_width": 1.0, "theta_width": 1.0, "psi_width": 1.0, "scale_width": 1.0} | options
    return Objective(model, read, Poisson(), nominal, AtomOptions(**wide))


def nudge(model: AtomicTomography, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter, size in (
        (model.sites, 0.06), (model.angles, 3e-3), (model.tau, 0.05), (model.affine, 3e-3),
        (model.occupancy, 0.05),
    ):  # fmt: skip
        parameter.data += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model.affine.data -= model.affine.data.mean(0)


def test_gradient_of_every_parameter():
    model = truth()
    read = reader(model)
    nudge(model)
    model.variance.data += 0.004
    for stray in model.stray:
        stray.data += 0.02 * torch.randn_like(stray)
    target = objective(model, read)
    point = target.point()
    _, gradient = target(point)
    torch.manual_seed(0)
    start = 0
    for name, parameter in model.named_parameters():
        stop = start + parameter.numel()
        direction = torch.zeros_like(point)
        direction[start:stop] = torch.randn(stop - start, dtype=torch.float64)
        # five points: the curvature changes fast along some of these
        h = 1e-5
        value = [target(point + k * h * direction)[0] for k in (-2, -1, 1, 2)]
        slope = (value[0] - 8 * value[1] + 8 * value[2] - value[3]) / (12 * h)
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-5, abs=1e-4), name
        start = stop


def test_what_is_read_at_a_time_changes_nothing(monkeypatch):
    model = truth()
    read, sizes = reader(model), []
    nudge(model)

    def counted(tilt, index):
        sizes.append(len(index))
        return read(tilt, index)

    target = objective(model, counted)
    value, gradient = target(target.point())
    in_volume = volume_gradient(model, counted, Poisson(), (13, 15, 16))
    assert set(sizes) == {36}
    monkeypatch.setattr(memory, "READ_BYTES", 4 * 10 * model.probe(0)[0].numel())
    sizes.clear()
    again, other = target(target.point())
    assert sizes[:4] == [10, 10, 10, 6]
    assert again == pytest.approx(value, rel=1e-12)
    assert relative_error(other, gradient) < 1e-10
    assert relative_error(volume_gradient(model, counted, Poisson(), (13, 15, 16)), in_volume) < 1e-10


def test_moving_the_specimen_by_tau_moves_the_scan_back():
    model = truth()
    before = model.positions(1).clone()
    scan = model.relative_scan(1).detach().clone()
    model.tau.data[1] += torch.tensor([0.3, -0.2])
    torch.testing.assert_close(model.relative_scan(1).detach(), scan - torch.tensor([0.3, -0.2]).double())
    torch.testing.assert_close(model.positions(1), before)  # what the coils did is another matter


def test_psi_turns_the_scan_along():
    model = truth()
    lab, scan = model.lab(2).detach(), model.relative_scan(2).detach()
    model.angles.data[2, 2] += 0.2
    c, s = np.cos(0.2), np.sin(0.2)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    torch.testing.assert_close(model.lab(2).detach()[:, :2], lab[:, :2] @ turn.T)
    torch.testing.assert_close(model.relative_scan(2).detach(), scan @ turn.T)


def test_recovers_atoms_and_poses():
    model = truth()
    read = reader(model)
    nudge(model)
    model.tau.data -= model.tau.data.mean(0)
    target = objective(model, read, occupancy_width=1.0, affine_width=1.0)
    solver = minimise(target, target.point(), target.preconditioner(Curvatures(model, 4.0)))
    first = next(solver)
    last = list(itertools.islice(solver, 12))[-1]
    # the likelihood of noise-free data is least, and zero, at the truth
    assert last.value < 0.02 * first.value
    target.go(last.point)
    moved = register(model.sites.detach().numpy(), ATOMS.numpy()).apply(model.sites.detach().numpy())
    assert np.abs(moved - ATOMS.numpy()).max() < 0.02


def test_preconditioner_is_symmetric_and_positive():
    model = truth()
    target = objective(model, reader(model))
    apply = target.preconditioner(Curvatures(model, 4.0))
    torch.manual_seed(1)
    a, b = (torch.randn_like(target.point()) for _ in range(2))
    assert all(float(v @ apply(v)) > 0 for v in (a, b))
    # as far as conjugate gradients were followed
    size = float(a @ apply(a) * (b @ apply(b))) ** 0.5
    assert float(a @ apply(b)) == pytest.approx(float(b @ apply(a)), abs=1e-4 * size)


def test_preconditioner_is_near_the_inverse_hessian_where_weak_modes_are():
    """A stretch along z with the tilts and scans that make up for it: what atoms alone cannot see."""
    model = truth()
    target = objective(model, reader(model), affine_width=1.0)
    apply = target.preconditioner(Curvatures(model, 4.0))
    theta, parts = model.angles.data[:, 1], {}
    for name, parameter in model.named_parameters():
        parts[name] = torch.zeros_like(parameter.data)
    parts["sites"][:, 2] = model.sites.data[:, 2]
    parts["angles"][:, 1] = -torch.tan(theta)
    parts["affine"][:, 0, 0] = torch.tan(theta) ** 2
    mode = torch.cat([p.flatten() for p in parts.values()])
    point, h = target.point(), 1e-4
    product = (target(point + h * mode)[1] - target(point - h * mode)[1]) / (2 * h)
    back = apply(product)
    # M^-1 H v should be v, up to the model's neglects
    cosine = float(back @ product / (mode @ product))
    assert 0.2 < cosine < 5.0


def test_minimise_beats_the_hessian_of_a_quadratic():
    torch.manual_seed(0)
    root = torch.randn(8, 8, dtype=torch.float64)
    matrix, right = root @ root.T + torch.eye(8), torch.randn(8, dtype=torch.float64)

    def evaluate(x):
        return float(0.5 * x @ matrix @ x - right @ x), matrix @ x - right

    solver = minimise(evaluate, torch.zeros(8, dtype=torch.float64), lambda g: g / matrix.diagonal())
    now = list(itertools.islice(solver, 30))[-1]
    torch.testing.assert_close(now.point, torch.linalg.solve(matrix, right), rtol=1e-4, atol=1e-5)


def test_fits_the_probe():
    model, tilt = truth(), 1
    index = torch.arange(36)
    measured = model.predict(tilt, index)
    phase, pixels = model.phase(tilt).detach(), model.relative_scan(tilt).detach() / model.pixel_size
    optics = model.geometry.optics
    begin = ProbeModel(28.0, (0.02, 0.008, 0.0), 60.0, {"C10": -37.0}, 1.02 * ELECTRONS)

    def predict(members):
        return diffract(phase, None, members, pixels, optics)

    fitted, loss = fit_probe(begin, predict, measured, Poisson(), optics, 8, iterations=5)
    assert fitted.aberrations["C10"] == pytest.approx(-30.0, abs=0.5)
    assert fitted.electrons == pytest.approx(ELECTRONS, rel=2e-3)
    assert fitted.source == pytest.approx((0.01, 0.015, 0.002), abs=2e-3)
    assert loss < 0.01


def test_names_elements_by_strength():
    model = truth()
    read = reader(model)
    wrong = np.array([8, 8, 8, 13, 13, 13])
    model.numbers = wrong
    # the strength that the refinement would find
    model.occupancy.data[0], model.occupancy.data[4] = 1.55, 0.65
    assert name_elements(model, [13, 8]) == 2
    assert (model.numbers == NUMBERS).all()
    assert (model.occupancy.data - 1).abs().max() < 0.2
    assert read(0, torch.arange(1)).shape[0] == 1


def test_finds_a_missing_atom_and_drops_a_false_one():
    model = truth()
    read = reader(model)
    rest = sites().select(np.array([0, 2, 3, 4, 5]))
    keep_sites(model, rest)
    asked = occupancy_wanted(
        model, read, Poisson(), 8, Candidates((13, 15, 16)), Curvatures(model, 4.0).shapes
    )
    top = np.array(np.unravel_index(asked.argmax(), asked.shape))
    place = ((top - np.array([13, 15, 16]) // 2) * model.pixel_size)[::-1]
    assert np.linalg.norm(place - ATOMS[1].numpy()) < 0.6
    shapes = Curvatures(model, 4.0).shapes
    assert add_missing(model, read, Poisson(), 8, Candidates((13, 15, 16)), 0.9 * asked.max(), shapes) == 1
    assert model.numbers[-1] == 8
    assert np.linalg.norm(model.sites.detach().numpy()[-1] - ATOMS[1].numpy()) < 0.6
    model.occupancy.data[2] = 0.1
    assert drop_weak(model, 0.4, 1.0) == 1
    assert len(model.numbers) == 5


def test_overlap_is_that_of_the_images():
    model = truth(tilts=(0.0,))
    pair = sites([13, 8], torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.2, -0.9]]))
    keep_sites(model, pair)
    pairs, alike = overlaps(model)
    assert pairs.tolist() == [[0, 1]]
    assert 0.9 < alike[0] < 1  # phi and psi are a little off
    model.sites.data[1] = torch.tensor([1.9, 0.2, -0.9])  # beside each other, and out of reach
    assert overlaps(model)[0].size == 0


def test_two_that_overlap_are_named_by_their_sum():
    model = truth(tilts=(-0.1, 0.1))
    pair = sites([13, 13], torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.2, -0.9]]))
    keep_sites(model, pair)
    whole = strength(model, 8) / strength(model, 13)
    # either would be Al by itself; together they are as much as an Al and an O
    model.occupancy.data[:] = torch.tensor([0.81, whole + 0.19])
    assert name_elements(model, [13, 8]) == 1
    assert model.numbers.tolist() == [13, 8]
    model.sites.data[1, 0] += 1.6
    model.numbers = np.array([13, 13])
    model.occupancy.data[:] = torch.tensor([0.81, whole + 0.19])
    assert name_elements(model, [13, 8]) == 0


def test_exchanges_two_in_the_wrong_order():
    tilts = (-0.4, -0.2, 0.0, 0.2, 0.4)
    points = torch.tensor([[0.2, 0.1, -0.9], [0.2, 0.1, 0.9], [1.1, -0.8, -1.0]])
    model = truth(atoms=sites([13, 8, 8], points), tilts=tilts)
    target = objective(model, reader(model))
    assert order_pairs(model, target.of_atoms) == 0
    assert model.occupancy.data.tolist() == [1.0, 1.0, 1.0]
    model.numbers = np.array([8, 13, 8])
    model.occupancy.data[:2] = torch.tensor([1.3, 0.75])
    assert order_pairs(model, target.of_atoms) == 1
    assert model.numbers.tolist() == [13, 8, 8]
    assert model.occupancy.data.tolist() == pytest.approx([0.75, 1.3, 1.0])
    torch.testing.assert_close(model.sites.data, points.double())


def test_splitting_keeps_how_much_there_is_and_where():
    model = truth()
    before = model.current_sites()
    assert split_heavy(model, 1.3, 1.5) == 0
    model.occupancy.data[:] = 1.5
    assert split_heavy(model, 1.3, 1.5) == 0  # then it is the scale that is wrong
    model.occupancy.data[:] = 1.0
    model.occupancy.data[1] = 1.5
    assert split_heavy(model, 1.3, 1.5) == 1
    after = model.current_sites()
    assert after.numbers.tolist() == [*NUMBERS, NUMBERS[1]]
    assert after.occupancy.tolist() == [1.0, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75]
    one, other = after.positions[1], after.positions[6]
    torch.testing.assert_close((one + other) / 2, before.positions[1])
    # the tilts' mean is 0.1 rad about y
    apart = torch.tensor([-np.sin(0.1), 0.0, np.cos(0.1)]) * 1.5
    torch.testing.assert_close(other - one, apart, atol=0.01, rtol=0)


def test_tells_two_atoms_one_behind_the_other_from_one_between_them():
    points = ATOMS.double()[[0, 1, 4, 0]].clone()
    points[3] = torch.tensor([0.2, 0.1, 0.9])
    points[0] = torch.tensor([0.2, 0.1, -0.9])
    tilts = (-0.5, -0.25, 0.0, 0.25, 0.5)
    model = truth(atoms=sites([13, 8, 13, 8], points), tilts=tilts)
    read = reader(model)
    between = sites([13, 8, 13], torch.cat([points[:1], points[1:3]]))
    between.positions[0] = torch.tensor([0.2, 0.1, -0.2])
    between.occupancy[0] = 1.4
    keep_sites(model, between)
    nominal, start = model.angles.data[:, 1].clone(), [probe_model(t) for t in range(len(tilts))]
    level = Level(model.geometry, read, Poisson(), 8, 4, Candidates((13, 15, 16), 1.5))
    options = AtomOptions(iterations=6, probe_patterns=4)
    for _ in refine_atoms(model, start, [level], nominal, [13, 8], options):
        pass
    found = model.current_sites()
    order = torch.cdist(points, found.positions).argmin(1)
    assert sorted(order.tolist()) == list(range(len(found))) == [0, 1, 2, 3]
    assert found.numbers[order.numpy()].tolist() == [13, 8, 13, 8]
    error = found.positions[order] - points
    assert float((error - error.mean(0)).norm(dim=1).max()) < 0.25  # tau moves all


def test_resumes_to_the_same_result():
    model = truth()
    read = reader(model)
    nominal = model.angles.data[:, 1].clone()
    nudge(model)
    begin = snapshot(model)
    options = AtomOptions(iterations=2, half_iterations=2, probe_patterns=9)
    coarse = Level(model.geometry, read, Poisson(), 8, 1)
    levels = [coarse, replace(coarse, members=12)]
    start = [probe_model(t) for t in range(len(TILTS))]

    def run(state=None, model=model):
        return list(refine_atoms(model, start, levels, nominal, [13, 8], options, state))

    whole = run()
    assert [s.iteration for s in whole] == [1, 2, 3, 4, 5, 6]
    kept = whole[2].state
    fresh = truth()
    restore(fresh, begin)
    again = run(kept, fresh)
    assert [s.iteration for s in again] == [3, 4, 5, 6]
    assert whole[-1].loss == again[-1].loss
    for name, value in whole[-1].state["parameters"].items():
        assert torch.equal(value, again[-1].state["parameters"][name]), name
    errors = whole[-1].state["errors"]
    assert errors.shape == (6, 3)
    assert bool((errors > 0).all())


def test_without_halves_errors_are_the_hessian_s():
    model = truth()
    read, nominal = reader(model), model.angles.data[:, 1].clone()
    nudge(model)
    options = AtomOptions(iterations=2, half_iterations=0, probe_patterns=9)
    level, start = Level(model.geometry, read, Poisson(), 8, 1), [probe_model(t) for t in range(len(TILTS))]
    said = list(refine_atoms(model, start, [level], nominal, [13, 8], options))
    assert [s.iteration for s in said] == [1, 2, 2]
    assert said[-1].extras["halves"] == 0.0
    assert said[-1].loss == said[-2].loss
    curvatures = Curvatures(model, level.loss.curvature, said[-1].state["curvatures"])
    expected = position_errors(model, curvatures, adapted(options, model, nominal).precisions())
    torch.testing.assert_close(said[-1].state["errors"], expected, rtol=1e-6, atol=0)


def test_positions_stay_when_they_are_weighed_anew():
    """What strays have in common, by the new weights, goes over to shift and distortion."""
    model = truth()
    nudge(model)
    generator = torch.Generator().manual_seed(2)
    for tilt, stray in enumerate(model.stray):
        stray.data += 0.05 * torch.randn(stray.shape, generator=generator, dtype=torch.float64)
        root = torch.randn(36, 2, 2, generator=generator, dtype=torch.float64)
        model.weigh_positions(tilt, torch.eye(2) + root @ root.mT)
    model.angles.data[:, 2] += 0.1
    scans = [model.relative_scan(tilt).detach().clone() for tilt in range(len(TILTS))]
    before = model.affine.detach().clone()
    for tilt, scan in enumerate(scans):
        weights = torch.eye(2) * torch.rand(36, 1, 1, generator=generator, dtype=torch.float64)
        model.weigh_positions(tilt, weights)
        torch.testing.assert_close(model.relative_scan(tilt).detach(), scan, atol=1e-9, rtol=0)
        shared = affine_basis(model.get_buffer(f"scan_{tilt}"))
        left = torch.einsum("kip,kij,kj->p", shared, weights, model.stray[tilt].detach())
        assert float(left.abs().max()) < 1e-4
    assert float((model.affine.detach() - before).abs().min()) > 1e-5


def test_a_subset_is_the_same_model():
    model = truth()
    nudge(model)
    for stray in model.stray:
        stray.data += 0.02 * torch.randn_like(stray)
    model.weigh_positions(3, torch.eye(2, dtype=torch.float64) * torch.rand(36, 1, 1, dtype=torch.float64))
    part = model.subset([1, 3])
    for number, tilt in enumerate((1, 3)):
        torch.testing.assert_close(part.relative_scan(number), model.relative_scan(tilt))
        index = torch.arange(4)
        torch.testing.assert_close(part.predict(number, index), model.predict(tilt, index))
    part.sites.data += 1.0
    assert float((model.sites - part.sites).detach().abs().min()) == pytest.approx(1.0)


@pytest.mark.parametrize("disturbed", [False, True])
def test_standard_errors_are_those_of_the_atoms(disturbed):
    """Counting noise alone, and with atoms that are elsewhere in every tilt, which no Hessian knows of."""
    scaled, plain = [], []
    for seed in range(6):
        model = truth()
        generator = torch.Generator().manual_seed(seed)
        patterns = []
        for tilt in range(len(TILTS)):
            moved = 0.08 * torch.randn(model.sites.shape, generator=generator, dtype=torch.float64)
            model.sites.data += disturbed * moved
            patterns.append(torch.poisson(model.predict(tilt, torch.arange(36)), generator=generator))
            model.sites.data -= disturbed * moved

        def read(tilt, index, patterns=patterns):
            return patterns[tilt][index]

        target = objective(model, read, stray_width=1e-3)
        curvatures = Curvatures(model, 4.0)
        solver = minimise(target, target.point(), target.preconditioner(curvatures))
        target.go(list(itertools.islice(solver, 10))[-1].point)
        halves = Halves(model, read, Poisson(), target.nominal, target.options, curvatures)
        for _ in range(8):
            halves.step()
        errors = position_errors(model, curvatures, target.options.precisions(), halves.sites())
        found = model.sites.detach().numpy()
        true = register(found, ATOMS.numpy()).apply(found) - ATOMS.numpy()
        scaled.append(true / errors.numpy())
        plain.append(true / position_errors(model, curvatures, target.options.precisions()).numpy())
    assert 0.4 < np.sqrt(np.mean(np.square(scaled))) < 1.5
    assert not disturbed or np.sqrt(np.mean(np.square(plain))) > 2.0


def test_gradients_through_the_scan():
    model = truth()

    def scan(angles, affine):
        turned = torch.func.functional_call(
            _Scan(model), {"model.angles": angles, "model.affine": affine}, (0,)
        )
        return turned

    assert_gradients(
        scan, model.angles.detach().clone().requires_grad_(), model.affine.detach().clone().requires_grad_()
    )


class _Scan(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tilt):
        return self.model.relative_scan(tilt)


def test_priors_count_from_the_nominal_scan():
    plain = truth()
    bent = AtomicTomography(
        plain.current_sites(), plain.poses, [plain.probe(t) for t in range(5)],
        [plain.positions(t) for t in range(5)], plain.geometry, torch.full((5, 2, 2), 0.01),
    )  # fmt: skip
    read = reader(plain)
    values = [float(objective(model, read, affine_width=0.01).prior().detach()) for model in (plain, bent)]
    assert values[1] - values[0] == pytest.approx(0.5 * 5 * 4, rel=0.01)


def test_expected_widths_follow_what_is_found():
    model = truth()
    options = AtomOptions(affine_width=0.01, psi_width=0.005, theta_width=0.004)
    with torch.no_grad():
        model.affine.fill_(0.002)
        model.angles[:, 0] = 0.2
        model.angles[:, 2] = torch.tensor([0.0, 0.001, 0.0, -0.001, 0.0]) + 0.3  # the mean is free
        model.angles[:, 1] = torch.tensor(TILTS) + 0.1 * torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    found = adapted(options, model, torch.tensor(TILTS, dtype=torch.float64))
    assert found.affine_width == pytest.approx(math.sqrt((4 * 0.01**2 + 20 * 0.002**2) / 24))
    assert found.psi_width == pytest.approx(math.sqrt((4 * 0.005**2 + 2 * 0.001**2) / 8), rel=1e-4)
    assert found.theta_width == options.theta_width  # never wider than what is asked for
    assert found.phi_width == pytest.approx(options.phi_width * math.sqrt(0.5))
    assert replace(found, affine_width=0.01, psi_width=0.005, phi_width=options.phi_width) == options


def test_cautious_priors_are_half_as_wide():
    options = AtomOptions()
    found = options.cautious()
    for name in ("phi_width", "theta_width", "psi_width", "affine_width"):
        assert getattr(found, name) == getattr(options, name) / 2
    assert (
        replace(found, **{n: getattr(options, n) for n in vars(options) if n.endswith("_width")}) == options
    )
    assert found.occupancy_width == options.occupancy_width
