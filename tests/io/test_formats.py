import bz2
import gzip
import json
import math
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from format_files import COUNTS, dectris, emd, empad, hspy, nexus, paper_zip, sparse
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from petomo.core.electron import wavelength
from petomo.core.errors import UserError
from petomo.io.calibration import unit_factor
from petomo.io.inspect import describe_file
from petomo.io.readers import open_tilt_series
from petomo.io.settings import DataSettings
from petomo.io.sources import open_source
from petomo.workflow.config import load_config

FLAT = COUNTS.reshape(15, 6, 8)
GIVEN = {
    "energy_kev": 200,
    "semiangle_mrad": 25,
    "scan_step_angstrom": [0.5, 0.25],
    "dk_per_angstrom": [0.05, 0.04],
    "stage_tilt_degree": [0],
}


def opened(folder, names, without=(), **settings):
    given = {key: value for key, value in GIVEN.items() if key not in without}
    return open_tilt_series(DataSettings(root=str(folder), tilts=[names], **(given | settings)))[0]


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_patterns(source, patterns=FLAT):
    """All patterns, and a few in no order with repeats."""
    np.testing.assert_array_equal(source.read(np.arange(15)), patterns)
    some = np.array([14, 2, 3, 3, 0, 9])
    np.testing.assert_array_equal(source.read(some), patterns[some])
    assert source.read(np.zeros(0, int)).shape == (0, *patterns.shape[1:])
    with pytest.raises(IndexError):
        source.read(np.array([15]))


def test_emd(tmp_path):
    emd(tmp_path / "a.h5")
    assert_patterns(open_source(tmp_path / "a.h5"))
    tilt = opened(tmp_path, "a.h5", ("scan_step_angstrom", "dk_per_angstrom"))
    assert tilt.scan_step == pytest.approx((0.5, 0.25))
    assert tilt.detector_sampling == pytest.approx((0.05, 0.04))
    message = refusal(opened, tmp_path, "a.h5", scan_step_angstrom=0.4)
    assert "the scale of axes dim0 and dim1 says 0.5 x 0.25" in message
    assert "data.scan_step_angstrom says 0.4 x 0.4" in message
    assert opened(tmp_path, "a.h5", scan_step_angstrom=0.4, override=True).scan_step == (0.4, 0.4)


def test_hspy_and_its_angles(tmp_path):
    hspy(tmp_path / "a.hspy")
    assert_patterns(open_source(tmp_path / "a.hspy"))
    tilt = opened(tmp_path, "a.hspy", GIVEN)
    assert (tilt.energy_ev, tilt.semiangle_mrad, tilt.scan_step) == (2e5, 25.0, (0.5, 0.25))
    assert math.degrees(tilt.stage_tilt) == pytest.approx(12.5)
    assert tilt.detector_sampling == pytest.approx((0.5e-3 / wavelength(2e5), 0.4e-3 / wavelength(2e5)))
    assert "Acquisition_instrument/TEM/tilt_alpha says 12.5" in refusal(
        opened, tmp_path, "a.hspy", GIVEN, stage_tilt_degree=[13]
    )
    assert opened(tmp_path, "a.hspy", GIVEN, stage_tilt_degree=[12.45]).stage_tilt == tilt.stage_tilt


def test_nexus_takes_the_signal(tmp_path):
    nexus(tmp_path / "a.nxs")
    assert_patterns(open_source(tmp_path / "a.nxs"))
    tilt = opened(tmp_path, "a.nxs", ("scan_step_angstrom", "dk_per_angstrom", "energy_kev"))
    assert (tilt.energy_ev, tilt.scan_step) == (3e5, (0.5, 0.25))
    assert tilt.detector_sampling == pytest.approx((0.05, 0.04))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_counted_electrons(tmp_path, frames):
    sparse(tmp_path / "a.h5", frames_per_position=frames)
    patterns = FLAT.copy()
    patterns[3] = 0
    source = open_source(tmp_path / "a.h5")
    assert source.array_shape == COUNTS.shape
    assert_patterns(source, patterns)


def test_counted_electrons_of_version_3(tmp_path):
    """Frames of a position lie together, and there is one scan position for all of them."""
    sparse(tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("electron_events")
        frames = group.create_dataset("frames", (12,), h5py.vlen_dtype(np.uint32))
        for number in range(12):
            frames[number] = np.array([number], np.uint32)
        frames.attrs.update({"Nx": 3, "Ny": 4})
        group["scan_positions"] = np.arange(6)
        group["scan_positions"].attrs.update({"Nx": 3, "Ny": 2})
    found = open_source(tmp_path / "a.h5").read(np.array([4]))
    np.testing.assert_array_equal(np.flatnonzero(found), [8, 9])


def test_damaged_electrons(tmp_path):
    sparse(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["electron_events/frames"][0] = np.array([48], np.uint32)
    assert "outside the 6 x 8 pixels" in refusal(open_source(tmp_path / "a.h5").read, np.arange(15))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["electron_events/scan_positions"][0] = 15
    assert "do not fit a scan of 3 x 5" in refusal(open_source, tmp_path / "a.h5")


@pytest.mark.parametrize("version", ["0.51", "1.2.2"])
@pytest.mark.parametrize("opened_by", ["acquisition.xml", "scan_x5_y3.raw"])
def test_empad(tmp_path, version, opened_by):
    patterns = empad(tmp_path, version=version).reshape(15, 128, 128)
    source = open_source(tmp_path / opened_by)
    assert source.array_shape == (3, 5, 128, 128)
    assert_patterns(source, patterns)
    assert source.attributes["energy_ev"] == 3e5
    if version == "0.51":
        tilt = opened(tmp_path, opened_by, ("energy_kev", "dk_per_angstrom"))
        assert tilt.detector_sampling == pytest.approx((0.42906574394e-3 / wavelength(3e5),) * 2)


def test_empad_without_xml_and_damaged(tmp_path):
    empad(tmp_path)
    (tmp_path / "acquisition.xml").unlink()
    assert open_source(tmp_path / "scan_x5_y3.raw").array_shape == (3, 5, 128, 128)
    (tmp_path / "scan_x5_y3.raw").rename(tmp_path / "scan.raw")
    assert open_source(tmp_path / "scan.raw").array_shape == (15, 128, 128)
    (tmp_path / "scan_x5_y4.raw").write_bytes((tmp_path / "scan.raw").read_bytes())
    assert "15 frames, but its name says 4 x 5" in refusal(open_source, tmp_path / "scan_x5_y4.raw")
    with open(tmp_path / "scan.raw", "ab") as file:
        file.write(b"0")
    assert "not whole EMPAD frames" in refusal(open_source, tmp_path / "scan.raw")
    (tmp_path / "a.xml").write_text('<root><raw_file filename="../../etc/passwd"/></root>')
    assert "passwd should lie beside it" in refusal(open_source, tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "b">]><root>&b;</root>')
    assert "declares XML entities" in refusal(open_source, tmp_path / "a.xml")


def test_dectris_master(tmp_path):
    dectris(tmp_path)
    patterns = FLAT.copy()
    patterns[:, 1, 2] = 0
    source = open_source(tmp_path / "scan_master.h5")
    assert_patterns(source, patterns)
    np.testing.assert_array_equal(np.argwhere(source.unrecorded), [[1, 2]])
    tilt = opened(tmp_path, "scan_master.h5", ("energy_kev",), scan_shape=[3, 5], pattern_shape=[6, 6])
    np.testing.assert_array_equal(np.argwhere(tilt.unmeasured_mask), [[1, 1]])
    tilt = opened(tmp_path, "scan_master.h5", ("energy_kev",), scan_shape=[3, 5])
    assert tilt.energy_ev == 8e4
    (tmp_path / "scan_data_000002.h5").unlink()
    assert "scan_data_000002.h5 should lie beside it" in refusal(open_source, tmp_path / "scan_master.h5")


def test_zspy(tmp_path):
    group = zarr.open_group(tmp_path / "a.zspy", mode="w", zarr_format=2)
    scan = group.create_group("Experiments/scan")
    scan.create_array("data", data=COUNTS, chunks=(1, 1, 6, 8))
    for number, (scale, unit) in enumerate(((0.5, "Å"), (0.25, "Å"), (0.05, "1/Å"), (0.04, "A^-1"))):
        scan.create_group(f"axis-{number}", attributes={"scale": scale, "units": unit, "name": str(number)})
    scan.create_group("metadata/Acquisition_instrument/TEM", attributes={"beam_energy": 60.0})
    tilt = opened(tmp_path, "a.zspy", ("scan_step_angstrom", "dk_per_angstrom", "energy_kev"))
    assert (tilt.energy_ev, tilt.scan_step, tilt.detector_sampling) == (6e4, (0.5, 0.25), (0.05, 0.04))
    assert_patterns(tilt.source)


META = {"k_max": [1.2, 1.25], "E_ev": 8e4, "alpha_rad": 0.025, "dr": [0.4, 0.41], "rotation_deg": None}


@pytest.mark.parametrize("kind", ["json2", "structured"])
def test_the_papers_archive(tmp_path, kind):
    meta = META if kind == "json2" else {key: value for key, value in META.items() if value is not None}
    paper_zip(tmp_path / "171.zip", meta=meta, kind=kind)
    assert_patterns(open_source(tmp_path / "171.zip"))
    tilt = opened(tmp_path, "171.zip", GIVEN, stage_tilt_degree=[5])
    assert (tilt.energy_ev, tilt.semiangle_mrad, tilt.scan_step) == (8e4, 25.0, (0.4, 0.41))
    assert tilt.pixel_size == pytest.approx((1 / 2.4, 1 / 2.5)), "the authors' 1 / (2 k_max)"
    assert "meta/k_max says" in refusal(opened, tmp_path, "171.zip", ("energy_kev", "scan_step_angstrom"))
    assert any("/meta: (1,)" in line for line in describe_file(tmp_path / "171.zip"))


def test_a_pickle_is_never_opened(tmp_path):
    paper_zip(tmp_path / "171.zip", meta=META, kind="pickle")
    assert_patterns(open_source(tmp_path / "171.zip"))
    message = refusal(opened, tmp_path, "171.zip", GIVEN)
    assert "meta is pickled" in message
    assert "data.energy_kev" in message
    assert opened(tmp_path, "171.zip").energy_ev == 2e5
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        with zipfile.ZipFile(tmp_path / "171.zip") as old:
            settings = json.loads(old.read("data/.zarray")) | {
                "filters": [{"id": "pickle"}],
                "compressor": None,
            }
            content = old.read("meta/0")
        archive.writestr("data/.zarray", json.dumps(settings))
        archive.writestr("data/0.0.0.0", content)
    assert "codec pickle, which petomo does not run" in refusal(open_source, tmp_path / "bad.zip")
    assert not (tmp_path / "171.ran").exists()
    with h5py.File(tmp_path / "a.hspy", "w") as file:
        file.create_dataset("Experiments/a/data", (1, 2, 3, 4), h5py.vlen_dtype(np.uint8))
    assert "should be integer or floating" in refusal(open_source, tmp_path / "a.hspy")


V3 = {"gzip": GzipCodec, "blosc": BloscCodec, "zstd": ZstdCodec}
TE = Path(__file__).parents[2] / "examples" / "te_paper.yaml"


def test_the_shipped_configuration_opens_the_papers_files(tmp_path):
    (tmp_path / "data").mkdir()
    names = [name.removesuffix(".zip") for name in load_config(TE).data.tilts]
    assert len(names) == 27
    k_max = 1 / (2 * 0.3986)
    rng = np.random.default_rng(0)
    for name in names:
        counts = rng.poisson(2, (4, 3, 66, 66)).astype(np.uint8)
        meta = {"k_max": [k_max, k_max], "dr": 0.3986, "E_ev": 80000.0, "alpha_rad": 0.025}
        paper_zip(tmp_path / "data" / f"{name}.zip", counts, meta)
    angles = np.linspace(-53, 52, 27, dtype=np.float32)
    np.save(tmp_path / "angles.npy", angles)
    overrides = [f"data.root={tmp_path / 'data'}", f"data.stage_tilt_degree={tmp_path / 'angles.npy'}"]
    series = open_tilt_series(load_config(TE, overrides).data)
    assert len(series) == 26
    assert "204.zip" not in [tilt.name for tilt in series]
    degrees = np.rad2deg(series.stage_tilts.numpy())
    np.testing.assert_allclose(degrees, np.delete(angles, 16), atol=1e-5)
    assert series[0].pixel_size == pytest.approx((0.3986, 0.3986))
    assert series[3].patterns([11]).shape == (1, 66, 66)


def test_windows(tmp_path):
    np.save(tmp_path / "a.npy", COUNTS)
    tilt = opened(tmp_path, "a.npy", scan_window=[1, 3, 2, 5], pattern_centre=[2, 5.6], pattern_shape=[4, 7])
    assert (tilt.scan_shape, tilt.pattern_shape) == ((2, 3), (4, 7))
    cut = COUNTS[1:3, 2:5].reshape(6, 6, 8)
    expected = np.zeros((6, 4, 7))
    expected[:, :, :5] = cut[:, 0:4, 3:8]  # pixel (2, 6) comes to (2, 3)
    np.testing.assert_array_equal(tilt.patterns(), expected)
    np.testing.assert_array_equal(tilt.patterns([4, 1]), expected[[4, 1]])
    wide = opened(tmp_path, "a.npy", pattern_shape=[9, 10]).patterns([0])[0]
    assert wide[4, 5] == COUNTS[0, 0, 3, 4], "the centre stays the centre, even or odd"
    assert wide.sum() == COUNTS[0, 0].sum()
    quiet = opened(tmp_path, "a.npy", zero_below_counts=2.0)
    np.testing.assert_array_equal(quiet.patterns(), np.where(FLAT < 2, 0, FLAT))
    for settings, words in (
        ({"scan_window": [0, 4, 0, 2]}, "the scan is 3 x 5, but data.scan_window"),
        ({"pattern_centre": [6, 0]}, "data.pattern_centre"),
        ({"pattern_shape": [100, 8]}, "data.pattern_shape"),
    ):
        assert words in refusal(opened, tmp_path, "a.npy", **settings)


@pytest.mark.parametrize(
    ("unit", "meaning"),
    [
        ("[n_m^-1]", ("frequency", 0.1)),
        ("[n_m]", ("length", 10.0)),
        ("1/nm", ("frequency", 0.1)),
        (b"A^-1", ("frequency", 1.0)),
        ("Å⁻¹", ("frequency", 1.0)),
        ("$A^{-1}$", ("frequency", 1.0)),
        ("µm", ("length", 1e4)),
        ("mrad", ("angle", 1.0)),
        ("rad", ("angle", 1e3)),
        ("pixels", None),
        ("", None),
        ("eV", None),
    ],
)
def test_units(unit, meaning):
    found = unit_factor(unit)
    assert (found and (found[0], pytest.approx(found[1]))) == meaning


def test_absurd_shapes_are_refused_before_anything_is_allocated(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (2**20, 2**20, 64, 64), np.uint16, chunks=(1, 1, 64, 64))
    assert "which no detector gives" in refusal(open_source, tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data", (1000, 1000, 256, 256), np.uint16, chunks=(1, 1, 256, 256))
    assert "holds hardly any" in refusal(open_source, tmp_path / "b.h5")
    for name, shape, chunks in (
        ("c", [9, 9, 2**14, 2**14], [1] * 4),
        ("d", [999, 999, 256, 256], [1, 1, 256, 256]),
    ):
        settings = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "<u2", "fill_value": 0}
        settings |= {"order": "C", "filters": None, "compressor": None}
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(".zarray", json.dumps(settings))
        assert "damaged" in refusal(open_source, tmp_path / f"{name}.zip")
    with open(tmp_path / "e.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (9,) * 4}
        )
        file.write(b"short")
    assert "not a readable NumPy array" in refusal(open_source, tmp_path / "e.npy")


def test_values_elsewhere_are_not_followed(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(2000))
    with h5py.File(tmp_path / "inside" / "a.h5", "w") as file:
        file.create_dataset("data", (3, 5, 6, 8), np.uint8, external=[("../secret.bin", 0, 1000)])
    assert "outside the folder" in refusal(open_source, tmp_path / "inside" / "a.h5")
    np.save(tmp_path / "outside.npy", COUNTS)
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["data"] = COUNTS
    layout = h5py.VirtualLayout(COUNTS.shape, COUNTS.dtype)
    layout[:] = h5py.VirtualSource(str(tmp_path / "outside.h5"), "data", COUNTS.shape)
    with h5py.File(tmp_path / "inside" / "b.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
        file["link"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "data")
    assert "outside the folder" in refusal(open_source, tmp_path / "inside" / "b.h5")
    assert "there is no dataset `link`" in refusal(open_source, tmp_path / "inside" / "b.h5", "link")


def zarr_settings(**changes):
    settings = {
        "zarr_format": 2,
        "shape": [3, 5, 6, 8],
        "chunks": [1, 5, 6, 8],
        "dtype": "<u2",
        "fill_value": 0,
    }
    return json.dumps(settings | {"order": "C", "filters": None, "compressor": None} | changes)


def test_blocks_that_swell_are_refused(tmp_path):
    bomb = bytes(2**26)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            "data", COUNTS.shape, COUNTS.dtype, chunks=(1, 5, 6, 8), compression="gzip"
        )
        data[:2] = COUNTS[:2]
        data.id.write_direct_chunk((2, 0, 0, 0), zlib.compress(bomb))
    blocks = {
        "zlib": zlib.compress(bomb),
        "gzip": gzip.compress(b"1") + gzip.compress(bomb),
        "blosc": bytes([2, 1, 1, 2]) + (2**26).to_bytes(4, "little") + bytes(5000),
        "zstd": b"\x28\xb5\x2f\xfd\xa0" + (2**26).to_bytes(4, "little") + bytes(5000),
        "bz2": bz2.compress(bomb) * 30,
        "": bomb,
    }
    for codec, block in blocks.items():
        with zipfile.ZipFile(tmp_path / f"{codec or 'deflated'}.zip", "w") as archive:
            archive.writestr(".zarray", zarr_settings(compressor={"id": codec} if codec else None))
            archive.writestr("2.0.0.0", block, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    for name in ("a.h5", *(f"{codec or 'deflated'}.zip" for codec in blocks)):
        source = open_source(tmp_path / name)
        assert source.read(np.array([0])).shape == (1, 6, 8)
        assert "unpacks to more" in refusal(source.read, np.array([4, 12])), name
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_honest_blocks_of_every_codec(tmp_path):
    for version, codecs in (
        (2, ("zlib", "gzip", "blosc", "zstd", "lz4", "bz2", "lzma")),
        (3, ("gzip", "blosc", "zstd")),
    ):
        for codec in codecs:
            path = tmp_path / f"{codec}{version}.zarr"
            compressor = numcodecs.get_codec({"id": codec}) if version == 2 else V3[codec]()
            many = np.random.default_rng(0).integers(0, 2**16, (2, 2, 96, 128), dtype=np.uint16)
            zarr.create_array(
                path, data=many, chunks=(1, 2, 96, 128), compressors=compressor, zarr_format=version
            )
            np.testing.assert_array_equal(
                open_source(path).read(np.array([3, 0])), many.reshape(4, 96, 128)[[3, 0]]
            )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=many, chunks=True, compression="gzip", shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(open_source(tmp_path / "a.h5").read(np.arange(4)), many.reshape(4, 96, 128))


def test_a_replaced_archive_is_read_anew(tmp_path):
    paper_zip(tmp_path / "a.zip")
    source = open_source(tmp_path / "a.zip")
    assert_patterns(source)
    paper_zip(tmp_path / "b.zip", COUNTS[::-1].copy(), {"k_max": 1.0})
    (tmp_path / "b.zip").replace(tmp_path / "a.zip")
    np.testing.assert_array_equal(source.read(np.array([0])), FLAT[10:11])


def test_info_says_what_was_found_under_other_names(tmp_path):
    hspy(tmp_path / "a.hspy")
    empad(tmp_path)
    np.save(tmp_path / "a.npy", COUNTS)
    (tmp_path / "a.mdoc").write_text("[ZValue = 0]\nTiltAngle = -3\n[ZValue = 1]\nTiltAngle = 4.5\n")
    lines = describe_file(tmp_path / "a.hspy")
    assert any(line.startswith("/Experiments/scan/data: (3, 5, 6, 8) uint16, chunks") for line in lines)
    assert "  energy_ev = 200000 (from Acquisition_instrument/TEM/beam_energy)" in lines
    assert "  energy_ev = 300000 (from XML element source.get_voltage)" in describe_file(
        tmp_path / "acquisition.xml"
    )
    assert describe_file(tmp_path / "a.npy") == ["read as (3, 5, 6, 8), 15 patterns of 6 x 8"]
    assert describe_file(tmp_path / "a.mdoc") == ["2 stage tilts from -3 to 4.5 degrees"]
    (tmp_path / "a.docx").write_bytes(b"0")
    assert "the format is not known" in refusal(describe_file, tmp_path / "a.docx")
