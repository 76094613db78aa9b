import math

import numpy as np
import pytest
import torch

from petomo.core.dataset import ArraySource, FourDSTEM, TiltSeries, mirrored, scan_positions


class CountingSource:
    """Remembers which patterns were asked for."""

    def __init__(self, array):
        self.array, self.read_indices = array, []

    @property
    def shape(self):
        return self.array.shape

    def read(self, indices):
        self.read_indices += list(indices)
        return self.array[indices]


def dataset(source=None, **changes):
    array = np.arange(6 * 4 * 5, dtype=np.uint16).reshape(6, 4, 5)
    args = {
        "energy_ev": 200e3,
        "semiangle_mrad": 25.0,
        "scan_shape": (2, 3),
        "scan_step": (0.5, 0.4),
        "detector_sampling": (0.1, 0.2),
        "name": "tilt_00",
    }
    return FourDSTEM(source or ArraySource(array), **{**args, **changes})


def test_only_the_patterns_asked_for_are_read():
    source = CountingSource(np.zeros((6, 4, 5), np.uint16))
    data = dataset(source)
    assert (len(data), data.pattern_shape, data.pixel_size) == (6, (4, 5), (2.5, 1.0))
    assert source.read_indices == []
    assert data.patterns([4, 1]).shape == (2, 4, 5)
    data.patterns(slice(2, 3))
    assert source.read_indices == [4, 1, 2]


def test_patterns_come_in_the_order_asked_for_as_electrons():
    data = dataset(counts_per_electron=4.0)
    out = data.patterns(np.array([3, 0]))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, data.source.array[[3, 0]] / 4.0)
    assert data.patterns().shape == (6, 4, 5)


FLIPS = [(u, left, t) for u in (False, True) for left in (False, True) for t in (False, True)]


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("shape", [(5, 7), (4, 5), (6, 4)])
def test_flips_turn_frequencies_about_the_middle_pixel(shape, flip):
    """Every frequency lands where the mirrored one was, and zero stays at n // 2."""
    ky, kx = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    labels = np.stack([ky + 10 * kx + 100] * 6)  # every pixel says which frequency it is
    data = dataset(ArraySource(labels), flip=flip)
    out = data.patterns([2])[0]
    assert out.shape == data.pattern_shape
    assert out[out.shape[0] // 2, out.shape[1] // 2] == 100
    ky, kx = np.meshgrid(*(np.arange(n) - n // 2 for n in out.shape), indexing="ij")
    y, x = (kx, ky) if flip[2] else (ky, kx)
    y, x = -y if flip[0] else y, -x if flip[1] else x
    within = (y < (shape[0] + 1) // 2) & (x < (shape[1] + 1) // 2)  # the Nyquist frequency has one sign only
    assert within.mean() > 0.5
    np.testing.assert_array_equal(out[within], (y + 10 * x + 100)[within])


def test_a_mirror_keeps_all_pixels_and_undoes_itself():
    a = np.arange(60).reshape(3, 4, 5)
    for axis in range(3):
        once = mirrored(a, axis)
        assert sorted(once.ravel()) == sorted(a.ravel())
        np.testing.assert_array_equal(mirrored(once, axis), a)


@pytest.mark.parametrize("flip", FLIPS)
def test_bad_pixels_are_mended_and_masked_where_they_are_stored(flip):
    array = np.full((6, 6, 9), 3.0)
    array += np.arange(6)[:, None, None]
    good = dataset(ArraySource(array.copy()), flip=flip)
    assert good.bad_pixel_mask is None
    array[:, 1, 2], array[:, 5, 8], array[:, 5, 7] = 900, np.nan, -4
    spoilt = dataset(
        ArraySource(array), flip=flip, counts_per_electron=2.0, bad_pixels=((1, 2), (5, 8), (5, 7))
    )
    np.testing.assert_array_equal(spoilt.patterns([4, 0]), good.patterns([4, 0]) / 2)
    seen = dataset(ArraySource(array), flip=flip).patterns([0])[0] != 3
    np.testing.assert_array_equal(spoilt.bad_pixel_mask, seen)


@pytest.mark.parametrize("flip", FLIPS)
def test_a_bad_pixel_is_not_mended_from_padding(flip):
    array, unrecorded = np.zeros((6, 6, 9)), np.ones((6, 9), bool)
    array[:, 2:4, 4:6], unrecorded[2:4, 4:6] = 7.0, False
    good = dataset(ArraySource(array.copy()), flip=flip)
    array[:, 3, 5] = np.nan
    spoilt = dataset(ArraySource(array), flip=flip, bad_pixels=((3, 5),), unrecorded=unrecorded)
    np.testing.assert_array_equal(spoilt.patterns(), good.patterns())
    np.testing.assert_array_equal(~spoilt.unmeasured_mask, (good.patterns()[0] > 0) & ~spoilt.bad_pixel_mask)


def test_a_bad_pixel_without_good_neighbours_is_zero():
    array = np.full((6, 2, 3), 7.0)
    every = tuple((y, x) for y in range(2) for x in range(3))
    assert not dataset(ArraySource(array), bad_pixels=every).patterns().any()


def test_nyquist_is_the_detectors_edge():
    data = dataset(flip=(False, False, True))  # (ky, kx) = (5, 4) after the transpose
    assert data.pixel_size == (1 / (5 * 0.1), 1 / (4 * 0.2))


def test_positions_are_x_y_row_by_row():
    p = dataset().positions()
    assert p.dtype == torch.float64
    np.testing.assert_allclose(p[:3, 0], [-0.4, 0.0, 0.4], atol=1e-12)
    np.testing.assert_allclose(p[:, 1], [-0.25] * 3 + [0.25] * 3)


def test_scan_rotation_turns_the_fast_axis_towards_y():
    p = scan_positions((1, 3), (1.0, 1.0), math.radians(30))
    np.testing.assert_allclose(p[2], [math.cos(math.radians(30)), 0.5], atol=1e-12)
    assert dataset(scan_rotation=0.3).positions()[0, 0] != dataset().positions()[0, 0]


def test_scanned_area():
    assert dataset().scan_area == pytest.approx(6 * 0.5 * 0.4)


def test_patterns_must_fill_the_scan():
    with pytest.raises(ValueError, match=r"tilt_00: 6 patterns do not fill a scan of 2 x 4"):
        dataset(scan_shape=(2, 4))


def test_series_keeps_order_and_angles():
    series = TiltSeries((dataset(stage_tilt=0.3), dataset(stage_tilt=-0.1)))
    assert series.stage_tilts.tolist() == [0.3, -0.1]
    assert [t.stage_tilt for t in series] == [0.3, -0.1]
    assert len(series) == 2
    assert series[1].stage_tilt == -0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"source": ArraySource(np.zeros((6, 4, 4)))},
            r"tilt_07: pattern_shape is \(4, 4\), but tilt_00 has \(4, 5\)",
        ),
        ({"energy_ev": 1e5}, "tilt_07: energy_ev is"),
        ({"detector_sampling": (0.1, 0.1)}, "tilt_07: detector_sampling is"),
    ],
)
def test_tilts_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TiltSeries((dataset(), dataset(name="tilt_07", **change)))


def test_empty_series():
    with pytest.raises(ValueError, match="at least one tilt"):
        TiltSeries(())
