"""Files of patterns in every format petomo reads, sound or damaged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import format_files
import h5py
import numpy as np
import zarr
from fuzz_mutations import (
    damage_folder,
    mutate_hdf5,
    mutate_text,
    mutate_values,
    npy_header,
    rezip,
    set_attribute,
)
from zarr.storage import LocalStore, ZipStore

from helpers import SHARED

COUNTS = np.random.default_rng(0).poisson(3, (3, 4, 6, 5)).astype(np.uint16)
ATTRIBUTES = {"energy_ev": 2e5, "semiangle_mrad": 25.0, "scan_step_angstrom": 1.5, "nominal_tilt_deg": 3.0,
              "detector_sampling_inv_angstrom": [0.07, 0.08], "nominal_defocus_angstrom": -60.0}  # fmt: skip
OPTICS = {"energy_kev": 200, "semiangle_mrad": 25}
KNOWN = OPTICS | {"scan_step_angstrom": 1.5, "dk_per_angstrom": [0.07, 0.08], "stage_tilt_degree": [3]}
DTYPES = ["c8", "?", "S3", "f2", ">i2", "i8", "u8", "f8", "V4", "text", "compound", "enum", "opaque", "f16"]
SHAPES = [
    (), (0,), (7,), (3, 4), (0, 4, 6, 5), (3, 4, 0, 5), (12, 6, 5), (1, 1, 1, 1), (3, 4, 6, 5, 1),
    (10**6, 10**6, 64, 64), (2**20, 2**11, 2**10), (3, 4, 2**15, 2**15), (2**40, 1, 1, 1),
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How a sound input comes into an empty folder, how its structure is damaged, and what to do with it.

    ``write`` gives what a user would open; ``known`` is what a user would say about the file.
    """

    write: Callable[[Path, random.Random], Path]
    damage: Callable[[Path, random.Random], Any]
    role: str = "patterns"
    known: dict[str, Any] = field(default_factory=dict)


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in KNOWN.items() if key not in keys}


def write_hdf5(path: Path, rng: random.Random | None = None) -> None:
    """A sound file, or one whose shapes, types, attributes or links are strange."""
    kind = "sound" if rng is None else rng.choice([*STRANGE, "attribute"])
    with h5py.File(path, "w") as file:
        STRANGE.get(kind, _sound)(file, rng)
        file.attrs.update(ATTRIBUTES)
        for name in rng.sample(sorted(ATTRIBUTES), 2) if rng and kind == "attribute" else ():
            set_attribute(file, name, rng)


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


def write_zarr(path: Path, rng: random.Random, store=None) -> None:
    """A Zarr store of either version."""
    store = LocalStore(path) if store is None else store
    root = zarr.create_group(store, zarr_format=rng.choice([2, 3]), attributes=ATTRIBUTES)
    root.create_array("counts", data=COUNTS, chunks=(1, 4, 6, 5))
    store.close()


def _zip(path: Path, rng: random.Random) -> None:
    write_zarr(path, rng, ZipStore(path, mode="w"))


def _zspy(path: Path, _: random.Random) -> None:
    """HyperSpy's Zarr."""
    scan = zarr.open_group(path, mode="w", zarr_format=2).create_group("Experiments/scan")
    scan.create_array("data", data=COUNTS, chunks=(1, 1, 6, 5))
    for number, (scale, unit) in enumerate(((1.5, "Å"), (1.5, "Å"), (0.07, "1/Å"), (0.08, "A^-1"))):
        scan.create_group(f"axis-{number}", attributes={"scale": scale, "units": unit, "name": str(number)})
    tem = {"beam_energy": 200.0, "convergence_angle": 25.0}
    scan.create_group("metadata/Acquisition_instrument/TEM", attributes=tem)


def _prismatic(path: Path, _: random.Random) -> None:
    with h5py.File(path, "w") as file:
        cube = file.create_group("4DSTEM_simulation/data/datacubes/array")
        cube.attrs["emd_group_type"] = 1
        cube["datacube"] = COUNTS
        for number, step in enumerate((1.5, 1.5, 0.07, 0.08), 1):
            cube[f"dim{number}"] = np.arange(COUNTS.shape[number - 1]) * step
            cube[f"dim{number}"].attrs["units"] = "[n_m]"
        settings = file.create_group("4DSTEM_simulation/metadata/metadata_0/original/simulation_parameters")
        settings.attrs.update({"E": 200.0, "sa": 25.0})


META = {"k_max": [1.2, 1.25], "E_ev": 2e5, "alpha_rad": 0.025, "dr": [1.5, 1.5]}


def _paper(path: Path, rng: random.Random) -> None:
    format_files.paper_zip(path, COUNTS, META, rng.choice(["json2", "json2", "structured"]))


def _damage_paper(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.5:
        rezip(path, rng)
        return
    meta = mutate_values(META, rng)
    try:
        format_files.paper_zip(path, COUNTS, meta, rng.choice(["json2", "structured"]))
    except (TypeError, ValueError, OverflowError, UnicodeError):
        format_files.paper_zip(path, COUNTS, meta, "pickle")


def _empad(folder: Path, rng: random.Random) -> Path:
    format_files.empad(folder, "scan_x3_y2", rng.choice(["0.51", "1.2.2"]), (2, 3))
    raw = folder / "scan_x3_y2.raw"
    np.maximum(np.fromfile(raw, "<f4"), 0).tofile(raw)
    return rng.choice([raw, folder / "acquisition.xml"])


def _damage_empad(path: Path, rng: random.Random) -> None:
    xml = path.parent / "acquisition.xml"
    text = xml.read_text().replace("><", ">\n<")
    digits = text.replace("3", rng.choice(list("0-9e.")))
    xml.write_text(mutate_text(text, rng) if rng.random() < 0.7 else digits)


def _dectris(folder: Path, _: random.Random) -> Path:
    format_files.dectris(folder)
    return folder / "scan_master.h5"


def _damage_dectris(path: Path, rng: random.Random) -> None:
    mutate_hdf5(rng.choice(sorted(path.parent.glob("*.h5"))), rng)


def _damage_sparse(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.6:
        mutate_hdf5(path, rng)
        return
    with h5py.File(path, "r+") as file:
        group = file["electron_events"]
        if rng.random() < 0.5:
            events = rng.choice([[], [10**6], [2**32 - 1], [7] * 70000])
            group["frames"][rng.randrange(len(group["frames"]))] = np.array(events, np.uint32)
        else:
            group["scan_positions"][rng.randrange(4)] = rng.choice([-1, 15, 14, 2**31 - 1])


def single(name: str, write: Callable[[Path, random.Random], Any]) -> Callable[[Path, random.Random], Path]:
    """Writer of one file in a folder."""

    def into(folder: Path, rng: random.Random) -> Path:
        write(folder / name, rng)
        return folder / name

    return into


REAL = (
    ("readers_rosettasciio/py4DSTEM_size2x3x4x5.h5",),
    ("readers_rosettasciio/simple_signal.nxs",),
    ("readers_rosettasciio/Si100_4D.emd",),
    ("readers_quantem_gpu/fixture_master.h5", "readers_quantem_gpu/fixture_data_000001.h5"),
)
"""Real files that petomo reads by itself, each with what belongs to it."""
PRISMATIC = {"dataset": "4DSTEM_simulation/data/datacubes/CBED_array_depth0001/datacube"}
"""Where the patterns of the file of silicon lie."""
VENDOR = (
    ("readers_rosettasciio/test2.blo",),
    ("readers_rosettasciio/test_tvips_2233_000.tvips",),
    ("readers_rosettasciio/EELS_SI.dm4",),
    ("readers_rosettasciio/fei_example_tem_stack.emd",),
    ("readers_rosettasciio/mib/002_4x2_6bit_roi128.mib", "readers_rosettasciio/mib/002_4x2_6bit_roi128.hdr"),
)
"""Real files that RosettaSciIO reads."""


def _real(sets: tuple[tuple[str, ...], ...]) -> Callable[[Path, random.Random], Path]:
    def write(folder: Path, rng: random.Random) -> Path:
        paths = [SHARED / "data" / "formats" / name for name in rng.choice(sets)]
        for path in paths:
            (folder / path.name).write_bytes(path.read_bytes())
        return folder / paths[0].name

    return write


def _damage_real(path: Path, rng: random.Random) -> None:
    """Strange HDF5; a cut, a jump in the middle or a blank stretch for others."""
    if h5py.is_hdf5(path):
        mutate_hdf5(path, rng)
        return
    data = bytearray(path.read_bytes())
    at, size = rng.randrange(len(data)), rng.choice([1, 4, 100, 10**4])
    match rng.randrange(3):
        case 0:
            del data[at:]
        case 1:
            del data[at : at + size]
        case _:
            at = rng.randrange(min(len(data), 1024))
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)])
    path.write_bytes(data)


def _npy(path: Path, _: random.Random) -> None:
    np.save(path, COUNTS)


def _damage_npy(path: Path, rng: random.Random) -> None:
    path.write_bytes(npy_header(rng) + path.read_bytes()[128:])


PATTERNS: dict[str, Kind] = {
    "hdf5": Kind(single("t0.h5", lambda path, _: write_hdf5(path)), write_hdf5),
    "emd": Kind(
        single("t0.emd", lambda path, _: format_files.emd(path)),
        mutate_hdf5,
        known=without("scan_step_angstrom", "dk_per_angstrom"),
    ),
    "prismatic": Kind(single("t0.h5", _prismatic), mutate_hdf5, known={"stage_tilt_degree": [3]}),
    "hspy": Kind(single("t0.hspy", lambda path, _: format_files.hspy(path)), mutate_hdf5),
    "nexus": Kind(
        single("t0.nxs", lambda path, _: format_files.nexus(path)),
        mutate_hdf5,
        known={"semiangle_mrad": 25, "stage_tilt_degree": [3]},
    ),
    "sparse": Kind(single("t0.h5", lambda path, _: format_files.sparse(path)), _damage_sparse, known=KNOWN),
    "dectris": Kind(_dectris, _damage_dectris, known=without("energy_kev") | {"scan_shape": [3, 5]}),
    "zarr": Kind(single("t0.zarr", write_zarr), lambda path, rng: damage_folder(path, rng, True)),
    "zspy": Kind(
        single("t0.zspy", _zspy),
        lambda path, rng: damage_folder(path, rng, True),
        known={"stage_tilt_degree": [3]},
    ),
    "zip": Kind(single("t0.zip", _zip), rezip),
    "paper": Kind(single("t0.zip", _paper), _damage_paper, known={"stage_tilt_degree": [3]}),
    "npy": Kind(single("t0.npy", _npy), _damage_npy, known=KNOWN),
    "empad": Kind(_empad, _damage_empad, known=without("energy_kev") | {"energy_kev": 300, "override": True}),
}
if (SHARED / "data" / "formats").is_dir():
    PATTERNS["real"] = Kind(_real(REAL), _damage_real, known=KNOWN | {"override": True})
    if find_spec("rsciio"):
        PATTERNS["vendor"] = Kind(_real(VENDOR), _damage_real, known=KNOWN | {"override": True})
