"""The simulator against an independent program on a tilted nanoparticle."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from petomo.core.grid import Grid
from petomo.simulation.potentials import AtomicPotential
from petomo.simulation.scattering import Optics, diffraction_patterns

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ENERGY_EV, SEMIANGLE_MRAD, DEFOCUS = 200e3, 25.0, 40.0
WINDOW = Grid((90, 100), 0.15)
DETECTOR = (45, 50)
OFFSETS = np.array([[0.0, 0.0], [2.0, -1.1], [-1.3, 1.7]])


@pytest.fixture(scope="module")
def particle() -> Atoms:
    """Ball of PtO on a tilted lattice; (x, y) about the optical axis, z from 0 on."""
    atoms = bulk("PtO", "rocksalt", a=4.2, cubic=True).repeat(4)
    atoms.positions -= atoms.positions.mean(axis=0) + 0.3
    atoms.rotate(17, "y")
    atoms.rotate(5, "x")
    atoms = atoms[np.flatnonzero(np.linalg.norm(atoms.positions, axis=1) < 4.5)]
    return Atoms(atoms.numbers, atoms.positions + np.array([0, 0, 6]))


def abtem_patterns(particle: Atoms, parametrization: str) -> np.ndarray:
    abtem = pytest.importorskip("abtem", reason="abTEM is not installed (pip install 'petomo[abtem]')")
    axis = np.array([n // 2 * p for n, p in zip(WINDOW.shape, WINDOW.pixel_size, strict=True)])[::-1]
    atoms = Atoms(
        particle.numbers, particle.positions + np.append(axis, 0), cell=(*WINDOW.extent[::-1], 12), pbc=True
    )
    potential = abtem.Potential(
        atoms,
        gpts=WINDOW.shape[::-1],
        slice_thickness=1.0,
        projection="infinite",
        parametrization=parametrization,
    )
    probe = abtem.Probe(energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD, defocus=DEFOCUS)
    detector = abtem.PixelatedDetector(max_angle=None)
    out = probe.multislice(potential, scan=abtem.CustomScan(axis + OFFSETS), detectors=detector, lazy=False)
    intensity = out.array.swapaxes(-2, -1)  # abTEM's arrays are x y
    y, x = (n // 2 - m // 2 for n, m in zip(intensity.shape[-2:], DETECTOR, strict=True))
    return intensity[:, y : y + DETECTOR[0], x : x + DETECTOR[1]]


def our_patterns(particle: Atoms, parametrization: str) -> np.ndarray:
    setup = Optics(ENERGY_EV, SEMIANGLE_MRAD, WINDOW, DETECTOR)
    potential = AtomicPotential.create(WINDOW, 1.0, particle.numbers, parametrization)
    # abTEM's slices lie at their entrance faces and its probe at the first; ours at their middles
    aberrations = {"C10": -(DEFOCUS + 0.5)}
    found = []
    for offset in OFFSETS:  # the potential is one window wide: the specimen moves instead of the probe
        sliced = potential.slices(particle.positions - (*offset, 0), particle.numbers)
        found.append(diffraction_patterns(sliced, setup, aberrations, np.zeros((1, 2)))[0].numpy())
    return np.array(found)


@pytest.mark.parametrize("parametrization", ["lobato", "kirkland"])
@pytest.mark.parametrize(("snap", "limit"), [(False, 0.02), (True, 0.01)])
def test_agrees_with_abtem(particle, parametrization, snap, limit):
    if snap:  # abTEM spreads an atom between four pixels, which blurs it unless it lies on one
        particle = particle.copy()
        particle.positions[:, :2] = np.rint(particle.positions[:, :2] / WINDOW.pixel_size[0]) * 0.15
    expected = np.sqrt(abtem_patterns(particle, parametrization))
    found = np.sqrt(our_patterns(particle, parametrization))
    error = np.abs(found - expected).sum() / expected.sum()
    print(f"{parametrization}, atoms on pixels {snap}: sum|dA|/sum|A| = {100 * error:.2f} %")
    assert error < limit
