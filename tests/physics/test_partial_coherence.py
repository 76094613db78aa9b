"""Partially coherent probes against the incoherent sum they stand for."""

import math

import pytest
import torch

from petomo.core.grid import Grid
from petomo.physics.partial_coherence import ProbeModel, to_polar
from petomo.physics.probe import make_probe, shift_probe

GRID = Grid((36, 40), (0.3, 0.28))


def test_a_coherent_probe_has_one_mode():
    probe = ProbeModel(22.0, aberrations={"C10": -60.0}, electrons=1e4)
    modes = probe.modes(GRID, 2e5, 3)
    assert len(modes) == 1
    overlap = (modes[0].conj() * make_probe(GRID, 2e5, 22.0, {"C10": -60.0}, 1e4)).sum().abs()
    assert float(overlap) == pytest.approx(1e4, rel=1e-9)


def test_source_size_convolves_the_intensity():
    covariance = torch.tensor([[0.03, 0.012], [0.012, 0.05]], dtype=torch.float64)
    probe = ProbeModel(22.0, (0.03, 0.05, 0.012), aberrations={"C10": -60.0})
    intensity = probe.modes(GRID, 2e5, 25).abs().square().sum(0)
    sharp = make_probe(GRID, 2e5, 22.0, {"C10": -60.0}).abs().square()
    qy = GRID.frequencies(0, dtype=torch.float64)[:, None].expand(GRID.shape)
    qx = GRID.frequencies(1, dtype=torch.float64)[None].expand(GRID.shape)
    q = torch.stack([qx, qy], dim=-1)
    blur = torch.exp(-2 * math.pi**2 * torch.einsum("yxi,ij,yxj->yx", q, covariance, q))
    expected = torch.fft.ifft2(torch.fft.fft2(sharp) * blur).real
    assert float((intensity - expected).abs().max()) < 5e-3 * float(expected.max())


def test_focal_spread_is_a_sum_over_defoci():
    probe = ProbeModel(22.0, focal_variance=400.0, aberrations={"C10": -60.0})
    modes = probe.modes(GRID, 2e5, 3)
    nodes = [(-60.0 - 20 * math.sqrt(3), 1 / 6), (-60.0, 2 / 3), (-60.0 + 20 * math.sqrt(3), 1 / 6)]
    expected = sum(w * make_probe(GRID, 2e5, 22.0, {"C10": c}).abs().square() for c, w in nodes)
    torch.testing.assert_close(modes.abs().square().sum(0), expected, atol=1e-8, rtol=1e-6)


def test_few_modes_keep_the_electrons_and_come_strongest_first():
    probe = ProbeModel(22.0, (0.04, 0.04, 0.0), 225.0, {"C10": -60.0}, 5e3)
    powers = probe.modes(GRID, 2e5, 6).abs().square().sum((1, 2))
    assert float(powers.sum()) == pytest.approx(5e3)
    assert (powers.diff() < 0).all()


def test_shifts_follow_the_source():
    wide = ProbeModel(22.0, (0.09, 0.0, 0.0))
    narrow = make_probe(GRID, 2e5, 22.0, {})
    moved = shift_probe(narrow[None], torch.tensor([[1.0, 0.0]]))[0]
    assert moved.shape[-2:] == GRID.shape
    x = GRID.coordinates(1, dtype=torch.float64)
    intensity = wide.modes(GRID, 2e5, 8).abs().square().sum((0, 1))
    sharp = narrow.abs().square().sum(0)
    inside = x.abs() < 3.0
    spread = [float((i * x**2)[inside].sum() / i[inside].sum()) for i in (intensity, sharp)]
    assert spread[0] - spread[1] == pytest.approx(0.09, rel=0.35)


def test_polar_form_and_round_trip():
    polar = to_polar({"C10": -5.0, "C12a": 3.0, "C12b": 4.0, "C23b": 2.0})
    assert polar["C12"] == pytest.approx(5.0)
    assert polar["phi12"] == pytest.approx(math.atan2(4.0, 3.0) / 2)
    assert polar["phi23"] == pytest.approx(math.pi / 6)
    probe = ProbeModel(22.0, (0.1, 0.2, 0.05), 9.0, {"C10": -5.0}, 7.0)
    assert ProbeModel.from_dict(probe.to_dict()) == probe
