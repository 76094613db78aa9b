"""Atom tracing on volumes of Gaussian atoms made here."""

import numpy as np
import pytest

from petomo.analysis.atoms import find_peaks, trace_atoms
from petomo.analysis.elements import classify_peaks
from petomo.analysis.gaussians import GaussianAtoms, fit_gaussians, render_atoms
from petomo.analysis.matching import match_atoms

SHAPE, VOXEL = (37, 44, 51), np.array([0.32, 0.3, 0.27])
HEIGHT = {"Pt": 200.0, "Al": 70.0, "O": 52.0}


def _structure(seed=0, counts=(("Pt", 8), ("Al", 18), ("O", 30)), spacing=1.8):
    """Random atoms (x, y, z) inside the volume with a least distance."""
    rng = np.random.default_rng(seed)
    extent = (np.array(SHAPE) * VOXEL)[::-1] / 2 - 1.2
    points, symbols = [], [s for s, n in counts for _ in range(n)]
    for symbol in symbols:
        reach = 2.1 if symbol == "Pt" else spacing
        while True:
            p = rng.uniform(-extent, extent)
            limits = [max(reach, 2.1 if s == "Pt" else 0) for s in symbols[: len(points)]]
            if all(np.linalg.norm(p - q) > r for q, r in zip(points, limits, strict=True)):
                points.append(p)
                break
    return np.array(points), np.array(symbols)


def _atoms(positions, symbols, sigma=0.35, stretch=1.3):
    height = np.array([HEIGHT[s] for s in symbols])
    width = np.full(len(height), sigma)
    return GaussianAtoms(positions, height, width, width * stretch)


def _rmsd(found, true):
    match = match_atoms(found, true, 0.7)
    return np.sqrt((match.distance**2).mean()), len(match)


@pytest.fixture(scope="module")
def clean():
    positions, symbols = _structure()
    return positions, symbols, render_atoms(_atoms(positions, symbols), SHAPE, VOXEL)


def test_render_is_the_gaussian_about_voxel_n_half():
    position = np.array([[0.31, -0.52, 0.4]])
    volume = render_atoms(_atoms(position, ["Al"]), SHAPE, VOXEL)
    z, y, x = (
        ((np.arange(n) - n // 2) * p).reshape(s)
        for n, p, s in zip(SHAPE, VOXEL, ((-1, 1, 1), (-1, 1), (-1,)), strict=True)
    )
    expected = 70 * np.exp(
        -((x - 0.31) ** 2 + (y + 0.52) ** 2) / 2 / 0.35**2 - (z - 0.4) ** 2 / 2 / (1.3 * 0.35) ** 2
    )
    np.testing.assert_allclose(volume, expected, atol=70 * np.exp(-8))
    assert volume.sum() * VOXEL.prod() == pytest.approx(_atoms(position, ["Al"]).intensity[0], rel=1e-3)


def test_find_peaks_keeps_the_higher_of_two_close_ones():
    close = np.array([[0.0, 0, 0], [1.0, 0, 0], [3.0, 1, -1]])
    volume = render_atoms(_atoms(close, ["O", "Al", "O"], sigma=0.25), SHAPE, VOXEL)
    position, height = find_peaks(volume, VOXEL, threshold=10, min_distance=1.4)
    assert len(position) == 2
    np.testing.assert_allclose(position, close[1:], atol=0.05)
    assert height[0] > height[1]


def test_atoms_without_noise_are_all_found_to_two_hundredths_of_an_angstrom(clean):
    positions, symbols, volume = clean
    atoms = trace_atoms(volume, VOXEL, ["O", "Pt", "Al"])
    rmsd, count = _rmsd(atoms.positions, positions)
    assert count == len(positions) == len(atoms)
    assert rmsd < 0.02
    match = match_atoms(atoms.positions, positions)
    assert (np.array(atoms.get_chemical_symbols())[match.found] == symbols[match.true]).all()
    true = _atoms(positions, symbols)
    np.testing.assert_allclose(atoms.arrays["intensity"][match.found], true.intensity[match.true], rtol=0.03)
    np.testing.assert_allclose(atoms.arrays["sigma"], 0.35, atol=0.02)
    np.testing.assert_allclose(atoms.arrays["sigma_z"], 0.35 * 1.3, atol=0.03)


@pytest.mark.parametrize("noise", [6.0, 15.0])
def test_atoms_in_noise_are_found_and_few_invented(clean, noise):
    positions, _, volume = clean
    noisy = volume + np.random.default_rng(2).normal(0, noise, SHAPE)
    atoms = trace_atoms(noisy, VOXEL, ["Pt", "Al", "O"])
    rmsd, count = _rmsd(atoms.positions, positions)
    assert count >= 0.9 * len(positions)
    assert (len(atoms) - count) / len(atoms) <= 0.1
    assert rmsd < 0.1
    assert (np.array(atoms.get_chemical_symbols()) == "Pt").sum() == 8


def test_double_bonds_of_the_lightest_element_stay_and_streaks_beside_a_heavy_atom_go():
    heavy = [(-3.0, -3.0, z) for z in (-3.0, 0.0, 3.0)] + [(0.0, -3.5, z) for z in (-3.0, 0.0, 3.0)]
    ring = [
        (3 + 1.24 * np.cos(a), 2 + 1.24 * np.sin(a), z) for a in np.arange(6) * np.pi / 3 for z in (-2.5, 2)
    ]
    streak = [(-3.0 + 1.5, -3.0, 0.0)]
    positions = np.array(heavy + ring + streak)
    height = np.array([200.0] * len(heavy) + [45.0] * (len(ring) + 1))
    width = np.full(len(height), 0.3)
    volume = render_atoms(GaussianAtoms(positions, height, width, width), SHAPE, VOXEL)
    volume += np.random.default_rng(1).normal(0, 2, SHAPE)
    atoms = trace_atoms(volume, VOXEL, ["Te", "C"])
    assert len(match_atoms(atoms.positions, positions[:-1], 0.3)) == len(positions) - 1 == len(atoms)
    assert len(match_atoms(atoms.positions, positions[-1:], 0.3)) == 0
    assert len(trace_atoms(volume, VOXEL, ["Te", "C"], min_distance=1.5)) < len(positions) - 1


def test_elements_are_optional_and_a_threshold_is_obeyed(clean):
    _, symbols, volume = clean
    atoms = trace_atoms(volume, VOXEL)
    assert set(atoms.get_chemical_symbols()) == {"X"}
    assert len(atoms) == len(symbols)
    bright = trace_atoms(volume, VOXEL, threshold=60.0)
    assert len(bright) == (symbols == "Pt").sum()
    assert bright.info["threshold_volt"] == 60.0


def test_a_constant_background_is_taken_off(clean):
    positions, _, volume = clean
    atoms = trace_atoms(volume - 30.0, VOXEL, ["Pt", "Al", "O"])
    assert _rmsd(atoms.positions, positions)[0] < 0.02


def test_fit_separates_overlapping_neighbours():
    positions = np.array([[0.0, 0, 0], [1.5, 0.2, 0.3], [0.2, 1.6, -0.3]])
    true = _atoms(positions, ["Pt", "O", "Al"], sigma=0.5)
    volume = render_atoms(true, SHAPE, VOXEL)
    start = GaussianAtoms(positions + 0.15, np.full(3, 60.0), np.full(3, 0.4), np.full(3, 0.5))
    found, residual = fit_gaussians(volume, VOXEL, start, sweeps=60)
    np.testing.assert_allclose(found.positions, positions, atol=0.01)
    np.testing.assert_allclose(found.height, true.height, rtol=0.05)
    assert np.abs(residual).max() < 0.03 * volume.max()


def test_empty_and_bad_volumes():
    assert len(trace_atoms(np.zeros((9, 10, 11)), 0.3, ["C"])) == 0
    with pytest.raises(ValueError, match="finite volume"):
        trace_atoms(np.full((9, 9, 9), np.nan), 0.3)
    with pytest.raises(ValueError, match="Xx"):
        trace_atoms(np.random.default_rng(0).normal(size=(9, 9, 9)), 0.3, ["Xx"])


def _heights(seed, classes, noise=(1.0, 0.1, 0)):
    """Heights of noise, normal in their logarithm, then those of atoms (mean, relative scatter, count)."""
    rng = np.random.default_rng(seed)
    parts = [np.exp(rng.normal(np.log(noise[0]), *noise[1:]))]
    for mean, width, count in classes:
        parts.append(mean * np.abs(rng.normal(1, width, count)))
    return np.concatenate(parts)


def test_overlapping_classes_keep_the_order_of_the_elements_and_leave_noise_out():
    heights = _heights(0, [(45, 0.15, 400), (62, 0.12, 260), (190, 0.08, 60)], noise=(8, 0.35, 300))
    classes = classify_peaks(heights, ["Pt", "Al", "O"])
    assert classes.symbols == ("O", "Al", "Pt")
    assert (np.diff(classes.mean) > 0).all()
    limit = classes.threshold(heights, 0.05)
    assert 15 < limit < 35
    names = np.array(classes.elements(heights[300:]))
    assert (names[660:] == "Pt").all()
    assert (names[:400] == "O").mean() > 0.75
    assert (names[400:660] == "Al").mean() > 0.7


def test_no_noise_class_without_noise_peaks():
    heights = _heights(1, [(50, 0.15, 100), (190, 0.06, 30)])
    assert classify_peaks(heights, ["O", "Pt"]).threshold(heights, 0.05) == heights.min()


@pytest.mark.parametrize("seed", range(3))
def test_faint_atoms_of_a_low_dose_are_no_noise(seed):
    # additive noise of a third of the light element's mean: a long tail by the logarithm
    heights = _heights(seed, [(45, 0.33, 95), (325, 0.06, 43)])
    assert (heights >= classify_peaks(heights, ["Te", "C"]).threshold(heights, 0.08)).mean() > 0.97


def test_one_element_beside_noise():
    heights = _heights(2, [(30, 0.2, 200)], noise=(5, 0.4, 200))
    classes = classify_peaks(heights, ["C"])
    assert (heights >= classes.threshold(heights, 0.08)).sum() == pytest.approx(200, abs=8)


@pytest.mark.parametrize("elements", [["Qq"], ["Pt", "X"]])
def test_unknown_elements_are_refused(elements):
    with pytest.raises(ValueError, match="no chemical element"):
        classify_peaks(np.array([1.0, 2.0]), elements)
