"""Small files of every format petomo reads, made without petomo."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

COUNTS = np.random.default_rng(1).poisson(2, (3, 5, 6, 8)).astype(np.uint16)
STAR = """
# version 50001

data_general
_rlnTomoName  TS_01

data_TS_01

loop_
_rlnMicrographName #1
_rlnTomoNominalStageTiltAngle #2
_rlnTomoXTilt #3
_rlnTomoYTilt #4
_rlnTomoZRot #5
_rlnTomoXShiftAngst #6
_rlnTomoYShiftAngst #7
"frames/tilt_01.mrc"  3.0 0.5 3.1 -1.25 4.5 -6
frames/tilt_00.mrc   -3.0 0.25 -2.9 -1.5 1 2
"""


def emd(path: Path, counts=COUNTS) -> None:
    """EMD 1.0 as py4DSTEM 0.14 writes it: step 0.5 x 0.25 A (in nm), 0.05 x 0.04 1/A."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0})
        cube = file.create_group("datacube_root/datacube")
        file["datacube_root"].attrs["emd_group_type"] = "root"
        cube.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        cube.create_dataset("data", data=counts, chunks=(1, 1, *counts.shape[2:]))
        steps = ((0.05, "nm"), (0.025, "nm"), (0.05, "A^-1"), (0.04, "A^-1"))
        for number, (step, unit) in enumerate(steps):
            vector = cube.create_dataset(f"dim{number}", data=[0.0, step])
            vector.attrs.update({"name": "?", "units": unit})


def hspy(path: Path, counts=COUNTS) -> None:
    """HyperSpy 3.1: 200 keV, 25 mrad, 12.5 degrees, step 0.5 x 0.25 A, 0.5 x 0.4 mrad."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"file_format": "HyperSpy", "file_format_version": "3.1"})
        group = file.create_group("Experiments/scan")
        group.create_dataset("data", data=counts, compression="gzip")
        for number, (scale, unit) in enumerate(((0.05, "nm"), (25.0, "pm"), (0.5, "mrad"), (4e-4, "rad"))):
            axis = group.create_group(f"axis-{number}")
            axis.attrs.update({"name": "yxyx"[number], "scale": scale, "units": unit, "navigate": number < 2})
        tem = group.create_group("metadata/Acquisition_instrument/TEM")
        tem.attrs.update({"beam_energy": 200.0, "convergence_angle": 25.0})
        tem.create_group("Stage").attrs["tilt_alpha"] = 12.5


def nexus(path: Path, counts=COUNTS) -> None:
    """NeXus with a signal, a second 4D array that is not the signal, and an electron source of 300 keV."""
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "patterns", "axes": ["y", "x", "qy", "qx"]})
        data["patterns"], data["errors"] = counts, np.sqrt(counts)
        for name, step, unit in (("y", 0.5, "Å"), ("x", 0.25, "Å"), ("qy", 0.5, "1/nm"), ("qx", 0.4, "nm⁻¹")):
            data[name] = np.arange(counts.shape[["y", "x", "qyqx"].index(name)] if name in "yx" else 3) * step
            data[name].attrs["units"] = unit
        source = entry.create_group("instrument/source")
        source.attrs["NX_class"] = "NXsource"
        source["probe"], source["energy"] = "electron", 300.0
        source["energy"].attrs["units"] = "keV"


def sparse(path: Path, counts=COUNTS, frames_per_position=2) -> None:
    """Counted electrons, several frames a position in no order, the fourth position without any."""
    scan, camera = counts.shape[:2], counts.shape[2:]
    rng = np.random.default_rng(2)
    rows, where = [], []
    for index, pattern in enumerate(counts.reshape(-1, *camera)):
        if index == 3:
            continue
        events = rng.permutation(np.repeat(np.arange(pattern.size), pattern.ravel())).astype(np.uint32)
        rows += np.array_split(events, frames_per_position)
        where += [index] * frames_per_position
    order = rng.permutation(len(rows))
    with h5py.File(path, "w") as file:
        file.attrs["version"] = 2
        group = file.create_group("electron_events")
        frames = group.create_dataset("frames", (len(rows),), h5py.vlen_dtype(np.uint32))
        for to, of in enumerate(order):
            frames[to] = rows[of]
        frames.attrs.update({"Nx": camera[0], "Ny": camera[1]})
        positions = group.create_dataset("scan_positions", data=np.array(where)[order].astype(np.int32))
        positions.attrs.update({"Nx": scan[1], "Ny": scan[0]})


def empad(folder: Path, name="scan_x5_y3", version="0.51", scan=(3, 5)) -> np.ndarray:
    """EMPAD raw and XML; returns the patterns (128 x 128) that the frames hold."""
    frames = np.random.default_rng(3).normal(50, 5, (*scan, 130, 128)).astype("<f4")
    frames.tofile(folder / f"{name}.raw")
    if version == "0.51":
        size = f"<pix_x>{scan[1]}</pix_x><pix_y>{scan[0]}</pix_y>"
        beam = "<source.get_voltage>300000.0</source.get_voltage>"
        beam += "<calibrated_diffraction_angle>0.00042906574394463665</calibrated_diffraction_angle>"
    else:
        size = '<scan_parameters mode="search"><scan_resolution_x>64</scan_resolution_x>'
        size += '<scan_resolution_y>64</scan_resolution_y></scan_parameters><scan_parameters mode="acquire">'
        size += f"<scan_resolution_x>{scan[1]}</scan_resolution_x>"
        size += f"<scan_resolution_y>{scan[0]}</scan_resolution_y></scan_parameters>"
        beam = "<high_voltage>300000.0</high_voltage>"
    (folder / "acquisition.xml").write_text(
        f'<root><software_version>{version}</software_version><raw_file filename="C:\\data\\{name}.raw"/>'
        f"{size}<iom_measurements>{beam}</iom_measurements></root>"
    )
    return frames[..., :128, :]


def dectris(folder: Path, counts=COUNTS) -> None:
    """A master that links two data files of unequal length; pixel (1, 2) is masked."""
    flat = counts.reshape(-1, *counts.shape[2:])
    for number, part in enumerate((flat[:7], flat[7:]), 1):
        with h5py.File(folder / f"scan_data_{number:06d}.h5", "w") as file:
            file.create_dataset("entry/data/data", data=part, chunks=(1, *part.shape[1:]), compression="gzip")
    with h5py.File(folder / "scan_master.h5", "w") as file:
        data = file.create_group("entry/data")
        for number in (1, 2):
            data[f"data_{number:06d}"] = h5py.ExternalLink(f"scan_data_{number:06d}.h5", "/entry/data/data")
        mask = np.zeros(counts.shape[2:], np.uint32)
        mask[1, 2] = 1
        file["entry/instrument/detector/detectorSpecific/pixel_mask"] = mask
        beam = file.create_group("entry/instrument/beam")
        beam.attrs["NX_class"] = "NXbeam"
        beam["incident_energy"] = 8e4
        beam["incident_energy"].attrs["units"] = "eV"


def paper_zip(path: Path, counts=COUNTS, meta=None, kind="json2") -> None:
    """A Zarr v2 archive as the paper's: ``/data`` in Blosc chunks and ``/meta``, one dictionary.

    ``kind``: json2, pickle (its content would create a file if it were opened) or structured.
    """
    import numcodecs

    blosc = numcodecs.Blosc()
    array = {"zarr_format": 2, "order": "C", "fill_value": 0}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(".zgroup", json.dumps({"zarr_format": 2}))
        chunks = (1, counts.shape[1], *counts.shape[2:])
        data = {"shape": counts.shape, "chunks": chunks, "dtype": counts.dtype.str, "filters": None}
        archive.writestr("data/.zarray", json.dumps(array | data | {"compressor": blosc.get_config()}))
        for y, row in enumerate(counts):
            archive.writestr(f"data/{y}.0.0.0", bytes(blosc.encode(np.ascontiguousarray(row))))
        if meta is None:
            return
        settings = {"shape": [1], "chunks": [1], "dtype": "|O", "filters": [{"id": kind}], "compressor": None}
        if kind == "json2":
            codec = numcodecs.get_codec({"id": "json2"})
            content = bytes(blosc.encode(codec.encode(np.array([meta], object))))
            settings |= {"filters": [codec.get_config()], "compressor": blosc.get_config()}
        elif kind == "structured":
            types = [(key, "<f8", [np.size(value)]) for key, value in meta.items()]
            content = b"".join(np.asarray(value, "<f8").tobytes() for value in meta.values())
            settings |= {"dtype": types, "filters": None}
        else:
            content = b"cos\nsystem\n(S'touch " + bytes(path.with_suffix(".ran")) + b"'\ntR."
        archive.writestr("meta/.zarray", json.dumps(array | settings))
        archive.writestr("meta/0", content)
