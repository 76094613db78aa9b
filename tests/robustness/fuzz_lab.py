"""Damage input files at random and open them: a sentence or a sound series, never anything else.

``python tests/robustness/fuzz_lab.py --count 500 --seed 0`` prints what happened as JSON. The cases run in
forks, each within 30 s and little memory, so that a crash or a hang is seen as such.
"""

from __future__ import annotations

import argparse
import collections
import copy
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
import zipfile
from pathlib import Path

import h5py
import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from petomo.cli import _sentence
from petomo.core.errors import UserError
from petomo.io.inspect import describe_file
from petomo.io.poses import load_poses
from petomo.io.readers import validate_counts
from petomo.simulation.spec import read_spec
from petomo.workflow.config import dump_config, load_config
from petomo.workflow.describe import facts, sentences
from petomo.workflow.runner import open_input

SECONDS, MEMORY = 30, 2**29
COUNTS = np.random.default_rng(0).poisson(3, (3, 4, 6, 5)).astype(np.uint16)
ATTRIBUTES = {"energy_ev": 2e5, "semiangle_mrad": 25.0, "scan_step_angstrom": 1.5, "nominal_tilt_deg": 3.0,
              "detector_sampling_inv_angstrom": [0.07, 0.08], "nominal_defocus_angstrom": -60.0}  # fmt: skip
CONFIG = """
data:
  root: .
  tilts: "t*.npy"
  stage_tilt_degree: [-3.5]
  exclude: []
  energy_kev: 200
  semiangle_mrad: 25
  scan_step_angstrom: [1.5, 1.5]
  scan_rotation_degree: 3
  flip: [false, true, false]
  dk_per_angstrom: 0.07
  counts_per_electron: 2.5
volume: {shape: [4, 9, 9], thickness_angstrom: 18}
bright_field: {method: auto, fit: [C10], defocus_range_angstrom: [-20, 20]}
ptychography: {iterations: 2, slices: 2, probe_modes: 2, positions: {start: 1}}
alignment: {iterations: 1, poses: poses.json, bundle: {rounds: 2, affine: true}}
end_to_end:
  iterations: 3
  slices: 2
  volume: {step_size: 1.0}
  regularizers:
    - {type: l1_real, weight: 0.3}
    - {type: support, start: 1}
analysis: {atoms: {elements: [Pt, Al]}, fsc: {half_sets: true}}
compute: {threads: 1, device: cpu, seed: 3}
output: {save_every: 10}
"""
SPEC = """
seed: 3
specimen: {source: ptal2o3, edge_angstrom: 4, core_angstrom: 3, rotation_degree: [1, 2, 3]}
potential: lobato
defocus_angstrom: 40
aberrations: {C12: 10, phi12: 20}
stage_tilt_degree: [-30, 0, 30]
scan_shape: [4, 5]
scan_step_angstrom: 1.2
pattern_pixels: [16, 14]
pixel_angstrom: [0.4, 0.45]
slice_angstrom: 2.0
phonons: {configurations: 1}
errors: {shift_max_angstrom: 0.5}
"""
_ANGLES = {"phi_degree": 0.1, "theta_degree": 3.0, "psi_degree": 0.2}
POSES = {"convention": "r_lab", "tilts": [{"name": "t0", "tau_angstrom": [0.5, -0.5], **_ANGLES}]}
WEIRD = [
    None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, -(2**70), 10**400, 1e308, -1e308, 1e-320, 0.5,
    float("nan"), float("inf"), -float("inf"), "", "x", "x" * 5000, "nan", "1e999", "../../../etc/passwd",
    "/etc/passwd", "*", "**/*", "..", "/", "~", "a\x00b", "\ud800", "ä\u2028", "\x1b[2J", "{{7*7}}",
    "__import__('os').abort()", "!!python/name:os.abort", [], {}, [[]], [1], [1, 2], [0, 0], [-1, 5],
    [1e9, 1e9], [10**6] * 3, [10**6] * 4, [None], ["a"], {"a": 1}, {"": {}}, [[[[[[[[1]]]]]]]],
    list(range(1000)),
]  # fmt: skip
WORDS = [
    "", "null", "-", "&a [*a]", "*a", "&a", "!!int x", "!!binary =", "? ", "{", "]", "%", "\t", "1" * 5000,
    ".nan", "-.inf", "1e400", "2001-99-01", "<<: *a", "'", '"\\ud800"', "[[[[1]]]]", "-1", "0", "99999999999",
    "[1000000, 1000000, 1000000]", "1e-300", "1e300", "~", "../..", "/", "**", "a: b: c", "\x00",
]  # fmt: skip
DTYPES = ["c8", "?", "S3", "f2", ">i2", "i8", "u8", "f8", "V4", "text", "compound", "enum", "opaque", "f16"]
SHAPES = [
    (), (0,), (7,), (3, 4), (0, 4, 6, 5), (3, 4, 0, 5), (12, 6, 5), (1, 1, 1, 1), (3, 4, 6, 5, 1),
    (10**6, 10**6, 64, 64), (2**20, 2**11, 2**10), (3, 4, 2**15, 2**15), (2**40, 1, 1, 1),
]  # fmt: skip
NPY_SHAPES = [
    "(3, 4, 6, 5)", "()", "(-1, 4)", "(10**9,)", f"({2**40}, 4, 6, 5)", "(3, 4, 6, 6)", "(0, 0, 0)", "'x'",
]  # fmt: skip
NPY_TYPES = ["<u2", "|O", "<c16", "|S9", "<f8", ">f4", "|V2", "<M8[s]", "x", "<U1000000", "<f2", "?", "|b1"]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or blank pieces."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at, size = rng.randrange(len(out) + 1), rng.choice([1, 1, 2, 4, 8, 64, 512])
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + size] = rng.randbytes(min(size, len(out) - at))
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = rng.randbytes(size)
            case 4:
                out[at : at + size] = b"\xff" * min(size, len(out) - at)
            case _:
                del out[at:]
        if not out:
            break
    return bytes(out)


def mutate_values(tree, rng: random.Random):
    """Replace, remove or double entries of nested lists and mappings."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = []

        def walk(node, places=places):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)):
                    walk(node[key])

        walk(tree)
        if not places:
            break
        node, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(["x", "", "\x00", "root", "shape", "type", "poses"])] = node[key]
            case 2 if isinstance(node, list):
                node.extend(node[:] * rng.choice([1, 5]))
            case _:
                node[key] = copy.deepcopy(rng.choice(WEIRD))
    return tree


def mutate_text(text: str, rng: random.Random) -> str:
    """Swap tokens for strange ones, and lines for one another."""
    lines = text.strip("\n").split("\n")
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines[at] = rng.choice(lines)
            case 1:
                del lines[at]
                lines = lines or [""]
            case 2:
                lines[at] = " " * rng.randrange(4) + lines[at]
            case 3:
                key = lines[at].split(":")[0]
                lines[at] = f"{key}: {rng.choice(WORDS)}"
            case _:
                tokens = lines[at].replace(",", " , ").split(" ")
                tokens[rng.randrange(len(tokens))] = rng.choice(WORDS)
                lines[at] = " ".join(tokens)
    return "\n".join(lines)


def write_hdf5(path: Path, rng: random.Random | None = None) -> None:
    """A sound file, or one whose shapes, types, attributes or links are strange."""
    kind = "sound" if rng is None else rng.choice([*STRANGE, "attribute"])
    with h5py.File(path, "w") as file:
        STRANGE.get(kind, _sound)(file, rng)
        file.attrs.update(ATTRIBUTES)
        for name in rng.sample(sorted(ATTRIBUTES), 2) if rng and kind == "attribute" else ():
            try:
                file.attrs[name] = rng.choice([v for v in WEIRD if not isinstance(v, dict)])
            except (TypeError, ValueError, OverflowError):
                file.attrs[name] = h5py.Empty("f8")


def _sound(file: h5py.File, _: random.Random | None) -> None:
    file["counts"] = COUNTS


def _strange_type(file: h5py.File, rng: random.Random) -> None:
    match rng.choice(DTYPES):
        case "text":
            file.create_dataset("counts", (3, 4, 6, 5), dtype=h5py.string_dtype())
        case "compound":
            file["counts"] = np.zeros((3, 4, 6, 5), [("a", "f4"), ("b", "i2")])
        case "enum":
            file.create_dataset("counts", data=COUNTS % 2, dtype=h5py.enum_dtype({"A": 0, "B": 1}, "u2"))
        case "opaque":
            times = h5py.opaque_dtype(np.dtype("M8[s]"))
            file.create_dataset("counts", data=COUNTS.astype("M8[s]").astype(times))
        case dtype:
            file["counts"] = COUNTS.astype(np.longdouble if dtype == "f16" else dtype)


def _strange_shape(file: h5py.File, rng: random.Random) -> None:
    shape = rng.choice(SHAPES)
    chunks = None if 0 in shape or not shape else tuple(min(n, 16) for n in shape)
    file.create_dataset("counts", shape, "u1", chunks=chunks, compression=chunks and "gzip")


def _strange_storage(file: h5py.File, rng: random.Random) -> None:
    match rng.randrange(5):
        case 0:
            file.create_dataset("counts", data=COUNTS, chunks=(1, 4, 6, 5), compression="lzf", shuffle=True)
        case 1:  # compressed to nothing
            data = np.zeros((4, 4, 512, 512), np.uint16)
            file.create_dataset("counts", data=data, chunks=data.shape, compression="gzip")
        case 2:
            file.create_dataset("counts", (3, 4, 6, 5), "u2", external=[("/etc/passwd", 0, 720)])
        case 3:
            layout = h5py.VirtualLayout((3, 4, 6, 5), "u2")
            layout[...] = h5py.VirtualSource("/nowhere/else.h5", "x", (3, 4, 6, 5))
            file.create_virtual_dataset("counts", layout)
        case _:
            grows = {"maxshape": (None,) * 4, "chunks": (64, 64, 64, 64)}
            file.create_dataset("counts", (3, 4, 6, 5), "u2", compression="gzip", **grows)


def _strange_links(file: h5py.File, rng: random.Random) -> None:
    file["loop"] = h5py.SoftLink("/loop")
    file["group/self"] = file["/"]
    file["group/again"] = h5py.SoftLink("/group")
    file["outside"] = h5py.ExternalLink("/etc/passwd", "/x")
    file["counts"] = rng.choice([COUNTS, h5py.ExternalLink("elsewhere.h5", "/x")])


STRANGE = {
    "type": _strange_type,
    "shape": _strange_shape,
    "storage": _strange_storage,
    "links": _strange_links,
}


def write_zarr(path: Path, rng: random.Random | None = None, store=None) -> None:
    """A Zarr store of either version."""
    form = 3 if rng is None else rng.choice([2, 3])
    store = LocalStore(path) if store is None else store
    root = zarr.create_group(store, zarr_format=form, attributes=ATTRIBUTES)
    root.create_array("counts", data=COUNTS, chunks=(1, 4, 6, 5))
    store.close()


def build(kind: str, folder: Path, rng: random.Random) -> Path:
    """A damaged input of a kind below ``folder``."""
    names = {"hdf5": "t0.h5", "zarr": "t0.zarr", "zip": "t0.zip", "npy": "t0.npy",
             "yaml": "run.yaml", "spec": "spec.yaml", "poses": "poses.json"}  # fmt: skip
    path, structure = folder / names[kind], rng.random() < 0.6
    match kind:
        case "hdf5":
            write_hdf5(path, rng if structure else None)
        case "zarr":
            write_zarr(path, rng)
            return damage_folder(path, rng, structure)
        case "zip":
            write_zarr(path, rng, ZipStore(path, mode="w"))
            if structure:
                rezip(path, rng)
        case "npy":
            np.save(path, COUNTS)
            if structure:
                path.write_bytes(npy_header(rng) + path.read_bytes()[128:])
        case "poses":
            path.write_text(json.dumps(mutate_values(POSES, rng) if structure else POSES))
        case _:
            whole = CONFIG if kind == "yaml" else SPEC
            path.write_text(mutate_text(whole, rng) if structure else whole)
    if not structure:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return path


def damage_folder(path: Path, rng: random.Random, structure: bool) -> Path:
    """Strange metadata, or files that are gone or damaged."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = rng.choice(files)
    if structure:
        file = rng.choice([f for f in files if f.name in ("zarr.json", ".zarray", ".zgroup", ".zattrs")])
        file.write_text(json.dumps(mutate_values(json.loads(file.read_text()), rng)))
    elif rng.random() < 0.3:
        file.unlink()
    else:
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    return path


def npy_header(rng: random.Random) -> bytes:
    """A header that says something else than what follows."""
    order = rng.choice(["True", "False", "0", "__import__('os').abort()"])
    text = (
        f"{{'descr': '{rng.choice(NPY_TYPES)}', 'fortran_order': {order}, 'shape': {rng.choice(NPY_SHAPES)}}}"
    )
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


def rezip(path: Path, rng: random.Random) -> None:
    """Entries that are missing, doubled, bombs, or named to escape."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    name = rng.choice(sorted(entries))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", 8, compresslevel=1) as new:
        warnings.simplefilter("ignore")  # doubled names
        for key, data in entries.items():
            match rng.randrange(5) if key == name else 9:
                case 0:
                    continue
                case 1:
                    new.writestr(key, data + bytes(300 * 2**20))
                case 2:
                    new.writestr("../../" + key, data)
                case 3:
                    new.writestr(key, mutate_bytes(data, rng))
                case 4:
                    new.writestr(key, data[: len(data) // 2])
                    new.writestr(key, data)
                case _:
                    new.writestr(key, data)


def judge(kind: str, path: Path) -> None:
    """What ``petomo info``, ``check`` and the start of ``run`` do with the file."""
    if kind == "spec":
        read_spec(path)
        return
    if kind == "poses":
        poses, names = load_poses(path)
        assert len(poses) == len(names)
        assert all(bool(np.isfinite(t.numpy()).all()) for t in (poses.phi, poses.theta, poses.psi, poses.tau))
    folder = path.parent
    if kind == "yaml":
        (folder / "poses.json").write_text(json.dumps(POSES))
    if kind in ("yaml", "poses"):
        np.save(folder / "t0.npy", COUNTS)
        (folder / "run.yaml").exists() or (folder / "run.yaml").write_text(CONFIG)
        config = load_config(folder / "run.yaml")
    else:
        known = {"energy_kev": 200, "semiangle_mrad": 25, "scan_step_angstrom": 1.5}
        known |= {"dk_per_angstrom": [0.07, 0.08], "stage_tilt_degree": [3]}
        settings = f"data: {json.dumps({'tilts': [path.name]} | (known if path.suffix == '.npy' else {}))}"
        (folder / "run.yaml").write_text(settings)
        config = load_config(folder / "run.yaml")
    dump_config(config, folder / "resolved.yaml")
    assert load_config(folder / "resolved.yaml") == config
    series, _ = open_input(config)
    sentences(facts(series, config, validate_counts(series)))
    series[0].patterns([0])


def case(kind: str, seed: int, folder: Path) -> tuple[str, str]:
    """``fine``, ``told`` or ``wrong``, and why."""
    rng = random.Random(f"{kind} {seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limits[1], limits[1]))
    path = build(kind, folder, rng)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    problem = ""
    start = time.monotonic()
    outcome = "fine"
    steps = [lambda: judge(kind, path)]
    if kind in ("hdf5", "zarr", "zip", "npy"):
        steps.append(lambda: describe_file(path))
    for step in steps:
        try:
            step()
        except (UserError, OSError) as error:
            outcome, text = "told", _sentence(error)
            if not text or len(text) > 2000 or (text.count("\n") and kind not in ("yaml", "spec")):
                problem = f"not a sentence: {text[:300]!r}"
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
        connection.send(case(*task, folder))


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

    def do(self, kind: str, seed: int) -> tuple[str, str]:
        self.connection.send((kind, seed))
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
        return "wrong", "hangs"


KINDS = ("hdf5", "zarr", "zip", "npy", "yaml", "poses", "spec")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--count", type=int, default=40, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args()
    report = {"wrong": []}
    with tempfile.TemporaryDirectory(prefix="petomo_fuzz_") as name:
        worker = Worker(Path(name) / "case")
        for kind in options.kinds:
            tally: collections.Counter = collections.Counter()
            for seed in range(options.seed, options.seed + options.count):
                if seed % 40 == 0:
                    worker.renew()
                outcome, why = worker.do(kind, seed)
                tally[outcome] += 1
                if why:
                    report["wrong"].append({"kind": kind, "seed": seed, "why": why})
            report[kind] = dict(tally)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
