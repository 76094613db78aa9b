"""Where the refinement of atoms starts from."""

import torch

from petomo.core.dataset import scan_positions
from petomo.workflow.step_refinement import distortions


def test_a_common_stretch_of_the_scans_is_undone():
    nominal = [scan_positions((5, 7), (1.1, 1.3), rotation=0.2 * t).double() for t in range(3)]
    bend = 0.004 * torch.tensor([[[1.0, 0.5], [-0.3, 2.0]], [[-2.0, 0.1], [0.2, 1.0]], [[1.0, 0], [0, -3.0]]])
    linear = 0.99 * (torch.eye(2) + bend).double()
    positions = [p @ m.T + torch.tensor([0.3, -0.1]) for p, m in zip(nominal, linear, strict=True)]
    found, scale = distortions(positions, nominal)
    torch.testing.assert_close(found, linear * scale - torch.eye(2).double(), atol=1e-9, rtol=0)
    assert abs(float(found.mean(0).trace())) < 1e-9
    assert abs(scale - 1 / 0.99) < 1e-3
