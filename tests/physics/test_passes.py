"""The fused passes against the plain ones."""

import pytest
import torch

from helpers import relative_error
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude
from petomo.physics import multislice_share, passes
from petomo.physics.multislice import MultisliceOptics, multislice_loss

compiled = pytest.importorskip("petomo.physics.compiled", reason="numba is not installed")
WINDOWS = [(17, 20), (64, 64), (64, 256), (128, 100)]


def random_complex(*shape):
    return torch.randn(*shape, dtype=torch.complex64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


@pytest.fixture(autouse=True)
def _either_layout(monkeypatch):
    monkeypatch.setattr(compiled, "_rows_are_faster", lambda: True)


def test_single_precision_on_a_processor_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert passes.choose_passes(random_complex(1)) is compiled.CompiledPasses
    assert passes.choose_passes(torch.zeros(1, dtype=torch.complex128)) is passes.Passes
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert passes.choose_passes(random_complex(1)) is passes.Passes


def test_without_numba_there_are_still_passes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "petomo.physics.compiled", None)
    passes._compiled.cache_clear()
    assert passes._compiled() is passes.Passes
    passes._compiled.cache_clear()


def test_an_allocator_that_takes_no_advice_is_left_alone(monkeypatch):
    monkeypatch.setattr(passes.ctypes, "CDLL", lambda _: object())
    passes.keep_freed_memory.cache_clear()
    assert passes.keep_freed_memory() is False
    passes.keep_freed_memory.cache_clear()


@pytest.mark.parametrize("window", WINDOWS)
def test_transforms_are_a_pair_in_either_layout(window):
    one = compiled.CompiledPasses(random_complex(1, 300, 300), torch.zeros(2, 2).long(), window)
    wave = random_complex(2, 2, *window)
    spectrum = one.to_fourier(wave)
    upright = spectrum.mT if one.turned else spectrum
    # against the largest value, since rounding in a transform is
    assert relative_error(upright, torch.fft.fft2(wave)) < 1e-6
    assert relative_error(one.to_real(spectrum) / (window[0] * window[1]), wave) < 1e-6
    assert one.turned == (window in ((64, 64), (64, 256)))


@pytest.mark.parametrize("wanted", ["phase", "absorption", "probe", "positions", "all"])
@pytest.mark.parametrize("window", WINDOWS)
def test_same_loss_and_gradients(monkeypatch, window, wanted):
    names = ("phase", "absorption", "probe", "positions")
    field = (2, window[0] + 13, window[1] + 6)
    tensors = (torch.randn(field), torch.rand(field), random_complex(2, *window), 20 * torch.rand(5, 2) - 10)
    optics = MultisliceOptics(Grid(window, (0.3, 0.4)), 200e3, 6.0)
    measured, found = torch.rand(5, *window), []
    for kind in (compiled.CompiledPasses, passes.Passes):
        monkeypatch.setattr(multislice_share, "choose_passes", lambda _, kind=kind: kind)
        leaves = [t.clone().requires_grad_(wanted in (n, "all")) for n, t in zip(names, tensors, strict=True)]
        value = multislice_loss(*leaves, measured, optics, Amplitude(), chunk=3)
        value.backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for fused, plain in zip(*found, strict=True):
        assert (fused is None) == (plain is None)
        if fused is not None:
            assert relative_error(fused, plain) < 2e-4
