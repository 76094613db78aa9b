"""Partially coherent probes against the incoherent sum they stand for."""

import itertools
import math

import numpy as np
import pytest
import torch

from petomo.core.grid import Grid
from petomo.physics.partial_coherence import ProbeModel, cubature, to_polar
from petomo.physics.probe import make_probe, orthogonalise, shift_probe

GRID = Grid((36, 40), (0.3, 0.28))


def test_a_coherent_probe_is_the_same_twelve_times():
    probe = ProbeModel(22.0, aberrations={"C10": -60.0}, electrons=1e4)
    members = probe.ensemble(GRID, 2e5, 12)
    expected = make_probe(GRID, 2e5, 22.0, {"C10": -60.0}, 1e4)
    overlaps = (members.conj() * expected).sum((1, 2)).abs() / expected.abs().square().sum()
    assert float((overlaps**2).sum()) == pytest.approx(1.0, rel=1e-9)
    assert float(members.abs().square().sum()) == pytest.approx(1e4)


@pytest.mark.parametrize(("count", "degree"), [(8, 3), (12, 5)])
def test_the_rules_integrate_polynomials(count, degree):
    points, weights = cubature(count)
    assert float(weights.sum()) == pytest.approx(1.0)
    x, y, f = points.unbind(1)
    for i, j in itertools.product(range(degree + 1), repeat=2):
        if i + j <= degree:
            exact = 0.0 if i % 2 or j % 2 else math.prod(range(i - 1, 0, -2)) * math.prod(range(j - 1, 0, -2))
            assert float((weights * x**i * y**j).sum()) == pytest.approx(exact, abs=1e-9), (i, j)
            if i + j <= 2:
                assert float((weights * x**i * y**j * f).sum()) == pytest.approx(0.0, abs=1e-9), (i, j)
    assert float((weights * f**2).sum()) == pytest.approx(1.0)


def test_no_rule_of_that_size():
    with pytest.raises(ValueError, match="there are 8 and 12"):
        cubature(9)


@pytest.mark.parametrize(("count", "most"), [(8, 0.03), (12, 0.015)])
def test_source_size_convolves_the_intensity(count, most):
    covariance = torch.tensor([[0.03, 0.012], [0.012, 0.05]], dtype=torch.float64)
    probe = ProbeModel(22.0, (0.03, 0.05, 0.012), aberrations={"C10": -60.0})
    intensity = probe.ensemble(GRID, 2e5, count).abs().square().sum(0)
    sharp = make_probe(GRID, 2e5, 22.0, {"C10": -60.0}).abs().square()
    qy = GRID.frequencies(0, dtype=torch.float64)[:, None].expand(GRID.shape)
    qx = GRID.frequencies(1, dtype=torch.float64)[None].expand(GRID.shape)
    q = torch.stack([qx, qy], dim=-1)
    blur = torch.exp(-2 * math.pi**2 * torch.einsum("yxi,ij,yxj->yx", q, covariance, q))
    expected = torch.fft.ifft2(torch.fft.fft2(sharp) * blur).real
    assert float((intensity - expected).abs().max()) < most * float(expected.max())


def test_focal_spread_is_a_sum_over_defoci():
    probe = ProbeModel(22.0, focal_variance=400.0, aberrations={"C10": -60.0})
    members = probe.ensemble(GRID, 2e5, 12)
    expected = sum(0.5 * make_probe(GRID, 2e5, 22.0, {"C10": c}).abs().square() for c in (-80.0, -40.0))
    torch.testing.assert_close(members.abs().square().sum(0), expected, atol=1e-8, rtol=1e-6)


def test_twelve_members_err_less_than_twelve_modes():
    """Against patterns of a fine ensemble behind atoms, in standard deviations of counts."""
    probe = ProbeModel(22.0, (0.05, 0.05, 0.0), 225.0, {"C10": -60.0}, 1e4)
    (x, wx), (f, wf) = (np.polynomial.hermite_e.hermegauss(n) for n in (7, 5))
    fine = []
    for focus, share in zip(f, wf, strict=True):
        wave = make_probe(GRID, 2e5, 22.0, {"C10": -60.0 + 15.0 * focus})
        for (i, wi), (j, wj) in itertools.product(zip(x, wx, strict=True), repeat=2):
            pixels = torch.tensor([[i / 0.28, j / 0.3]], dtype=torch.float64) * math.sqrt(0.05)
            fine.append(shift_probe(wave[None], pixels)[0, 0] * math.sqrt(wi * wj * share))
    generator = torch.Generator().manual_seed(0)
    atoms = (torch.rand(GRID.shape, generator=generator) < 0.03).double()
    qy, qx = (GRID.frequencies(axis, dtype=torch.float64) for axis in (0, 1))
    shape = torch.exp(-2 * math.pi**2 * 0.25**2 * (qy[:, None] ** 2 + qx**2))
    phase = torch.fft.ifft2(torch.fft.fft2(atoms) * shape).real
    phase *= 0.6 / phase.max()

    def pattern(members):
        scaled = members * math.sqrt(probe.electrons / float(members.abs().square().sum()))
        return torch.fft.fft2(scaled * torch.exp(1j * phase), norm="ortho").abs().square().sum(0)

    exact = pattern(torch.stack(fine))
    modes = orthogonalise(torch.stack(fine))[:12]
    members = probe.ensemble(GRID, 2e5, 12)
    errors = [float(((pattern(m) - exact).square() / exact).sum()) for m in (members, modes)]
    assert errors[0] < 0.5 * errors[1]
    assert errors[0] < 1.0


def test_shifts_follow_the_source():
    wide = ProbeModel(22.0, (0.09, 0.0, 0.0))
    narrow = make_probe(GRID, 2e5, 22.0, {})
    moved = shift_probe(narrow[None], torch.tensor([[1.0, 0.0]]))[0]
    assert moved.shape[-2:] == GRID.shape
    x = GRID.coordinates(1, dtype=torch.float64)
    intensity = wide.ensemble(GRID, 2e5, 12).abs().square().sum((0, 1))
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
