from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import relative_error
from petomo.algorithms.descent import reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.core import memory
from petomo.core.errors import UserError
from petomo.io.checkpoint import load_checkpoint, save_checkpoint
from petomo.objectives.losses import Amplitude, Poisson
from petomo.objectives.regularizers import Butterworth, DepthKernel, L1Imaginary, NonNegative, Support
from petomo.objectives.total_variation import TotalVariation3D
from ptycho_problems import VOXEL, end_to_end_problem, one_tilt_problem, patterns_of, reader_of

STILL = Schedule(0.0)
HELD = dict.fromkeys(("probe", "positions", "affine", "poses"), STILL)


def problem(noisy=True, **options):
    """A model that knows nothing of the specimen, and the patterns of the true one."""
    model = end_to_end_problem(**({"dtype": torch.float32, "modes": 2} | options))
    patterns = patterns_of(model)
    if noisy:
        noise = torch.Generator().manual_seed(1)
        patterns = [torch.poisson(p, generator=noise) for p in patterns]
    model.volume.data.zero_()
    if model.absorption is not None:
        model.absorption.data.zero_()
    return model, reader_of(patterns)


def values(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def losses(model, read, options, loss=None, regularizers=(), state=None):
    return [s.loss for s in reconstruct(model, read, loss or Amplitude(), options, regularizers, state)]


def test_the_volume_is_found():
    model, read = problem(noisy=False, modes=1, scan=(8, 9), tilts=(-0.6, -0.3, 0.0, 0.3, 0.6))
    truth = end_to_end_problem().volume.detach()
    loss = losses(model, read, DescentOptions(15, batch_size=24, volume=Schedule(1.0), **HELD))
    assert loss[-1] < 0.01 * loss[0]
    inner = model.volume.detach()[3:-3, 3:-3, 3:-3].flatten(), truth[3:-3, 3:-3, 3:-3].float().flatten()
    assert torch.corrcoef(torch.stack(inner))[0, 1] > 0.8


@pytest.mark.parametrize("loss", [Amplitude(), Poisson()])
def test_the_loss_falls_towards_its_noise_floor(loss):
    model, read = problem(scan=(8, 9), dose=3e5)
    floor = loss.noise_floor(torch.stack([read(t, torch.arange(72)).mean(0) for t in (0, 1)]))
    found = losses(model, read, DescentOptions(15, batch_size=24, volume=Schedule(2.0), **HELD), loss)
    assert found[0] > 1.5 * float(floor)
    assert found[-1] < 1.05 * float(floor), "a volume with two tilts may even fit some noise"


def test_the_known_curvature_beats_plain_descent():
    """The best plain step in a scan of steps loses to steps that were never tuned."""
    options = DescentOptions(8, batch_size=16, **HELD)

    def last(options):
        model, read = problem(scan=(7, 8))
        return losses(model, read, options)[-1]

    sgd = min(last(replace(options, solver="sgd", volume=Schedule(10.0**e))) for e in (1, 2, 3))
    assert last(replace(options, volume=Schedule(2.0))) < sgd


def test_plain_descent_is_the_papers_listing():
    model, read = problem(scan=(2, 3))
    other, _ = problem(scan=(2, 3))
    options = DescentOptions(1, batch_size=6, solver="sgd", volume=Schedule(5.0), **HELD)
    options = replace(options, probe=Schedule(1e-4))
    losses(model, read, options)
    order = torch.Generator().manual_seed(0)
    for tilt in torch.randperm(2, generator=order).tolist():
        index = torch.randperm(6, generator=order)
        other.zero_grad()
        other(tilt, index, read(tilt, index), Amplitude()).backward()
        other.volume.data -= 5.0 * other.volume.grad
        other.probes[tilt].data -= 1e-4 * other.probes[tilt].grad
    torch.testing.assert_close(model.volume, other.volume)
    for tilt in (0, 1):  # orthogonalising mixes the modes
        gram = [(m.probes[tilt].detach().abs() ** 2).sum(0) for m in (model, other)]
        torch.testing.assert_close(*gram, rtol=1e-4, atol=1e-5)


def test_the_volume_stays_the_same_parameter():
    model, read = problem(absorption=True)
    parts = (model.volume, model.absorption)
    places = [p.data_ptr() for p in parts]
    mask = torch.ones(model.volume.shape, dtype=torch.bool)
    mask[0] = False
    terms = [
        NonNegative(), L1Imaginary(0.1), Butterworth(1.0, 2.0, VOXEL), DepthKernel(0.5, 1.0, VOXEL),
        TotalVariation3D(0.01), Support(mask),
    ]  # fmt: skip
    losses(model, read, DescentOptions(2, batch_size=16), regularizers=terms)
    assert (model.volume, model.absorption) == parts
    assert [p.data_ptr() for p in parts] == places
    assert model.volume.detach()[1:].any()


def test_regularisers_act_where_they_should():
    model, read = problem()
    options = DescentOptions(2, batch_size=16, **HELD)
    losses(model, read, options, regularizers=[NonNegative()])
    assert model.volume.min() == 0.0
    mask = torch.zeros(model.volume.shape, dtype=torch.bool)
    mask[3:-3, 4:-4, 4:-4] = True
    model, read = problem(absorption=True)
    losses(model, read, options, regularizers=[Support(mask)])
    assert model.volume.detach()[mask].any()
    assert not model.volume.detach()[~mask].any()
    assert not model.absorption.detach()[~mask].any(), "the support is the complex volume's"
    asked = []
    model, read = problem()
    losses(model, read, options, regularizers=lambda number: asked.append(number) or [])
    assert asked == [0, 1], "a callable is asked once a pass"


def test_absorption_is_found_and_can_be_suppressed():
    truth = end_to_end_problem(absorption=True).absorption.detach()
    options = DescentOptions(20, batch_size=24, volume=Schedule(1.0), **HELD)

    def run(*terms):
        model, read = problem(noisy=False, modes=1, absorption=True, scan=(8, 9), tilts=(-0.5, 0.0, 0.5))
        loss = losses(model, read, options, regularizers=terms)
        return model, loss[-1]

    free, loss = run()
    pair = torch.stack([free.absorption.detach().flatten(), truth.float().flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.2, "few tilts see little of a twentieth of the potential"
    assert float(free.absorption.detach().sum()) == pytest.approx(float(truth.sum()), rel=0.1)
    (some, _), (none, clear) = run(L1Imaginary(0.2)), run(L1Imaginary(1e4))
    assert some.absorption.detach().abs().sum() < 0.9 * free.absorption.detach().abs().sum()
    assert not none.absorption.detach().any()
    assert clear > 1.5 * loss, "without absorption the patterns cannot be explained"


@pytest.mark.parametrize("name", ["volume", "probe", "positions", "affine", "poses"])
def test_schedules_start_and_stop(name):
    model, read = problem()
    model.volume.data = end_to_end_problem().volume.detach().float() * 0.5
    schedules = HELD | {"volume": STILL, name: Schedule(0.5, start=2, stop=4)}
    before, moved = values(model), []
    for _ in reconstruct(model, read, Amplitude(), DescentOptions(6, batch_size=16, **schedules)):
        after = values(model)
        moved.append({k for k in after if not torch.equal(before[k], after[k])})
        before = after
    two = {"probes.0", "probes.1"}, {"positions.0", "positions.1"}
    expected = {
        "volume": {"volume"},
        "probe": two[0],
        "positions": two[1] | {"tau"},
        "affine": two[1] | {"tau"},
        "poses": {"angles"} | two[1],
    }[name]
    assert moved == [set(), set(), expected, expected, set(), set()]


def test_probes_are_orthogonal_after_each_pass():
    model, read = problem(modes=3)
    options = DescentOptions(3, batch_size=16, probe=Schedule(0.5))
    for _ in reconstruct(model, read, Amplitude(), options):
        for probe in model.probes:
            flat = probe.detach().flatten(1)
            gram = flat @ flat.mH
            power = gram.diagonal().real
            assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-4 * power.max()
            assert (power[:-1] >= power[1:]).all()


@pytest.mark.parametrize("absorption", [False, True])
@pytest.mark.parametrize("stop", [1, 3])
def test_going_on_from_a_checkpoint_is_as_if_nothing_had_happened(tmp_path, stop, absorption):
    # every variable moves, and the curvature measured in pass 2 is used in pass 3
    moves = {k: Schedule(0.5, start=1) for k in ("probe", "positions", "affine", "poses")}
    options = DescentOptions(5, batch_size=8, curvature_every=2, momentum=0.7, **moves)
    terms = [L1Imaginary(0.01), NonNegative()]
    whole, read = problem(absorption=absorption)
    expected = losses(whole, read, options, regularizers=terms)
    first, _ = problem(absorption=absorption)
    found = []
    for status in reconstruct(first, read, Amplitude(), options, terms):
        found.append(status.loss)
        if status.iteration == stop:
            save_checkpoint(tmp_path / "state.h5", status.state)
            break
    second, _ = problem(absorption=absorption)
    found += losses(second, read, options, regularizers=terms, state=load_checkpoint(tmp_path / "state.h5"))
    assert found == expected
    for name, value in values(whole).items():
        assert torch.equal(value, values(second)[name]), name


@pytest.mark.parametrize("absorption", [False, True])
def test_a_tilt_may_be_one_step_whatever_is_read_at_a_time(monkeypatch, absorption):
    """The gradient of a whole tilt is that of its parts together, and the volume is turned once for it."""
    moves = {k: Schedule(0.5) for k in ("probe", "positions", "affine", "poses")}
    options, results = DescentOptions(2, batch_size=None, **moves), []
    for parts in (1, 5):
        model, read = problem(absorption=absorption, dtype=torch.float64)
        patterns, pixels = len(model.positions[0]), model.probes[0][0].numel()
        monkeypatch.setattr(memory, "READ_BYTES", 4 * pixels * -(-patterns // parts))
        sizes, turned, phase = [], [], model.phase

        def counted(tilt, index, read=read, sizes=sizes):
            sizes.append(len(index))
            return read(tilt, index)

        monkeypatch.setattr(model, "phase", lambda *a, phase=phase, t=turned: (t.append(a), phase(*a))[1])
        losses(model, counted, replace(options, poses=STILL, positions=STILL, affine=STILL))
        assert len(turned) == options.iterations * len(model.positions)
        assert len(sizes) == parts * len(turned)
        losses(model, read, options)
        results.append(values(model))
    for name, value in results[0].items():
        assert relative_error(results[1][name], value) < 1e-10, name


@pytest.mark.parametrize("batch_size", [None, 24])
def test_going_on_between_passes_sees_more_in_fewer(batch_size):
    """Directions that the patterns hardly tell, such as depth, move little in a pass, but steadily."""
    found = {}
    for share in (0.0, 0.9):
        model, read = problem(noisy=False, modes=1, scan=(8, 9), tilts=(-0.6, -0.3, 0.0, 0.3, 0.6))
        options = DescentOptions(20, batch_size, volume=Schedule(1.5), momentum=share, **HELD)
        found[share] = losses(model, read, options, regularizers=[NonNegative()])
    assert found[0.9][1] == found[0.0][1], "nothing to go on with before the third pass"
    assert found[0.9][-1] < 0.5 * found[0.0][-1]


def test_seeds_order_the_batches():
    def run(seed):
        model, read = problem()
        losses(model, read, DescentOptions(1, batch_size=8, seed=seed, **HELD))
        return model.volume.detach()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_every_pattern_is_read_once_a_pass():
    model, read = problem()
    seen = []

    def counted(tilt, index):
        seen.extend((tilt, int(i)) for i in index)
        return read(tilt, index)

    losses(model, counted, DescentOptions(1, batch_size=7, **HELD))
    assert sorted(seen) == [(t, i) for t in range(2) for i in range(30)]


@pytest.mark.parametrize("scan", [(1, 1), (1, 6)])
def test_a_scan_of_one_line_or_one_place(scan):
    model, read = problem(scan=scan)
    loss = losses(model, read, DescentOptions(4, batch_size=4))
    assert all(torch.isfinite(v).all() for v in values(model).values())
    assert loss[-1] < loss[0]


def test_one_tilt_alone():
    model = one_tilt_problem(torch.float32, modes=2)
    patterns = patterns_of(model)
    model.volume.data.zero_()
    options = DescentOptions(20, batch_size=10, volume=Schedule(1.5), probe=STILL)
    loss = losses(model, reader_of(patterns), options)
    assert loss[-1] < 0.1 * loss[0]


def test_a_poisson_loss_takes_steps_of_its_own_curvature():
    """Twice the curvature, half the step: both losses then have the same step to first order."""
    moved = []
    for loss in (Amplitude(1e-4), Poisson(1e-4)):
        model, read = problem(noisy=False, dose=1e5)
        model.volume.data = 0.98 * end_to_end_problem().volume.detach().float()
        before = model.volume.detach().clone()
        losses(model, read, DescentOptions(1, batch_size=100, momentum=0.0, **HELD), loss)
        moved.append(model.volume.detach() - before)
    assert relative_error(moved[1], moved[0]) < 0.1


@pytest.mark.parametrize("absorption", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_that_are_too_long_are_taken_back(absorption, momentum):
    """Five tilts far apart see modes of their own, on which momentum coasts while the others are visited."""
    tilts = (-0.6, -0.3, 0.0, 0.3, 0.6)
    options = DescentOptions(12, batch_size=24, volume=Schedule(4.0), momentum=momentum, **HELD)
    model, read = problem(noisy=False, modes=1, scan=(8, 9), tilts=tilts, absorption=absorption)
    statuses = list(reconstruct(model, read, Amplitude(), options))
    assert any("undone" in s.extras for s in statuses), "or the test tests nothing"
    assert statuses[-1].loss < 1.0, "an empty volume has 3"
    assert torch.isfinite(model.volume).all()


def test_resuming_after_a_step_was_taken_back(tmp_path):
    options = DescentOptions(6, batch_size=24, volume=Schedule(30.0), momentum=0.0, **HELD)
    whole, read = problem(noisy=False, scan=(8, 9))
    expected = list(reconstruct(whole, read, Amplitude(), options))
    undone = next(s.iteration for s in expected if "undone" in s.extras)
    first, _ = problem(noisy=False, scan=(8, 9))
    for status in reconstruct(first, read, Amplitude(), options):
        if status.iteration == undone:
            save_checkpoint(tmp_path / "state.h5", status.state)
            break
    second, _ = problem(noisy=False, scan=(8, 9))
    found = losses(second, read, options, state=load_checkpoint(tmp_path / "state.h5"))
    assert found == [s.loss for s in expected[undone:]]
    assert torch.equal(whole.volume, second.volume)


def test_plain_descent_that_diverges_says_so():
    model, read = problem()
    options = DescentOptions(6, batch_size=8, solver="sgd", volume=Schedule(1e9), **HELD)
    options = replace(options, probe=Schedule(10.0))
    with pytest.raises(UserError, match=r"diverged in pass \d+; shorten the steps"):
        losses(model, read, options)


def test_the_depth_kernel_looks_along_the_beam_of_each_tilt(monkeypatch):
    seen = []
    monkeypatch.setattr(DepthKernel, "filter_gradient", lambda self, g: seen.append(self.beam) or g)
    model, read = problem(tilts=(-0.5, 0.7))
    model.angles.data[:, 0] = 0.0
    losses(model, read, DescentOptions(1, batch_size=99, **HELD), regularizers=[DepthKernel(3.0, 0.0, 0.4)])
    # the lab's z axis in the specimen's frame: the specimen is turned by +theta about y
    expected = sorted((-np.sin(t), 0.0, np.cos(t)) for t in (-0.5, 0.7))
    np.testing.assert_allclose(sorted(seen), expected, atol=1e-12)
