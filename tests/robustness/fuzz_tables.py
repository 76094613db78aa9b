"""Settings, tables of tilts, poses, image stacks and atoms, sound or damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import format_files
import mrcfile
import numpy as np
from fuzz_mutations import mutate_text, mutate_values, npy_header
from fuzz_patterns import Kind, single

CONFIG = """
data:
  root: .
  tilts: "t*.npy"
  stage_tilt_degree: [-3.5]
  exclude: []
  energy_kev: 200
  semiangle_mrad: 25
  scan_step_angstrom: [1.5, 1.5]
  scan_rotation_degree: 3
  flip: [false, true, false]
  dk_per_angstrom: 0.07
  counts_per_electron: 2.5
volume: {shape: [4, 9, 9], thickness_angstrom: 18}
bright_field: {method: auto, fit: [C10], defocus_range_angstrom: [-20, 20]}
ptychography: {iterations: 2, slices: 2, probe_modes: 2, positions: {start: 1}}
alignment: {iterations: 1, poses: poses.json, bundle: {rounds: 2, affine: true}}
end_to_end:
  iterations: 3
  slices: 2
  volume: {step_size: 1.0}
  regularizers:
    - {type: l1_real, weight: 0.3}
    - {type: support, start: 1}
analysis: {atoms: {elements: [Pt, Al]}, fsc: {half_sets: true}}
compute: {threads: 1, device: cpu, seed: 3}
output: {save_every: 10}
"""
SPEC = """
seed: 3
specimen: {source: ptal2o3, edge_angstrom: 4, core_angstrom: 3, rotation_degree: [1, 2, 3]}
potential: lobato
defocus_angstrom: 40
aberrations: {C12: 10, phi12: 20}
stage_tilt_degree: [-30, 0, 30]
scan_shape: [4, 5]
scan_step_angstrom: 1.2
pattern_pixels: [16, 14]
pixel_angstrom: [0.4, 0.45]
slice_angstrom: 2.0
phonons: {configurations: 1}
errors: {shift_max_angstrom: 0.5}
"""
_ANGLES = {"phi_degree": 0.1, "theta_degree": 3.0, "psi_degree": 0.2}
POSES = {"convention": "r_lab", "tilts": [{"name": "t0", "tau_angstrom": [0.5, -0.5], **_ANGLES}]}
PLAN = """
simulation:
  specimen: {source: ptal2o3, edge_angstrom: 6, core_angstrom: 3}
  dose_per_tilt: 19000
  stage_tilt_degree: [-30, 0, 30]
  scan_step_angstrom: 1.5
compare:
  dose_per_tilt: [2000, 6000]
  highest_tilt_degree: [30, 65]
  tilts: [5]
  scan_step_angstrom: [2.0]
  also:
    more defocus: {defocus_angstrom: 60}
  keep: total_dose
  combine: false
repeats: 2
full_scan_shape: [200, 200]
run:
  end_to_end: {iterations: 2}
"""
STAR = format_files.STAR.replace("tilt_0", "t")  # as the tilts are called here
MDOC = """PixelSpacing = 7.88
ImageFile = a.mrc

[T = SerialEM: somewhere]

[ZValue = 0]
TiltAngle = 3.00054
SubFramePath = X:\\frames\\t0.tif

[ZValue = 1]
TiltAngle = -3
SubFramePath = X:\\frames\\t1.tif
"""
TLT = " -3.00\n  3.00\n"
XF = "1 0 0 1 0.5 -0.5\n 0.9998477 -0.0174524 0.0174524 0.9998477 1.25 0\n"
XYZ = """3
Properties=species:S:1:pos:R:3
Pt 0.0 0.0 0.0
Al 2.5 0.0 1.0
O 0.0 2.5 -1.0
"""
CIF = """data_x
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 4.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Pt1 Pt 0.0 0.0 0.0
O1 O 0.5 0.5 0.5
"""


def _write(text: str) -> Callable[[Path, random.Random], Any]:
    return lambda path, _: path.write_text(text)


def _damage_text(path: Path, rng: random.Random) -> None:
    path.write_text(mutate_text(path.read_text(), rng), errors="surrogatepass")


def _damage_json(path: Path, rng: random.Random) -> None:
    path.write_text(json.dumps(mutate_values(json.loads(path.read_text()), rng)))


def _stack(path: Path, _: random.Random | None = None) -> None:
    with mrcfile.new(path) as mrc:
        mrc.set_data(np.ones((2, 7, 8), np.float32))
        mrc.voxel_size = 0.4


def _imod(folder: Path, rng: random.Random) -> Path:
    """IMOD's transforms with tilts and the stack beside them."""
    (folder / "a.xf").write_text(XF)
    (folder / f"a{rng.choice(['.tlt', '.rawtlt'])}").write_text(TLT)
    if rng.random() < 0.3:
        (folder / "a.xtilt").write_text("0.1\n0.2\n")
    _stack(folder / "a.mrc")
    return folder / "a.xf"


def _damage_imod(path: Path, rng: random.Random) -> None:
    _damage_text(rng.choice([p for p in sorted(path.parent.iterdir()) if p.suffix != ".mrc"]), rng)


def _damage_stack(path: Path, rng: random.Random) -> None:
    """Words of the header replaced."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 2, 4])):
        at = 4 * rng.choice([*range(24), 27, 52, 53])
        values = [0, 1, 2, 6, 12, 16, 101, 2**31 - 1, 2**32 - 1, 0x7FC00000, 0xFF800000, rng.getrandbits(32)]
        data[at : at + 4] = rng.choice(values).to_bytes(4, "little")
    path.write_bytes(data)


def _tilts(folder: Path, rng: random.Random) -> Path:
    path = folder / f"a{rng.choice(['.tlt', '.rawtlt', '.txt'])}"
    path.write_text(TLT)
    return path


def _angles_npy(path: Path, _: random.Random) -> None:
    np.save(path, np.array([-3.0, 3.0]))


def _damage_npy(path: Path, rng: random.Random) -> None:
    path.write_bytes(npy_header(rng, ("(2,)", "(3,)", "(1, 2)")) + path.read_bytes()[128:])


def _atoms(folder: Path, rng: random.Random) -> Path:
    suffix, text = rng.choice([(".xyz", XYZ), (".cif", CIF)])
    (folder / f"atoms{suffix}").write_text(text)
    return folder / f"atoms{suffix}"


TABLES: dict[str, Kind] = {
    "yaml": Kind(single("run.yaml", _write(CONFIG)), _damage_text, "config"),
    "spec": Kind(single("spec.yaml", _write(SPEC)), _damage_text, "spec"),
    "plan": Kind(single("plan.yaml", _write(PLAN)), _damage_text, "plan"),
    "atoms": Kind(_atoms, _damage_text, "atoms"),
    "poses": Kind(single("poses.json", _write(json.dumps(POSES))), _damage_json, "poses"),
    "star": Kind(single("a.star", _write(STAR)), _damage_text, "poses"),
    "xf": Kind(_imod, _damage_imod, "poses"),
    "tlt": Kind(_tilts, _damage_text, "angles"),
    "mdoc": Kind(single("a.mdoc", _write(MDOC)), _damage_text, "angles"),
    "angles_star": Kind(single("a.star", _write(STAR)), _damage_text, "angles"),
    "angles_json": Kind(single("a.json", _write(json.dumps([-3, 3.0]))), _damage_json, "angles"),
    "angles_npy": Kind(single("angles.npy", _angles_npy), _damage_npy, "angles"),
    "stack": Kind(single("a.mrc", _stack), _damage_stack, "stack"),
}
