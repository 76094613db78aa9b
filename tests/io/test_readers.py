import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from petomo.core.errors import UserError
from petomo.io.angles import read_angles
from petomo.io.readers import find_tilts, open_tilt_series, validate_counts
from petomo.io.settings import DataSettings
from petomo.io.sources import FileSource, open_source

COUNTS = np.random.default_rng(0).poisson(3, (4, 5, 6, 7)).astype(np.uint16)
GIVEN = {
    "energy_kev": 200,
    "semiangle_mrad": 25,
    "scan_step_angstrom": [0.5, 0.75],
    "dk_per_angstrom": [0.05, 0.06],
    "stage_tilt_degree": [0],
}
ATTRIBUTES = {
    "energy_ev": 2e5,
    "semiangle_mrad": 25.0,
    "scan_step_angstrom": 1.5,
    "detector_sampling_inv_angstrom": 0.07,
    "nominal_defocus_angstrom": 60.0,
    "nominal_tilt_deg": -45.0,
    "dose_e_per_A2": 1.9e4,
}


def write_tilt(path, counts=COUNTS, **attributes):
    with h5py.File(path, "w") as file:
        file.create_dataset("counts", data=counts, chunks=(1, *counts.shape[1:]), compression="gzip")
        file.attrs.update(ATTRIBUTES | attributes)


def series_of(folder, count=3):
    for number in range(count):
        write_tilt(folder / f"tilt_{number:02d}.h5", nominal_tilt_deg=10.0 * number)
    return folder


def opened(folder, **settings):
    return open_tilt_series(DataSettings(root=str(folder), **settings))


def refusal(folder, **settings):
    with pytest.raises(UserError) as error:
        validate_counts(opened(folder, **settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_metadata_come_from_the_file(tmp_path):
    series = opened(series_of(tmp_path))
    tilt = series[2]
    assert [round(math.degrees(t.stage_tilt), 9) for t in series] == [0, 10, 20]
    assert (tilt.energy_ev, tilt.semiangle_mrad, tilt.defocus) == (2e5, 25.0, 60.0)
    assert (tilt.scan_shape, tilt.scan_step) == ((4, 5), (1.5, 1.5))
    assert tilt.detector_sampling == (0.07, 0.07)
    assert tilt.name == "tilt_02.h5"
    np.testing.assert_array_equal(tilt.patterns(), COUNTS.reshape(20, 6, 7))
    assert validate_counts(series) == [COUNTS.sum()] * 3


def test_settings_fill_in_what_is_missing(tmp_path):
    np.save(tmp_path / "a.npy", COUNTS)
    settings = GIVEN | {"scan_rotation_degree": 90, "flip": [True, False, True], "counts_per_electron": 2}
    tilt = opened(tmp_path, tilts="*.npy", **settings)[0]
    assert (tilt.energy_ev, tilt.scan_step) == (2e5, (0.5, 0.75))
    assert tilt.detector_sampling == (0.06, 0.05), "a transposed pattern has its sampling transposed"
    assert tilt.scan_rotation == pytest.approx(math.pi / 2)
    assert tilt.defocus is None
    mirrored = COUNTS[0, 3][[0, 5, 4, 3, 2, 1]]  # 6 rows: about row 3
    np.testing.assert_array_equal(tilt.patterns([3]), mirrored.T[None] / 2)


def test_bad_pixels_are_counted_as_stored(tmp_path):
    series_of(tmp_path)
    assert opened(tmp_path)[0].bad_pixels == ()
    assert opened(tmp_path, bad_pixels=[[2, 6], [0, 1]])[0].bad_pixels == ((2, 6), (0, 1))
    cut = {
        "pattern_centre": [2, 4.6],
        "pattern_shape": [4, 5],
        "bad_pixels": [[2, 5], [0, 3], [0, 2], [4, 5]],
    }
    tilt = opened(tmp_path, **cut)[0]
    assert tilt.bad_pixels == ((2, 2), (0, 0)), "the beam's pixel is the middle one; others are cut off"
    assert tilt.patterns().shape == (20, 4, 5)
    for pixel in ([6, 0], [0, 7]):
        with pytest.raises(UserError, match=r"tilt_00.h5: data.bad_pixels names .* have 6 x 7 pixels"):
            opened(tmp_path, bad_pixels=[pixel])
    with pytest.raises(UserError, match=r"names 24 of 42 detector pixels"):
        opened(tmp_path, bad_pixels=[[y, x] for y in range(4) for x in range(6)])


def test_a_window_says_what_lies_beyond_the_detector(tmp_path):
    series_of(tmp_path)
    assert opened(tmp_path)[0].unrecorded is None
    assert opened(tmp_path, pattern_shape=[4, 5])[0].unrecorded is None
    tilt = opened(tmp_path, pattern_centre=[2, 4], pattern_shape=[9, 8], bad_pixels=[[2, 6]])[0]
    expected = np.ones((9, 8), bool)  # 6 x 7 pixels, (2, 4) goes to (4, 4)
    expected[2:8, 0:7] = False
    np.testing.assert_array_equal(tilt.unrecorded, expected)
    assert not tilt.source.read(np.arange(20))[:, expected].any()
    assert tilt.recorded_shape == (7, 8)
    expected[4, 6] = True
    np.testing.assert_array_equal(tilt.unmeasured_mask, expected)
    wide = {"pattern_shape": [12, 14], "bad_pixels": [[y, x] for y in range(4) for x in range(6)]}
    with pytest.raises(UserError, match=r"names 24 of 42 detector pixels"):
        opened(tmp_path, **wide)


def test_a_pixel_named_bad_may_hold_anything(tmp_path):
    counts = COUNTS.astype(np.float32)
    counts[:, :, 1, 3] = np.nan
    np.save(tmp_path / "a.npy", counts)
    settings = GIVEN | {"tilts": "*.npy", "bad_pixels": [[1, 3]]}
    assert np.isfinite(validate_counts(opened(tmp_path, **settings))).all()


def test_the_three_ways_to_give_the_sampling(tmp_path):
    np.save(tmp_path / "a.npy", COUNTS)
    given = GIVEN | {"tilts": "*.npy"}
    del given["dk_per_angstrom"]
    mrad = opened(tmp_path, **given, diffraction_step_mrad=1.0)[0].detector_sampling
    assert mrad == pytest.approx((1e-3 / 0.0250793,) * 2, rel=1e-5)
    pixel = opened(tmp_path, **given, real_pixel_angstrom=[0.3, 0.4])[0]
    assert pixel.pixel_size == pytest.approx((0.3, 0.4))


def write_layout(folder, layout):
    """The same counts in every layout; returns the settings that open them."""
    if layout == "hdf5":
        write_tilt(folder / "a.h5")
        return {"tilts": "a.h5"}
    if layout == "hdf5 dataset":
        with h5py.File(folder / "a.hdf5", "w") as file:
            file["entry/data"], file["entry/other"], file["mask"] = COUNTS, COUNTS[:2], np.zeros((6, 7))
        return {"tilts": "a.hdf5", "dataset": "/entry/data"}
    if layout == "hdf5 list":
        with h5py.File(folder / "a.h5", "w") as file:
            file["data"] = COUNTS.reshape(20, 6, 7)
        return {"tilts": "a.h5", "scan_shape": [4, 5]}
    if layout == "npy":
        np.save(folder / "a.npy", COUNTS)
        return {"tilts": "a.npy"}
    if layout == "npy fortran":
        np.save(folder / "a.npy", np.asfortranarray(COUNTS))
        return {"tilts": "a.npy"}
    version = int(layout[5])
    store = ZipStore(folder / "a.zip", mode="w") if "zip" in layout else folder / "a.zarr"
    group = zarr.open_group(store, mode="w", zarr_format=version, attributes={"semiangle_mrad": 25})
    array = group.create_array("sub/data", shape=COUNTS.shape, dtype=COUNTS.dtype, chunks=(1, 5, 6, 7))
    array[:] = COUNTS
    if "zip" in layout:
        store.close()
    return {"tilts": "a.zip" if "zip" in layout else "a.zarr"} | (
        {"dataset": "sub/data"} if version == 2 else {}
    )


LAYOUTS = [
    "hdf5",
    "hdf5 dataset",
    "hdf5 list",
    "npy",
    "npy fortran",
    "zarr 2",
    "zarr 3",
    "zarr 2 zip",
    "zarr 3 zip",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_patterns(tmp_path, layout):
    layout_settings = write_layout(tmp_path, layout)
    settings = ({} if layout == "hdf5" else GIVEN) | layout_settings
    tilt = opened(tmp_path, **settings)[0]
    flat = COUNTS.reshape(20, 6, 7)
    assert tilt.scan_shape == (4, 5)
    np.testing.assert_array_equal(tilt.patterns(), flat)
    for indices in ([17, 3, 4, 5, 3], [19], [], [9, 8, 10], np.arange(20)[::-1]):
        np.testing.assert_array_equal(tilt.patterns(np.array(indices, int)), flat[np.array(indices, int)])
    with pytest.raises(IndexError):
        tilt.patterns(np.array([20]))


def test_zarr_root_arrays(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", COUNTS, zarr_format=2)
    np.testing.assert_array_equal(
        opened(tmp_path, tilts="*.zarr", **GIVEN)[0].patterns([7]), COUNTS[1, 2][None]
    )


def test_only_what_is_asked_for_is_read():
    """A counting array stands in for the file."""
    from contextlib import nullcontext

    class Counting:
        dtype, read = COUNTS.dtype, 0

        def __getitem__(self, where):
            block = COUNTS[where]
            Counting.read += len(block)
            return block

    source = FileSource(lambda: nullcontext(Counting()), COUNTS.shape)
    out = source.read(np.array([12, 3, 4, 12, 5]))
    np.testing.assert_array_equal(out, COUNTS.reshape(20, 6, 7)[[12, 3, 4, 12, 5]])
    assert Counting.read == 4, "three neighbours across a row's end and one more, each once"


def test_opening_reads_no_pattern(tmp_path):
    """A contiguous file cut short behind its header still opens; reading then fails."""
    path = tmp_path / "a.npy"
    np.save(path, COUNTS)
    series = opened(tmp_path, tilts="*.npy", **GIVEN)
    path.unlink()
    with pytest.raises(UserError, match="no longer there"):
        series[0].patterns([0])


def test_numbers_in_names_count_as_numbers(tmp_path):
    for number in (10, 2, 1, 0):
        write_tilt(tmp_path / f"tilt_{number}.h5")
    assert [path.name for path in find_tilts(DataSettings(root=str(tmp_path)))] == [
        f"tilt_{number}.h5" for number in (0, 1, 2, 10)
    ]


def test_excluding_and_listing(tmp_path):
    series_of(tmp_path, 4)
    assert [t.name for t in opened(tmp_path, exclude=[1, 3])] == ["tilt_00.h5", "tilt_02.h5"]
    assert [t.name for t in opened(tmp_path, tilts=["tilt_02.h5", "tilt_01.h5"])] == [
        "tilt_01.h5",
        "tilt_02.h5",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.tlt", " -3\n 0.5\n\n 12\n"), ("a.rawtlt", "-3 0.5 12"), ("a.json", "[-3, 0.5, 12]")],
)
def test_angle_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_angles(tmp_path / name) == [-3, 0.5, 12]
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", COUNTS)
    settings = GIVEN | {"tilts": "*.npy", "stage_tilt_degree": str(tmp_path / name), "exclude": [0]}
    assert [math.degrees(t.stage_tilt) for t in opened(tmp_path, **settings)] == pytest.approx([0.5, 12])


@pytest.mark.parametrize("text", ["-3\nfour\n", "nan", '{"a": 1}x', "1 inf"])
def test_bad_angle_files(tmp_path, text):
    (tmp_path / "a.tlt").write_text(text)
    with pytest.raises(UserError, match="angle"):
        read_angles(tmp_path / "a.tlt")


@pytest.mark.parametrize(
    ("settings", "both"),
    [
        ({"energy_kev": 300}, ("200000", "300")),
        ({"semiangle_mrad": 30}, ("25", "30")),
        ({"scan_step_angstrom": [1.5, 1.6]}, ("1.5", "1.5 x 1.6")),
        ({"dk_per_angstrom": 0.08}, ("0.07", "0.08")),
        ({"real_pixel_angstrom": 1.0}, ("0.07", "0.166667 x 0.142857")),
        ({"defocus_angstrom": -60}, ("60", "-60")),
        ({"stage_tilt_degree": [0, 10, 21]}, ("20", "21")),
        ({"scan_shape": [5, 4]}, ("4 x 5", "5 x 4")),
    ],
)
def test_a_contradiction_names_both(tmp_path, settings, both):
    message = refusal(series_of(tmp_path), **settings)
    key = next(iter(settings))
    assert f"data.{key}" in message
    assert all(value in message for value in both), message


def test_agreement_up_to_rounding_is_no_contradiction(tmp_path):
    series = opened(series_of(tmp_path), dk_per_angstrom=0.07003, stage_tilt_degree=[0, 10, 20])
    assert series[0].detector_sampling == (0.07, 0.07), "the file's value is kept"


def test_missing_pieces_are_sentences(tmp_path):
    assert "there is no such folder" in refusal(tmp_path / "no")
    assert "no file matches data.tilts `*.h5`" in refusal(tmp_path)
    series_of(tmp_path)
    assert "nope.h5: there is no such file" in refusal(tmp_path, tilts=["tilt_00.h5", "nope.h5"])
    assert "at least one file" in refusal(tmp_path, tilts=[])
    assert "has 2 angles for 3 tilt files" in refusal(tmp_path, stage_tilt_degree=[0, 10])
    assert "names tilt 3, but the tilts are 0 to 2" in refusal(tmp_path, exclude=[3])
    assert "leaves no tilt" in refusal(tmp_path, exclude=[0, 1, 2])
    message = refusal(tmp_path, dataset="/data")
    assert "tilt_00.h5: there is no dataset `/data`" in message
    assert "counts (4, 5, 6, 7)" in message


@pytest.mark.parametrize("key", [*GIVEN])
def test_missing_metadata_name_the_setting(tmp_path, key):
    np.save(tmp_path / "a.npy", COUNTS)
    settings = {name: value for name, value in GIVEN.items() if name != key}
    assert f"give data.{key}" in refusal(tmp_path, tilts="*.npy", **settings)


def test_shapes_that_do_not_fit(tmp_path):
    series_of(tmp_path)
    write_tilt(tmp_path / "tilt_01.h5", COUNTS[..., :-1], nominal_tilt_deg=10.0)
    message = refusal(tmp_path)
    assert (
        "tilt_01.h5: this tilt has patterns of 6 x 6 pixels, but tilt_00.h5 has patterns of 6 x 7" in message
    )
    assert len(opened(tmp_path, exclude=[1])) == 2

    with h5py.File(tmp_path / "list.h5", "w") as file:
        file["data"], file["flat"] = COUNTS.reshape(20, 6, 7), np.zeros((6, 7))
    listed = GIVEN | {"tilts": "list.h5"}
    assert "give data.scan_shape" in refusal(tmp_path, **listed)
    assert "20 patterns do not fill the 4 x 6" in refusal(tmp_path, **listed, scan_shape=[4, 6])
    assert "has shape (6, 7), but should have three or four axes" in refusal(
        tmp_path, **listed, dataset="flat"
    )

    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = COUNTS, COUNTS
    message = refusal(tmp_path, **(GIVEN | {"tilts": "two.h5"}))
    assert "several datasets" in message
    assert "a (4, 5, 6, 7), b (4, 5, 6, 7)" in message


def test_different_energy_in_one_tilt(tmp_path):
    write_tilt(series_of(tmp_path) / "tilt_02.h5", energy_ev=3e5)
    assert "tilt_02.h5: this tilt has a beam energy of 300000 eV" in refusal(tmp_path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"energy_ev": -1.0},
        {"energy_ev": "fast"},
        {"scan_step_angstrom": [1, 2, 3]},
        {"semiangle_mrad": math.nan},
    ],
)
def test_senseless_attributes(tmp_path, attributes):
    write_tilt(tmp_path / "a.h5", **attributes)
    assert f"attribute {next(iter(attributes))} is" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1.0, "holds a negative count"),
        (math.nan, "holds a count that is not a finite number"),
        (math.inf, "holds a count that is not a finite number"),
    ],
)
def test_impossible_counts(tmp_path, value, words):
    series_of(tmp_path)
    counts = COUNTS.astype(np.float32)
    counts[2, 3, 1, 1] = value
    write_tilt(tmp_path / "tilt_01.h5", counts, nominal_tilt_deg=10.0)
    message = refusal(tmp_path)
    assert message.startswith("tilt_01.h5: the pattern at scan y 2, x 3 ")
    assert words in message


def test_impossible_counts_are_found_in_any_block(tmp_path):
    counts = COUNTS.astype(np.float64)
    counts[3, 4, -1, -1] = -0.25
    write_tilt(tmp_path / "a.h5", counts)
    with pytest.raises(UserError, match="scan y 3, x 4"):
        validate_counts(opened(tmp_path), block_bytes=3 * 6 * 7 * 4)


def test_a_tilt_without_counts(tmp_path):
    write_tilt(series_of(tmp_path) / "tilt_02.h5", np.zeros_like(COUNTS), nominal_tilt_deg=20.0)
    assert "tilt_02.h5: every count is zero" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [np.complex64, "S3", bool])
def test_patterns_must_be_numbers(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 3, 3), kind))
    assert "integer or floating point counts" in refusal(tmp_path, tilts="*.npy", **GIVEN)


def test_files_that_are_not_what_they_say(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    for name in ("bad.h5", "bad.zip", "bad.npy", "bad.xyz"):
        (tmp_path / name).write_bytes(b"nonsense" * 100)
    (tmp_path / "bad.zarr").mkdir()
    for name, words in {
        "pickle.npy": "not a readable NumPy array",
        "bad.npy": "not a readable NumPy array",
        "bad.h5": "not a readable HDF5",
        "bad.zip": "not a readable Zarr",
        "bad.zarr": "not a readable Zarr",
        "bad.xyz": "the format .xyz is not known",
    }.items():
        with pytest.raises(UserError, match=words):
            open_source(tmp_path / name)
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(UserError, match="no dataset with three or four axes"):
        open_source(tmp_path / "none.h5")


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the independent simulations are not beside this checkout")
def test_independent_simulation_opens():
    data = DataSettings(root=str(SHARED / "sim_tiny_13"))
    assert len(find_tilts(data)) == 13
    series = open_tilt_series(data)
    assert series[0].pixel_size == pytest.approx((0.3, 0.3))
    assert validate_counts(series)[0] / series[0].scan_area == pytest.approx(1.9e4, rel=0.01)
