"""What numba has just compiled and what it kept from an earlier process round alike.

Else a run that is resumed ends in other last digits than the first one after an installation.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, torch
from petomo.core.grid import Grid
from petomo.objectives.losses import Amplitude
from petomo.physics.interpolation import spline_coefficients
from petomo.physics.multislice import MultisliceOptics, multislice_loss
from petomo.physics.multislice_share import Bench, choose_bench
from petomo.physics.splat import draw_windows

torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)

def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=random).requires_grad_()

def tell(*tensors):
    print(*(hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest()[:8] for t in tensors))

# a side of 47 leaves a rest after whole vectors
shape, places = (48, 47), normal(9, 2)
leaves = normal(4, 60, 64), normal(4, 60, 64), normal(4, *shape, dtype=torch.complex64), places
optics = MultisliceOptics(Grid(shape, (0.3, 0.25)), 2e5, 4.0)
measured = torch.rand(9, *shape, generator=random)
assert choose_bench(leaves[2]) is not Bench, "not compiled"
value = multislice_loss(*leaves, measured, optics, Amplitude())
tell(value, *torch.autograd.grad(value, leaves))
profiles = normal(50, 13), normal(50, 21)
corners = [torch.randint(0, 30, (50,), generator=random) for _ in "yx"]
image = draw_windows(*profiles, *corners, (60, 70))
tell(image, *torch.autograd.grad(image, profiles, torch.rand(60, 70, generator=random)))
tell(spline_coefficients(normal(20, 21, 35)))
"""


def test_fresh_and_kept_code_round_alike(tmp_path):
    pytest.importorskip("numba")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def told():
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if "not compiled" in done.stderr:
            pytest.skip("no MKL for the compiled passes")
        assert done.returncode == 0, done.stderr
        return done.stdout

    fresh = told()
    assert list(tmp_path.rglob("*.nbc"))
    assert told() == fresh
