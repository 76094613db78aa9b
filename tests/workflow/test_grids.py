from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from petomo.core.dataset import ArraySource, FourDSTEM, TiltSeries
from petomo.core.errors import UserError
from petomo.physics.detector import from_fft_order
from petomo.workflow.config import Config
from petomo.workflow.grids import PatternReader, complex_dtype, make_loss, plan_grids, real_dtype, slicing
from petomo.workflow.step_end_to_end import checkerboard

CPU = torch.device("cpu")


def series(pattern=(12, 12), sampling=(0.1, 0.1), scan=(3, 4), step=(1.0, 2.0), tilts=2, dtype=np.uint16):
    draw = np.random.default_rng(0)
    return TiltSeries(
        tuple(
            FourDSTEM(
                ArraySource(draw.poisson(3, (scan[0] * scan[1], *pattern)).astype(dtype)),
                2e5, 25.0, scan, step, sampling, 0.3 * t, 40.0, name=str(t),
            )
            for t in range(tilts)
        )
    )  # fmt: skip


def config(**volume):
    return Config(volume=volume)


def test_the_voxel_is_the_detectors_pixel():
    grids = plan_grids(series(), Config())
    assert grids.window.shape == (12, 12)
    assert grids.voxel == pytest.approx(1 / (12 * 0.1))
    assert grids.thickness == pytest.approx(6.0), "as wide as the widest scan"
    assert grids.volume_shape == (7, *grids.field)
    reach = 2 * (0.61 * 0.025079 / 0.025 + 40 * 0.025) + 3
    for n, length in zip(grids.field, (2.0, 6.0), strict=True):
        assert length + reach - 0.5 < n * grids.voxel < length + reach + 1.5


@pytest.mark.parametrize(
    ("pattern", "sampling", "shape"),
    [
        ((10, 14), (0.1, 0.1), (14, 14)),  # same pixels, another shape: the shorter side grows
        ((10, 20), (0.2, 0.1), (10, 20)),  # pixels that are not square, but square in real space
        ((20, 20), (0.1, 0.05), (20, 40)),
        ((16, 16), (0.1, 0.097), (31, 32)),  # 3 % off: 31 and 32 pixels differ by 0.1 %
    ],
)
def test_other_detectors_are_extended_until_the_voxel_is_square(pattern, sampling, shape):
    grids = plan_grids(series(pattern, sampling), Config())
    assert grids.window.shape == shape
    assert all(n >= m for n, m in zip(shape, pattern, strict=True))
    for n, d in zip(shape, sampling, strict=True):
        assert 1 / (n * d) == pytest.approx(grids.voxel, rel=1.5e-3)


def test_no_extension_that_gains_nothing():
    assert plan_grids(series((16, 16), (0.1, 0.0995)), Config()).window.shape == (16, 16)


def test_a_finer_voxel_extends_the_detector():
    natural = 1 / 1.2
    grids = plan_grids(series(), config(voxel_angstrom=natural * 12 / 17))
    assert grids.window.shape == (17, 17)
    assert grids.voxel == pytest.approx(natural * 12 / 17)
    assert plan_grids(series(), config(voxel_angstrom=natural)).window.shape == (12, 12)
    odd = plan_grids(series(), config(voxel_angstrom=0.5))
    assert odd.window.shape == (20, 20)


@pytest.mark.parametrize("pattern", [(12, 12), (12, 20)])
def test_a_coarser_voxel_is_refused(pattern):
    with pytest.raises(UserError, match=r"volume.voxel_angstrom is 1.2, coarser than .* of 0\.\d+ angstrom"):
        plan_grids(series(pattern), config(voxel_angstrom=1.2))


def test_a_shape_or_thickness_is_kept_as_given():
    grids = plan_grids(series(), config(shape=[37, 41, 43]))
    assert grids.volume_shape == (37, 41, 43)
    assert grids.thickness == pytest.approx(37 * grids.voxel)
    grids = plan_grids(series(), config(thickness_angstrom=20.0))
    assert grids.thickness == 20.0
    assert grids.volume_shape[0] * grids.voxel == pytest.approx(20.0, abs=1.0)
    assert plan_grids(series(scan=(1, 1)), Config()).volume_shape[0] >= 1


def test_slices_cover_the_thickness():
    grids = plan_grids(series(), config(thickness_angstrom=20.0))
    settings = Config(volume={"thickness_angstrom": 20.0}, end_to_end={"slices": 7})
    assert slicing(series(), settings, grids) == (7, pytest.approx(20 / 7))
    settings = Config(end_to_end={"slice_thickness_angstrom": 6.0})
    assert slicing(series(), settings, grids) == (4, pytest.approx(5.0)), "never thicker than asked for"
    count, thickness = slicing(series(), Config(), grids)
    assert count * thickness == pytest.approx(20.0)
    assert thickness <= 1 / (3 * 0.025079 * 0.6**2)


@pytest.mark.parametrize("window", [(12, 10), (15, 16)])
def test_the_reader_gives_the_same_with_and_without_a_cache(window):
    data = series((12, 10))
    kept = PatternReader(data, window, CPU)
    lazy = PatternReader(data, window, CPU, cache_bytes=0.0)
    for tilt, index in ((1, [3, 0, 11]), (0, [5]), (1, [3])):
        a, b = (reader(tilt, torch.tensor(index)) for reader in (kept, lazy))
        assert torch.equal(a, b)
        assert torch.equal(from_fft_order(a, (12, 10)), torch.from_numpy(data[tilt].patterns(index)))
        assert a.shape[1:] == window
    for reader in (kept, lazy):
        mean = from_fft_order(reader.mean(1), (12, 10))
        torch.testing.assert_close(mean, torch.from_numpy(data[1].patterns().mean(0)))


def test_only_what_is_asked_for_is_read():
    class Counting(ArraySource):
        asked: list = []  # noqa: RUF012

        def read(self, indices):
            self.asked.append(len(indices))
            return super().read(indices)

    tilt = FourDSTEM(Counting(np.ones((12, 6, 6), np.uint8)), 2e5, 25.0, (3, 4), (1.0, 1.0), (0.1, 0.1))
    lazy = PatternReader(TiltSeries((tilt,)), (6, 6), CPU, cache_bytes=0.0)
    lazy(0, torch.tensor([1, 2]))
    lazy(0, torch.tensor([3]))
    assert Counting.asked == [2, 1]
    kept = PatternReader(TiltSeries((tilt,)), (6, 6), CPU)
    kept(0, torch.tensor([1, 2]))
    kept(0, torch.tensor([3]))
    assert Counting.asked == [2, 1, 12]


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_the_loss_is_blind_beyond_the_detector(name):
    data = series((10, 14))
    grids = plan_grids(data, Config())
    context = SimpleNamespace(series=data, device=CPU)
    loss = make_loss(context, grids, name)
    measured = PatternReader(data, grids.window.shape, CPU)(0, torch.tensor([0]))
    model = measured + 1
    value, slope = loss(model, measured)
    assert int((slope != 0).sum()) == 10 * 14
    assert torch.equal(loss(torch.where(slope != 0, model, model + 9), measured)[0], value)
    whole = series((12, 12))
    assert (
        make_loss(SimpleNamespace(series=whole, device=CPU), plan_grids(whole, Config()), name).mask is None
    )


@pytest.mark.parametrize("flip", [(False, False, False), (True, False, True)])
@pytest.mark.parametrize("shape", [(12, 12), (10, 14)])
def test_the_loss_is_blind_to_bad_pixels(shape, flip):
    data = series(shape)
    bad = tuple(replace(tilt, bad_pixels=((2, 3), (5, 7)), flip=flip) for tilt in data)
    data = TiltSeries(bad)
    grids = plan_grids(data, Config())
    mask = make_loss(SimpleNamespace(series=data, device=CPU), grids, "amplitude").mask
    assert int(mask.sum()) == shape[0] * shape[1] - 2
    marked = np.ones((1, *shape), np.float32)
    marked[0, 2, 3] = marked[0, 5, 7] = 0
    tilt = replace(data[0], source=ArraySource(np.repeat(marked, len(data[0]), 0)), bad_pixels=())
    seen = PatternReader(TiltSeries((tilt,)), grids.window.shape, CPU)(0, torch.tensor([0]))[0]
    assert torch.equal(mask, seen > 0)


@pytest.mark.parametrize("flip", [(False, False, False), (True, True, False), (True, False, True)])
@pytest.mark.parametrize(("shape", "wide"), [((12, 12), (24, 24)), ((11, 12), (24, 21))])
def test_the_loss_is_blind_to_padding(shape, wide, flip):
    """Zeros around a pattern are no measurement, and nor is what extends it for a finer voxel."""
    plain = series(shape)
    where = tuple(slice(w // 2 - n // 2, w // 2 - n // 2 + n) for w, n in zip(wide, shape, strict=True))
    unrecorded = np.ones(wide, bool)
    unrecorded[where] = False
    marked = np.repeat(~unrecorded[None], 12, 0).astype(np.uint16)
    data = TiltSeries(
        tuple(replace(t, source=ArraySource(marked), unrecorded=unrecorded, flip=flip) for t in plain)
    )
    grids = plan_grids(data, Config())
    mask = make_loss(SimpleNamespace(series=data, device=CPU), grids, "amplitude").mask
    assert int(mask.sum()) == shape[0] * shape[1]
    seen = PatternReader(data, grids.window.shape, CPU)(0, torch.tensor([0]))[0]
    assert torch.equal(mask, seen > 0)


def test_padding_is_the_same_as_a_finer_voxel():
    plain = series()
    full = [np.pad(t.source.read(np.arange(12)), ((0, 0), (6, 6), (6, 6))) for t in plain]
    border = np.pad(np.zeros((12, 12), bool), 6, constant_values=True)
    pairs = zip(plain, full, strict=True)
    padded = TiltSeries(tuple(replace(t, source=ArraySource(f), unrecorded=border) for t, f in pairs))
    assert padded[0].recorded_shape == (12, 12)
    assert padded[0].recorded_pixel_size == plain[0].pixel_size
    found = []
    for data, settings in ((padded, Config()), (plain, config(voxel_angstrom=plain[0].pixel_size[0] / 2))):
        grids = plan_grids(data, settings)
        loss = make_loss(SimpleNamespace(series=data, device=CPU), grids, "poisson")
        read = PatternReader(data, grids.window.shape, CPU)(1, torch.arange(12))
        found.append((grids, slicing(data, settings, grids), loss(torch.ones_like(read), read)))
    (*rest_a, loss_a), (*rest_b, loss_b) = found
    assert rest_a == rest_b
    assert all(torch.equal(x, y) for x, y in zip(loss_a, loss_b, strict=True))


def test_what_one_tilt_lacks_no_loss_counts():
    data, masks = series(), np.zeros((2, 12, 12), bool)
    masks[0, 0], masks[1, :, 0] = True, True
    data = TiltSeries(tuple(replace(t, unrecorded=m) for t, m in zip(data, masks, strict=True)))
    mask = make_loss(SimpleNamespace(series=data, device=CPU), plan_grids(data, Config()), "amplitude").mask
    assert int(mask.sum()) == 11 * 11


def test_number_types():
    assert (real_dtype(Config()), complex_dtype(Config())) == (torch.float32, torch.complex64)
    double = Config(compute={"precision": "float64"})
    assert (real_dtype(double), complex_dtype(double)) == (torch.float64, torch.complex128)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (1, 4)])
def test_a_checkerboard_has_no_neighbours_of_one_colour(shape):
    black, white = (checkerboard(shape, part) for part in (0, 1))
    assert sorted([*black.tolist(), *white.tolist()]) == list(range(shape[0] * shape[1]))
    assert abs(len(black) - len(white)) <= 1
    board = torch.zeros(shape[0] * shape[1])
    board[white] = 1
    board = board.view(shape)
    assert (board[:, 1:] != board[:, :-1]).all()
    assert (board[1:] != board[:-1]).all()
