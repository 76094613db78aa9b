"""Peak memory, each measured in a process of its own."""

import subprocess
import sys

SCRIPT = """
import resource, sys, torch
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude
from petomo.physics.multislice import MultisliceOptics, multislice_loss
torch.set_num_threads(1)
slices, patterns, n = int(sys.argv[1]), int(sys.argv[2]), 64
optics = MultisliceOptics(Grid((n, n), 0.25), 200e3, 10.0)
phase = torch.rand(slices, 128, 128).requires_grad_()
probe = torch.randn(3, n, n, dtype=torch.complex64).requires_grad_()
positions = (60 * torch.rand(patterns, 2) - 30).requires_grad_()
measured = torch.rand(patterns, n, n)
multislice_loss(phase, None, probe, positions, measured, optics, Amplitude()).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(slices, patterns):
    """Peak resident memory in MiB."""
    command = [sys.executable, "-c", SCRIPT, str(slices), str(patterns)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_hardly_grows_with_slices_and_holds_no_batch_of_waves():
    thin, thick = peak(1, 256), peak(8, 256)
    assert thick <= 1.3 * thin
    # the waves of the whole batch in 8 slices would be 200 MiB
    assert thick - thin < 80
