import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from scipy.spatial import KDTree

from petomo.core.errors import UserError
from petomo.simulation.spec import SpecimenSpec
from petomo.simulation.specimen import build_specimen, pt_in_alumina, te_beside_nanotube


def bonds(atoms, symbol):
    chosen = atoms.positions[[s == symbol for s in atoms.symbols]]
    return KDTree(chosen).query(chosen, 2)[0][:, 1]


def test_alumina_cube_has_the_density_and_bonds_of_corundum():
    atoms = pt_in_alumina(16.0, 0.0, np.random.default_rng(3))
    assert set(atoms.symbols) == {"Al", "O"}
    assert np.abs(atoms.positions).max() <= 8.0
    density = len(atoms) / 16.0**3
    assert density == pytest.approx(30 / (4.7589**2 * 12.991 * np.sin(np.pi / 3)), rel=0.06)
    counts = atoms.symbols.formula.count()
    assert counts["O"] / counts["Al"] == pytest.approx(1.5, rel=0.08)
    al, o = (atoms.positions[[s == symbol for s in atoms.symbols]] for symbol in ("Al", "O"))
    inner = np.abs(al).max(axis=1) < 5
    nearest = KDTree(o).query(al[inner], 6)[0]
    assert nearest.mean(axis=0) == pytest.approx([1.855] * 3 + [1.971] * 3, abs=0.01)


def test_core_is_platinum_and_keeps_its_distance():
    atoms = pt_in_alumina(14.0, 8.0, np.random.default_rng(0))
    platinum = atoms[[s == "Pt" for s in atoms.symbols]]
    rest = atoms[[s != "Pt" for s in atoms.symbols]]
    assert np.abs(platinum.positions).max() <= 4.0
    assert len(platinum) == pytest.approx(512 / (3.92**3 / 4), rel=0.2)
    assert bonds(atoms, "Pt") == pytest.approx(3.92 / np.sqrt(2))
    assert KDTree(platinum.positions).query(rest.positions)[0].min() >= 2.0


def test_tellurium_beside_carbon():
    atoms = te_beside_nanotube(12.0, 10.0, np.random.default_rng(0))
    assert set(atoms.symbols) == {"Te", "C"}
    assert np.median(bonds(atoms, "C")) == pytest.approx(1.42, abs=0.03)
    assert bonds(atoms, "Te").min() == pytest.approx(2.835, abs=0.02)
    tube = atoms.positions[[s == "C" for s in atoms.symbols]]
    assert 9 < np.ptp(tube, axis=0)[1] <= 12
    assert KDTree(tube).query(atoms.positions[[s == "Te" for s in atoms.symbols]])[0].min() > 3.0


def test_specimen_is_centred_distorted_and_repeatable():
    first, again, perfect = (
        build_specimen(SpecimenSpec(**options), np.random.default_rng(1))
        for options in ({}, {}, {"vacancy_share": 0, "displacement_rms_angstrom": 0})
    )
    assert (first.positions == again.positions).all()
    assert first.positions.min(axis=0) == pytest.approx(-first.positions.max(axis=0))
    assert 0.9 < len(first) / len(perfect) < 1
    assert bonds(perfect, "Pt").std() < 1e-9 < 0.01 < bonds(first, "Pt").std()


def test_file_is_taken_as_it_is_and_turned_by_the_angles(tmp_path):
    atoms = Atoms("PtO", [(10, 10, 10), (13, 10, 10)])
    write(tmp_path / "two.xyz", atoms)
    spec = SpecimenSpec(source=str(tmp_path / "two.xyz"), rotation_degree=(0, 90, 0))
    found = build_specimen(spec, np.random.default_rng(0))
    # Ry(90) takes x to -z
    assert found.positions == pytest.approx(np.array([(0, 0, 1.5), (0, 0, -1.5)]))
    assert found.numbers.tolist() == [78, 8]


@pytest.mark.parametrize("content", [None, "not atoms at all\n"])
def test_bad_file_gives_one_sentence(tmp_path, content):
    path = tmp_path / "bad.xyz"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.xyz"):
        build_specimen(SpecimenSpec(source=str(path)), np.random.default_rng(0))


def test_nothing_left_is_refused():
    with pytest.raises(UserError, match="no atoms"):
        build_specimen(SpecimenSpec(edge_angstrom=0.1, core_angstrom=0), np.random.default_rng(0))
