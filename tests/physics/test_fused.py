"""The compiled way through the slices against plain torch."""

import pytest
import torch

from helpers import relative_error
from petomo.core import memory
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude, Poisson
from petomo.physics import multislice
from petomo.physics.compiled import compiled
from petomo.physics.multislice import MultisliceOptics, diffract, multislice_loss
from petomo.physics.multislice_share import Bench, choose_bench

fused = pytest.importorskip("petomo.physics.fused", reason="numba is not installed")
mkl = pytest.importorskip("petomo.physics.mkl", reason="numba is not installed")
if mkl.find() is None:
    pytest.skip("this torch has no MKL", allow_module_level=True)

WINDOWS = [(17, 20), (64, 64), (64, 256), (128, 100)]
NAMES = ("phase", "absorption", "probe", "positions")


def random_complex(*shape):
    return torch.randn(*shape, dtype=torch.complex64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


@pytest.fixture(params=[False, True], ids=["whole", "by rows"])
def by_rows(request, monkeypatch):
    monkeypatch.setattr(fused, "_rows_are_faster", lambda: request.param)
    return request.param


def make_case(window, slices=3, modes=2, patterns=5):
    field = (slices, window[0] + 13, window[1] + 6)
    tensors = (
        torch.randn(field),
        torch.rand(field),
        random_complex(modes, *window),
        20 * torch.rand(patterns, 2) - 10,
    )
    return (
        tensors,
        torch.rand(patterns, *window),
        MultisliceOptics(Grid(window, (0.3, 0.4)), 200e3, 6.0),
    )


def test_single_precision_on_a_processor_is_compiled():
    assert choose_bench(random_complex(1)) is fused.FusedBench
    assert choose_bench(torch.zeros(1, dtype=torch.complex128)) is Bench


def test_a_loss_that_is_not_compiled_is_called():
    def error(intensity, measured):
        return (intensity - measured).square().sum((1, 2)), 2 * (intensity - measured)

    assert choose_bench(random_complex(1), Amplitude()) is fused.FusedBench
    assert choose_bench(random_complex(1), error) is Bench
    tensors, measured, optics = make_case((16, 24))
    expected = (diffract(*tensors, optics) - measured).square().sum()
    assert float(multislice_loss(*tensors, measured, optics, error)) == pytest.approx(
        float(expected), rel=1e-5
    )


@pytest.mark.parametrize("missing", ["numba", "mkl"])
def test_without_numba_or_mkl_torch_does_it(monkeypatch, missing):
    if missing == "numba":
        monkeypatch.setitem(__import__("sys").modules, "petomo.physics.fused", None)
        monkeypatch.delattr("petomo.physics.fused")
    else:
        monkeypatch.setattr(mkl, "find", lambda: None)
    compiled.cache_clear()
    assert choose_bench(random_complex(1)) is Bench
    compiled.cache_clear()


def test_a_torch_that_hides_its_mkl_is_not_asked(monkeypatch):
    monkeypatch.setattr(mkl.ctypes, "CDLL", lambda _: object())
    mkl.find.cache_clear()
    assert mkl.find() is None
    monkeypatch.undo()
    mkl.find.cache_clear()
    assert mkl.find() is not None


def test_an_allocator_that_takes_no_advice_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.keep_freed_memory.cache_clear()
    assert memory.keep_freed_memory() is False
    memory.keep_freed_memory.cache_clear()


@pytest.mark.parametrize("window", WINDOWS)
def test_propagation_there_and_back_is_a_product_in_fourier_space(window, by_rows):
    wave, propagator = random_complex(*window), random_complex(*window)
    plan = mkl.plan(*window, by_rows)
    factors = (propagator.mT if by_rows else propagator).contiguous()
    out, spare = torch.empty_like(wave), torch.empty_like(factors)
    fused.propagate(out.numpy(), wave.numpy(), spare.numpy(), factors.numpy(), plan)
    expected = torch.fft.ifft2(torch.fft.fft2(wave) * propagator, norm="forward")
    assert relative_error(out, expected) < 1e-6
    expected = torch.fft.fft2(torch.fft.ifft2(wave, norm="forward") * propagator)
    fused.propagate_back(wave.numpy(), spare.numpy(), factors.numpy(), plan)
    assert relative_error(wave, expected) < 1e-6


def compiled_and_plain(monkeypatch, case, loss, wanted="all", chunk=3):
    """Loss and gradients of both."""
    tensors, measured, optics = case
    found = []
    for kind in (fused.FusedBench, Bench):
        monkeypatch.setattr(multislice, "choose_bench", lambda *_, kind=kind: kind)
        leaves = [t.clone().requires_grad_(wanted in (n, "all")) for n, t in zip(NAMES, tensors, strict=True)]
        value = multislice_loss(*leaves, measured, optics, loss, chunk)
        value.backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    return zip(*found, strict=True)


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize("near", [1, fused.NEAR])
@pytest.mark.parametrize("wanted", [*NAMES, "all"])
@pytest.mark.parametrize("window", WINDOWS)
def test_same_loss_and_gradients(monkeypatch, window, wanted, near):
    monkeypatch.setattr(fused, "NEAR", near)
    for ours, plain in compiled_and_plain(monkeypatch, make_case(window), Amplitude(), wanted):
        assert (ours is None) == (plain is None)
        if ours is not None:
            assert relative_error(ours, plain) < 2e-4


@pytest.mark.parametrize("kind", [Amplitude, Poisson])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_same_for_every_loss_mask_and_kind_of_counts(monkeypatch, kind, masked, dtype):
    tensors, measured, optics = make_case((20, 27), patterns=7)
    counts = (20 * measured).to(dtype)
    mask = torch.rand(20, 27) < 0.8 if masked else None
    monkeypatch.setattr(fused, "PATTERNS_A_CALL", 2)
    for ours, plain in compiled_and_plain(monkeypatch, (tensors, counts, optics), kind(mask=mask), chunk=2):
        assert relative_error(ours, plain) < 2e-5


def test_slices_may_lie_in_memory_in_any_order():
    (phase, _, probe, positions), measured, optics = make_case((20, 27), patterns=7)
    rest = probe, positions / 10  # so that no vacuum is added
    turned = phase.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    given, straight = (
        multislice_loss(p, None, *rest, measured, optics, Amplitude()) for p in (turned, phase)
    )
    assert torch.equal(given, straight)
    given, straight = (diffract(p, None, *rest, optics) for p in (turned, phase))
    assert torch.equal(given, straight)


def test_a_perfect_model_loses_nothing():
    tensors, _, optics = make_case((20, 27))
    for loss in (Amplitude(), Poisson()):
        value = multislice_loss(*tensors, diffract(*tensors, optics), optics, loss)
        assert 0 <= float(value) < 1e-4


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_same_intensities_whose_waves_are_not_kept(monkeypatch, slices):
    tensors, _, optics = make_case((24, 32), slices)
    found = []
    for kind in (fused.FusedBench, Bench):
        monkeypatch.setattr(multislice, "choose_bench", lambda *_, kind=kind: kind)
        found.append(diffract(*tensors, optics))
    assert relative_error(*found) < 1e-6


def test_threads_share_the_plans():
    tensors, measured, optics = make_case((32, 32), patterns=64)
    before, values = torch.get_num_threads(), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in tensors]
        for _ in range(5):
            multislice_loss(*leaves, measured, optics, Amplitude(), chunk=2).backward()
        values.append(leaves[0].grad)
    torch.set_num_threads(before)
    assert relative_error(*values) < 1e-5


def test_a_transform_that_cannot_be_is_named():
    with pytest.raises(RuntimeError, match="MKL makes no transform of"):
        mkl._describe((0, 8), mkl._IN_PLACE)
