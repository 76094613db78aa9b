import pytest
import torch

from petomo.physics.detector import detector_mask, from_fft_order, to_fft_order

SIZES = [((5, 6), (5, 6)), ((5, 6), (8, 9)), ((6, 5), (7, 12)), ((4, 4), (7, 6))]


@pytest.mark.parametrize(("recorded", "model"), SIZES)
def test_round_trip_with_extension(recorded, model):
    patterns = torch.rand(3, *recorded)
    there = to_fft_order(patterns, model)
    assert there.shape == (3, *model)
    torch.testing.assert_close(from_fft_order(there, recorded), patterns)
    assert there.sum() == pytest.approx(float(patterns.sum()))


@pytest.mark.parametrize(("recorded", "model"), SIZES)
def test_zero_frequency_comes_first(recorded, model):
    pattern = torch.zeros(recorded)
    pattern[recorded[0] // 2, recorded[1] // 2] = 1.0
    pattern[recorded[0] // 2 + 1, recorded[1] // 2 - 2] = 2.0
    there = to_fft_order(pattern, model)
    assert there[0, 0] == 1.0
    assert there[1, -2] == 2.0


@pytest.mark.parametrize(("recorded", "model"), SIZES)
def test_mask_knows_what_was_measured(recorded, model):
    bad = torch.zeros(recorded, dtype=torch.bool)
    bad[1, 2] = True
    mask = detector_mask(recorded, model, bad)
    assert mask.dtype == torch.bool
    assert mask.sum() == recorded[0] * recorded[1] - 1
    assert not from_fft_order(mask, recorded)[1, 2]
    assert detector_mask(recorded, model).sum() == recorded[0] * recorded[1]


def test_smaller_model_is_refused():
    with pytest.raises(ValueError, match="4 x 9 is smaller than the recorded 5 x 6"):
        to_fft_order(torch.zeros(5, 6), (4, 9))
