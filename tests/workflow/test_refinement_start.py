"""Where the refinement of atoms starts from, and the frame in which it leaves them."""

from types import SimpleNamespace

import torch

from petomo.core.dataset import scan_positions
from petomo.core.pose import Poses, rotation_matrices
from petomo.io.artefacts import write_poses, write_positions
from petomo.workflow.step_refinement import _back_to, distortions


def test_a_common_stretch_of_the_scans_is_undone():
    nominal = [scan_positions((5, 7), (1.1, 1.3), rotation=0.2 * t).double() for t in range(3)]
    bend = 0.004 * torch.tensor([[[1.0, 0.5], [-0.3, 2.0]], [[-2.0, 0.1], [0.2, 1.0]], [[1.0, 0], [0, -3.0]]])
    linear = 0.99 * (torch.eye(2) + bend).double()
    positions = [p @ m.T + torch.tensor([0.3, -0.1]) for p, m in zip(nominal, linear, strict=True)]
    found, scale = distortions(positions, nominal)
    torch.testing.assert_close(found, linear * scale - torch.eye(2).double(), atol=1e-9, rtol=0)
    assert abs(float(found.mean(0).trace())) < 1e-9
    assert abs(scale - 1 / 0.99) < 1e-3


def test_the_specimen_is_brought_back_to_where_it_lies_in_the_volume(tmp_path):
    """Atoms, poses and scans that drifted together, by turn and shift, are seen as before."""
    theta = torch.linspace(-0.7, 0.7, 7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    small = 0.01 * torch.randn(2, 7, generator=generator, dtype=torch.float64)
    tau = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    begun = Poses(small[0], theta, small[1], tau)
    scans = [torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in theta]
    write_poses(tmp_path / "poses.json", begun, [f"tilt {i}" for i in range(7)])
    write_positions(tmp_path / "positions.h5", scans, scans)
    rotation = rotation_matrices(*torch.tensor([0.003, -0.002, 0.004], dtype=torch.float64))
    drifted = begun.regauged(rotation, torch.tensor([0.1, -0.2, 0.15], dtype=torch.float64))
    # a shift of both scan and specimen is seen by no pattern
    drifted = drifted.replace(tau=drifted.tau + 0.3)
    context = SimpleNamespace(inputs=lambda *_: tmp_path)
    found = drifted.regauged(*_back_to(context, drifted, [p + 0.3 for p in scans]))
    assert (found.matrices() - begun.matrices()).abs().max() < 1e-9
    assert (found.tau - 0.3 - begun.tau).abs().max() < 1e-9
