"""Seeded damage to bytes, texts, nested values, HDF5 trees, archives and folders."""

from __future__ import annotations

import copy
import json
import random
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np

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


def set_attribute(holder, name: str, rng: random.Random) -> None:
    """Give an attribute a strange value."""
    try:
        holder.attrs[name] = rng.choice([v for v in WEIRD if not isinstance(v, dict)])
    except (TypeError, ValueError, OverflowError):
        holder.attrs[name] = h5py.Empty("f8")


def mutate_hdf5(path: Path, rng: random.Random) -> None:
    """Replace, remove or redirect groups, datasets and attributes."""
    with h5py.File(path, "r+") as file:
        for _ in range(rng.choice([1, 1, 2, 4])):
            items: list = [file]
            file.visititems(lambda _, item, items=items: items.append(item))
            with_attributes = [item for item in items if len(item.attrs)]
            if with_attributes and rng.random() < 0.5:
                holder = rng.choice(with_attributes)
                name = rng.choice(sorted(holder.attrs))
                if rng.random() < 0.2:
                    del holder.attrs[name]
                else:
                    set_attribute(holder, name, rng)
            elif items[1:]:
                name = rng.choice(items[1:]).name
                new = _strange_item(file, name, rng)
                del file[name]
                if new is not None:
                    file[name] = new


def _strange_item(file: h5py.File, name: str, rng: random.Random):
    """What to put in an item's place; None for nothing."""
    match rng.randrange(7):
        case 0:
            return None
        case 1:
            return h5py.SoftLink(rng.choice([name, "/", "/nowhere", name.rpartition("/")[0] or "/"]))
        case 2:
            return h5py.ExternalLink(
                rng.choice(["/etc/passwd", "elsewhere.h5", Path(file.filename).name]), name
            )
        case 3:
            return file["/"]
        case 4:
            return h5py.Empty(rng.choice(["f4", "u2", "S3"]))
        case 5 if (
            isinstance(item := file[name], h5py.Dataset)
            and item.shape is not None
            and item.dtype.kind in "uif"
        ):
            values = np.atleast_1d(file[name][()])
            return rng.choice(
                [values[:1], values[..., :0], values[None], values.astype("f8") * np.nan, -values]
            )
        case _:
            shape = rng.choice([(), (0,), (1,), (7,), (3, 4), (3, 4, 5), (3, 5, 6, 8), (1, 1, 1, 1, 1)])
            return np.zeros(shape, rng.choice(["c8", "?", "S3", "f2", ">i2", "u8", "V4", "u4"]))


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


def npy_header(rng: random.Random, shapes=()) -> bytes:
    """A header that says something else than what follows."""
    order = rng.choice(["True", "False", "0", "__import__('os').abort()"])
    shape = rng.choice([*shapes, *NPY_SHAPES])
    text = f"{{'descr': '{rng.choice(NPY_TYPES)}', 'fortran_order': {order}, 'shape': {shape}}}"
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


def damage_one(files: list[Path], rng: random.Random) -> None:
    """Damage bytes of one of some files, or remove one of several."""
    file = rng.choice(files)
    if len(files) > 1 and rng.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
