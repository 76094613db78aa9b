"""The study of speed, written by one command: the pass, the rotation, and other packages.

    python benchmarks/speed.py --write docs/studies/speed.md --peer ptyrad=ENV/bin/python ...

with environments as `benchmarks/peers.py` describes them. Takes several minutes on one thread.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from pathlib import Path

import pass_vs_fft
import peers
import rotation
import torch


def pass_table(rounds: int) -> str:
    """The pass at three sizes, in Markdown."""
    head = "| window | bare FFTs | petomo | plain torch | naive autograd |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for size, patterns in pass_vs_fft.CASES:
        per = pass_vs_fft.measure(size, patterns, rounds)
        floor = per.pop("bare FFTs")
        cells = " | ".join(f"{ms:.2f} ({ms / floor:.2f} x)" for ms in per.values())
        lines.append(f"| {size} x {size} | {floor:.2f} | {cells} |")
    return "\n".join(lines)


TEXT = """# Speed

{machine}.
Processor time on one thread, variants in turns, the least of each: other programs may have run
beside, and they only ever add to it. Ratios within a table are from one run.

## The pass against its FFTs

Forward and gradient (phase, 3 probe modes, sub-pixel positions) through 8 slices, core-ms per pattern. The
floor is the 34 transforms per mode that a textbook pass takes; aim: at most 1.15 x.

{passes}

What made the difference:

- 32 transforms instead of 34: the propagation behind the last slice only changes phases on the detector.
- One wave at a time, in code compiled by numba (`petomo.physics.fused`) that calls the transforms of the MKL
  inside torch by itself (`petomo.physics.mkl`): a wave of 64 x 64 stays in the core's nearest cache from its
  transform to the slice behind it, where torch's own call makes a plan and a new tensor and goes through
  memory. In place and hot a transform of 64 x 64 takes 2.4 us, through `torch.fft.fft2` in large batches 3.9.
- Patches are read from the field and gradients added to it where they are, row by row, because numba takes
  only rows to be contiguous: as 2D views they cost three times as much. A condition inside that loop, even
  one that never changes, cost a sixth of the pass.
- Waves start at a cache line: at 128 and 256 MKL takes a third longer when they do not.
- Buffers are the same for every chunk, and chunks are small (8 patterns at 64 x 64): what is written is still
  in the cache when it is read. Waves of one slice go together while they fit, so that its patch is read once.
- At 64, 256 and larger powers of two, rows, transposition, rows was faster than MKL's own 2D transform on
  AMD's processors. At 128, at sizes with other factors, and on Intel's it is not.

Without numba or MKL, and in double precision, plain torch does the same. On a busy machine the figures of one
size move by a tenth from run to run.

Tried without gain: torch's transforms with `out=` (a copy inside), strided transforms of columns (MKL's 2D
transform is rows and strided columns, to the microsecond), rows padded against shared cache lines (one more
copy), propagation as two matrix products (40 us a wave at 64 x 64), a propagator as the product of two
lines, gradient and transmission in one loop (half as fast again), and real in place of complex products.
`torch.compile` needs a compiler.

## Turning and binning the volume

Forward and gradient, {slices} slices, phi 0.5, theta 25 and psi 0.7 degrees where named. The reference is one
trilinear 3D `grid_sample`; petomo's own is a cubic B-spline, which blurs far less
([interpolators](interpolators.md)). Aim: at most 5 % of what the patterns of a tilt take, as the volume is
turned once for all of them, and 1/30 of `grid_sample`.

{rotation}

The first is reached at the paper's size, where a tilt has 48,400 patterns, and missed by some per cent with
432. By theta alone it is a matrix of five weights a voxel and the prefilter's four sweeps, and
what goes through the caches is what it costs: the same compiled, sixteen rows of y at a time with all sweeps
in the cache, took 22 ms for torch's 23 and was dropped. A small phi costs nothing of its own: with
`Rz Ry Rx = Rz' Rx' Ry'` theta acts first, and phi shifts whole slices along y by their height, which the
shears for psi do by the way. What moves along the beam by phi times y stays in its slice; where that is more
than a 24th of a slice, the whole volume is turned as before (84 and 99 ms here). Making the matrices of a new
theta is not in these figures; it takes about as long as two turns by theta, once a visit.

## Other packages

One iteration over 20 x 20 patterns of 64 x 64, 3 modes, 8 slices, batches of 64, single precision; object and
probe are refined. Aim: at most half the time of the fastest. Regularisation and constraints are off or not
timed. (PtyRAD ran under Python 3.11, the quotes of one string in its plots changed.)

{peers}

{absent}

Processor time until the phase, summed over the slices, is as near to the truth as each program comes in
{long} iterations, with the best of six learning rates (a factor on those above) where it has such: its error
as a share of the truth's own rms, over the inner scanned field, with shift, constant and ramp left free; no
noise in the patterns. Aim: at most a quarter of the time. petomo takes the best of runs of {lengths}
iterations and of a momentum of {momenta}.

{errors}

phaser and quantem get no further with these settings, taken from their examples but for what had to be the
same, which may not do them justice; the share of PtyRAD is the one to quote.

## Reproduce

```
{command}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, required=True, metavar="FILE")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pythons = peers.parse_peers(args.peer, parser)
    best = peers.compare(pythons, max(1, args.rounds // 3))
    absent = [name for name in peers.PROGRAMS if name not in best]
    names = [name for name in pythons if not name.startswith("petomo")]
    options = "".join(f" \\\n    --peer {name}=ENV/bin/python" for name in names)
    text = TEXT.format(
        machine=pass_vs_fft.machine(),
        passes=pass_table(args.rounds),
        slices=pass_vs_fft.SLICES,
        rotation=rotation.table(args.rounds, paper=True),
        peers=peers.table(best),
        long=peers.LONG,
        lengths=", ".join(map(str, peers.LENGTHS)),
        momenta=" or ".join(map(str, peers.MOMENTA)),
        errors=peers.equal_error(pythons),
        absent=f"Not measured here: {', '.join(absent)}." if absent else "All four could be measured.",
        command=f"python benchmarks/speed.py --write docs/studies/speed.md{options}",
    )
    args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
