import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_gradients
from petomo.objectives.losses import LOSSES, Amplitude, Poisson


def intensities(k=3, ky=5, kx=4, scale=3.0):
    return (scale * torch.rand(2, k, ky, kx, dtype=torch.float64)).unbind()


def test_values_by_hand():
    model, data = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[8.0, 0.0]]])
    assert Amplitude(1.0)(model, data)[0].tolist() == pytest.approx([1.0])
    expected = 4 - 9 - 9 * torch.log(torch.tensor(4 / 9))
    assert Poisson(1.0)(model, data)[0].item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("loss", [Amplitude(), Poisson(), Amplitude(0.5), Poisson(0.5)])
def test_derivative_belongs_to_the_value(loss):
    model, data = intensities()
    leaf = model.clone().requires_grad_()
    value, slope = loss(leaf, data)
    assert value.shape == (3,)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), leaf)[0], slope.detach())
    assert_gradients(lambda m: loss(m, data)[0], leaf)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 1e4))
def test_never_negative_and_zero_at_the_truth(name, seed, scale):
    torch.manual_seed(seed)
    model, data = intensities(scale=scale)
    loss = LOSSES[name]()
    assert (loss(model, data)[0] >= 0).all()
    value, slope = loss(data, data)
    assert value.abs().max() < 1e-9
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_inputs_are_left_alone_and_darkness_is_finite(name):
    model, data = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    data[0, 1, 1] = 2.0
    copies = model.clone(), data.clone()
    value, slope = LOSSES[name]()(model, data)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert torch.equal(model, copies[0])
    assert torch.equal(data, copies[1])


@pytest.mark.parametrize("name", LOSSES)
def test_mask_leaves_pixels_out(name):
    model, data = intensities()
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[1, 2] = mask[4, 0] = False
    value, slope = LOSSES[name](mask=mask)(model, data)
    inside = torch.where(mask, data, model)  # pixels outside the mask fit perfectly
    torch.testing.assert_close(value, LOSSES[name]()(torch.where(mask, model, inside), inside)[0])
    assert not slope[:, 1, 2].any()
    assert slope[:, 0, 0].all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dose", [0.02, 0.7, 30.0, 5e3])
@pytest.mark.parametrize("masked", [False, True])
def test_noise_floor_is_what_poisson_counts_give(name, dose, masked):
    expected = dose * (0.2 + torch.rand(12, 10, dtype=torch.float64))
    mask = torch.rand(12, 10) > 0.3 if masked else None
    loss = LOSSES[name](mask=mask)
    counts = torch.poisson(expected.expand(4000, -1, -1))
    value = loss(expected.expand(4000, -1, -1), counts)[0]
    standard_error = float(value.std()) / 4000**0.5
    floor = float(loss.noise_floor(expected[None]))
    assert floor == pytest.approx(float(value.mean()), abs=4.5 * standard_error + 2e-3 * floor)


def test_noise_floors_at_high_dose():
    bright = torch.full((1, 10, 10), 1500.0)
    assert Amplitude().noise_floor(bright).item() == pytest.approx(25.0, rel=1e-3)
    assert Poisson().noise_floor(bright).item() == pytest.approx(50.0, rel=1e-3)
    assert Amplitude().noise_floor(torch.zeros(1, 10, 10)).item() == 0.0


def test_noise_floor_is_a_mean_over_patterns():
    a, b = torch.full((1, 4, 4), 0.3), torch.full((1, 4, 4), 20.0)
    loss = Amplitude()
    both = loss.noise_floor(torch.cat([a, b]))
    assert both.item() == pytest.approx(float(loss.noise_floor(a) + loss.noise_floor(b)) / 2)
