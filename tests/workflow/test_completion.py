"""The volume after the atoms: what patterns say, and what atoms add."""

import numpy as np
from minute_run import WORK, copy_of

from petomo.analysis.score import score_run
from petomo.analysis.truth import score_volumes
from petomo.core.grid import Grid
from petomo.io import artefacts
from petomo.io.volumes import read_mrc
from petomo.workflow.config import load_config
from petomo.workflow.runner import run
from petomo.workflow.step_completion import potential_of_sites


def test_atoms_fill_in_what_no_tilt_shows(minute):
    truth = minute / "data" / "truth"
    score = score_volumes(minute / "run", truth, score_run(minute / "run", truth))
    patterns, completed = score["volume.mrc"], score["volume_completed.mrc"]
    assert completed["z"] < 0.8 * patterns["z"]


def test_patterns_bring_back_an_atom_that_is_missing(minute, tmp_path):
    folder = copy_of(minute, tmp_path)
    atoms = artefacts.read_atoms(folder / "atoms.xyz")
    heavy = int(np.argmax(atoms.numbers * (np.linalg.norm(atoms.positions, axis=1) < 4)))
    left = atoms[[i for i in range(len(atoms)) if i != heavy]]
    artefacts.write_atoms(folder / "inputs" / "completion" / "atoms.xyz", left)
    run(load_config(minute / "run.yaml"), folder, start_from="completion", stages=WORK)
    found, voxel = read_mrc(folder / "volume_completed.mrc")
    grid = Grid(found.shape, voxel)
    without, whole = (potential_of_sites(a, grid).numpy() for a in (left, atoms))
    atom = whole - without
    back = float(((found - without) * atom).sum() / (atom**2).sum())
    assert back > 0.2
