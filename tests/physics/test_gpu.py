"""A GPU computes what the processor computes."""

import pytest
import torch

from helpers import random_complex, relative_error
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude
from petomo.physics.multislice import MultisliceOptics, diffract, multislice_loss
from petomo.physics.resample import SliceGeometry, rotate_and_bin

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def gradients(function, inputs, device):
    leaves = [x.to(device, copy=True).requires_grad_() for x in inputs]
    value = function(*leaves)
    value.backward()
    return [value.detach().cpu(), *(x.grad.cpu() for x in leaves)]


def test_multislice_loss():
    window = Grid((30, 33), (0.4, 0.3))
    optics = MultisliceOptics(window, 200e3, 6.0)
    measured = torch.rand(5, *window.shape, dtype=torch.float64)
    inputs = (
        torch.randn(4, 40, 37, dtype=torch.float64),
        torch.rand(4, 40, 37, dtype=torch.float64),
        random_complex(2, *window.shape),
        12 * torch.rand(5, 2, dtype=torch.float64) - 6,
    )

    def loss(phase, absorption, probe, positions):
        data = measured.to(phase.device)
        return multislice_loss(phase, absorption, probe, positions, data, optics, Amplitude())

    for a, b in zip(gradients(loss, inputs, CUDA), gradients(loss, inputs, CPU), strict=True):
        torch.testing.assert_close(a, b)
    on_gpu = diffract(*(x.to(CUDA) for x in inputs), optics)
    torch.testing.assert_close(on_gpu.cpu(), diffract(*inputs, optics))


@pytest.mark.parametrize("kernel", ["linear", "cubic", "spline"])
@pytest.mark.parametrize("pose_device", [CPU, CUDA])
def test_rotate_and_bin(kernel, pose_device):
    geometry = SliceGeometry(3, 1.3, (14, 15), 0.3)
    volume = torch.randn(12, 13, 14, dtype=torch.float64)
    angles = [torch.tensor(a, dtype=torch.float64) for a in (0.2, -0.9, 0.1)]
    tau = torch.tensor([0.2, -0.4], dtype=torch.float64)
    weight = torch.randn(3, 14, 15, dtype=torch.float64)

    def value(volume, *pose):
        return (rotate_and_bin(volume, *pose, geometry, kernel) * weight.to(volume.device)).sum()

    results = []
    for device, poses in ((CUDA, pose_device), (CPU, CPU)):
        leaves = [volume.to(device, copy=True), *(x.to(poses, copy=True) for x in (*angles, tau))]
        leaves = [x.requires_grad_() for x in leaves]
        total = value(*leaves)
        total.backward()
        results.append([total.detach().cpu(), *(x.grad.cpu() for x in leaves)])
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-8
