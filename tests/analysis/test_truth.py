import numpy as np
import pytest
from ase import Atoms
from scipy.spatial.transform import Rotation

from petomo.analysis.truth import potential_of_atoms, score_volumes
from petomo.core.grid import Grid
from petomo.io.artefacts import write_atoms
from petomo.io.volumes import write_mrc
from petomo.simulation.potentials import AtomicPotential

GRID = Grid((18, 21, 24), (0.45, 0.4, 0.35))


def test_an_atom_lies_where_it_is_and_sums_to_its_scattering():
    """On voxel n // 2 plus whole voxels: symmetric about it; the sum is the forward scattering."""
    atoms = Atoms("O", [[2 * 0.35, -3 * 0.4, 4 * 0.45]])
    v = potential_of_atoms(atoms, GRID)
    peak = np.unravel_index(v.argmax(), v.shape)
    assert peak == (9 + 4, 10 - 3, 12 + 2)
    around = np.roll(v, [n // 2 - p for n, p in zip(v.shape, peak, strict=True)], (0, 1, 2))
    np.testing.assert_allclose(around[1:], around[:0:-1], atol=1e-9)
    np.testing.assert_allclose(around, around[:, ::-1], atol=1e-9)
    blurred = potential_of_atoms(atoms, GRID, 0.2)
    assert blurred.sum() == pytest.approx(v.sum())
    assert blurred.max() < 0.9 * v.max()


def test_the_projection_is_that_of_the_simulated_potential():
    rng = np.random.default_rng(1)
    atoms = Atoms("OAlPt", rng.uniform(-2, 2, (3, 3)))
    projected = potential_of_atoms(atoms, GRID).sum(0) * GRID.pixel_size[0]
    plane = Grid(GRID.shape[1:], GRID.pixel_size[1:])
    sliced = AtomicPotential.create(plane, 100.0, atoms.numbers).slices(
        atoms.positions + np.array([0, 0, 9]), atoms.numbers
    )
    np.testing.assert_allclose(projected, sliced.potential.sum(0).numpy(), atol=1e-3 * projected.max())


def test_resolution_in_the_frame_of_the_truth(tmp_path):
    rng = np.random.default_rng(2)
    true = Atoms("Pt8", rng.uniform(-2.5, 2.5, (8, 3)))
    write_atoms(tmp_path / "atoms.xyz", true)
    turn, shift = Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix(), np.array([0.4, -0.3, 0.2])
    seen = true.copy()
    seen.positions = (true.positions - shift) @ turn  # true = turn seen + shift
    grid = Grid((26, 28, 30), 0.3)
    volume = potential_of_atoms(seen, grid, 0.1)
    low = np.abs(np.fft.fftfreq(26, 0.3)) < 0.6  # nothing finer along the beam
    volume = np.fft.ifft(np.fft.fft(volume, axis=0) * low[:, None, None], axis=0).real
    write_mrc(tmp_path / "volume.mrc", volume.astype(np.float32), 0.3)
    motion = {"rotation_matrix": turn.tolist(), "shift_xyz_angstrom": shift.tolist()}
    found = score_volumes(tmp_path, tmp_path, {"atoms": {"motion": motion}}, 0.1)["volume.mrc"]
    assert found["nyquist_angstrom"] == pytest.approx(0.6)
    assert not found["reached"]["x"]
    assert found["x"] < 0.65
    assert found["reached"]["z"]
    assert 1.3 < found["z"] < 1.9
    away = {"rotation_matrix": np.eye(3).tolist(), "shift_xyz_angstrom": [0, 0, 0]}
    assert score_volumes(tmp_path, tmp_path, {"atoms": {"motion": away}}, 0.1)["volume.mrc"]["all"] > 2
