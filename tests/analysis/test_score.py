"""The score of a made-up run against numbers worked out by hand."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms

from petomo.analysis.score import format_score, score_atoms, score_run
from petomo.core.errors import UserError
from petomo.core.pose import Poses, rotation_matrices
from petomo.io.artefacts import to_json, write_atoms, write_poses, write_positions, write_probes

TILTS = torch.deg2rad(torch.tensor([-50.0, -20, 5, 30, 55], dtype=torch.float64))


def _true_atoms():
    grid = np.stack(np.meshgrid(*[np.arange(4) * 2.3] * 3, indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    positions = grid - 3.4 + rng.uniform(-0.2, 0.2, grid.shape)
    return Atoms(["Pt"] * 10 + ["O"] * 54, positions=positions)


def _true_poses():
    rng = np.random.default_rng(1)
    small = torch.from_numpy(rng.normal(0, 0.004, (5, 3)))
    tau = torch.from_numpy(rng.uniform(-2, 2, (5, 2)))
    return Poses(small[:, 0], TILTS + small[:, 1], small[:, 2], tau)


@pytest.fixture
def folders(tmp_path):
    """A run that is the truth seen in another gauge, with known faults; and the truth."""
    run, truth = tmp_path / "run", tmp_path / "truth"
    run.mkdir(), truth.mkdir()
    poses, atoms = _true_poses(), _true_atoms()
    rng = np.random.default_rng(2)
    scan = rng.uniform(-8, 8, (5, 30, 2))
    defocus = np.array([60.0, 50, 70, 65, 55])
    write_atoms(truth / "atoms.xyz", atoms)
    np.savez(
        truth / "poses.npz",
        phi_theta_psi_rad=torch.stack([poses.phi, poses.theta, poses.psi], -1),
        tau_xy_angstrom=poses.tau,
        scan_positions_xy_angstrom=scan,
        defocus_angstrom=defocus,
    )
    one = torch.tensor([0.02], dtype=torch.float64)
    rotation = rotation_matrices(one, -one, one)[0]
    shift = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)
    found = atoms.copy()
    found.positions = found.positions @ rotation.numpy().T + shift.numpy()
    del found[[5, 20, 21]]  # one Pt and two O missed
    found[0].symbol = "O"
    found += Atoms("O", positions=[[30.0, 0, 0]])
    write_atoms(run / "atoms.xyz", found)
    offset = torch.from_numpy(rng.normal(0, 0.5, (5, 1, 2)))
    moved = poses.regauged(rotation, shift)
    write_poses(run / "poses.json", moved.replace(tau=moved.tau + offset[:, 0]), list("abcde"))
    shear = np.array([[1.0, 0.01], [0, 1.02]])
    write_positions(
        run / "positions.h5", list(torch.from_numpy(scan @ shear.T) + offset), list(torch.from_numpy(scan))
    )
    write_probes(run / "probes.h5", torch.ones(5, 1, 8, 8) + 0j, (0.3, 0.3), 2e5, [*(defocus[:4] + 7), None])
    return run, truth


def test_a_run_in_another_gauge_scores_as_by_hand(folders):
    run, truth = folders
    score = score_run(run, truth)
    atoms = score["atoms"]
    assert (atoms["true"], atoms["traced"], atoms["found"], atoms["missed"]) == (64, 62, 61, 3)
    assert (atoms["invented"], atoms["wrong_element"]) == (1, 1)
    assert atoms["invented_share"] == pytest.approx(1 / 62)
    assert list(atoms["elements"]) == ["Pt", "O"]
    assert (atoms["elements"]["Pt"]["found"], atoms["elements"]["Pt"]["missed"]) == (9, 1)
    assert (atoms["elements"]["O"]["found"], atoms["elements"]["O"]["invented"]) == (52, 1)
    assert atoms["rmsd_angstrom"] == pytest.approx(0, abs=1e-6)
    # the offset of the positions stands in tau as well; the affine map moves nothing on average but the mean
    assert score["poses"]["angle_rms_degree"] == pytest.approx(0, abs=1e-5)
    assert score["poses"]["shift_worst_angstrom"] < 0.05
    assert score["positions"]["refined"]["rms_without_affine_angstrom"] == pytest.approx(0, abs=1e-9)
    assert score["positions"]["initial"]["rms_angstrom"] == pytest.approx(0, abs=1e-9)
    assert score["defocus"]["tilts"] == 4
    assert score["defocus"]["mean_angstrom"] == pytest.approx(7)
    assert score["defocus"]["rms_without_mean_angstrom"] == pytest.approx(0, abs=1e-9)
    assert score["missing"] == []
    assert json.loads(to_json(score)) == score


def test_positions_error_is_that_of_the_affine_map(folders):
    run, truth = folders
    scan = np.load(truth / "poses.npz")["scan_positions_xy_angstrom"]
    centred = scan - scan.mean(axis=1, keepdims=True)
    error = np.stack([0.01 * centred[..., 1], 0.02 * centred[..., 1]], -1)
    score = score_run(run, truth)["positions"]["refined"]
    assert score["rms_angstrom"] == pytest.approx(np.sqrt((error**2).sum(-1).mean()))
    assert score["worst_tilt_rms_angstrom"] == pytest.approx(np.sqrt((error**2).sum(-1).mean(1)).max())


def test_a_shift_error_is_not_hidden_by_the_gauge(folders):
    run, truth = folders
    content = json.loads((run / "poses.json").read_text())
    content["tilts"][1]["tau_angstrom"][1] += 0.5
    (run / "poses.json").write_text(json.dumps(content))
    poses = score_run(run, truth)["poses"]
    # a y shift common to 5 tilts is gauge: 4/5 of the fault is left in its tilt, 1/5 in the others
    assert poses["shift_worst_angstrom"] == pytest.approx(0.4, abs=0.05)
    assert poses["shift_median_angstrom"] == pytest.approx(0.1, abs=0.05)
    assert poses["shift_worst_tilt"] == "b"


def test_parts_that_are_absent_are_named(folders):
    run, truth = folders
    (run / "atoms.xyz").unlink()
    (run / "probes.h5").unlink()
    score = score_run(run, truth)
    assert score["missing"] == ["atoms.xyz", "probes.h5"]
    assert "atoms" not in score
    assert "the run has no atoms.xyz" in format_score(score)


def test_the_table_says_what_the_numbers_say(folders):
    run, truth = folders
    text = format_score(score_run(run, truth.parent))
    assert "1 of 62 traced atoms (1.6 %)" in text
    assert [line.split()[:4] for line in text.splitlines() if line.split()[:1] == ["Pt"]] == [
        ["Pt", "10", "9", "90.0%"]
    ]
    assert "common offset of +7.0 A" in text


def test_another_number_of_tilts_or_a_missing_truth_is_one_sentence(folders, tmp_path):
    run, truth = folders
    poses = _true_poses()
    write_poses(
        run / "poses.json", Poses(poses.phi[:4], poses.theta[:4], poses.psi[:4], poses.tau[:4]), list("abcd")
    )
    with pytest.raises(UserError, match="4 tilts, the truth 5"):
        score_run(run, truth)
    with pytest.raises(UserError, match=r"poses\.npz"):
        score_run(run, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such run folder"):
        score_run(tmp_path / "nowhere", truth)


def test_rmsd_per_axis_is_the_error_put_in():
    true = _true_atoms()
    found = true.copy()
    # signs that alternate over the lattice hold no rigid motion
    sign = 1 - 2 * (np.indices((4, 4, 4)).sum(0) % 2).reshape(-1, 1)
    found.positions += sign * np.array([0.1, 0.02, 0.3])
    score = score_atoms(found, true)
    np.testing.assert_allclose(score["rmsd_xyz_angstrom"], [0.1, 0.02, 0.3], rtol=0.05)
    assert score["rmsd_angstrom"] == pytest.approx(np.sqrt(0.1**2 + 0.02**2 + 0.3**2), rel=0.05)


def test_quoted_standard_errors_are_held_against_the_errors():
    true = _true_atoms()
    found = true.copy()
    rng = np.random.default_rng(3)
    sigma = rng.uniform(0.01, 0.05, found.positions.shape)
    found.positions += 2 * sigma * rng.choice([-1, 1], sigma.shape)
    assert score_atoms(found, true)["z_score_rms"] is None
    found.set_array("position_error", sigma)
    score = score_atoms(found, true)
    assert score["z_score_rms"] == pytest.approx(2.0, rel=0.1)  # the rigid motion takes a little
