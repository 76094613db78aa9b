import json
from dataclasses import replace

import ase.io
import h5py
import numpy as np
import pytest
import torch

from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io.readers import open_tilt_series
from petomo.io.settings import DataSettings
from petomo.simulation.acquisition import (
    TiltTruth,
    centred_normal,
    draw_truth,
    mean_patterns,
    simulate,
    tilt_generator,
)
from petomo.simulation.spec import SimulationSpec
from petomo.simulation.specimen import build_specimen

NO_ERRORS = dict.fromkeys(
    (
        "stage_tilt_rms_degree",
        "phi_mean_degree",
        "phi_rms_degree",
        "psi_mean_degree",
        "psi_rms_degree",
        "shift_max_angstrom",
        "scan_affine_rms",
        "scan_jitter_rms_angstrom",
        "defocus_rms_angstrom",
    ),
    0.0,
)
SMALL = {
    "specimen": {"edge_angstrom": 5, "core_angstrom": 3},
    "stage_tilt_degree": [-30, 10.5],
    "scan_shape": (3, 4),
    "scan_step_angstrom": (1.4, 1.6),
    "scan_rotation_degree": 20,
    "pattern_pixels": (24, 29),
    "pixel_angstrom": (0.3, 0.31),
    "defocus_angstrom": 30,
    "phonons": {"configurations": 2},
}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "series"
    calls = []
    simulate(SimulationSpec(**SMALL), folder, lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    return folder


def counts(path):
    with h5py.File(path) as file:
        return file["counts"][()]


def test_layout_is_the_documented_one(series):
    names = sorted(str(p.relative_to(series)) for p in series.rglob("*") if p.is_file())
    assert names == ["tilt_00.h5", "tilt_01.h5", "truth/atoms.xyz", "truth/poses.npz", "truth/spec.json"]
    with h5py.File(series / "tilt_01.h5") as file:
        data, attributes = file["counts"], dict(file.attrs)
        assert (data.shape, data.dtype, data.compression) == ((3, 4, 24, 29), np.uint16, "gzip")
        assert data.attrs["dims"] == "scan_y scan_x ky kx"
    assert attributes.pop("scan_step_angstrom").tolist() == [1.4, 1.6]
    assert attributes.pop("detector_sampling_inv_angstrom") == pytest.approx([1 / 7.2, 1 / 8.99])
    assert attributes == {
        "energy_ev": 200e3,
        "semiangle_mrad": 25.0,
        "scan_rotation_deg": 20.0,
        "nominal_defocus_angstrom": 30.0,
        "nominal_tilt_deg": 10.5,
        "dose_e_per_A2": 19000.0,
    }
    with np.load(series / "truth" / "poses.npz") as truth:
        shapes = {key: truth[key].shape for key in truth}
    assert shapes == {
        "phi_theta_psi_rad": (2, 3),
        "tau_xy_angstrom": (2, 2),
        "scan_positions_xy_angstrom": (2, 12, 2),
        "defocus_angstrom": (2,),
    }
    assert SimulationSpec(**json.loads((series / "truth" / "spec.json").read_text())) == SimulationSpec(
        **SMALL
    )
    spec = SimulationSpec(**SMALL)
    atoms = build_specimen(spec.specimen, tilt_generator(spec.seed, -1))
    written = ase.io.read(series / "truth" / "atoms.xyz")
    assert written.numbers.tolist() == atoms.numbers.tolist()
    assert written.positions == pytest.approx(atoms.positions, abs=1e-6)


def test_reader_gets_back_what_was_asked_for(series):
    found = open_tilt_series(DataSettings(root=str(series)))
    assert [float(t) for t in found.stage_tilts] == pytest.approx(np.deg2rad([-30, 10.5]))
    assert found[0].pixel_size == pytest.approx((0.3, 0.31))
    assert found[0].scan_shape == (3, 4)
    # the true positions are the nominal ones but for the distortion and jitter
    with np.load(series / "truth" / "poses.npz") as truth:
        error = truth["scan_positions_xy_angstrom"][0] - found[0].positions().numpy()
    assert 0.02 < error.std() < 0.2


def test_electrons_are_those_of_the_dose(series):
    per_pattern = counts(series / "tilt_00.h5").sum((2, 3), dtype=int)
    assert per_pattern.mean() == pytest.approx(19000 * 1.4 * 1.6, rel=0.02)


def test_same_seed_same_series_and_tilts_know_nothing_of_each_other(series, tmp_path):
    simulate(SimulationSpec(**(SMALL | {"stage_tilt_degree": [-30, 10.5, 40]})), tmp_path)
    for name in ("tilt_00.h5", "tilt_01.h5"):
        assert (counts(tmp_path / name) == counts(series / name)).all()
    assert (counts(tmp_path / "tilt_00.h5") != counts(tmp_path / "tilt_01.h5")).any()
    other = tmp_path / "other"
    simulate(SimulationSpec(**(SMALL | {"seed": 2, "stage_tilt_degree": [-30]})), other)
    assert (counts(other / "tilt_00.h5") != counts(series / "tilt_00.h5")).any()


def test_counts_are_poisson_about_the_mean(series):
    spec = SimulationSpec(**SMALL)
    atoms = build_specimen(spec.specimen, tilt_generator(spec.seed, -1))
    rng = tilt_generator(spec.seed, 1)
    mean = mean_patterns(spec, atoms, draw_truth(spec, 1, rng), rng)
    z = (counts(series / "tilt_01.h5").reshape(mean.shape) - mean)[mean > 5] / np.sqrt(mean[mean > 5])
    assert z.size > 1000
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert z.var() == pytest.approx(1, abs=4 * np.sqrt(2.2 / z.size))


def test_mean_does_not_depend_on_the_number_of_workers():
    spec = SimulationSpec(**SMALL)
    atoms = build_specimen(spec.specimen, tilt_generator(1, -1))
    truth = draw_truth(spec, 0, tilt_generator(1, 0))
    one, two = (mean_patterns(spec, atoms, truth, np.random.default_rng(0), workers=n) for n in (1, 2))
    assert (one == two).all()


def test_atom_moves_where_the_pose_says(tmp_path):
    """The probe that scatters most to high angles is the one on the rotated and shifted atom."""
    (tmp_path / "atoms.xyz").write_text("2\n\nPt 2.0 -1.5 3.0\nH -2.0 1.5 -3.0\n")
    errors = NO_ERRORS | {"phi_mean_degree": 8.0, "psi_mean_degree": 25.0}
    spec = SimulationSpec(
        specimen={"source": str(tmp_path / "atoms.xyz")},
        stage_tilt_degree=[33],
        scan_shape=(15, 19),
        scan_step_angstrom=0.5,
        pattern_pixels=32,
        defocus_angstrom=0,
        phonons={"configurations": 1},
        errors=errors | {"shift_max_angstrom": 0.8},
    )
    atoms = build_specimen(spec.specimen, np.random.default_rng(0))
    rng = tilt_generator(spec.seed, 0)
    truth = draw_truth(spec, 0, rng)
    patterns = mean_patterns(spec, atoms, truth, rng)
    q = (np.arange(32) - 16) / 9.6
    high = patterns[:, np.hypot(q[:, None], q) > 1.15].sum(axis=1)
    weight = np.clip(high - high.max() / 2, 0, None)[:, None]
    found = (weight * truth.positions).sum(axis=0) / weight.sum()
    phi, theta, psi = (torch.tensor([angle]) for angle in np.deg2rad([8.0, 33.0, 25.0]))
    expected = Poses(phi, theta, psi, torch.tensor(truth.tau)[None]).apply(
        torch.tensor([[2.0, -1.5, 3.0]], dtype=torch.float64)
    )
    assert np.hypot(*truth.tau) > 0.3
    assert found == pytest.approx(expected[0, 0, :2].numpy(), abs=0.15)


def test_errors_have_the_size_asked_for():
    spec = SimulationSpec(stage_tilt_degree=[20.0] * 200, errors={"scan_jitter_rms_angstrom": 0})
    truths = [draw_truth(spec, i, tilt_generator(0, i)) for i in range(200)]
    phi, theta, psi = np.rad2deg([t.angles for t in truths]).T
    for values, mean, rms in ((phi, 0.3, 0.1), (theta, 20, 0.2), (psi, 0.8, 0.1)):
        assert values.mean() == pytest.approx(mean, abs=0.3 * rms)
        assert values.std() == pytest.approx(rms, rel=0.2)
    tau = np.array([t.tau for t in truths])
    assert np.abs(tau).max() <= 2
    assert tau.std() == pytest.approx(2 / np.sqrt(3), rel=0.1)
    assert np.std([t.defocus for t in truths]) == pytest.approx(8, rel=0.2)
    nominal = np.linalg.lstsq(truths[0].positions, truths[1].positions, rcond=None)[0] - np.eye(2)
    assert 1e-4 < np.abs(nominal).max() < 0.05


def test_no_errors_means_the_read_outs():
    truth = draw_truth(SimulationSpec(errors=NO_ERRORS), 0, tilt_generator(0, 0))
    assert np.rad2deg(truth.angles) == pytest.approx([0, -45, 0])
    assert truth.positions[0] == pytest.approx([-8.5 * 1.5, -6.5 * 1.5])
    assert (truth.defocus, *truth.tau) == (60, 0, 0)


def test_configurations_average_to_the_truth():
    draws = centred_normal(np.random.default_rng(0), 0.07, (8, 5000, 3))
    assert np.abs(draws.mean(axis=0)).max() < 1e-15
    assert draws.std() == pytest.approx(0.07, rel=0.02)
    assert (centred_normal(np.random.default_rng(0), 0.07, (1, 4)) == 0).all()


def test_folder_with_tilts_is_left_alone_unless_told_otherwise(tmp_path):
    old = tmp_path / "tilt_07.h5"
    old.write_text("precious")
    spec = SimulationSpec(**(SMALL | {"stage_tilt_degree": [0], "phonons": {"configurations": 1}}))
    with pytest.raises(UserError, match="1 tilts already"):
        simulate(spec, tmp_path)
    assert old.read_text() == "precious"
    simulate(spec, tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.glob("*.h5")) == ["tilt_00.h5"]


def test_folder_that_cannot_be_made_gives_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        simulate(SimulationSpec(**SMALL), tmp_path / "file" / "out")


def test_agrees_with_an_independent_simulation(shared_data):
    """Reference counts from the same atoms, poses and positions; only the phonons differ, by chance."""
    folder = shared_data / "sim_tiny_13"
    some = slice(40, 200, 8)
    with np.load(folder / "truth" / "poses.npz") as poses:
        truth = TiltTruth(
            poses["phi_theta_psi_rad"][0],
            poses["tau_xy_angstrom"][0],
            poses["scan_positions_xy_angstrom"][0][some],
            float(poses["defocus_angstrom"][0]),
        )
    atoms = ase.io.read(folder / "truth" / "atoms.xyz")
    expected = mean_patterns(SimulationSpec(), atoms, truth, np.random.default_rng(0))
    found = counts(folder / "tilt_00.h5").reshape(-1, 48, 48)[some]
    strong = expected > 5
    assert ((found - expected)[strong] ** 2 / expected[strong]).mean() < 1.2


def test_source_and_focal_spread_average_over_positions_and_defoci():
    blurred = {"source_rms_angstrom": 0.5, "focal_spread_rms_angstrom": 25}
    sharp = SMALL | {
        "scan_shape": (2, 15),
        "scan_step_angstrom": (0.7, 1.5),
        "phonons": {"configurations": 1},
    }
    spec = SimulationSpec(
        **(sharp | {"phonons": {"configurations": 2, "displacement_rms_angstrom": 0}, "coherence": blurred})
    )
    atoms = build_specimen(spec.specimen, tilt_generator(1, -1))
    truth = draw_truth(spec, 0, tilt_generator(1, 0))
    found = mean_patterns(spec, atoms, truth, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    centred_normal(rng, 0, (2, len(atoms), 3))
    source, focus = centred_normal(rng, 0.5, (2, 2)), centred_normal(rng, 25, (2,))
    apart = [
        mean_patterns(
            SimulationSpec(**sharp),
            atoms,
            replace(truth, positions=truth.positions + source[i], defocus=truth.defocus + focus[i]),
            rng,
        )
        for i in range(2)
    ]
    assert found == pytest.approx((apart[0] + apart[1]) / 2, rel=1e-3, abs=0.02)
    assert np.abs(apart[0] - apart[1]).sum() > 0.02 * found.sum()
