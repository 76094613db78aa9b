"""Real files of instruments and other programs, kept beside the checkout; skipped where they are not."""

import numpy as np
import pytest

from petomo.core.errors import UserError
from petomo.io.angles import read_angles
from petomo.io.sources import open_source


@pytest.fixture
def formats(shared_data):
    folder = shared_data / "formats"
    if not folder.is_dir():
        pytest.skip(f"no format samples at {folder}")
    return folder


CORE = {
    "readers_rosettasciio/py4DSTEM_size2x3x4x5.h5": ((2, 3, 4, 5), 1.26796875, 0.0442515666),
    "readers_rosettasciio/simple_signal.nxs": ((15, 1, 40, 40), None, None),
}
NEED_FILTER = {
    "readers_quantem_gpu/fixture_data_000001.h5": (1, 64, 64),
    "readers_quantem_gpu/fixture_master.h5": (1, 64, 64),
    "readers_rosettasciio/test_00_master.h5": (16, 192, 192),
}
VENDOR = {
    "mib/001_4x2_6bit.mib": (2, 4, 256, 256),
    "mib/002_4x2_6bit_roi128.mib": (2, 4, 128, 256),
    "mib/Single_9_Frame_CounterDepth_12_Rows_256.mib": (9, 256, 256),
    "test1.blo": (3, 2, 144, 144),
    "test2.blo": (2, 3, 5, 5),
    "test_tvips_2233_000.tvips": (4, 3, 3),
    "EELS_SI.dm4": (2048, 2, 2),
    "fei_example_tem_stack.emd": (2, 3, 3),
}
REFUSED = {
    "readers_rosettasciio/mib/Single_1_Frame_CounterDepth_1_Rows_256RAW.mib": "RAW MIB data not supported",
    "readers_rosettasciio/mib/Single_1_Frame_CounterDepth_24_Rows_256.mib": "0 of the signals",
    "readers_rosettasciio/test-3.dm4": "complex64",
    "readers_rosettasciio/map4x4.xml": "scan_x4_y4.raw should lie beside it",
    "readers_rosettasciio/EMPAD_v1.2.2_x32_y64_size0.8.xml": "scan_x32_y64.raw should lie beside it",
    "readers_quantem_gpu/fixture_velox.emd": "RosettaSciIO's emd cannot read this",
    "readers_openncem/Acquisition_18.emd": "three or four axes",
    "readers_openncem/au_145mm_68kx_microprobe_01_master.h5": "_data_000001.h5 should lie beside it",
    "readers_rosettasciio/Si100_4D.emd": "several datasets",
    "readers_rosettasciio/example2_v3.1.hspy": "no dataset with three or four axes",
    "tilt_etspy/BF_001.dm3": "0 of the signals",
}


def read_ends(source):
    """First and last pattern, together and alone."""
    last = source.shape[0] - 1
    both = source.read(np.array([last, 0]))
    np.testing.assert_array_equal(both[:1], source.read(np.array([last])))
    return both


@pytest.mark.parametrize("name", CORE)
def test_core(formats, name):
    shape, step, sampling = CORE[name]
    source = open_source(formats / name)
    assert source.array_shape == shape
    assert np.isfinite(read_ends(source)).all()
    if step is not None:
        assert source.attributes["scan_step_angstrom"] == pytest.approx([step] * 2)
        assert source.attributes["detector_sampling_inv_angstrom"] == pytest.approx([sampling] * 2)


def test_prismatic_writes_angstrom_and_calls_them_nanometres(formats):
    path = formats / "readers_rosettasciio" / "Si100_4D.emd"
    source = open_source(path, "4DSTEM_simulation/data/datacubes/CBED_array_depth0001/datacube")
    found = source.attributes
    assert (source.array_shape, found["scan_step_angstrom"]) == ((11, 11, 8, 8), [0.5, 0.5])
    assert found["detector_sampling_inv_angstrom"] == pytest.approx([1 / 5.43] * 2, rel=1e-4), (
        "the cell of Si"
    )
    assert (found["energy_ev"], found["semiangle_mrad"]) == (1e5, 30.0)


@pytest.mark.parametrize("name", NEED_FILTER)
def test_dectris(formats, name):
    pytest.importorskip("hdf5plugin", reason="needs the extra readers")
    source = open_source(formats / name)
    assert source.array_shape == NEED_FILTER[name]
    assert np.isfinite(read_ends(source)).all()


@pytest.mark.parametrize("name", VENDOR)
def test_vendors(formats, name):
    pytest.importorskip("rsciio", reason="needs the extra readers")
    source = open_source(formats / "readers_rosettasciio" / name)
    assert source.array_shape == VENDOR[name]
    assert read_ends(source).sum() > 0
    if name.endswith(".tvips"):
        assert source.attributes["energy_ev"] == 2e5


def test_a_lazy_read_is_what_a_whole_read_gives(formats):
    rsciio = pytest.importorskip("rsciio.quantumdetector", reason="needs the extra readers")
    path = formats / "readers_rosettasciio" / "mib" / "002_4x2_6bit_roi128.mib"
    (whole,) = rsciio.file_reader(str(path))
    some = np.array([5, 0, 6, 6])
    np.testing.assert_array_equal(open_source(path).read(some), whole["data"].reshape(8, 128, 256)[some])


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_sentences(formats, name):
    pytest.importorskip("rsciio", reason="needs the extra readers")
    with pytest.raises(UserError) as error:
        open_source(formats / name)
    assert REFUSED[name] in str(error.value)
    assert "\n" not in str(error.value)


def test_angles(formats):
    assert read_angles(formats / "tilt_etspy" / "HAADF.rawtlt")[:3] == [-76, -74, -72]
    assert read_angles(formats / "tilt_etspy" / "test_001.mdoc") == [5.00054, 5.00054]
