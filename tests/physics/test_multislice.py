import math

import pytest
import torch
from scipy.special import jv

from helpers import assert_gradients, random_complex, relative_error
from petomo.core.electron import wavelength
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude, Poisson
from petomo.physics.fourier import fft2, ifft2
from petomo.physics.multislice import MultisliceOptics, default_chunk, diffract, multislice_loss, transmission
from petomo.physics.probe import make_probe
from petomo.physics.propagation import fresnel

ENERGY = 200e3
WINDOW = Grid((30, 33), (0.4, 0.3))
OPTICS = MultisliceOptics(WINDOW, ENERGY, thickness=6.0)
ORIGIN = torch.zeros(1, 2, dtype=torch.float64)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def probe_modes(window=WINDOW, defocus=30.0):
    probe = make_probe(window, ENERGY, 20.0, {"C10": -defocus, "C12": 8.0, "phi12": 0.5}, intensity=50.0)
    return torch.stack([probe, 0.3 * torch.roll(probe, (1, 2), (0, 1))])


def bumps(shape, centres, pixel, sigma=1.2):
    """Smooth phase slices: one Gaussian a slice at ``centres`` (x, y) in angstrom."""
    grid = Grid(shape, pixel)
    y, x = grid.coordinates(0, dtype=torch.float64)[:, None], grid.coordinates(1, dtype=torch.float64)
    return torch.stack([0.5 * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * sigma**2)) for a, b in centres])


def small_problem(absorbing=False):
    """Odd, non-square, anisotropic, complex, with positions beyond the field's edge."""
    optics = MultisliceOptics(Grid((5, 6), (0.4, 0.3)), ENERGY, thickness=5.0)
    phase = torch.randn(3, 9, 7, dtype=torch.float64)
    absorption = 0.3 * torch.rand(3, 9, 7, dtype=torch.float64) if absorbing else None
    probe = random_complex(2, 5, 6)
    positions = double([[0.2, -1.3], [-3.7, 0.1], [2.4, 4.3]])
    measured = 3 * torch.rand(3, 5, 6, dtype=torch.float64)
    return optics, phase, absorption, probe, positions, measured


# ------------------------------------------------------------------ forward


def test_transmission_of_a_complex_potential():
    phase, absorption = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    torch.testing.assert_close(transmission(phase), torch.exp(1j * phase))
    torch.testing.assert_close(transmission(phase, absorption), torch.exp(1j * (phase + 1j * absorption)))


def test_vacuum_gives_the_probe():
    probe = probe_modes()
    vacuum = torch.zeros(4, 50, 40, dtype=torch.float64)
    positions = double([[0.0, 0.0], [3.3, -7.6], [1000.0, 4.0]])
    expected = (fft2(probe).abs() ** 2).sum(0).expand(3, -1, -1)
    torch.testing.assert_close(diffract(vacuum, None, probe, positions, OPTICS), expected)


@pytest.mark.parametrize("slices", [1, 5])
def test_a_phase_object_keeps_every_electron(slices):
    probe, phase = probe_modes(), torch.randn(slices, 41, 44, dtype=torch.float64)
    found = diffract(phase, None, probe, double([[2.2, -1.7], [-15.0, 20.0]]), OPTICS).sum((-2, -1))
    torch.testing.assert_close(found, (probe.abs() ** 2).sum().expand(2))
    absorbed = diffract(phase, torch.full_like(phase, 0.1), probe, ORIGIN, OPTICS).sum()
    torch.testing.assert_close(absorbed, math.exp(-0.2 * slices) * found[0])


@pytest.mark.parametrize("axis", [0, 1])
def test_phase_grating_gives_bessel_orders(axis):
    # exp(i a cos(2 pi m x / N)) scatters J_n(a)^2 into order n m
    shape, m, a = (40, 45), 5, 1.3
    optics = MultisliceOptics(Grid(shape, 0.3), ENERGY, 5.0)
    n = shape[axis]
    line = a * torch.cos(2 * math.pi * m * torch.arange(n, dtype=torch.float64) / n)
    phase = (line[:, None] if axis == 0 else line[None, :]).expand(shape)[None]
    plane_wave = torch.full((1, *shape), 1 / math.sqrt(shape[0] * shape[1]), dtype=torch.complex128)
    pattern = diffract(phase, None, plane_wave, ORIGIN, optics)[0]
    orders = pattern[:, 0] if axis == 0 else pattern[0]
    for order in range(-3, 4):
        assert orders[order * m].item() == pytest.approx(jv(order, a) ** 2, abs=1e-4)
    assert orders.sum() == pytest.approx(1.0)


def test_weak_phase_object():
    # first Born: every slice scatters once, i phi_s times the probe at its own depth
    probe, strength = probe_modes()[:1], 1e-5
    phase = strength * torch.randn(3, *WINDOW.shape, dtype=torch.float64)
    lam = wavelength(ENERGY)
    spectrum = fft2(probe[0])
    born = torch.zeros_like(spectrum)
    for s, z in enumerate((-6.0, 0.0, 6.0)):
        here = ifft2(spectrum * fresnel(WINDOW, lam, z))
        born += fft2(1j * phase[s] * here) * fresnel(WINDOW, lam, -z)
    linear = 2 * (spectrum.conj() * born).real
    found = diffract(phase, None, probe, ORIGIN, OPTICS)[0] - spectrum.abs() ** 2
    assert relative_error(found, linear) < 1e-3


def test_probe_is_kept_at_the_middle_of_the_specimen():
    # a phase grating in the middle slice of three does what it does alone
    phase = bumps((50, 51), [(0.5, -1.0)], WINDOW.pixel_size)
    padded = torch.cat([torch.zeros_like(phase), phase, torch.zeros_like(phase)])
    probe, positions = probe_modes(), double([[1.3, -2.2]])
    alone = diffract(phase, None, probe, positions, OPTICS)
    torch.testing.assert_close(diffract(padded, None, probe, positions, OPTICS), alone)


@pytest.mark.parametrize("shape", [(72, 75), (71, 78)])
def test_moving_the_probe_is_moving_the_specimen_back(shape):
    # also across half a pixel, and with a probe of 30 x 33 pixels in a larger field
    centres, probe = [(0.5, -1.0), (-0.3, 0.8)], probe_modes()
    pixels = double([[3.0, -2.0], [0.45, 0.3], [-1.6, 2.51]])
    found = diffract(bumps(shape, centres, WINDOW.pixel_size), None, probe, pixels, OPTICS)
    for (px, py), pattern in zip(pixels.tolist(), found, strict=True):
        moved = [(a - px * 0.3, b - py * 0.4) for a, b in centres]
        expected = diffract(bumps(shape, moved, WINDOW.pixel_size), None, probe, ORIGIN, OPTICS)[0]
        assert relative_error(pattern, expected) < 5e-3


def test_beam_travels_along_plus_z():
    # the first slice meets the wave before the second: order matters, and slice 0 is the entrance
    first, second = bumps(WINDOW.shape, [(0.5, 0.0), (-0.5, 0.7)], WINDOW.pixel_size)
    lam, probe = wavelength(ENERGY), probe_modes()[:1]
    wave = ifft2(fft2(probe[0]) * fresnel(WINDOW, lam, -3.0)) * torch.exp(1j * first)
    wave = ifft2(fft2(wave) * fresnel(WINDOW, lam, 6.0)) * torch.exp(1j * second)
    found = diffract(torch.stack([first, second]), None, probe, ORIGIN, OPTICS)[0]
    torch.testing.assert_close(found, fft2(wave).abs() ** 2)


def test_outside_the_field_is_vacuum():
    phase = torch.randn(2, 20, 21, dtype=torch.float64)
    positions = double([[8.4, -9.0], [-14.0, 3.0]])
    padded = torch.nn.functional.pad(phase, (40, 40, 40, 40))
    torch.testing.assert_close(
        diffract(phase, None, probe_modes(), positions, OPTICS),
        diffract(padded, None, probe_modes(), positions, OPTICS),
    )


# ----------------------------------------------------------------- gradient


@pytest.mark.parametrize("absorbing", [False, True])
@pytest.mark.parametrize("loss", [Amplitude(), Poisson()])
def test_gradients(absorbing, loss):
    optics, phase, absorption, probe, positions, measured = small_problem(absorbing)
    leaves = [x.requires_grad_() for x in (phase, absorption, probe, positions) if x is not None]

    def value(phase, *rest):
        absorption, probe, positions = rest if absorbing else (None, *rest)
        return multislice_loss(phase, absorption, probe, positions, measured, optics, loss, chunk=2)

    assert_gradients(value, *leaves)


@pytest.mark.parametrize("wanted", ["phase", "absorption", "probe", "positions"])
def test_each_gradient_comes_alone(wanted):
    optics, *tensors, measured = small_problem(absorbing=True)
    names = ("phase", "absorption", "probe", "positions")
    together = [x.clone().requires_grad_() for x in tensors]
    multislice_loss(*together, measured, optics, Amplitude()).backward()
    alone = [x.clone().requires_grad_(name == wanted) for name, x in zip(names, tensors, strict=True)]
    (3 * multislice_loss(*alone, measured, optics, Amplitude())).backward()
    for name, a, b in zip(names, alone, together, strict=True):
        if name == wanted:
            torch.testing.assert_close(a.grad, 3 * b.grad)
        else:
            assert a.grad is None


@pytest.mark.parametrize("chunk", [1, 3, 100, None])
@pytest.mark.parametrize("band_limit", [None, 2 / 3])
def test_agrees_with_autograd_of_the_forward_pass(chunk, band_limit):
    optics = MultisliceOptics(WINDOW, ENERGY, 6.0, band_limit)
    positions = 14 * torch.rand(7, 2, dtype=torch.float64) - 7
    measured = 0.2 * torch.rand(7, *WINDOW.shape, dtype=torch.float64)
    mask = torch.rand(WINDOW.shape) > 0.2
    start = (torch.randn(3, 40, 37, dtype=torch.float64), torch.rand(3, 40, 37, dtype=torch.float64))
    loss, results = Amplitude(mask=mask), []
    for by_hand in (True, False):
        phase, absorption, probe, where = (
            x.clone().requires_grad_() for x in (*start, probe_modes(), positions)
        )
        if by_hand:
            value = multislice_loss(phase, absorption, probe, where, measured, optics, loss, chunk)
        else:
            value = loss(diffract(phase, absorption, probe, where, optics), measured)[0].sum()
        value.backward()
        results.append((value, phase.grad, absorption.grad, probe.grad, where.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_masked_pixels_carry_nothing():
    optics, phase, absorption, probe, positions, measured = small_problem()
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[2, 3] = False
    results = []
    for spoilt in (
        measured,
        measured.index_put((torch.arange(3), torch.tensor([2] * 3), torch.tensor([3] * 3)), double(1e3)),
    ):
        leaf = phase.clone().requires_grad_()
        value = multislice_loss(leaf, absorption, probe, positions, spoilt, optics, Amplitude(mask=mask))
        value.backward()
        results.append((value, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_single_precision_is_good_to_five_digits():
    optics, phase, _, probe, positions, measured = small_problem()
    grads = []
    for real, cplx in ((torch.float64, torch.complex128), (torch.float32, torch.complex64)):
        leaf = phase.to(real, copy=True).requires_grad_()
        args = (None, probe.to(cplx), positions.to(real), measured.to(real), optics, Amplitude())
        multislice_loss(leaf, *args).backward()
        assert leaf.grad.dtype == real
        grads.append(leaf.grad.double())
    assert relative_error(grads[1], grads[0]) < 1e-5


def test_two_threads_find_what_one_does():
    optics, *inputs = small_problem(absorbing=True)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [t.detach().clone().requires_grad_() for t in inputs[:4]]
        value = multislice_loss(*leaves, inputs[4], optics, Amplitude(), chunk=1)
        value.backward()
        with torch.no_grad():
            patterns = diffract(*leaves, optics)
        found.append([value.detach(), patterns, *(leaf.grad for leaf in leaves)])
    torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_chunk_fits_the_cache():
    assert default_chunk((64, 64)) == 8
    assert default_chunk((64, 64), 12) == 2
    assert default_chunk((1024, 1024)) == 1
    assert default_chunk((128, 128)) == 2
    assert default_chunk((64, 64), 3, torch.device("meta")) == 1365


def test_second_derivatives_are_refused_rather_than_wrong():
    optics, phase, absorption, probe, positions, measured = small_problem()
    phase.requires_grad_()
    value = multislice_loss(phase, absorption, probe, positions, measured, optics, Amplitude())
    (gradient,) = torch.autograd.grad(value.square(), phase, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
