import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_gradients, assert_isometry, random_complex, relative_error
from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.physics.fourier import fft2, ifft2
from petomo.physics.probe import (
    ABERRATIONS,
    aberration_phase,
    aperture,
    fit_defocus,
    hermite_modes,
    make_probe,
    orthogonalise,
    probe_from_pattern,
    shift_probe,
)
from petomo.physics.propagation import fresnel

ENERGY, SEMIANGLE = 200e3, 25.0
LAMBDA = wavelength(ENERGY)
GRID = Grid((60, 75), (0.3, 0.25))


def frequencies(grid):
    return grid.frequencies(0, dtype=torch.float64)[:, None], grid.frequencies(1, dtype=torch.float64)[
        None, :
    ]


def test_aberrations_by_a_literal_formula():
    qy, qx = 0.31, -0.52
    alpha, azimuth = LAMBDA * math.hypot(qx, qy), math.atan2(qy, qx)
    coefficients = {
        "C10": -80.0,
        "C12": 30.0,
        "phi12": 0.4,
        "C21": 500.0,
        "phi21": -1.0,
        "C23": 700.0,
        "phi23": 2.0,
    }
    coefficients |= {"C30": 1e5, "C34": 3e4, "phi34": 0.3, "C50": 2e7, "C56": 1e7, "phi56": 0.1}
    chi = -80.0 * alpha**2 / 2 + 30.0 * alpha**2 * math.cos(2 * (azimuth - 0.4)) / 2
    chi += (
        500.0 * alpha**3 * math.cos(azimuth + 1.0) / 3 + 700.0 * alpha**3 * math.cos(3 * (azimuth - 2.0)) / 3
    )
    chi += 1e5 * alpha**4 / 4 + 3e4 * alpha**4 * math.cos(4 * (azimuth - 0.3)) / 4
    chi += 2e7 * alpha**6 / 6 + 1e7 * alpha**6 * math.cos(6 * (azimuth - 0.1)) / 6
    found = aberration_phase(
        *(torch.tensor([q], dtype=torch.float64) for q in (qy, qx)), LAMBDA, coefficients
    )
    assert found.item() == pytest.approx(2 * math.pi / LAMBDA * chi, rel=1e-12)


def test_every_aberration_counts_and_unknown_ones_are_refused():
    q = torch.tensor([0.4], dtype=torch.float64)
    for name in ABERRATIONS:
        assert aberration_phase(q, q * 0.3, LAMBDA, {name: 100.0}).abs() > 0
    for name in ("C11", "defocus", "phi13"):
        with pytest.raises(ValueError, match=f"unknown aberration '{name}'"):
            aberration_phase(q, q, LAMBDA, {name: 1.0})


def test_gradients_for_aberrations():
    qy, qx = frequencies(Grid((5, 6), (0.5, 0.6)))
    names = ("C10", "C12", "phi12", "C30")
    start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, 0.5, 0.3, 20.0)]
    assert_gradients(lambda *c: aberration_phase(qy, qx, 1.0, dict(zip(names, c, strict=True))), *start)


@pytest.mark.parametrize("shape", [(64, 64), (63, 90)])
def test_area_of_the_aperture(shape):
    grid = Grid(shape, (0.25, 0.2))
    qy, qx = frequencies(grid)
    dq = tuple(1 / e for e in grid.extent)
    cutoff = SEMIANGLE * 1e-3 / LAMBDA
    area = aperture(qy, qx, cutoff, dq).sum() * dq[0] * dq[1]
    assert area == pytest.approx(math.pi * cutoff**2, rel=5e-3)


def test_edge_of_the_aperture_is_one_pixel_wide():
    q = torch.tensor([0.0, 0.94, 1.0, 1.04, 1.06], dtype=torch.float64)
    torch.testing.assert_close(
        aperture(torch.zeros_like(q), q, 1.0, (0.3, 0.1)),
        torch.tensor([1.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64),
    )
    torch.testing.assert_close(
        aperture(q, torch.zeros_like(q), 1.0, (0.3, 0.1))[1:3], q.new_tensor([0.7, 0.5])
    )


def test_probe_is_centred_and_holds_its_electrons():
    probe = make_probe(GRID, ENERGY, SEMIANGLE, {"C10": -30.0}, intensity=1234.0)
    intensity = probe.abs() ** 2
    assert intensity.sum() == pytest.approx(1234.0)
    assert fft2(probe).abs().square().sum() == pytest.approx(1234.0)
    assert divmod(int(intensity.argmax()), GRID.shape[1]) == (30, 37)


@pytest.mark.parametrize("defocus", [60.0, -60.0])
def test_underfocus_comes_to_its_focus_behind_the_plane(defocus):
    sharp = make_probe(GRID, ENERGY, SEMIANGLE, {})
    blurred = make_probe(GRID, ENERGY, SEMIANGLE, {"C10": -defocus})
    travelled = ifft2(fft2(blurred) * fresnel(GRID, LAMBDA, defocus))
    torch.testing.assert_close(travelled, sharp, rtol=0, atol=1e-10)
    assert blurred.abs().max() < 0.6 * sharp.abs().max()


def test_probe_from_its_own_pattern():
    coefficients = {"C10": -40.0, "C12": 15.0, "phi12": 0.7}
    probe = make_probe(GRID, ENERGY, SEMIANGLE, coefficients, intensity=50.0)
    pattern = torch.fft.fftshift(fft2(probe).abs() ** 2)
    torch.testing.assert_close(probe_from_pattern(pattern, GRID, ENERGY, coefficients), probe)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_hermite_modes(count):
    probe = make_probe(GRID, ENERGY, SEMIANGLE, {"C10": -40.0}, intensity=100.0)
    modes = hermite_modes(probe, count, GRID, power=0.1)
    gram = modes.flatten(1) @ modes.flatten(1).mH
    expected = torch.tensor([100 * (1 - 0.1 * (count - 1))] + [10.0] * (count - 1), dtype=torch.complex128)
    torch.testing.assert_close(gram, torch.diag(expected), rtol=0, atol=1e-8)
    assert relative_error(modes[0] / modes[0].norm(), probe / probe.norm()) < 1e-12


@given(seed=st.integers(0, 10**6))
def test_orthogonal_modes_are_the_same_state(seed):
    torch.manual_seed(seed)
    modes = random_complex(3, 7, 6)
    found = orthogonalise(modes)
    torch.testing.assert_close((found.abs() ** 2).sum(0), (modes.abs() ** 2).sum(0))
    # ... in every plane
    torch.testing.assert_close(fft2(found).abs().square().sum(0), fft2(modes).abs().square().sum(0))
    gram = found.flatten(1) @ found.flatten(1).mH
    power = gram.diagonal().real
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-9)
    assert (power.diff() <= 0).all()


@pytest.mark.parametrize("shape", [(40, 51), (45, 44)])
def test_shift_of_a_gaussian(shape):
    y = torch.arange(shape[0], dtype=torch.float64)[:, None] - shape[0] // 2
    x = torch.arange(shape[1], dtype=torch.float64)[None, :] - shape[1] // 2

    def beam(cx, cy):
        return torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8 + 0.5j * (x - cx))

    shifts = torch.tensor([[0.3, -0.45], [-2.2, 1.7]], dtype=torch.float64)
    found = shift_probe(beam(0, 0)[None], shifts)
    expected = torch.stack([beam(*s)[None] for s in shifts.tolist()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert_isometry(lambda p: shift_probe(p, shifts[:1]), random_complex(2, *shape))


def test_gradients_of_the_shift():
    probe, shift = (
        random_complex(2, 5, 6).requires_grad_(),
        torch.randn(3, 2, dtype=torch.float64, requires_grad=True),
    )
    assert_gradients(shift_probe, probe, shift)


@pytest.mark.parametrize("c10", [-150.0, -20.0, 0.0, 90.0])
@pytest.mark.parametrize("phi12", [-1.2, 0.3])
def test_defocus_and_astigmatism_are_found(c10, phi12):
    coefficients = {"C10": c10, "C12": 25.0, "phi12": phi12}
    probe = make_probe(GRID, ENERGY, SEMIANGLE, coefficients)
    probe = shift_probe(probe[None], torch.tensor([[0.6, -1.3]], dtype=torch.float64))[0, 0] * (0.6 + 0.8j)
    found = fit_defocus(probe, GRID, ENERGY, SEMIANGLE)
    assert found["C10"] == pytest.approx(c10, abs=0.5)
    assert found["C12"] == pytest.approx(25.0, abs=0.5)
    assert found["phi12"] == pytest.approx(phi12, abs=0.02)


def test_defocus_of_a_noisy_mode():
    probe = make_probe(GRID, ENERGY, SEMIANGLE, {"C10": -80.0}, intensity=1.0)
    noisy = probe + 0.002 * random_complex(*GRID.shape)
    assert fit_defocus(noisy, GRID, ENERGY, SEMIANGLE)["C10"] == pytest.approx(-80.0, abs=3.0)


def test_aberrations_do_without_the_arctangent(monkeypatch):
    q = torch.linspace(-1, 1, 7, dtype=torch.float64)
    monkeypatch.delattr(torch, "atan2")
    aberration_phase(q[:, None], q[None], 0.025, {"C10": -60.0, "C12": 5.0, "C23": 10.0, "C30": 1e4})


def test_orthogonal_modes_have_one_phase():
    grid = Grid((24, 20), (0.3, 0.35))
    modes = hermite_modes(make_probe(grid, 200e3, 20.0, {"C10": 80.0}), 4, grid)
    modes = modes * torch.tensor([1.0, 0.8, 0.6, 0.4])[:, None, None]
    found = orthogonalise(modes)
    noise = 1e-7 * torch.randn(modes.shape, dtype=modes.dtype)
    assert relative_error(orthogonalise(modes + noise), found) < 1e-4
    # however the strongest modes enter, not at random
    assert relative_error(orthogonalise(found), found) < 1e-10
