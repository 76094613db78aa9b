"""Fourier shell correlation and power spectra on odd, non-cubic, anisotropic grids."""

import numpy as np
import pytest

from petomo.analysis.resolution import (
    directional_correlations,
    fourier_shell_correlation,
    information_threshold,
    missing_wedge,
    power_in_region,
    radial_power_spectrum,
    taper,
)

SHAPE, VOXEL = (15, 24, 31), (0.5, 0.35, 0.3)


def _noise(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape)


def _frequency(shape, voxel):
    axes = np.meshgrid(*(np.fft.fftfreq(n, p) for n, p in zip(shape, voxel, strict=True)), indexing="ij")
    return np.sqrt(sum(a**2 for a in axes))


@pytest.mark.parametrize(("shape", "voxel"), [(SHAPE, VOXEL), ((41, 64), (0.4, 0.3)), ((64, 64, 64), 0.3)])
def test_independent_noise_does_not_correlate(shape, voxel):
    curve = fourier_shell_correlation(_noise(0, shape), _noise(1, shape), voxel)
    # Var FSC = 1/n for n independent complex coefficients with 2 degrees of freedom: sd of Re = 1/sqrt(2n)
    z = curve.correlation * np.sqrt(2 * curve.count)
    assert np.abs(z).max() < 4
    assert 0.4 < z.std() < 1.6
    assert curve.crossing("half_bit") == 0.0
    assert curve.resolution("half_bit") == np.inf


def test_identical_volumes_correlate_fully_to_the_nyquist_frequency():
    curve = fourier_shell_correlation(_noise(0), 3 * _noise(0), VOXEL)
    np.testing.assert_allclose(curve.correlation, 1)
    assert curve.crossing(0.143) is None
    assert curve.resolution("one_bit") == pytest.approx(1 / curve.frequency[-1])
    assert curve.frequency[-1] <= 0.5 / max(VOXEL)


def test_count_is_the_number_of_hermitian_pairs():
    curve = fourier_shell_correlation(_noise(0), _noise(1), VOXEL)
    step = max(1 / (n * p) for n, p in zip(SHAPE, VOXEL, strict=True))
    radius = _frequency(SHAPE, VOXEL)
    shell = np.rint(radius / step)
    expected = [
        ((shell == s) & (radius <= 0.5 / max(VOXEL))).sum() / 2 for s in range(1, len(curve.count) + 1)
    ]
    np.testing.assert_array_equal(curve.count, expected)


def test_crossing_of_a_known_signal_to_noise_curve():
    # signal of power exp(-q^2/2w^2) under unit noise: FSC = S/(S+1), 0.5 where S = 1 => q = w sqrt(2 ln A)
    shape, voxel, w, amplitude = (60, 50, 64), (0.3, 0.35, 0.3), 0.35, 20.0
    q = _frequency(shape, voxel)
    signal = np.fft.ifftn(
        np.fft.fftn(_noise(0, shape)) * np.sqrt(amplitude) * np.exp(-(q**2) / 4 / w**2)
    ).real
    curve = fourier_shell_correlation(signal + _noise(1, shape), signal + _noise(2, shape), voxel)
    expected = w * np.sqrt(2 * np.log(amplitude))
    assert curve.crossing(0.5) == pytest.approx(expected, rel=0.03)
    assert curve.resolution(0.5) == pytest.approx(1 / expected, rel=0.03)
    assert curve.resolution("half_bit") < curve.resolution("one_bit")


def test_cone_separates_a_direction_that_is_all_noise():
    shape, voxel = (48, 40, 44), (0.3, 0.4, 0.3)
    qz = np.abs(np.fft.fftfreq(48, 0.3))[:, None, None]
    wedge = np.fft.fftn(_noise(0, shape)) * (qz < 0.6 * _frequency(shape, voxel))
    signal = 5 * np.fft.ifftn(wedge).real
    a, b = signal + _noise(1, shape), signal + _noise(2, shape)
    along = fourier_shell_correlation(a, b, voxel, direction=(0, 0, 1))
    across = fourier_shell_correlation(a, b, voxel, direction=(1, 0, 0))
    assert np.abs(along.correlation[-5:]).max() < 0.2
    assert across.correlation[-5:].min() > 0.9


def test_thresholds_are_the_published_ones():
    n = np.array([1, 10, 1e3, 1e9])
    root = 1 / np.sqrt(n)
    np.testing.assert_allclose(
        information_threshold(n, 0.5), (0.2071 + 1.9102 * root) / (1.2071 + 0.9102 * root), atol=1e-4
    )
    np.testing.assert_allclose(
        information_threshold(n, 1), np.minimum((0.5 + 2.4142 * root) / (1.5 + 1.4142 * root), 1), atol=1e-4
    )


def test_unknown_threshold_and_different_shapes_are_refused():
    curve = fourier_shell_correlation(_noise(0), _noise(1), VOXEL)
    with pytest.raises(ValueError, match="half_bit"):
        curve.crossing("two_bit")
    with pytest.raises(ValueError, match="same shape"):
        fourier_shell_correlation(_noise(0), _noise(0)[1:], VOXEL)


@pytest.mark.parametrize(("shape", "voxel"), [(SHAPE, VOXEL), ((13, 16), (0.3, 0.2)), ((8, 8, 8), 0.3)])
def test_power_spectrum_keeps_parseval(shape, voxel):
    volume = _noise(3, shape) + 0.5
    spectrum = radial_power_spectrum(volume, voxel)
    assert (spectrum.power * spectrum.count).sum() == pytest.approx((volume**2).sum())
    assert spectrum.count.sum() == volume.size


def test_power_spectrum_finds_the_frequency_of_a_wave():
    x = np.arange(64) * 0.3
    spectrum = radial_power_spectrum(
        np.cos(2 * np.pi * 10 / 64 / 0.3 * x) * np.ones((30, 40, 1)), (0.4, 0.3, 0.3)
    )
    assert spectrum.frequency[spectrum.power.argmax()] == pytest.approx(10 / 64 / 0.3, abs=0.05)


def test_taper_is_one_inside_and_falls_towards_every_face():
    mask = taper((9, 20, 31), 0.4)
    assert mask[4, 10, 15] == 1
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, :, -1].max()) <= 0.51


def test_shells_of_few_coefficients_do_not_end_the_curve():
    curve = fourier_shell_correlation(_noise(0), _noise(0) + 1e-3 * _noise(1), VOXEL, direction=(0, 0, 1))
    assert curve.count[0] < 6
    assert curve.correlation[0] < curve.half_bit[0]
    assert curve.crossing("half_bit") is None


def _mirrored(region, shape):
    """A mask of rfftn coefficients as one of all coefficients."""
    full = np.zeros(shape, bool)
    half = shape[-1] // 2 + 1
    full[..., :half] = region
    index = np.ix_(*(-np.arange(n) % n for n in shape))
    return full | full[index]


def test_the_missing_wedge_is_what_no_projection_measures():
    tilts = np.deg2rad(np.linspace(-35, 50, 60))
    wedge = _mirrored(missing_wedge(SHAPE, VOXEL, tilts[0], tilts[-1]), SHAPE)
    qz, _, qx = np.meshgrid(*(np.fft.fftfreq(n, p) for n, p in zip(SHAPE, VOXEL, strict=True)), indexing="ij")
    # a tilt by theta takes q to the lab; the projection holds what then has no component along the beam
    along = np.array([-np.sin(t) * qx + np.cos(t) * qz for t in tilts])
    crossed = (along.min(axis=0) <= 0) & (along.max(axis=0) >= 0)
    np.testing.assert_array_equal(wedge, ~crossed)
    assert 0.2 < wedge.mean() < 0.8


def test_a_margin_keeps_away_from_the_last_measured_planes():
    low, high = np.deg2rad((-40.0, 30.0))
    bare, clear = (missing_wedge(SHAPE, VOXEL, low, high, margin) for margin in (0.0, 0.2))
    assert clear.sum() < bare.sum()
    assert not (clear & ~bare).any()
    qz, _, qx = np.meshgrid(*(np.fft.fftfreq(n, p) for n, p in zip(SHAPE, VOXEL, strict=True)), indexing="ij")
    distance = np.minimum(
        np.abs(-np.sin(low) * qx + np.cos(low) * qz), np.abs(-np.sin(high) * qx + np.cos(high) * qz)
    )
    half = distance[..., : SHAPE[-1] // 2 + 1]
    steep = np.abs(qz[..., : SHAPE[-1] // 2 + 1]) > np.abs(qx[..., : SHAPE[-1] // 2 + 1])
    assert half[clear & steep].min() > 0.2


def test_a_full_range_misses_nothing():
    assert not missing_wedge(SHAPE, VOXEL, -np.pi / 2, np.pi / 2).any()


def _without_wedge(volume, region):
    spectrum = np.fft.rfftn(volume)
    return np.fft.irfftn(np.where(region, 0, spectrum), s=volume.shape, axes=(0, 1, 2))


def test_power_in_the_wedge_tells_signal_from_noise():
    truth = _noise(3)
    region = missing_wedge(SHAPE, VOXEL, *np.deg2rad((-45, 45)))
    band = (0.2, 0.9)

    def power(volume):
        return power_in_region(volume, truth, VOXEL, region, band)

    same = power(2.5 * truth)
    assert (same.filled, same.recovered, same.elsewhere) == pytest.approx((1, 1, 1))
    assert 0.3 < same.truth_share < 0.5  # a quarter of a turn of white noise, less q_x = q_z = 0
    empty = power(_without_wedge(truth, region))
    assert (empty.filled, empty.recovered) == pytest.approx((0, 0), abs=0.02)
    assert empty.elsewhere == pytest.approx(1)
    outside = _without_wedge(truth, region)
    artefacts = power(outside + _noise(4) - _without_wedge(_noise(4), region))
    assert artefacts.filled == pytest.approx(1, abs=0.2)
    assert artefacts.recovered < 0.02
    # a tenth of the power with the right phase everywhere is still all of the signal
    faint = power(outside + 0.1**0.5 * (truth - outside))
    assert faint.filled == pytest.approx(0.1)
    assert faint.recovered == pytest.approx(1)


def test_a_region_restricts_the_correlation():
    truth = _noise(5)
    region = missing_wedge(SHAPE, VOXEL, *np.deg2rad((-45, 45)))
    half = _without_wedge(truth, region)
    outside = fourier_shell_correlation(truth, half, VOXEL, region=~region)
    np.testing.assert_allclose(outside.correlation, 1)
    inside = fourier_shell_correlation(truth, truth, VOXEL, region=region)
    assert inside.count.sum() + outside.count.sum() == pytest.approx(
        fourier_shell_correlation(truth, half, VOXEL).count.sum(), abs=2
    )


def test_directional_correlations_see_a_blur_along_one_axis():
    volume = _noise(6, (40, 36, 44))
    q = np.fft.fftfreq(40, 0.4)
    noise = np.fft.ifftn(np.fft.fftn(_noise(7, volume.shape)) * (8 * np.abs(q) ** 2)[:, None, None]).real
    curves = directional_correlations(volume, volume + noise, (0.4, 0.4, 0.35))
    resolution = {name: curve.resolution(0.5) for name, curve in curves.items()}
    assert resolution["z"] > 1.3 * resolution["x"]
    assert resolution["y"] < 1.2 * resolution["x"]
