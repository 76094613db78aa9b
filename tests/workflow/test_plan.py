"""`petomo plan`: what it is asked, what it does, what it says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from petomo.cli import main
from petomo.core.errors import UserError
from petomo.io.artefacts import read_json
from petomo.workflow import plan as module
from petomo.workflow.callbacks import Interrupted
from petomo.workflow.plan import _period, plan
from petomo.workflow.plan_spec import SMALL, PlanSpec, list_cases, read_plan
from petomo.workflow.plan_table import table

TINY = """
simulation:
  specimen: {edge_angstrom: 4, core_angstrom: 3, displacement_rms_angstrom: 0}
  stage_tilt_degree: [-40, -20, 0, 20]
  scan_shape: [5, 6]
  pattern_pixels: 24
  phonons: {configurations: 1}
  defocus_angstrom: 30
  errors: {shift_max_angstrom: 0.3}
compare:
  tilts: [3]
full_scan_shape: [50, 60]
run:
  bright_field: {method: none}
  ptychography: {iterations: 3}
  alignment: {iterations: 0, bundle: {rounds: 0}}
  end_to_end: {iterations: 3}
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "tiny.yaml"


def cases(**keys):
    return list_cases(PlanSpec.model_validate(keys))


def test_nothing_to_compare_leaves_the_acquisition_itself():
    (case,) = cases()
    assert (case.name, case.simulations) == ("as proposed", (SMALL,))


def test_one_change_at_a_time_from_the_proposed():
    compare = {
        "dose_per_tilt": [19000, 500, 500],
        "highest_tilt_degree": [60],
        "tilts": [5],
        "scan_step_angstrom": [1.0],
        "also": {"far": {"defocus_angstrom": 80}},
    }
    found = {case.name: case.acquisition for case in cases(compare=compare)}
    assert list(found) == [*("as proposed", "500 e/A^2", "+-60 degrees", "5 tilts", "step 1 A", "far")], (
        "the proposed dose and a repeated one make no case"
    )
    assert found["500 e/A^2"] == SMALL.model_copy(update={"dose_per_tilt": 500.0})
    assert found["+-60 degrees"].stage_tilt_degree == [-60, -45, -30, -15, 0, 15, 30, 45, 60]
    assert found["5 tilts"].stage_tilt_degree == [-50, -25, 0, 25, 50]
    step = found["step 1 A"]
    assert (step.scan_shape, step.scan_step_angstrom) == ((14, 15), (1.0, 1.0)), "9 x 10 steps of 1.5 A"
    assert found["far"].defocus_angstrom == 80


def test_all_combinations_repeats_and_an_equal_total_dose():
    compare = {"tilts": [3, 18], "dose_per_tilt": [100, 200], "combine": True, "keep": "total_dose"}
    found = cases(compare=compare, repeats=3)
    assert [case.name for case in found] == [
        f"{dose} e/A^2, {tilts} tilts" for dose in (100, 200) for tilts in (3, 18)
    ]
    assert [case.acquisition.dose_per_tilt for case in found] == [300, 50, 600, 100]
    assert [s.seed for s in found[2].simulations] == [1, 2, 3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tilts: [3]", "tilts: [2]", r"tiny.yaml line 11: `compare.tilts.0` .*at least 3"),
        ("tilts: [3]", "highest_tilt_degree: [90]", r"less than 90"),
        ("tilts: [3]", "dosis: [3]", r"`compare.dosis`"),
        ("method: none", "methods: none", r"tiny.yaml line 14: `bright_field.methods`.*`method`"),
        ("full_scan_shape", "repeat: 3\nfull_scan_shape", r"did you mean `repeats`"),
        ("run:", "run:\n  data: {root: x}", r"`run` has `data`, which the plan makes itself"),
        ("tilts: [3]", "also: {thin: {defocus_angstrom: 900}}", r"case 'thin': .*reduce defocus_angstrom"),
        ("tilts: [3]", "also: {thin: {defokus: 9}}", r"case 'thin': .*`defokus`"),
        ("edge_angstrom: 4", "source: gone.xyz", r"gone.xyz: there is no such file"),
        ("tilts: [3]", f"dose_per_tilt: {list(range(1, 300))}", r"300 cases of 1 simulations"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(spec, old, new, message):
    spec.write_text(TINY.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        plan(read_plan(spec), "out")
    assert "\n" not in str(error.value)
    assert not (spec.parent / "out").exists()


def test_a_plan_is_worked_through_and_read_the_second_time(spec, monkeypatch, capsys):
    said = []
    with monkeypatch.context() as patch:  # Ctrl-C while the second case is simulated
        simulate, calls = module.simulate, []

        def stopping(*args, **keys):
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            simulate(*args, **keys)

        patch.setattr(module, "simulate", stopping)
        with pytest.raises(Interrupted, match="the same command goes on"):
            plan(read_plan(spec), "out", said.append)
    assert [row["name"] for row in read_json("out/plan.json")["cases"]] == ["as proposed"]
    monkeypatch.setattr(sys, "argv", ["petomo", "plan", "tiny.yaml", "--out", "out"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert "1 of 2, as proposed: finished already" in captured.err
    assert "2 of 2, 3 tilts: memory roughly" in captured.err
    assert "2 of 2, 3 tilts: ptychography" in captured.err
    proposed, fewer = read_json("out/plan.json")["cases"]
    assert captured.out.splitlines()[:-1] == (spec.parent / "out" / "plan.md").read_text().splitlines()
    assert (proposed["tilts"], fewer["tilts"]) == (4, 3)
    assert fewer["dose_total_per_square_angstrom"] == 3 * 19000
    assert proposed["atoms"] == sum(part["true"] for part in proposed["elements"].values()) > 3
    assert 0 <= proposed["recall"] <= 1
    assert proposed["hours_full"] == pytest.approx(100 * proposed["hours"])
    (run,) = (spec.parent / "out" / "cases").glob("as_proposed-*/run")
    assert read_json(run / "state.json")["finished"].keys() >= {"end_to_end", "analysis"}
    assert read_json(run / "summary.json")["input"]["tilts"] == 4
    monkeypatch.setattr(module, "simulate", None)  # nothing is left to do
    assert plan(read_plan(spec), "out")["cases"] == [proposed, fewer]
    with pytest.raises(TypeError):  # another setting, another result
        plan(read_plan(spec, ["run.end_to_end.iterations=4"]), "out")


def test_a_case_that_fails_does_not_stop_the_others(spec, monkeypatch):
    def failing(task, _told):
        if len(task.simulation.stage_tilt_degree) == 3:
            raise UserError("alignment: too few tilts")
        return result()

    monkeypatch.setattr(module, "_do", failing)
    rows = plan(read_plan(spec), "out")["cases"]
    assert "trouble" not in rows[0]
    assert rows[1]["trouble"] == "alignment: too few tilts"
    text = "\n".join(table(rows))
    assert "3 tilts: could not be reconstructed (alignment: too few tilts)" in text
    with pytest.raises(UserError, match="no case of the plan could be reconstructed: alignment: too few"):
        plan(read_plan(spec, ["simulation.stage_tilt_degree=[-1,0,1]"]), "other")


def result(found: int = 3, rmsd: float = 0.1, along: float | None = 1.25):
    part = {"true": 4, "found": found, "wrong_element": 0, "rmsd_angstrom": rmsd}
    return {
        "atoms": {
            "true": 4,
            "found": found,
            "traced": 4,
            "invented": 4 - found,
            "rmsd_angstrom": rmsd,
            "elements": {"Pt": part},
        },
        "poses": {"shift_median_angstrom": 0.02, "angle_rms_degree": 0.3},
        "resolution": {
            "all": 1.0,
            "x": 0.8,
            "y": 0.9,
            "z": along,
            "reached": dict.fromkeys(("all", "x", "y", "z"), True),
        },
        "stage_seconds": {"end_to_end": 36.0},
    }


def test_repeats_are_averaged():
    spec = PlanSpec(repeats=2)
    (case,) = list_cases(spec)
    row = module._row(spec, case, [result(), result(found=1, rmsd=0.3, along=None)])
    assert (row["recall"], row["recall_spread"], row["invented_share"]) == (0.5, [0.25, 0.75], 0.5)
    assert row["elements"]["Pt"]["rmsd_angstrom"] == pytest.approx(np.sqrt((3 * 0.01 + 0.09) / 4))
    assert row["resolution_across_angstrom"] == pytest.approx(0.9)
    assert row["resolution_along_angstrom"] == pytest.approx(2.5), "nothing resolved counts as frequency 0"
    assert row["hours"] == pytest.approx(0.01)
    assert _period([None, None]) is None
    text = "\n".join(table([row]))
    assert " 4 of 8 |" in text
    assert "of 8 atoms one more or less is 12.5%" in text


def test_other_folders_are_left_alone(spec):
    (spec.parent / "mine").mkdir()
    (spec.parent / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something other than a plan"):
        plan(read_plan(spec), "mine")


def test_the_shipped_plan_is_valid():
    shipped = read_plan(Path(__file__).parents[2] / "examples" / "plan.yaml")
    assert len(list_cases(shipped)) == 8
    assert json.loads(json.dumps(PlanSpec.model_json_schema()))
