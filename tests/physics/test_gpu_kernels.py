"""The kernels for a GPU against plain torch; interpreted where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import relative_error
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude, Poisson
from petomo.physics import multislice
from petomo.physics.compiled import compiled
from petomo.physics.multislice import MultisliceOptics, diffract, multislice_loss
from petomo.physics.multislice_share import Bench, choose_bench

gpu = pytest.importorskip("petomo.physics.gpu", reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("phase", "absorption", "probe", "positions")


def make_case(window, slices=3, modes=2, patterns=5):
    field = (slices, window[0] + 13, window[1] + 6)
    tensors = (
        torch.randn(field),
        torch.rand(field),
        torch.randn(modes, *window, dtype=torch.complex64),
        20 * torch.rand(patterns, 2) - 10,
    )
    optics = MultisliceOptics(Grid(window, (0.3, 0.4)), 200e3, 6.0)
    return [t.to(DEVICE) for t in tensors], torch.rand(patterns, *window).to(DEVICE), optics


def by_kernels_and_plain(monkeypatch, case, loss, wanted=NAMES, absorbing=True, chunk=3):
    """Loss and gradients of both."""
    tensors, measured, optics = case
    found = []
    for kind in (gpu.GpuBench, Bench):
        monkeypatch.setattr(multislice, "choose_bench", lambda *_, kind=kind: kind)
        leaves = [t.clone().requires_grad_(n in wanted) for n, t in zip(NAMES, tensors, strict=True)]
        given = leaves if absorbing else [leaves[0], None, *leaves[2:]]
        value = multislice_loss(*given, measured, optics, loss, chunk)
        value.backward()
        found.append([value.detach(), *(x.grad for x in leaves if x.grad is not None)])
    return found


def assert_alike(found, tolerance=2e-5):
    ours, theirs = found
    assert len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < tolerance


@pytest.mark.parametrize("window", [(17, 20), (32, 25)])
@pytest.mark.parametrize("kind", [Amplitude, Poisson])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_loss_and_gradients(monkeypatch, window, kind, masked):
    case = make_case(window)
    mask = torch.rand(window) > 0.3 if masked else None
    if mask is not None:
        case[1][:, ~mask] = 1e3  # whatever stands where nothing was measured
    loss = kind(mask=None if mask is None else mask.to(DEVICE))
    assert_alike(by_kernels_and_plain(monkeypatch, case, loss))


@pytest.mark.parametrize("name", NAMES)
def test_each_gradient_alone(monkeypatch, name):
    assert_alike(by_kernels_and_plain(monkeypatch, make_case((16, 21)), Amplitude(), (name,)))


def test_without_absorption(monkeypatch):
    wanted = ("phase", "probe", "positions")
    assert_alike(by_kernels_and_plain(monkeypatch, make_case((16, 21)), Amplitude(), wanted, absorbing=False))


def test_patterns_at_one_place_add_up(monkeypatch):
    case = make_case((16, 21))
    case[0][3][:] = case[0][3][0].clone()
    assert_alike(by_kernels_and_plain(monkeypatch, case, Amplitude(), chunk=5))


@pytest.mark.parametrize("slices", [1, 2])
def test_few_slices(monkeypatch, slices):
    assert_alike(by_kernels_and_plain(monkeypatch, make_case((16, 21), slices), Poisson()))


def test_counts_of_whole_numbers(monkeypatch):
    tensors, measured, optics = make_case((16, 21))
    counts = (10 * measured).to(torch.uint8)
    assert_alike(by_kernels_and_plain(monkeypatch, (tensors, counts, optics), Amplitude()))


def test_intensity(monkeypatch):
    tensors, _, optics = make_case((17, 20))
    found = []
    for kind in (gpu.GpuBench, Bench):
        monkeypatch.setattr(multislice, "choose_bench", lambda *_, kind=kind: kind)
        found.append(diffract(*tensors, optics))
    assert relative_error(*found) < 1e-6


class OnGpu:
    """What `choose_bench` looks at."""

    device, dtype = torch.device("cuda"), torch.complex64


def test_single_precision_on_a_gpu_takes_the_kernels(monkeypatch):
    assert choose_bench(OnGpu()) is gpu.GpuBench
    assert choose_bench(OnGpu(), Poisson()) is gpu.GpuBench
    assert choose_bench(OnGpu(), lambda *_: None) is Bench
    monkeypatch.setitem(sys.modules, "petomo.physics.gpu", None)
    monkeypatch.delattr("petomo.physics.gpu")
    compiled.cache_clear()
    assert choose_bench(OnGpu()) is Bench, "torch does it where there is no Triton"
    compiled.cache_clear()


def test_kernels_compile_for_a_gpu(tmp_path):
    """Interpreting them does not tell; in a process of its own, since here they are interpreted."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_gpu_kernels.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
