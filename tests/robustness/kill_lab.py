"""Kill runs with SIGKILL at seeded random moments, resume them, and compare with a run left alone.

``python tests/robustness/kill_lab.py --kills 200 --seed 0`` prints what happened as JSON. All runs are
forks of this process, which never computes anything itself: a gradient taken before a fork would forbid
gradients after it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import torch
from run_digest import differences, digest

from petomo.io.artefacts import read_json
from petomo.io.atomic import _Deferring, atomic_hdf5, write_text
from petomo.simulation.acquisition import simulate
from petomo.simulation.spec import read_spec
from petomo.workflow import runner
from petomo.workflow.config import load_config
from petomo.workflow.stages import STAGES

SPEC = """
seed: 3
specimen: {source: ptal2o3, edge_angstrom: 4, core_angstrom: 3}
defocus_angstrom: 40
stage_tilt_degree: [-30, 0, 30]
scan_shape: [4, 5]
scan_step_angstrom: 1.2
pattern_pixels: [16, 14]
pixel_angstrom: [0.4, 0.45]
slice_angstrom: 2.0
phonons: {configurations: 1}
errors: {shift_max_angstrom: 0.5}
"""
RUN = """
name: kill
data: {root: data, tilts: "tilt_*.h5"}
bright_field: {fit: [C10], defocus_range_angstrom: [-20, 20]}
ptychography: {iterations: 2, slices: 2, probe_modes: 2, positions: {start: 1}}
alignment: {iterations: 1, inner_iterations: 2, bundle: {rounds: 2, iterations: 25, blobs: 20}}
end_to_end:
  iterations: 3
  slices: 2
  batch_size: 10
  probe: {step_size: 0.5, start: 1}
  positions: {step_size: 0.5, start: 1}
  affine: {step_size: 0.7, start: 1}
  poses: {step_size: 0.7, start: 2}
analysis: {atoms: {elements: [Pt]}, fsc: {half_sets: true}}
refinement: {rounds: 1, fine_rounds: 1, iterations: 2}
compute: {threads: 1, device: cpu}
output: {save_every: 1}
"""


def imitation(name, names):
    """A stage that saves, resumes and replaces its inputs as the real ones do, in a moment."""

    def stage(context):
        inputs = context.inputs(name, *(f"{other}.txt" for other in names[: names.index(name)]))
        value = sum(float(path.read_text()) for path in sorted(inputs.glob("[!.]*")))
        state = context.restore(name) or {"value": torch.full((3,), 1.0 + value, dtype=torch.float64), "n": 0}
        value = state["value"]
        for n in range(state["n"] + 1, 4):
            value = torch.sin(1e3 * value)
            now = {"value": value, "n": n}
            context.iteration(name, n, 3, 2.0 + float(value[0]), lambda now=now: now)
        with atomic_hdf5(context.folder / f"{name}.h5") as file:
            file["value"] = value.numpy()
        for other in names[: names.index(name) + 1]:
            write_text(context.folder / f"{other}.txt", repr(float(value.sum()) + len(other)))

    return stage


NAMES = ["ptychography", "alignment", "end_to_end"]
IMITATIONS = {name: imitation(name, NAMES) for name in NAMES}
LIGHT = {name: stage for name, stage in STAGES.items() if name != "report"}
KINDS = {"all": STAGES, "light": LIGHT, "imitation": IMITATIONS}


def fork(log: Path, job) -> int:
    """Process number of a fork that does ``job()`` and ends with 0 if it worked."""
    if number := os.fork():
        return number
    code = 1
    try:
        with open(log, "a", encoding="utf-8") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        torch.set_num_threads(1)
        job()
        code = 0
    except BaseException as error:  # reported by the exit code and the log
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def wait(number: int) -> int:
    """Exit code of a fork; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def kill_after(number: int, seconds: float, begun=lambda: True) -> bool:
    """Whether a fork was still at work ``seconds`` after it had ``begun``, and killed."""
    end = math.inf
    while time.monotonic() < end:
        if end == math.inf and begun():
            end = time.monotonic() + seconds
        if (done := os.waitpid(number, os.WNOHANG))[0]:
            if code := os.waitstatus_to_exitcode(done[1]):
                raise SystemExit(f"a run failed with code {code}")
            return False
        time.sleep(0.001)
    os.kill(number, signal.SIGKILL)
    return wait(number) == -signal.SIGKILL


def die_at(event: int, folder: Path) -> None:
    """Kill this process at its n-th call that opens, renames, removes or writes a file below ``folder``."""
    left, inside = event, str(folder)

    def count(half_done=lambda: None):
        nonlocal left
        left -= 1
        if left == 0:
            half_done()
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name, arguments):
        named = name in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if named and str(arguments[0]).startswith(inside):
            count()

    whole = _Deferring.write

    def half(self, data):
        count(lambda: whole(self, memoryview(data).cast("B")[: memoryview(data).nbytes // 2]))
        return whole(self, data)

    _Deferring.write = half
    sys.addaudithook(hook)


def log_of(folder: Path) -> str:
    """What a run has said so far."""
    path = folder / "run.log"
    return path.read_text() if path.exists() else ""


class Lab:
    """A series, a run left alone, and the kills."""

    def __init__(self, work: Path, kind: str, seed: int):
        self.work, self.kind, self.random = work, kind, random.Random(seed)
        self.log = work / "log.txt"
        (work / "spec.yaml").write_text(SPEC)
        (work / "run.yaml").write_text(RUN)
        self.must(lambda: simulate(read_spec(work / "spec.yaml"), work / "data"))
        start = time.monotonic()
        self.must(lambda: self.run(work / "whole"))
        self.seconds = time.monotonic() - start
        self.expected = digest(work / "whole")
        self.stage_seconds = read_json(work / "whole" / "state.json")["finished"]
        self.report = {"seconds": round(self.seconds, 3), "runs": 0, "kills": 0, "stages": {}, "wrong": []}

    def run(self, folder: Path, start_from: str | None = None, event: int = 0):
        """The run itself, in a fork."""
        if event:
            die_at(event, folder)
        config = load_config(self.work / "run.yaml")
        resume = start_from is None and folder.exists() and any(folder.iterdir())
        runner.run(config, folder, resume, start_from, KINDS[self.kind])

    def must(self, job):
        """Do a job in a fork that has to work."""
        if wait(fork(self.log, job)):
            raise SystemExit(self.log.read_text()[-3000:])

    def attempt(
        self,
        folder: Path,
        start_from: str | None,
        seconds: float = 0.0,
        event: int = 0,
        stage: str | None = None,
    ) -> str | None:
        """Where a run was killed, some time after it or a stage began; None when it came to its end."""
        before = log_of(folder).count(f"{stage}: started")
        number = fork(self.log, lambda: self.run(folder, start_from, event))

        def begun() -> bool:
            return stage is None or log_of(folder).count(f"{stage}: started") > before

        killed = kill_after(number, seconds, begun) if seconds else wait(number) == -signal.SIGKILL
        if not killed:
            return None
        found = re.findall(r"(\w+): (?:started|finished)", log_of(folder))
        where = found[-1] if found else "before the first stage"
        self.report["stages"][where] = self.report["stages"].get(where, 0) + 1
        self.report["kills"] += 1
        return where

    def check(self, folder: Path, how: str):
        """Finish what was killed and compare."""
        self.must(lambda: self.run(folder))
        self.report["runs"] += 1
        if wrong := differences(digest(folder), self.expected):
            self.report["wrong"].append({"how": how, "differs": wrong[:5]})
            folder.rename(folder.with_name(f"wrong{len(self.report['wrong'])}"))
        else:
            shutil.rmtree(folder)

    def at_random(self, kills: int, share: float = 0.4, most: int = 5):
        """Kill at random moments of a stage that is still to come and of the run, in turn; then let it end.

        Without the aim nearly all kills would hit the longest stages.
        """
        last = self.report["kills"] + kills
        while self.report["kills"] < last:
            folder, kept = self.work / f"random{self.report['runs']}", []
            while self.report["kills"] < last and len(kept) < most:
                stage = None if len(kept) % 2 else self.ahead(folder)
                length = self.stage_seconds[stage] if stage else share * self.seconds
                kept.append((stage, self.random.uniform(0.005, max(0.01, length))))
                where = self.attempt(folder, None, kept[-1][1], stage=stage)
                if stage and where != stage:  # it takes less time than it did
                    self.stage_seconds[stage] /= 2
                if where is None:
                    break
            if len(kept) < 3:  # the machine was busier when the time was taken
                share *= 0.8
            self.check(folder, f"killed after {kept} s")

    def ahead(self, folder: Path) -> str:
        """Of the stages that a run has not finished, one that was killed least often so far."""
        path, killed = folder / "state.json", self.report["stages"]
        finished = read_json(path)["finished"] if path.exists() else {}
        every = list(self.stage_seconds)
        left = [name for name in every if name not in finished] or every[-1:]
        return min(left, key=lambda name: (killed.get(name, 0), self.random.random()))

    def at_events(self, stride: int, start_from: str | None = None):
        """Kill at every ``stride``-th touch of the run folder, beginning anew or redoing a stage."""
        event, folder = 1 + self.random.randrange(stride), self.work / "event"
        while True:
            if start_from is not None:
                shutil.copytree(self.work / "whole", folder)
            killed = self.attempt(folder, start_from, event=event)
            self.check(folder, f"killed at event {event}, --from {start_from}")
            if not killed:
                return
            event += stride


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="all")
    parser.add_argument("--kills", type=int, default=0, help="at random moments")
    parser.add_argument("--stride", type=int, default=0, help="kill at every n-th touch of a file; 0: never")
    parser.add_argument("--start-from", default=None, help="redo this stage in the runs killed by --stride")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    matplotlib.use("agg")
    work = Path(tempfile.mkdtemp(prefix="petomo_kill_"))
    lab = Lab(work, options.kind, options.seed)
    if options.kills:
        lab.at_random(options.kills)
    if options.stride:
        lab.at_events(options.stride, options.start_from)
    print(json.dumps(lab.report, indent=1))
    if lab.report["wrong"]:
        raise SystemExit(f"see {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
