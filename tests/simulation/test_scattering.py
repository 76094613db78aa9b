import numpy as np
import pytest
import torch

from petomo.core.grid import Grid
from petomo.simulation.potentials import AtomicPotential, SlicedPotential
from petomo.simulation.scattering import Optics, diffraction_patterns

WINDOW = Grid((72, 83), (0.16, 0.15))
OPTICS = Optics(200e3, 25.0, WINDOW, (45, 50))
FIELD = Grid((144, 150), (0.16, 0.15))


def patterns(positions, probes, numbers=None, **aberrations):
    positions = np.atleast_2d(np.asarray(positions, dtype=float))
    numbers = np.full(len(positions), 78) if numbers is None else np.asarray(numbers)
    sliced = AtomicPotential.create(FIELD, 1.0, numbers).slices(positions, numbers)
    return diffraction_patterns(sliced, OPTICS, aberrations, np.atleast_2d(np.asarray(probes, dtype=float)))


def dark_field(pattern):
    y, x = torch.meshgrid(torch.arange(45) - 22, torch.arange(50) - 25, indexing="ij")
    return float(pattern[torch.hypot(y / WINDOW.extent[0], x / WINDOW.extent[1]) > 1.2].sum())


def centre_of_mass(pattern):
    """(x, y) in pixels about the zero frequency."""
    y, x = torch.arange(45.0) - 22, torch.arange(50.0) - 25
    return float((pattern.sum(0) * x).sum()), float((pattern.sum(1) * y).sum())


def test_vacuum_keeps_all_electrons_and_shows_the_centred_aperture():
    empty = SlicedPotential(np.empty(0), torch.empty(0, *FIELD.shape), FIELD)
    found = diffraction_patterns(empty, OPTICS, {"C10": -30.0}, np.array([[0.0, 0.0], [1.234, -0.77]]))
    assert found.sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert centre_of_mass(found[1]) == pytest.approx((0, 0), abs=1e-4)
    inside = (found[0] > found[0].max() / 4).sum().item()  # amplitude above one half
    assert inside == pytest.approx(np.pi * (25e-3 / 0.025079) ** 2 * 11.52 * 12.45, rel=0.02)


def test_scattering_loses_electrons_only_beyond_the_detector():
    found = patterns([0, 0, 0], [0, 0])
    assert 0.85 < found.sum() < 1


def test_beam_bends_towards_the_atom():
    right, above = patterns([0.6, 0, 0], [0, 0], C10=-20.0)[0], patterns([0, 0.6, 0], [0, 0], C10=-20.0)[0]
    assert centre_of_mass(right)[0] > 0.05
    assert abs(centre_of_mass(right)[1]) < 1e-3
    assert centre_of_mass(above)[1] > 0.05
    assert abs(centre_of_mass(above)[0]) < 1e-3


def test_only_the_distance_of_probe_and_atom_counts():
    probes = np.array([[1.37, -2.01], [-0.05, 0.11]])
    moved = [patterns([0.2 + x, 0.1 + y, 1.5], [x, y], C10=-20.0)[0] for x, y in probes]
    fixed = patterns([0.2, 0.1, 1.5], [0, 0], C10=-20.0)[0]
    for one in moved:
        assert (one - fixed).abs().sum() < 0.02  # what differs is where the pixels of the transmission lie
    assert (patterns([0.3, 0.1, 1.5], [0, 0], C10=-20.0)[0] - fixed).abs().sum() > 0.06


def test_underfocus_puts_the_crossover_behind_the_centre():
    behind, before = (dark_field(patterns([0, 0, z], [0, 0], C10=-40.0)[0]) for z in (39.5, -40.5))
    assert behind > 3 * before


def test_beam_passes_the_slices_along_z():
    # in focus at z = 10, a heavy atom there scatters what a light one at z = -10 has hardly touched
    heavy_behind = patterns([[0, 0, 10], [0, 0, -10]], [0, 0], [78, 6], C10=-10.0)[0]
    heavy_before = patterns([[0, 0, -10], [0, 0, 10]], [0, 0], [78, 6], C10=-10.0)[0]
    assert dark_field(heavy_behind) > 1.2 * dark_field(heavy_before)


def test_weak_scattering_grows_as_the_potential():
    empty = SlicedPotential(np.array([0.5]), torch.zeros(1, *FIELD.shape), FIELD)
    vacuum = diffraction_patterns(empty, OPTICS, {"C10": -20.0}, np.zeros((1, 2)))
    sliced = AtomicPotential.create(FIELD, 1.0, np.array([1])).slices(
        np.array([[0.5, 0.2, 0.0]]), np.array([1])
    )
    changes = []
    for scale in (0.05, 0.1):
        weak = SlicedPotential(sliced.z, sliced.potential * scale, FIELD)
        changes.append(diffraction_patterns(weak, OPTICS, {"C10": -20.0}, np.zeros((1, 2))) - vacuum)
    assert (changes[1] - 2 * changes[0]).abs().sum() < 0.02 * changes[1].abs().sum()


def test_potential_must_cover_the_windows():
    with pytest.raises(ValueError, match="does not cover"):
        patterns([0, 0, 0], [7.0, 0.0])
