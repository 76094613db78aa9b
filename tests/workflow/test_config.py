import re
from pathlib import Path

import pytest

from petomo.core.errors import UserError
from petomo.workflow.config import OTHER_NAMES, Config, dump_config, load_config
from petomo.workflow.reference import renew
from petomo.workflow.stage_settings import Schedule

SRC = Path(__file__).parents[2] / "src" / "petomo"
EXAMPLES = Path(__file__).parents[2] / "examples"

FULL = """\
version: 1
data:
  root: raw
  scan_step_angstrom: 0.4
  stage_tilt_degree: tilts.tlt
ptychography:
  probe: {start: 7}
alignment:
  poses: /abs/poses.json
end_to_end:
  slice_thickness_angstrom: 10
  regularizers:
    - {type: nonnegative}
    - {type: butterworth, cutoff_per_angstrom: 1.5}
    - {type: l1_imaginary, weight: 1e-3}
    - {type: l1_real, weight: 1e-3, start: 5, stop: 9}
    - {type: depth_kernel, weight: 90}
    - {type: total_variation, weight: 0.1}
    - {type: gaussian, sigma_angstrom: 0.5}
    - {type: support}
"""


def written(folder, text, name="run.yaml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def complaint(folder, text, *overrides):
    with pytest.raises(UserError) as error:
        load_config(written(folder, text), overrides)
    return str(error.value)


def test_defaults_and_name(tmp_path):
    config = load_config(written(tmp_path, "version: 1", "gold.yaml"))
    assert config.name == "gold"
    assert config.data.root == str(tmp_path)
    assert config.model_dump(exclude={"name", "data"}) == Config().model_dump(exclude={"name", "data"})


def test_round_trip(tmp_path):
    config = load_config(written(tmp_path, FULL), ["compute.seed=5", "end_to_end.poses.stop=50"])
    assert len(config.end_to_end.regularizers) == 8
    assert config.end_to_end.poses.stop == 50
    (tmp_path / "elsewhere").mkdir()
    dump_config(config, tmp_path / "elsewhere" / "config.yaml")
    assert load_config(tmp_path / "elsewhere" / "config.yaml") == config


def test_a_partial_schedule_keeps_its_own_step(tmp_path):
    config = load_config(written(tmp_path, "ptychography: {positions: {start: 2}}"))
    assert config.ptychography.positions.step_size == Config().ptychography.positions.step_size
    assert config.ptychography.positions.start == 2


def test_relative_paths(tmp_path, monkeypatch):
    path = written(tmp_path / "a", FULL)
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.data.root == str(tmp_path / "a" / "raw")
    assert config.data.stage_tilt_degree == str(tmp_path / "a" / "tilts.tlt")
    assert config.alignment.poses == "/abs/poses.json"
    assert load_config(path, ["data.root=raw"]).data.root == str(tmp_path / "raw")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "data:\n  conv_angle: 25",
            "run.yaml line 2: `data.conv_angle` is not a known key; did you mean `semiangle_mrad`",
        ),
        ("data: {kv: 300}", "did you mean `energy_kev`?"),
        ("data: {defocus: 10}", "did you mean `defocus_angstrom`?"),
        ("ptychography:\n  object: {lr: 1}", "did you mean `step_size`?"),
        ("probe_modes: 4", "did you mean `probe_modes` in `ptychography`?"),
        ("data: {scan_shape: 14}", "line 1: `data.scan_shape` is 14, but should be a list"),
        ("data: {dk_per_angstrom: 1, real_pixel_angstrom: 2}", "gives the detector sampling 2 times"),
        (
            "end_to_end: {slices: 1, slice_thickness_angstrom: 2}",
            "gives both slices and slice_thickness_angstrom",
        ),
        ("version: 2", "`version` is 2, but should be one of 1"),
        ("alignment: {refine: [tilt]}", "one of 'shifts', 'theta', 'phi', 'psi'"),
        ("data: {energy_kev: .nan}", "a finite number"),
        ("data: 3", "`data` is 3, but should be a group of keys"),
        ("bright_field: {defocus_range_angstrom: [5, 5]}", "not [lowest, highest]"),
    ],
)
def test_mistakes(tmp_path, text, words):
    assert words in complaint(tmp_path, text)


def test_other_names_lead_to_real_keys():
    text = "".join(
        (SRC / "workflow" / name).read_text()
        for name in ("config.py", "stage_settings.py", "regularizer_settings.py")
    )
    text += (SRC / "io" / "settings.py").read_text()
    for ours in OTHER_NAMES.values():
        assert re.search(rf"^    {ours}: ", text, re.M), ours
    assert all(name == name.lower() for name in OTHER_NAMES)


def test_schedule():
    schedule = Schedule(step_size=1, start=2, stop=4)
    assert [schedule.active(i) for i in range(6)] == [False, False, True, True, False, False]
    assert not Schedule(step_size=0).active(3)


@pytest.mark.parametrize(
    "path",
    [*sorted(EXAMPLES.glob("sim_*.yaml")), EXAMPLES / "demo.yaml", SRC / "workflow" / "template.yaml"],
    ids=lambda path: path.name,
)
def test_shipped_configurations_are_valid(path):
    assert load_config(path).version == 1


@pytest.mark.parametrize("section", ["ptychography", "alignment", "end_to_end", "analysis", "refinement"])
def test_what_init_writes_is_the_default(section):
    """The template spells settings out to be changed; those that nobody changes have to be the tuned ones."""
    template = load_config(SRC / "workflow" / "template.yaml")
    assert getattr(template, section) == Config.model_fields[section].get_default(call_default_factory=True)


def test_the_documentation_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert renew(page) == page, "run: python -m petomo.workflow.reference docs/configuration.md"
    for section, field in Config.model_fields.items():
        assert f"`{section}`" in page
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"`{key}`" in page or f"`{section}.{key}`" in page, f"{section}.{key}"
