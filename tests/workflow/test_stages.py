"""All real stages, on a series that takes a minute's wait at most."""

import numpy as np
import pytest
import torch
from minute_run import TILTS, WORK, copy_of

from petomo.analysis.report_sections import PLANS
from petomo.io import artefacts
from petomo.io.metrics import read_metrics
from petomo.io.volumes import read_mrc
from petomo.workflow.callbacks import Interrupted, Reporter
from petomo.workflow.config import load_config
from petomo.workflow.runner import run
from petomo.workflow.stages import STAGES


def contents(folder):
    """Every number that the stages left."""
    poses, names = artefacts.read_poses(folder / "poses.json")
    refined, initial = artefacts.read_positions(folder / "positions.h5")
    probes = artefacts.read_probes(folder / "probes.h5")
    out = {
        "volume": read_mrc(folder / "volume.mrc")[0],
        "linear": read_mrc(folder / "volume_linear.mrc")[0],
        "projections": read_mrc(folder / "projections.mrc")[0],
        "angles": torch.stack([poses.phi, poses.theta, poses.psi]).numpy(),
        "tau": poses.tau.numpy(),
        "names": np.array(names),
        "defocus": np.array(probes.defocus),
    }
    for kind, items in (("positions", refined), ("initial", initial), ("probes", probes.modes)):
        out |= {f"{kind} {number}": item.numpy() for number, item in enumerate(items)}
    if (folder / "volume_completed.mrc").exists():
        out["completed"] = read_mrc(folder / "volume_completed.mrc")[0]
    if (folder / "half_volumes.h5").exists():
        out["a"], out["b"], _ = artefacts.read_half_volumes(folder / "half_volumes.h5")
    metrics = read_metrics(folder / "metrics.jsonl")
    out["metrics"] = np.array([(r["stage"], r["iteration"], r["loss"]) for r in metrics], dtype=object)
    return out


def assert_same(folder, other):
    a, b = contents(folder), contents(other)
    assert a.keys() == b.keys()
    # a number for people, from a library routine that may round differently each time
    np.testing.assert_allclose(a.pop("defocus"), b.pop("defocus"), rtol=1e-10)
    for key in a:
        assert np.array_equal(a[key], b[key]), f"{key} differs"


def losses(folder, stage="end_to_end"):
    return [r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["stage"] == stage]


class Stopping(Reporter):
    """Ctrl-C, or a crash, in given iterations; each once in the life of the list."""

    def __init__(self, folder, places, crash):
        super().__init__(folder)
        self.places, self.crash = places, crash

    def iteration(self, stage, iteration, total, loss, **extra):
        super().iteration(stage, iteration, total, loss, **extra)
        if self.places and self.places[0] == (stage, iteration):
            self.places.pop(0)
            if self.crash:
                raise ZeroDivisionError
            self.interrupted = True


def run_with_stops(config, folder, places, crash=False, start_from=None):
    """Run, stopped at every place and resumed each time."""
    left, runs = list(places), 0
    while True:
        try:
            first = start_from if runs == 0 else None
            run(config, folder, runs > 0, first, WORK, lambda f: Stopping(f, left, crash))
        except (Interrupted, ZeroDivisionError):
            runs += 1
        else:
            assert not left, f"never came to {left[0]}"
            assert runs == len(places)
            return


def test_every_artefact_is_there(minute):
    folder = minute / "run"
    found = contents(folder)
    depth, height, width = found["volume"].shape
    assert found["linear"].shape == (depth, height, width)
    assert found["projections"].shape == (TILTS, height, width)
    assert len(found["names"]) == len(found["defocus"]) == TILTS
    assert all(found[f"positions {t}"].shape == (56, 2) for t in range(TILTS))
    assert all(found[f"probes {t}"].shape == (12, 24, 24) for t in range(TILTS)), "refinement's own"
    assert np.isfinite(found["volume"]).all()
    assert found["volume"].min() >= 0.0
    assert found["volume"].max() > 1.0, "volts"
    assert found["completed"].shape == found["volume"].shape
    assert len(artefacts.read_bright_field(folder / "bright_field.h5")) == TILTS
    patterns = artefacts.read_patterns(folder / "patterns.h5")
    assert patterns["worst"]["measured"].shape == patterns["worst"]["model"].shape == (24, 20)
    assert patterns["worst"]["loss"] > patterns["median"]["loss"]
    assert artefacts.read_atoms(folder / "atoms.xyz").get_chemical_symbols()
    summary = artefacts.read_json(folder / "summary.json")
    assert list(summary["stage_seconds"]) == list(STAGES)
    assert summary["input"]["volume_shape"] == [depth, height, width], "as check promised"
    assert set(summary["resolution_angstrom"]) == {"half_bit", "one_bit", "0.143"}
    assert summary["input"]["dose_per_tilt_per_square_angstrom"][0] == pytest.approx(19000, rel=0.01)
    assert load_config(folder / "config.yaml") == load_config(minute / "run.yaml")
    assert "end_to_end: finished" in (folder / "run.log").read_text()
    assert not list((folder / "checkpoints").iterdir())
    assert not (folder / ".lock").exists()
    assert not list(folder.rglob("*.tmp*"))


def test_the_report_shows_everything(minute):
    page = (minute / "run" / "report.html").read_text()
    places = [page.index(plan.title) for plan in PLANS.values()]
    assert places == sorted(places)
    assert page.count("<img") >= 10
    assert "has not run" not in page


def test_stages_reduce_their_loss_and_reach_the_noise(minute):
    records = read_metrics(minute / "run" / "metrics.jsonl")
    assert [r["stage"] for r in records if r["iteration"] == 1].count("end_to_end") == 1
    for tilt in range(TILTS):
        mine = [r["loss"] for r in records if r["stage"] == "ptychography" and r["tilt"] == tilt]
        assert mine[-1] < 0.9 * mine[0]
    whole = [r for r in records if r["stage"] == "end_to_end"]
    assert whole[-1]["loss"] < 1.15 * whole[-1]["noise_floor"] < whole[0]["loss"]


def test_half_sets_are_independent_and_agree(minute):
    found = contents(minute / "run")
    a, b = found["a"], found["b"]
    assert not np.array_equal(a, b)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.3


STOPS = [
    ("bright_field", 2),
    ("ptychography", 2),  # amid a tilt
    ("ptychography", 6),  # with the last pass of one
    ("ptychography", 10),  # with the first
    ("ptychography", 3 * TILTS),
    ("end_to_end", 1),
    ("end_to_end", 3),
    ("end_to_end", 4),
    ("end_to_end/half_a", 2),
    ("end_to_end/half_a", 4),
    ("end_to_end/half_b", 1),
]


def alignment_stops(minute):
    """First, middle and last report of the alignment, whatever its parts are."""
    reports = [
        r["iteration"] for r in read_metrics(minute / "run" / "metrics.jsonl") if r["stage"] == "alignment"
    ]
    return [("alignment", n) for n in sorted({reports[0], reports[len(reports) // 2], reports[-1]})]


def all_stops(minute):
    return STOPS[:5] + alignment_stops(minute) + STOPS[5:]


def test_stopping_anywhere_changes_nothing(minute, tmp_path):
    run_with_stops(load_config(minute / "run.yaml"), tmp_path / "run", all_stops(minute))
    assert_same(tmp_path / "run", minute / "run")


@pytest.mark.parametrize("save_every", [2, 1000])
def test_crashing_anywhere_changes_nothing(minute, tmp_path, save_every):
    """Killed without a chance to save: the run goes on from the last checkpoint, or the stage's start."""
    config, folder = (
        load_config(minute / "run.yaml", [f"output.save_every={save_every}"]),
        copy_of(minute, tmp_path),
    )
    stops = [("ptychography", 5), ("end_to_end", 3), ("end_to_end/half_a", 3), ("end_to_end/half_b", 2)]
    stops += [("completion/patterns", 2), ("completion/atoms", 1)]
    run_with_stops(config, folder, stops, crash=True, start_from="ptychography")
    assert_same(folder, minute / "run")


@pytest.mark.parametrize("stage", ["alignment", "end_to_end", "analysis", "refinement", "completion"])
def test_redoing_a_stage_gives_the_same(minute, tmp_path, stage):
    folder = copy_of(minute, tmp_path)
    run(load_config(minute / "run.yaml"), folder, start_from=stage, stages=WORK)
    assert_same(folder, minute / "run")


def test_redoing_twice_with_other_settings_and_back(minute, tmp_path):
    folder, plain = copy_of(minute, tmp_path), load_config(minute / "run.yaml")
    other = load_config(
        minute / "run.yaml", ["end_to_end.volume.step_size=0.5", "analysis.fsc.half_sets=false"]
    )
    run(other, folder, start_from="end_to_end", stages=WORK)
    assert losses(folder) != losses(minute / "run")
    assert not (folder / "half_volumes.h5").exists(), "those of the earlier volume"
    assert losses(folder, "end_to_end/half_a") == []
    run(plain, folder, start_from="end_to_end", stages=WORK)
    assert_same(folder, minute / "run")


def test_given_poses_are_taken(minute, tmp_path):
    truth = np.load(minute / "data" / "truth" / "poses.npz")
    phi, theta, psi = torch.tensor(truth["phi_theta_psi_rad"]).T
    poses = artefacts.Poses(phi, theta, psi, torch.tensor(truth["tau_xy_angstrom"]))
    artefacts.write_poses(tmp_path / "poses.json", poses, [str(t) for t in range(TILTS)])
    folder = copy_of(minute, tmp_path)
    still = [f"end_to_end.{k}.step_size=0" for k in ("poses", "affine", "positions")]
    still.append("refinement.rounds=0")  # and with it completion: there are no refined atoms
    config = load_config(minute / "run.yaml", [f"alignment.poses={tmp_path / 'poses.json'}", *still])
    run(config, folder, start_from="alignment", stages=WORK)
    found, _ = artefacts.read_poses(folder / "poses.json")
    for key in ("phi", "theta", "psi", "tau"):
        torch.testing.assert_close(getattr(found, key), getattr(poses, key))
    assert not (folder / "volume_completed.mrc").exists(), "that of the earlier atoms"


@pytest.mark.parametrize(
    "settings",
    [
        ["end_to_end.loss=poisson"],
        ["end_to_end.absorption=true", "end_to_end.regularizers=[{type: l1_imaginary, weight: 0.01}]"],
        ["end_to_end.solver=sgd", "end_to_end.volume.step_size=300", "end_to_end.probe.step_size=1e-4"],
    ],
    ids=["poisson", "absorption", "sgd"],
)
def test_other_ways_to_the_volume(minute, tmp_path, settings):
    folder = copy_of(minute, tmp_path)
    run(load_config(minute / "run.yaml", settings), folder, start_from="end_to_end", stages=WORK)
    found = losses(folder)
    assert found[-1] < 0.95 * found[0]
    volume, expected = read_mrc(folder / "volume.mrc")[0], read_mrc(minute / "run" / "volume.mrc")[0]
    assert np.corrcoef(volume.ravel(), expected.ravel())[0, 1] > 0.3
    dark = folder / "absorption.mrc"
    assert dark.exists() == ("end_to_end.absorption=true" in settings)
    if dark.exists():
        assert read_mrc(dark)[0].shape == volume.shape
        assert read_mrc(dark)[0].any()


def test_poisson_ptychography_and_no_bright_field_in_double_precision(minute, tmp_path):
    settings = ["compute.precision=float64", "ptychography.loss=poisson", "bright_field.method=none",
                "analysis.fsc.half_sets=false"]  # fmt: skip
    run(load_config(minute / "run.yaml", settings), tmp_path / "run", stages=WORK)
    assert not (tmp_path / "run" / "bright_field.h5").exists()
    assert not (tmp_path / "run" / "half_volumes.h5").exists()
    assert "resolution_angstrom" not in artefacts.read_json(tmp_path / "run" / "summary.json")
    for stage in ("ptychography", "end_to_end"):
        assert losses(tmp_path / "run", stage)[-1] < 0.9 * losses(tmp_path / "run", stage)[0]


def test_fewer_iterations_than_are_done_end_the_stage(minute, tmp_path):
    """A user who has seen enough resumes with fewer iterations than the checkpoint has."""
    folder, half = copy_of(minute, tmp_path), "analysis.fsc.half_sets=false"
    config = load_config(minute / "run.yaml", [half])
    with pytest.raises(Interrupted):
        run(config, folder, False, "ptychography", WORK, lambda f: Stopping(f, [("ptychography", 2)], False))
    fewer = load_config(minute / "run.yaml", [half, "ptychography.iterations=1"])
    run(fewer, folder, resume=True, stages=WORK)
    assert len(contents(folder)["projections"]) == TILTS
    assert len(losses(folder, "ptychography")) == 2 + TILTS - 1
