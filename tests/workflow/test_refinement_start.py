"""Where the refinement of atoms starts from."""

import torch

from petomo.core.dataset import scan_positions
from petomo.workflow.step_refinement import distortions


def test_a_common_stretch_of_the_scans_is_undone():
    nominal = [scan_positions((5, 7), (1.1, 1.3), rotation=0.2 * t).double() for t in range(3)]
    bend = 0.004 * torch.tensor([[[1.0, 0.5], [-0.3, 2.0]], [[-2.0, 0.1], [0.2, 1.0]], [[1.0, 0], [0, -3.0]]])
    linear = 0.99 * (torch.eye(2) + bend).double()
    generator = torch.Generator().manual_seed(1)
    own = [torch.randn(35, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
    design = [torch.cat([p, torch.ones(35, 1)], dim=1) for p in nominal]
    own = [s - d @ torch.linalg.lstsq(d, s).solution for d, s in zip(design, own, strict=True)]
    shift = torch.tensor([0.3, -0.1])
    positions = [p @ m.T + shift + s for p, m, s in zip(nominal, linear, own, strict=True)]
    found, strays, scale = distortions(positions, nominal)
    torch.testing.assert_close(strays, [s * scale for s in own], atol=1e-9, rtol=0)
    torch.testing.assert_close(found, linear * scale - torch.eye(2).double(), atol=1e-9, rtol=0)
    assert abs(float(found.mean(0).trace())) < 1e-9
    assert abs(scale - 1 / 0.99) < 1e-3
