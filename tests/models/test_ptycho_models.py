import pytest
import torch

from helpers import assert_gradients, relative_error
from petomo.core.electron import interaction_constant
from petomo.core.pose import Poses
from petomo.models.ptycho_tomography import PtychoTomography, TomographyGeometry
from petomo.objectives.losses import Amplitude, Poisson
from petomo.physics.multislice import diffract
from petomo.physics.probe import make_probe
from petomo.physics.resample import rotate_and_bin
from ptycho_problems import ENERGY, VOXEL, end_to_end_problem, gaussian_atoms, one_tilt_problem

LOSSES = [Amplitude(), Poisson()]


def measured_like(model, tilt=0):
    index = torch.arange(len(model.positions[tilt]))
    return index, torch.poisson(model.predict(tilt, index))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("absorption", [False, True])
def test_end_to_end_forward_is_the_equation_step_by_step(loss, absorption):
    model = end_to_end_problem(modes=2, absorption=absorption)
    index, measured = measured_like(model, 1)
    index, measured = index[[3, 0, 17]], measured[[3, 0, 17]]
    sigma = interaction_constant(ENERGY)
    pose = (*model.angles.detach()[1], torch.zeros(2))
    phase = sigma * rotate_and_bin(model.volume.detach(), *pose, model.geometry.slices)
    absorbed = (
        sigma * rotate_and_bin(model.absorption.detach(), *pose, model.geometry.slices)
        if absorption
        else None
    )
    pixels = (model.positions[1].detach()[index] - model.tau.detach()[1]) / VOXEL
    intensity = diffract(phase, absorbed, model.probes[1].detach(), pixels, model.geometry.optics)
    torch.testing.assert_close(model.predict(1, index), intensity)
    value, _ = loss(intensity, measured)
    torch.testing.assert_close(model(1, index, measured, loss).detach(), value.sum())


def test_one_tilt_forward_is_the_equation_step_by_step():
    model = one_tilt_problem(modes=2)
    index, measured = measured_like(model)
    intensity = diffract(
        model.volume.detach(),
        None,
        model.probes[0].detach(),
        model.positions[0].detach() / VOXEL,
        model.optics,
    )
    torch.testing.assert_close(model.predict(0, index), intensity)
    value, _ = Amplitude()(intensity, measured)
    torch.testing.assert_close(model(0, index, measured, Amplitude()).detach(), value.sum())
    torch.testing.assert_close(model.projection(), model.volume.detach().sum(0))


def test_absorption_takes_electrons_away():
    clear, dark = end_to_end_problem(), end_to_end_problem(absorption=True)
    index = torch.arange(len(clear.positions[0]))
    assert dark.predict(0, index).sum() < 0.99 * clear.predict(0, index).sum()


@pytest.mark.parametrize("tau", [(2 * VOXEL, -VOXEL), (0.37 * VOXEL, -1.62 * VOXEL)])
def test_tau_moves_the_specimen(tau):
    """The model moves the probes by -tau; moving the specimen itself gives the same patterns."""
    model = end_to_end_problem(field=(43, 46), window=(24, 27), scan=(3, 3))
    window, tau = model.geometry.optics.window, torch.tensor(tau, dtype=torch.float64)
    # waves far from Nyquist: only those can be moved by a part of a pixel without loss
    model.volume.data = gaussian_atoms((13, 15, 16), height=100.0)
    model.probes[0].data = make_probe(window, ENERGY, 10.0, {"C10": -25.0}, 100.0)[None]
    slices = rotate_and_bin(model.volume.detach(), *model.angles.detach()[0], tau, model.geometry.slices)
    index, pixels = torch.arange(9), model.positions[0].detach() / VOXEL
    expected = diffract(model.sigma * slices, None, model.probes[0].detach(), pixels, model.geometry.optics)
    model.tau.data[0] = tau
    assert relative_error(model.predict(0, index), expected) < 1e-5
    model.tau.data[0] = -tau
    assert relative_error(model.predict(0, index), expected) > 1e-2, "the sign matters"


def test_derivatives_of_the_end_to_end_model():
    model = end_to_end_problem(
        shape=(5, 7, 6), field=(13, 14), window=(7, 8), scan=(1, 3), slices=2, modes=2, absorption=True
    )
    # away from the half pixel where the probe's window jumps
    start = [model.positions[t].detach() + 0.03 for t in range(2)]
    measured = [model.predict(t, torch.arange(3)) * 0.8 + 1 for t in range(2)]
    names = (
        "volume",
        "absorption",
        "angles",
        "tau",
        *(f"{k}.{t}" for k in ("probes", "positions") for t in (0, 1)),
    )
    own = dict(model.named_parameters())

    def both(*values):
        given = dict(zip(names, values, strict=True))
        return sum(
            torch.func.functional_call(model, given, (t, torch.arange(3), measured[t], Amplitude()))
            for t in range(2)
        )

    values = [start[int(n[-1])] if n.startswith("positions") else own[n].detach().clone() for n in names]
    assert_gradients(
        both, *(v.requires_grad_() for v in values), eps=1e-6, atol=1e-3, rtol=2e-4, fast_mode=True
    )


def test_poses_come_back_as_they_were_given():
    poses = Poses(
        *torch.tensor([[0.1, 0.2], [-0.5, 0.6], [0.01, 0.02]], dtype=torch.float64), torch.rand(2, 2)
    )
    model = end_to_end_problem(torch.float32)
    again = PtychoTomography(
        model.volume.detach(), poses, list(model.probes), list(model.positions), model.geometry
    )
    for key in ("phi", "theta", "psi", "tau"):
        assert torch.equal(getattr(again.poses, key), getattr(poses, key).double())
    assert again.angles.dtype == torch.float64, "steps of 1e-5 radian must not be lost"


def test_the_step_bound_is_a_bound():
    """``lipschitz`` bounds the curvature along random directions at a perfect fit."""
    model = end_to_end_problem(scan=(7, 8), step=(0.4, 0.4))
    index, measured = torch.arange(56), model.predict(0, torch.arange(56))
    area = 7 * 8  # steps of one voxel
    bound = model.lipschitz(float(measured.sum()) / area)
    for direction in (
        torch.randn_like(model.volume),
        torch.ones_like(model.volume),
        model.volume.detach().clone(),
    ):
        size = 1e-3 / direction.abs().max()
        kept = model.volume.detach().clone()
        model.volume.data += size * direction
        curvature = (
            2
            * float(model(0, index, measured, Amplitude(epsilon=1e-3)).detach())
            / float((size * direction).square().sum())
        )
        model.volume.data.copy_(kept)
        assert 0 < curvature < bound


def test_a_probe_of_another_pixel_is_refused():
    geometry = end_to_end_problem().geometry
    slices = type(geometry.slices)(3, 2.0, (20, 20), VOXEL * 1.01)
    with pytest.raises(ValueError, match="must equal the voxel"):
        TomographyGeometry(slices, geometry.optics)
