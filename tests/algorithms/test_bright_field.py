import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from petomo.algorithms.bright_field import (
    bright_field_stack,
    choose_method,
    com_rotation,
    fit_aberrations,
    fit_parallax,
    reconstruct,
    reconstruct_parallax,
    reconstruct_ssb,
    reconstruct_weak_phase,
)
from petomo.algorithms.bright_field_direct import transfer
from petomo.algorithms.bright_field_fit import explained_signal, fit_astigmatism, fit_c10, fit_rotation
from petomo.core.dataset import ArraySource, FourDSTEM, scan_positions
from petomo.core.electron import wavelength

ENERGY, MRAD = 200e3, 20.0
LAM = wavelength(ENERGY)
QA = MRAD * 1e-3 / LAM


def chi(kx, ky, c10=0.0, c12=0.0, phi12=0.0):
    """2 pi / lambda (lambda^2 q^2 / 2) (C10 + C12 cos 2(phi - phi12)), written out once more."""
    angle = np.arctan2(ky, kx)
    return np.pi * LAM * (kx**2 + ky**2) * (c10 + c12 * np.cos(2 * (angle - phi12)))


def simulate(
    scan,
    step,
    shape=(30, 26),
    sampling=(0.065, 0.08),
    rotation=0.0,
    strength=0.05,
    dose=None,
    atoms=25,
    seed=3,
    **c,
):
    """A thin phase object of Gaussian atoms under a shifted probe, in plain numpy.

    Returns the dataset and the phase as a function of positions ``(k, 2)`` in the detector's frame.
    """
    rng = np.random.default_rng(seed)
    (ny, nx), (dky, dkx) = shape, sampling
    hy, hx = 1 / (ny * dky), 1 / (nx * dkx)
    ky, kx = np.meshgrid((np.arange(ny) - ny // 2) * dky, (np.arange(nx) - nx // 2) * dkx, indexing="ij")
    amplitude = np.clip((QA - np.hypot(kx, ky)) / np.hypot(dky, dkx) * 1.4 + 0.5, 0, 1)
    spectrum = amplitude * np.exp(-1j * chi(kx, ky, **c))
    extent = np.array([(scan[1] - 1) * step[1], (scan[0] - 1) * step[0]])
    nominal = rng.uniform(-0.4, 0.4, (atoms, 2)) * extent
    cos, sin = math.cos(rotation), math.sin(rotation)
    centres = nominal @ np.array([[cos, sin], [-sin, cos]])
    weights = rng.uniform(0.4, 1.0, atoms) * strength
    width = 0.45

    def phase(xy):
        d2 = ((np.asarray(xy)[..., None, :] - centres) ** 2).sum(-1)
        return (weights * np.exp(-d2 / (2 * width**2))).sum(-1)

    positions = scan_positions(scan, step, rotation).numpy()
    y, x = np.meshgrid((np.arange(ny) - ny // 2) * hy, (np.arange(nx) - nx // 2) * hx, indexing="ij")
    probe = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum)))
    local = np.stack([x, y], -1)
    waves = probe * np.exp(1j * np.stack([phase(local + p) for p in positions]))
    counts = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(waves, axes=(1, 2))), axes=(1, 2))) ** 2
    counts *= (dose or 1e6) / counts.sum((1, 2)).mean()
    if dose:
        counts = rng.poisson(counts).astype(float)
    data = FourDSTEM(
        ArraySource(counts.astype(np.float32)), ENERGY, MRAD, scan, step, sampling, scan_rotation=rotation
    )
    return data, phase


def correlation(a, b):
    a, b = np.asarray(a), np.asarray(b)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def true_image(phase, data, upsample=(1, 1)):
    (ny, nx), (sy, sx), (uy, ux) = data.scan_shape, data.scan_step, upsample
    y = -(ny - 1) / 2 * sy + np.arange(ny * uy) * sy / uy
    x = -(nx - 1) / 2 * sx + np.arange(nx * ux) * sx / ux
    grid = np.stack(np.meshgrid(y, x, indexing="ij")[::-1], -1)
    c, s = math.cos(data.scan_rotation), math.sin(data.scan_rotation)
    return phase(grid @ np.array([[c, s], [-s, c]]))


FINE = {"scan": (22, 27), "step": (0.6, 0.5)}


@pytest.fixture(scope="module")
def fine():
    return simulate(**FINE, c10=-150.0, c12=30.0, phi12=0.5)


@pytest.fixture(scope="module")
def coarse():
    return simulate(scan=(13, 15), step=(1.3, 1.5), c10=-140.0, rotation=0.3, strength=0.15, atoms=40)


@pytest.mark.parametrize(
    ("method", "least"),
    [(reconstruct_ssb, 0.85), (reconstruct_weak_phase, 0.9), (reconstruct_parallax, 0.75)],
)
def test_direct_methods_recover_a_weak_phase_with_its_sign(fine, method, least):
    data, phase = fine
    truth = true_image(phase, data)
    patterns = torch.from_numpy(data.patterns()).reshape(*data.scan_shape, *data.pattern_shape)
    good = {"C10": -150.0, "C12": 30.0, "phi12": 0.5}
    found = method(patterns, data, good)
    assert found.shape == data.scan_shape
    assert correlation(found, truth) > least
    wrong = method(patterns, data, {**good, "C10": 150.0})
    assert correlation(wrong, truth) < correlation(found, truth) - 0.3


def test_weak_phase_is_quantitative():
    data, phase = simulate(**FINE, c10=-150.0, strength=0.01)
    found = reconstruct_weak_phase(data, data, {"C10": -150.0}).numpy()
    truth = true_image(phase, data)
    slope = np.polyfit((truth - truth.mean()).ravel(), found.ravel(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.15)


def test_ssb_and_weak_phase_differ_only_in_the_double_overlap(fine):
    data, _ = fine
    stack = bright_field_stack(data, data)
    ab = {"C10": -150.0}
    q = torch.tensor([[0.3 * QA, 0.1 * QA], [1.2 * QA, -0.4 * QA]])
    ssb, full = transfer(stack, q, "ssb", ab), transfer(stack, q, "weak_phase", ab)
    used = ssb.abs() > 0
    assert torch.equal(ssb[used], full[used])
    both = ((stack.q - q[0]).norm(dim=-1) < QA - 0.1) & ((stack.q + q[0]).norm(dim=-1) < QA - 0.1)
    assert both.any()
    assert not used[0, both].any()
    # without aberrations the double overlap cancels, so that the two methods are one
    plain = [transfer(stack, q, m, {"C10": 0.0})[0, both] for m in ("ssb", "weak_phase")]
    torch.testing.assert_close(*plain)


def test_transfer_is_the_first_order_signal():
    """Numerical derivative of the simulated intensity with respect to a phase grating."""
    sampling, q = (0.08, 0.08), np.array([0.4, -0.24])
    k = (np.arange(32) - 16) * 0.08
    ky, kx = np.meshgrid(k, k, indexing="ij")
    ab = {"c10": -90.0, "c12": 25.0, "phi12": 0.4}

    def probe_spectrum(qx, qy):
        return (np.hypot(qx, qy) < QA) * np.exp(-1j * chi(qx, qy, **ab))

    # phi = 2 eps cos(2 pi q.r), scanned over R: G(k, q) is the coefficient of exp(2 pi i q.R)
    a = probe_spectrum(kx, ky)
    plus, minus = probe_spectrum(kx - q[0], ky - q[1]), probe_spectrum(kx + q[0], ky + q[1])
    eps, signal = 1e-4, 0
    for angle in np.arange(8) * 2 * np.pi / 8:
        wave = a + 1j * eps * (plus * np.exp(1j * angle) + minus * np.exp(-1j * angle))
        signal = signal + np.abs(wave) ** 2 * np.exp(-1j * angle) / 8
    data = FourDSTEM(ArraySource(np.ones((4, 32, 32))), ENERGY, MRAD, (2, 2), (1.0, 1.0), sampling)
    stack = bright_field_stack(data, data)
    gamma = transfer(stack, torch.tensor(q), "weak_phase", {"C10": -90.0, "C12": 25.0, "phi12": 0.4})
    index = (stack.q / 0.08).round().long() + 16
    edge = torch.stack([(stack.q + s * torch.tensor(q)).norm(dim=-1) - QA for s in (-1, 0, 1)]).abs().amin(0)
    sharp = edge > 0.06  # away from the aperture's soft edge
    expected = torch.from_numpy(signal)[index[:, 1], index[:, 0]] / (1j * eps)
    torch.testing.assert_close(gamma[sharp].to(torch.complex128), expected[sharp], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("c10", [-150.0, 110.0])
def test_defocus_found_with_sign_from_no_guess(c10):
    data, phase = simulate(**FINE, c10=c10, dose=1e5)
    found = fit_aberrations(data, data, fit=["C10"])
    assert found.method == "ssb"
    assert abs(found.C10 - c10) < 4
    assert found.defocus == -found.C10
    assert found.C12 == 0
    assert found.sampling == FINE["step"]
    assert correlation(found.phase, true_image(phase, data)) > 0.7
    assert not found.warning


def test_defocus_and_astigmatism(fine):
    data, _ = fine
    found = fit_aberrations(data, data, search=(-100, 100), defocus_guess=120.0)
    assert abs(found.C10 + 150) < 4
    assert abs(found.C12 - 30) < 4
    assert math.remainder(found.phi12 - 0.5, math.pi) == pytest.approx(0, abs=0.06)


def test_coarse_rotated_scan_keeps_defocus_rotation_and_resolution(coarse):
    data, phase = coarse
    stack = bright_field_stack(data, data)
    contrast = explained_signal(stack, max_pixels=200)
    assert contrast.upsample == (3, 3)
    c10 = fit_c10(contrast, 0.0, (-200, 200))
    assert c10 == pytest.approx(-140, abs=5)
    assert fit_astigmatism(contrast, c10)["C12"] < 5
    assert fit_rotation(contrast, {"C10": c10}, 0.2) == pytest.approx(0.3, abs=0.02)
    method, upsample, reason = choose_method(data, c10, len(stack.q))
    assert (method, upsample) == ("weak_phase", (3, 3))
    assert "aliases" in reason
    image = reconstruct(stack, method, {"C10": c10}, upsample, cutoff=1.0)
    truth = true_image(phase, data, upsample)
    assert image.shape == truth.shape
    assert correlation(image, truth) > 0.85
    # the contrast falls off on the transposed detector
    assert explained_signal(stack.transpose(), max_pixels=200)({"C10": c10}) < 0.8 * contrast({"C10": c10})


@pytest.mark.parametrize("c10", [-200.0, 160.0])
def test_parallax_shifts_give_defocus_astigmatism_and_rotation(c10):
    data, _ = simulate(
        scan=(22, 25), step=(0.7, 0.6), c10=c10, c12=25.0, phi12=1.0, rotation=0.5, strength=0.1
    )
    found = fit_parallax(bright_field_stack(data, data))
    assert abs(found.C10 / c10 - 1) < 0.08
    assert abs(found.C12 - 25) < 12
    assert math.remainder(found.phi12 - 1.0, math.pi) == pytest.approx(0, abs=0.25)
    assert found.rotation == pytest.approx(0.5, abs=0.05)
    assert not found.transposed
    assert fit_parallax(bright_field_stack(data, data).transpose()).transposed


@pytest.mark.parametrize("rotation", [0.0, 0.7, -2.5])
def test_centre_of_mass_gives_rotation_and_handedness(rotation):
    data, _ = simulate(**FINE, c10=-60.0, rotation=rotation, dose=1e5)
    unknown = replace(data, scan_rotation=0.0)
    stack = bright_field_stack(unknown, unknown)
    found = com_rotation(stack)
    assert math.remainder(found.rotation - rotation, 2 * math.pi) == pytest.approx(0, abs=0.08)
    assert not found.transposed
    assert found.confidence > 0.1
    assert com_rotation(stack.transpose()).transposed


def test_wrong_orientation_is_reported_and_on_request_adopted():
    data, phase = simulate(**FINE, c10=-150.0, rotation=0.6)
    wrong = replace(data, scan_rotation=0.0, flip=(False, False, True), detector_sampling=(0.08, 0.065))
    checked = fit_aberrations(wrong, wrong, fit=["C10"])
    assert "35 degrees" in checked.warning or "34 degrees" in checked.warning
    assert "exchanged" in checked.warning
    assert checked.scan_rotation == 0
    assert not checked.transposed
    turned = fit_aberrations(wrong, wrong, fit=["C10"], turn=True)
    assert turned.transposed
    assert turned.scan_rotation == pytest.approx(0.6, abs=0.03)
    assert abs(turned.C10 + 150) < 5
    assert turned.contrast > 1.3 * checked.contrast
    assert correlation(turned.phase, true_image(phase, data)) > 0.8


def test_method_follows_the_sampling():
    data, _ = simulate(scan=(2, 3), step=(0.5, 0.6))
    assert choose_method(data, -100.0, 300)[0] == "ssb"
    coarse = replace(data, scan_step=(2.0, 1.5))
    method, upsample, _ = choose_method(coarse, -100.0, 300)
    assert (method, upsample) == ("weak_phase", (4, 3))
    method, _, reason = choose_method(coarse, -100.0, 30)
    assert method == "parallax"
    assert "100 A (positive = underfocus)" in reason
    method, upsample, reason = choose_method(replace(data, scan_step=(6.0, 6.0)), 10.0, 300)
    assert (method, upsample) == ("weak_phase", (1, 1))
    assert "aliased" in reason


def test_binning_keeps_the_disk_and_reads_in_blocks(fine):
    data, _ = fine
    whole = bright_field_stack(data, data)
    small = bright_field_stack(data, data, max_pixels=60, block=37)
    assert len(small.q) <= 60 < len(whole.q)
    torch.testing.assert_close(small.com, whole.com)
    # the brightest bin's mean frequency stays inside the disk, and the disk's centre stays at zero
    assert small.q.norm(dim=-1).max() < QA
    assert (small.q * small.weights[:, None]).sum(0).norm() / small.weights.sum() < 0.1 * QA
    assert fit_c10(explained_signal(small), -130.0, (-60, 60)) == pytest.approx(-150, abs=8)


def test_errors_say_what_is_wrong(fine):
    data, _ = fine
    with pytest.raises(ValueError, match="check semiangle"):
        bright_field_stack(data, replace(data, semiangle_mrad=0.5))
    dark = replace(data, source=ArraySource(np.zeros(data.source.shape, np.float32)))
    with pytest.raises(ValueError, match="no electrons"):
        bright_field_stack(dark, dark)
    flat = replace(data, source=ArraySource(np.ones(data.source.shape, np.float32)))
    with pytest.raises(ValueError, match="flat"):
        fit_aberrations(flat, flat)
    with pytest.raises(ValueError, match="C30"):
        fit_aberrations(data, data, fit=["C30"])


SERIES = Path(__file__).parents[2].parent / "shared" / "data" / "sim_tiny_13"


@pytest.mark.skipif(not SERIES.exists(), reason="the independent simulation is not at hand")
def test_independent_simulation_within_six_angstrom():
    truth = np.load(SERIES / "truth" / "poses.npz")["defocus_angstrom"]
    for tilt in (6,):
        with h5py.File(SERIES / f"tilt_{tilt:02d}.h5") as file:
            counts, a = file["counts"][:], dict(file.attrs)
        step, pixel = float(a["scan_step_angstrom"]), float(a["detector_sampling_inv_angstrom"])
        data = FourDSTEM(
            ArraySource(counts.reshape(-1, *counts.shape[2:])),
            float(a["energy_ev"]),
            float(a["semiangle_mrad"]),
            counts.shape[:2],
            (step, step),
            (pixel, pixel),
        )
        found = fit_aberrations(data, data, fit=["C10"])
        assert found.defocus == pytest.approx(truth[tilt], abs=6)
