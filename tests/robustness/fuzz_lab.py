"""Damage input files at random and open them: a sentence or a sound series, never anything else.

``python tests/robustness/fuzz_lab.py --count 500 --seed 0`` prints what happened as JSON. The cases run in
forks, each within 30 s and little memory, so that a crash or a hang is seen as such.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "io"))

from fuzz_mutations import damage_one
from fuzz_patterns import COUNTS, PATTERNS, PRISMATIC
from fuzz_tables import CONFIG, POSES, TABLES

from petomo.cli import _sentence
from petomo.core.errors import UserError
from petomo.io.angles import read_named_angles
from petomo.io.inspect import describe_file
from petomo.io.pose_exchange import exchange_poses
from petomo.io.poses import ImageFrame, load_poses
from petomo.io.readers import validate_counts
from petomo.io.sources import open_source
from petomo.simulation.spec import SpecimenSpec, read_spec
from petomo.simulation.specimen import build_specimen
from petomo.workflow.config import dump_config, load_config
from petomo.workflow.describe import facts, file_lines, sentences
from petomo.workflow.plan_spec import list_cases, read_plan
from petomo.workflow.runner import open_input

SECONDS, MEMORY = 30, 2**29
HANGS = "hangs"
KINDS = PATTERNS | TABLES


def build(kind: str, folder: Path, rng: random.Random, sound: bool) -> Path:
    """An input of a kind in ``folder``: its structure damaged, or bytes of one of its files."""
    path = KINDS[kind].write(folder, rng)
    if sound:
        return path
    if rng.random() < 0.6:
        KINDS[kind].damage(path, rng)
    else:
        damage_one(sorted(file for file in folder.rglob("*") if file.is_file()), rng)
    return path


def judge(kind: str, path: Path) -> None:
    """What the commands that take such a file do with it before they compute."""
    JUDGES[KINDS[kind].role](kind, path)


def _open(folder: Path, *settings: str) -> None:
    """What ``petomo check`` and the start of ``run`` do with ``run.yaml``."""
    config = load_config(folder / "run.yaml", settings)
    dump_config(config, folder / "resolved.yaml")
    assert load_config(folder / "resolved.yaml") == config
    series, _ = open_input(config)
    sentences(facts(series, config, validate_counts(series)))
    series[0].patterns([0])


def _patterns(kind: str, path: Path) -> None:
    known = KINDS[kind].known
    if kind in ("real", "vendor"):
        known = known | (PRISMATIC if path.name.startswith("Si100") else {})
        shape = open_source(path, known.get("dataset")).array_shape
        known = known | {"scan_shape": list(shape[:2]) if len(shape) == 4 else [1, shape[0]]}
    (path.parent / "run.yaml").write_text(f"data: {json.dumps({'tilts': [path.name]} | known)}")
    _open(path.parent)


def _series(folder: Path, tilts: int) -> None:
    """Sound patterns and settings, for what is read beside them."""
    for number in range(tilts):
        np.save(folder / f"t{number}.npy", COUNTS)
    if not (folder / "run.yaml").exists():
        (folder / "run.yaml").write_text(CONFIG)


def _config(_: str, path: Path) -> None:
    (path.parent / "poses.json").write_text(json.dumps(POSES))
    _series(path.parent, 1)
    _open(path.parent)


def _poses(kind: str, path: Path) -> None:
    """Read, shown, handed to other programs, and taken for a run."""
    tilts = 1 if kind == "poses" else 2
    poses, names = load_poses(path)
    assert len(poses) == len(names)
    assert all(bool(np.isfinite(t.numpy()).all()) for t in (poses.phi, poses.theta, poses.psi, poses.tau))
    exchange_poses(path, None, None)
    for suffix in (".json", ".star", ".xf"):
        exchange_poses(path, path.parent / f"to{suffix}", 0.5)
        load_poses(path.parent / f"to{suffix}", frame=ImageFrame(0.5))
    _series(path.parent, tilts)
    _open(path.parent, f"alignment.poses={path}", f"data.stage_tilt_degree={[-3] * tilts}")


def _angles(_: str, path: Path) -> None:
    angles, names = read_named_angles(path)
    assert np.isfinite(angles).all()
    assert names is None or len(names) == len(angles)
    _series(path.parent, 2)
    _open(path.parent, f"data.stage_tilt_degree={path}", "alignment.poses=null")


def _plan(_: str, path: Path) -> None:
    for case in list_cases(read_plan(path)):
        assert case.acquisition.stage_tilt_degree


def _stack(_: str, path: Path) -> None:
    frame = ImageFrame.of_stack(path)
    assert frame.pixel_size > 0


def _atoms(_: str, path: Path) -> None:
    atoms = build_specimen(SpecimenSpec(source=str(path)), np.random.default_rng(0))
    assert np.isfinite(atoms.positions).all()


JUDGES = {
    "patterns": _patterns, "config": _config, "spec": lambda _, path: read_spec(path), "plan": _plan,
    "poses": _poses, "angles": _angles, "stack": _stack, "atoms": _atoms,
}  # fmt: skip
SEVERAL_SENTENCES = ("config", "spec", "plan")


def _info(path: Path) -> None:
    describe_file(path)
    file_lines(path)


def case(kind: str, seed: int, folder: Path, sound: bool = False) -> tuple[str, str]:
    """``fine``, ``told`` or ``wrong``, and why."""
    rng = random.Random(f"{kind} {seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limits[1], limits[1]))
    path = build(kind, folder, rng, sound)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    problem = ""
    start = time.monotonic()
    outcome = "fine"
    role = KINDS[kind].role
    steps = [lambda: judge(kind, path)]
    if (role in ("patterns", "angles", "stack") and path.suffix not in (".txt", ".npy")) or kind == "npy":
        steps.append(lambda: _info(path))
    for step in steps:
        try:
            step()
        except (UserError, OSError) as error:
            outcome, text = "told", _sentence(error)
            if not text or len(text) > 2000 or (text.count("\n") and role not in SEVERAL_SENTENCES):
                problem = f"not a sentence: {text[:300]!r}"
            elif sound and kind not in ("real", "vendor"):  # not all of these hold counts
                problem = f"refused: {text}"
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(f.filename).name}:{f.lineno}" for f in place if "petomo" in f.filename]
            problem = f"{type(error).__name__}: {str(error)[:200]} at {' '.join(ours[-3:])}"
    if time.monotonic() - start > SECONDS:
        problem = f"took {time.monotonic() - start:.0f} s"
    return ("wrong", problem) if problem else (outcome, "")


def work(connection, folder: Path) -> None:
    """Do the cases that come through a pipe."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    while (task := connection.recv()) is not None:
        connection.send(case(task[0], task[1], folder, task[2]))


class Worker:
    """A fork that does cases, replaced when one kills it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.start()

    def start(self):
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, self.folder), daemon=True)
        self.process.start()
        other.close()

    def renew(self):
        """Start with clean memory, since the limit is on what a process ever asked for."""
        self.connection.send(None)
        self.process.join()
        self.start()

    def do(self, kind: str, seed: int, sound: bool) -> tuple[str, str]:
        self.connection.send((kind, seed, sound))
        if self.connection.poll(SECONDS + 5):
            try:
                return self.connection.recv()
            except EOFError:
                self.process.join()
                code = self.process.exitcode
                self.start()
                return "wrong", f"the program died with code {code}"
        self.process.kill()
        self.start()
        return "wrong", HANGS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, default=40, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--sound", action="store_true", help="damage nothing, and count a refusal as wrong")
    options = parser.parse_args()
    report = {"wrong": []}
    with tempfile.TemporaryDirectory(prefix="petomo_fuzz_") as name:
        worker = Worker(Path(name) / "case")
        for kind in options.kinds:
            tally: collections.Counter = collections.Counter()
            for seed in range(options.seed, options.seed + options.count):
                if seed % 40 == 0:
                    worker.renew()
                outcome, why = worker.do(kind, seed, options.sound)
                if why == HANGS:  # so does a machine that is busy elsewhere, but not twice
                    outcome, why = worker.do(kind, seed, options.sound)
                tally[outcome] += 1
                if why:
                    report["wrong"].append({"kind": kind, "seed": seed, "why": why})
            report[kind] = dict(tally)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
