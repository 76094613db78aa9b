"""A series and a run of it that take a minute's wait at most; fixture ``minute`` makes both."""

import shutil
import sys

from petomo.cli import main
from petomo.workflow.stages import STAGES

TILTS, SCAN = 5, (8, 7)
SPEC = """
seed: 3
specimen: {source: ptal2o3, edge_angstrom: 6, core_angstrom: 3}
semiangle_mrad: 25
defocus_angstrom: 40
stage_tilt_degree: [-40, -20, 0, 20, 40]
scan_shape: [8, 7]
scan_step_angstrom: 1.2
pattern_pixels: [24, 20]
pixel_angstrom: [0.35, 0.42]
slice_angstrom: 2.0
phonons: {configurations: 1}
errors: {shift_max_angstrom: 0.5}
"""
RUN = """
name: minute
data: {root: data, tilts: "tilt_*.h5"}
bright_field: {fit: [C10], defocus_range_angstrom: [-20, 20]}
ptychography: {iterations: 3, slices: 2, probe_modes: 2, positions: {start: 1}}
alignment: {iterations: 2, bundle: {rounds: 2, iterations: 10}}
end_to_end:
  iterations: 4
  slices: 3
  batch_size: 20
  volume: {step_size: 1.0}
  probe: {step_size: 0.5, start: 1}
  positions: {step_size: 0.5, start: 1}
  affine: {step_size: 0.7, start: 1}
  poses: {step_size: 0.7, start: 2}
  regularizers:
    - {type: nonnegative}
    - {type: support, start: 1}
analysis: {atoms: {elements: [Pt, Al, O]}, fsc: {half_sets: true}}
refinement: {rounds: 1, fine_rounds: 1, iterations: 2}
compute: {threads: 1, device: cpu}
output: {save_every: 1000}
"""
WORK = {name: stage for name, stage in STAGES.items() if name != "report"}


def petomo(*arguments):
    kept, sys.argv = sys.argv, ["petomo", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = kept


def copy_of(minute, tmp_path):
    return shutil.copytree(minute / "run", tmp_path / "run")
