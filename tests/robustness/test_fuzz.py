"""Damaged input is a sentence or a sound series; `fuzz_lab` does the damage in processes of its own."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from petomo.core.errors import UserError
from petomo.io.angles import read_angles
from petomo.io.artefacts import read_poses
from petomo.io.inspect import describe_file
from petomo.io.poses import ImageFrame
from petomo.io.settings import DataSettings
from petomo.io.sources import open_source
from petomo.io.volumes import read_mrc, write_stack
from petomo.io.yaml import apply_overrides, parse_yaml
from petomo.simulation.spec import SpecimenSpec
from petomo.simulation.specimen import build_specimen
from petomo.workflow.config import load_config
from petomo.workflow.runner import open_input

LAB = Path(__file__).with_name("fuzz_lab.py")


def lab(*arguments):
    command = [sys.executable, str(LAB), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report.pop("wrong") == []
    return report


def test_damaged_inputs_of_every_kind():
    report = lab("--count", 8)
    assert len(report) >= 26
    for kind, tally in report.items():
        assert sum(tally.values()) == 8
        assert tally["told"] >= 2, f"{kind} is hardly damaged"


def test_sound_inputs_of_every_kind_are_taken():
    """Else the damage would be told of a file that was refused anyhow."""
    assert all(tally == {"fine": 2} for tally in lab("--count", 2, "--sound").values())


@pytest.mark.slow
def test_five_hundred_damaged_inputs_of_every_kind():
    assert all(sum(tally.values()) == 500 for tally in lab("--count", 500, "--seed", 1000).values())


class Exploit:
    """Leaves a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_is_unpickled_from_npy(tmp_path):
    array = np.empty((2, 2, 3, 3), object)
    array[...] = 1
    array[0, 0, 0, 0] = Exploit(tmp_path / "owned")
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: this is not a readable NumPy array"):
        open_source(tmp_path / "a.npy")
    assert not (tmp_path / "owned").exists()


def test_nothing_is_unpickled_from_zarr(tmp_path):
    """A store of numbers whose filter is pickle."""
    import pickle

    folder = tmp_path / "a.zarr"
    folder.mkdir()
    metadata = {"zarr_format": 2, "shape": [2, 2, 3, 3], "chunks": [2, 2, 3, 3], "dtype": "<u2"}
    metadata |= {"order": "C", "fill_value": 0, "compressor": None, "filters": [{"id": "pickle"}]}
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0.0.0.0").write_bytes(pickle.dumps(Exploit(tmp_path / "owned")))
    with pytest.raises(UserError, match="codec pickle"):
        open_source(folder).read(np.array([0]))
    assert not (tmp_path / "owned").exists()


def test_a_yaml_tag_runs_nothing(tmp_path):
    text = f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'owned'}']\nb: 1\n"
    assert parse_yaml(text, "x.yaml").values["b"] == 1
    assert not (tmp_path / "owned").exists()


LAUGHS = "a0: &a0 [x, x, x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)
)
BAD_YAML = {
    "aliases": (LAUGHS, "unfolds to more"),
    "open brackets": ("a: " + "[" * 10**5, "nested too deeply"),
    "brackets between values": ("a: " + "[x, " * 10**4 + "]" * 10**4, "nested too deeply"),
    "indents": ("\n".join(" " * n + "k:" for n in range(200)), "nested too deeply|unfolds"),
    "too long": ("a: 1\n" * 10**5, "longer than"),
    "a long number": ("a: 0x" + "f" * 5000, "too many digits"),
    "no such day": ("a: 2001-02-31", "day"),
    "half a character": ('a: "\\ud800"', "surrogates"),
    "a list for a key": ("[1, 2]: 3", "unhashable"),
    "not an int": ("a: !!int x", "invalid literal"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_yaml_that_exhausts_or_does_not_fit(case):
    text, words = BAD_YAML[case]
    with pytest.raises(UserError, match=words) as error:
        parse_yaml(text, "x.yaml")
    assert str(error.value).startswith("x.yaml")
    assert "\n" not in str(error.value)


def test_overrides_are_parsed_with_the_same_care():
    with pytest.raises(UserError, match="--set a="):
        apply_overrides(parse_yaml("a: 1", "x.yaml"), ["a=" + "[" * 10**5])


@pytest.mark.parametrize("name", ["../../evil", "..", "a/b", "a\\b", "/tmp/x", "a\x1bb"])
def test_a_name_does_not_lead_out_of_the_runs_folder(tmp_path, name):
    (tmp_path / "x.yaml").write_text(json.dumps({"name": name}))
    with pytest.raises(UserError, match=r"x\.yaml line 1: `name`"):
        load_config(tmp_path / "x.yaml")


def test_hdf5_does_not_reach_other_files(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(200)) * 10)
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "a.h5", "w") as file:
        file.create_dataset("counts", (2, 3, 4, 5), "u1", external=[(str(secret), 0, 120)])
    with pytest.raises(UserError, match=r"a\.h5"):
        open_source(tmp_path / "data" / "a.h5").read(np.array([0]))


@pytest.mark.parametrize("name", ["a.traj", "a.gpw", "a.db", "a.py"])
def test_specimens_are_read_from_text_only(tmp_path, name):
    (tmp_path / name).write_bytes(b"import os\n")
    with pytest.raises(UserError, match=name):
        build_specimen(SpecimenSpec(source=str(tmp_path / name)), np.random.default_rng(0))


@pytest.mark.parametrize("poses", ["[" * 10**5, '{"tilts": [{"phi_degree": 1' + "0" * 400 + "}]}", "[]", "3"])
def test_poses_that_exhaust_or_overflow(tmp_path, poses):
    (tmp_path / "poses.json").write_text(poses)
    with pytest.raises(UserError, match=r"poses\.json"):
        read_poses(tmp_path / "poses.json")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("volume.shape=[100000, 100000, 100000]", "needs about .* GiB of memory"),
        ("volume.voxel_angstrom=1e-9", "takes a detector of"),
        ("volume.voxel_angstrom=1e-300", "takes a detector of"),
        ("volume.thickness_angstrom=1e300", "no grids follow|GiB of memory"),
        ("data.energy_kev=1e-300", "no grids follow"),
    ],
)
def test_what_no_machine_holds_is_refused(tmp_path, setting, words):
    np.save(tmp_path / "t0.npy", np.ones((3, 4, 6, 5), np.uint16))
    data = {"tilts": "*.npy", "stage_tilt_degree": [0], "energy_kev": 200, "semiangle_mrad": 25}
    data |= {"scan_step_angstrom": 1.5, "dk_per_angstrom": 0.07}
    DataSettings(**data)
    (tmp_path / "x.yaml").write_text(json.dumps({"data": data, "compute": {"device": "cpu"}}))
    open_input(load_config(tmp_path / "x.yaml"))
    with pytest.raises(UserError, match=words):
        open_input(load_config(tmp_path / "x.yaml", [setting]))


HUGE = "1" + "0" * 400
BAD_ANGLES = {
    "an open bracket": ("a.npy", b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,\n"),
    "too many digits": ("a.json", f"[1, {HUGE}]".encode()),
}


@pytest.mark.parametrize("case", BAD_ANGLES)
def test_angles_that_no_parser_takes(tmp_path, case):
    name, content = BAD_ANGLES[case]
    head = b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") if name.endswith("npy") else b""
    (tmp_path / name).write_bytes(head + content)
    with pytest.raises(UserError, match=re.escape(name)):
        read_angles(tmp_path / name)


def test_a_column_named_twice_gives_no_angles(tmp_path):
    """Its values would count as twice as many tilts."""
    (tmp_path / "a.star").write_text("data_a\nloop_\n_rlnTomoYTilt #1\n_rlnTomoYTilt #2\n1 2\n3 4\n")
    with pytest.raises(UserError, match=r"a\.star line 4: .* _rlnTomoYTilt twice"):
        read_angles(tmp_path / "a.star")


@pytest.mark.parametrize("attribute", ["energy_ev", "scan_step_angstrom"])
def test_info_on_numbers_from_which_no_grids_follow(tmp_path, petomo, attribute):
    sound = {"energy_ev": 2e5, "semiangle_mrad": 25.0, "scan_step_angstrom": 1.5}
    value = {"energy_ev": 1e-300, "scan_step_angstrom": 1e300}[attribute]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["counts"] = np.ones((3, 4, 6, 5), np.uint16)
        file.attrs.update(sound | {"detector_sampling_inv_angstrom": 0.07, attribute: value})
    code, out, _ = petomo("info", tmp_path / "a.h5")
    assert code == 0
    assert "/counts: (3, 4, 6, 5) uint16" in out
    assert "a.h5: no grids follow from these numbers" in out


@pytest.mark.parametrize("word", [0, 23], ids=["columns", "extended header"])
def test_an_mrc_header_that_declares_too_much_takes_no_memory(tmp_path, word):
    write_stack(tmp_path / "a.mrc", np.ones((2, 3, 4)), 0.4)
    content = bytearray((tmp_path / "a.mrc").read_bytes())
    content[4 * word : 4 * word + 4] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "a.mrc").write_bytes(content)
    tracemalloc.start()
    for read in (read_mrc, ImageFrame.of_stack):
        with pytest.raises(UserError, match=r"a\.mrc: .*its header declares \d+ bytes, but it holds"):
            read(tmp_path / "a.mrc")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_an_archive_whose_directory_promises_more_than_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data/.zarray", "{}")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = 2 * (2**20).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    for read in (open_source, describe_file):
        with pytest.raises(UserError, match=r"a\.zip: .*zarray is cut short or damaged"):
            read(tmp_path / "a.zip")


def test_a_heap_on_which_hdf5_would_turn_forever(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["counts"] = np.ones((2, 3, 4, 5), np.uint16)
        file.attrs["name"] = "a text of variable length"
    content = bytearray((tmp_path / "a.h5").read_bytes())
    assert open_source(tmp_path / "a.h5").shape == (6, 4, 5)
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 32] = bytes(16)
    (tmp_path / "a.h5").write_bytes(content)
    for read in (open_source, describe_file):
        with pytest.raises(UserError, match=r"a\.h5: .*heap of its texts is damaged"):
            read(tmp_path / "a.h5")


def test_atoms_that_are_nowhere(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nProperties=species:S:1:pos:R:3\nPt 0 0 1e400\n")
    with pytest.raises(UserError, match=r"a\.xyz: a position of an atom is not a finite number"):
        build_specimen(SpecimenSpec(source=str(tmp_path / "a.xyz")), np.random.default_rng(0))
