"""The studies' own machinery: parts of a series, truth on a run's grid, runs resumed, pages written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.io.artefacts import read_atoms, read_json, write_poses, write_positions
from petomo.io.metrics import read_metrics
from petomo.io.readers import open_tilt_series
from petomo.io.settings import DataSettings
from petomo.physics.scattering_factors import scattering_factor
from petomo.simulation.potentials import AtomicPotential
from petomo.simulation.spec import SimulationSpec
from petomo.workflow.config import Config

STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"
SPEC = {
    "seed": 5,
    "specimen": {"source": "ptal2o3", "edge_angstrom": 4, "core_angstrom": 4},
    "stage_tilt_degree": [-30, 0, 20],
    "scan_shape": (5, 7),
    "scan_step_angstrom": 0.8,
    "pattern_pixels": 16,
    "pixel_angstrom": 0.4,
    "defocus_angstrom": 30,
    "slice_angstrom": 4.0,
    "phonons": {"configurations": 1},
}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import study

    return study


@pytest.fixture
def series(study):
    return study.series


@pytest.mark.usefixtures("study")
def test_the_variants_of_the_missing_wedge_are_rows_of_the_ablation():
    import ablation
    import missing_wedge

    rows = [row[:2] for row in ablation.ROWS]
    assert len(set(rows)) == len(rows)
    assert set(missing_wedge.VARIANTS) <= set(rows)


def test_the_truth_is_the_simulator_s_potential(series, monkeypatch):
    shape, voxel = (33, 41, 51), (0.4, 0.3, 0.25)
    numbers, places = np.array([78, 8, 13]), np.array([[1.1, -0.7, 0.9], [-1.6, 1.2, -2.0], [0.2, 2.1, 1.3]])
    monkeypatch.setattr(series, "PHONON_RMS", 0.0)
    volume = series.potential(numbers, places, shape, voxel)
    simulator = AtomicPotential.create(Grid(shape[1:], voxel[1:]), 20.0, numbers, "lobato")
    projected = simulator.slices(places, numbers).potential.sum(0).numpy()
    np.testing.assert_allclose(volume.sum(0) * voxel[0], projected, atol=1e-4 * projected.max())


def test_vibrations_blur_the_truth_where_it_is(series):
    shape, voxel = (31, 40, 51), (0.4, 0.3, 0.25)
    place = np.array([[8 * 0.25, -5 * 0.3, 3 * 0.4]])  # x y z, on a voxel
    volume = series.potential(np.array([13]), place, shape, voxel)
    assert np.unravel_index(volume.argmax(), shape) == (31 // 2 + 3, 40 // 2 - 5, 51 // 2 + 8)
    spectrum = np.abs(np.fft.rfftn(volume))
    q = 4 / (51 * 0.25)
    factors = scattering_factor(13, np.array([0.0, q**2]))
    expected = factors[1] / factors[0] * np.exp(-2 * np.pi**2 * series.PHONON_RMS**2 * q**2)
    assert spectrum[0, 0, 4] / spectrum[0, 0, 0] == pytest.approx(expected)


@pytest.fixture
def data(series, tmp_path):
    return series.simulate_once(SPEC, tmp_path / "data")


def test_a_series_is_simulated_once(series, data):
    before = (data / "tilt_00.h5").stat().st_mtime_ns
    assert series.simulate_once(SPEC, data) == data
    assert (data / "tilt_00.h5").stat().st_mtime_ns == before
    series.simulate_once(SPEC | {"seed": 6}, data)
    assert (data / "tilt_00.h5").stat().st_mtime_ns != before


def test_a_part_of_a_series_has_its_own_patterns_positions_and_truth(series, data, tmp_path):
    part = series.subset(data, tmp_path / "part", [0, 2], (2, 3))
    assert sorted(path.name for path in part.glob("*.h5")) == ["tilt_00.h5", "tilt_02.h5"]
    whole, thin = (open_tilt_series(DataSettings(root=str(folder))) for folder in (data, part))
    assert thin[1].stage_tilt == whole[2].stage_tilt
    assert thin[1].scan_shape == (3, 3)
    patterns = whole[2].patterns().reshape(5, 7, 16, 16)[::2, ::3].reshape(9, 16, 16)
    np.testing.assert_array_equal(thin[1].patterns(), patterns)
    with np.load(data / "truth" / "poses.npz") as old, np.load(part / "truth" / "poses.npz") as new:
        np.testing.assert_array_equal(new["tau_xy_angstrom"], old["tau_xy_angstrom"][[0, 2]])
        true = new["scan_positions_xy_angstrom"][1]
        np.testing.assert_array_equal(
            true, old["scan_positions_xy_angstrom"][2].reshape(5, 7, 2)[::2, ::3].reshape(9, 2)
        )
    # what the user is told agrees with what happened, but for an offset and small distortions
    error = thin[1].positions().numpy() - true
    assert np.abs(error - error.mean(0)).max() < 0.5
    steps = np.ptp(thin[1].positions().numpy(), axis=0)
    np.testing.assert_allclose(steps, [2 * 3 * 0.8, 2 * 2 * 0.8])


def test_settings_are_merged_key_by_key(study):
    base = {"end_to_end": {"iterations": 3, "volume": {"step_size": 1.0}}, "name": "a"}
    merged = study.merged(base, {"end_to_end": {"volume": {"step_size": 2.0}}})
    assert merged == {"end_to_end": {"iterations": 3, "volume": {"step_size": 2.0}}, "name": "a"}
    assert base["end_to_end"]["volume"]["step_size"] == 1.0


SETTINGS = {
    "volume": {"thickness_angstrom": 6},
    "bright_field": {"method": "none"},
    "ptychography": {"iterations": 2, "probe_modes": 1},
    "alignment": {"iterations": 0, "bundle": {"rounds": 0}},
    "end_to_end": {"iterations": 2},
    "compute": {"threads": 1},
}


def test_a_row_is_reconstructed_once_and_a_variant_takes_over_what_came_before(study, data, tmp_path):
    base = tmp_path / "base"
    row = study.reconstruct_once(base, data, SETTINGS)
    assert row["seconds"] > 0
    assert set(row["found"]) <= {"Pt", "Al", "O"}
    assert set(row["cones"]) == {"x", "y", "z"}
    before = (base / "volume.mrc").stat().st_mtime_ns
    assert study.reconstruct_once(base, data, SETTINGS) == row
    assert (base / "volume.mrc").stat().st_mtime_ns == before
    changed = study.merged(SETTINGS, {"end_to_end": {"iterations": 3}})
    study.reconstruct_once(tmp_path / "variant", data, changed, base, "end_to_end")
    metrics = read_metrics(tmp_path / "variant" / "metrics.jsonl")
    assert sum(record["stage"] == "end_to_end" for record in metrics) == 3
    assert (tmp_path / "variant" / "probes.h5").read_bytes() != (base / "probes.h5").read_bytes()
    inputs = "inputs/end_to_end/probes.h5"
    assert (tmp_path / "variant" / inputs).read_bytes() == (base / inputs).read_bytes()
    assert (base / "volume.mrc").stat().st_mtime_ns == before


def test_a_truth_in_the_frame_of_a_run_fits_its_own_atoms(study, series, data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    true = read_atoms(data / "truth" / "atoms.xyz")
    with np.load(data / "truth" / "poses.npz") as file:
        phi, theta, psi = torch.from_numpy(file["phi_theta_psi_rad"]).unbind(-1)
        poses = Poses(phi, theta, psi, torch.from_numpy(file["tau_xy_angstrom"]))
        scans = list(torch.from_numpy(file["scan_positions_xy_angstrom"]))
    turn, shift = Rotation.from_rotvec([0.05, -0.1, 0.2]).as_matrix(), np.array([0.7, -0.4, 1.1])
    moved = poses.regauged(torch.from_numpy(turn), torch.from_numpy(shift))
    write_poses(run / "poses.json", moved, ["a", "b", "c"])
    write_positions(run / "positions.h5", scans, scans)
    places = true.positions @ turn.T + shift
    shape, voxel = (27, 30, 33), (0.4, 0.35, 0.3)
    found = study.truth_in_frame(run, data, Atoms(true.numbers[:2], places[:2]), shape, voxel)  # poses alone
    expected = series.potential(true.numbers, places, shape, voxel)
    assert np.abs(found - expected).max() < 0.01 * expected.max()


def test_the_time_adds_up(series, tmp_path):
    path, seconds = tmp_path / "seconds.json", [0.0]

    def interrupted():
        with series.processor_time(path):
            sum(range(200000))
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        seconds.append(read_json(path)["processor"])
    assert seconds == sorted(set(seconds))


def test_a_table_replaces_the_one_before_and_nothing_else(study, tmp_path):
    page = tmp_path / "page.md"
    rest = "\n\n<!-- full -->\nkept\n<!-- end full -->\n"
    page.write_text(f"# A\n\n<!-- quick -->\nold\n<!-- end quick -->{rest}")
    for text in ("| a \\1 |", "| b |"):
        study.write_block(page, "quick", text)
    assert page.read_text() == f"# A\n\n<!-- quick -->\n\n| b |\n\n<!-- end quick -->{rest}"
    with pytest.raises(ValueError, match="no place for"):
        study.write_block(page, "other", "text")


def test_a_figure_stays_small(study, tmp_path):
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().imshow(np.random.default_rng(0).random((8, 8)))
    study.write_figure(figure, tmp_path / "small.png")
    assert 0 < (tmp_path / "small.png").stat().st_size < study.LARGEST_FIGURE
    figure.set_size_inches(7, 7)
    figure.axes[0].imshow(np.random.default_rng(0).random((500, 500)))
    with pytest.raises(ValueError, match="make the figure smaller"):
        study.write_figure(figure, tmp_path / "large.png")


def test_every_variant_of_the_ablation_is_a_valid_configuration(study, series):
    import ablation

    stages = set()
    for _, _, stage, changes in ablation.ROWS:
        settings = study.merged(series.core_shell_settings(True), changes)
        assert Config.model_validate(settings) != Config.model_validate(series.core_shell_settings(True))
        stages.add(stage)
    assert stages <= {"ptychography", "alignment", "end_to_end"}


@pytest.mark.parametrize("quick", [True, False])
def test_the_series_of_the_studies_are_valid(series, quick):
    import half_sets
    import tilt_range

    spec = SimulationSpec.model_validate(series.core_shell(quick))
    for width in tilt_range.RANGES:  # every range ends on a tilt
        assert {-width / 2, width / 2} <= set(spec.stage_tilt_degree)
    twin = SimulationSpec.model_validate(half_sets.te_carbon(quick))
    assert (min(twin.stage_tilt_degree), max(twin.stage_tilt_degree)) == (-53, 52)
    for factor, (y, x) in half_sets.STRIDES.items():
        assert 2 * y * x == factor
        Config.model_validate(half_sets.settings(quick, factor))
