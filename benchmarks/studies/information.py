"""What the patterns of a simulated series can tell at most, beside what a run of it found.

At the truth, but for probes that are fitted there, the curvature of the likelihood says how well each angle,
scan position and atom can be known: a bound by Fisher information. Angles have all else given, so that no
method without prior knowledge can do better; positions and atoms have theirs by the model's own matrices.
Where the likelihood of an angle has its peak shows in addition what the model gets wrong, or what the
simulation's few configurations of phonons and source leave of noise beyond that of counting.

    python benchmarks/studies/information.py --run RUN --data ../shared/data/sim_tiny_13 --write
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import study
import torch
from bench import open_run
from torch import Tensor

from petomo.algorithms.atom_curvatures import Curvatures, position_gram
from petomo.algorithms.atom_objective import adapted
from petomo.algorithms.atom_refinement import fit_probes
from petomo.algorithms.site_errors import position_errors
from petomo.analysis.score import score_run
from petomo.core.pose import Poses
from petomo.io.artefacts import read_atoms
from petomo.models.atomic_tomography import AtomicTomography, Sites
from petomo.physics.partial_coherence import ProbeModel
from petomo.workflow import step_refinement
from petomo.workflow.grids import plan_grids

MOVE = 2e-3  # radian
VARIANCE = 0.07**2  # square angstrom an axis, as simulated
AIMS = {"phi": "0.05°", "theta": "0.05°", "psi": "0.05°", "positions": "0.03 Å", "z / x": "1.3"}


class AtTruth:
    """The model of a series where everything is as simulated, its probes fitted."""

    def __init__(self, run: Path, truth: Path):
        context = open_run(run)
        tilts, self.options = context.series, step_refinement.atom_options(context)
        grids = plan_grids(tilts, context.config)
        self.level = step_refinement.refinement_levels(context, grids)[-1]
        with np.load(truth / "poses.npz", allow_pickle=False) as file:
            angles, tau, scans, defocus = (
                torch.from_numpy(np.asarray(file[key], dtype=float)) for key in study.series.KEYS
            )
        atoms, self.nominal = read_atoms(truth / "atoms.xyz"), tilts.stage_tilts
        many, optics = len(atoms), self.level.geometry.optics
        sites = Sites(
            atoms.numbers,
            torch.as_tensor(atoms.positions),
            torch.ones(many, dtype=torch.float64),
            torch.full((many,), VARIANCE, dtype=torch.float64),
        )
        probes = [
            ProbeModel(
                tilt.semiangle_mrad,
                (0.04, 0.04, 0.0),
                200.0,
                {"C10": -float(d)},
                self.electrons(n, len(tilt)),
            )
            for n, (tilt, d) in enumerate(zip(tilts, defocus, strict=True))
        ]
        waves = [
            p.ensemble(optics.window, optics.energy_ev, self.level.members).to(torch.complex64)
            for p in probes
        ]
        distortion, _, _ = step_refinement.distortions(list(scans), [tilt.positions() for tilt in tilts])
        phi, theta, psi = angles.unbind(-1)
        poses = Poses(phi, theta, psi, tau)
        self.model = AtomicTomography(sites, poses, waves, list(scans), self.level.geometry, distortion)
        for first in (True, False):
            probes = fit_probes(self.model, probes, self.level, self.options, probes, first)

    def electrons(self, tilt: int, count: int) -> float:
        """Mean of a pattern's sum."""
        return float(self.level.read(tilt, torch.arange(count)).double().sum()) / count

    def cost(self, tilt: int) -> float:
        """Negative log-likelihood of a tilt."""
        every = torch.arange(len(self.model.stray[tilt]))
        value, _ = self.level.loss(self.model.predict(tilt, every), self.level.read(tilt, every))
        return float(value.double().sum())

    def angles(self) -> tuple[Tensor, Tensor]:
        """Offset of the likelihood's peak and standard error of each angle, in degrees ``(tilt, 3)``."""
        angles, out = self.model.angles.data, []
        for tilt in range(len(angles)):
            for axis in range(3):
                true, costs = float(angles[tilt, axis]), []
                for move in (-MOVE, 0.0, MOVE):
                    angles[tilt, axis] = true + move
                    costs.append(self.cost(tilt))
                angles[tilt, axis] = true
                slope = (costs[2] - costs[0]) / (2 * MOVE)
                bend = (costs[2] - 2 * costs[1] + costs[0]) / MOVE**2
                out.append((-slope / bend, bend**-0.5))
        table = torch.tensor(out, dtype=torch.float64).view(len(angles), 3, 2).rad2deg()
        return table[..., 0], table[..., 1]

    def positions(self) -> float:
        """Standard error of single scan positions, rms over all, in angstrom along an axis."""
        c, width, found = self.level.loss.curvature, self.options.stray_width, []
        for tilt in range(len(self.model.stray)):
            known = c * position_gram(self.model, tilt) + torch.eye(2, dtype=torch.float64) / width**2
            found.append(torch.linalg.inv(known).diagonal(dim1=-2, dim2=-1).sum(-1))
        return float(torch.cat(found).mean().sqrt())

    def atoms(self) -> Tensor:
        """Standard errors of the atoms' coordinates, rms ``(3,)`` in angstrom; tilts and scans unknown."""
        curvatures = Curvatures(self.model, self.level.loss.curvature)
        priors = adapted(self.options, self.model, self.nominal).precisions()
        return position_errors(self.model, curvatures, priors).square().mean(0).sqrt()


def table(truth: AtTruth, score: dict[str, Any]) -> str:
    """Markdown: bound, peak, what the run found, aim."""
    peaks, widths = (t.square().mean(0).sqrt().tolist() for t in truth.angles())
    x, y, z = truth.atoms().tolist()
    rows, atoms, euler = [], score["atoms"], score["poses"]["euler_rms_degree"]
    for name, peak, width in zip(("phi", "theta", "psi"), peaks, widths, strict=True):
        rows.append([name, f"{width:.3f}°", f"{peak:.3f}°", f"{euler[name]:.3f}°", AIMS[name]])
    found = score["positions"]["refined"]["rms_angstrom"]
    rows.append(["positions", f"{truth.positions():.3f} Å", "", f"{found:.3f} Å", AIMS["positions"]])
    fx, fy, fz = atoms["rmsd_xyz_angstrom"]
    for name, bound, value in zip("xyz", (x, y, z), (fx, fy, fz), strict=True):
        rows.append([f"atoms, {name}", f"{bound:.3f} Å", "", f"{value:.3f} Å", ""])
    rows.append(["atoms, z / x", f"{z / x:.2f}", "", f"{fz / fx:.2f}", AIMS["z / x"]])
    # where projections are all there is
    tilts = truth.model.angles.data[:, 1]
    ratio = math.sqrt(float(tilts.cos().square().sum() / tilts.sin().square().sum()))
    rows.append(["z / x by the tilt angles alone", f"{ratio:.2f}", "", "", ""])
    return study.markdown(["rms", "bound", "likelihood's peak, all else true", "run", "aim"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a finished run of the series")
    parser.add_argument("--data", type=Path, required=True, help="the series, with its truth")
    parser.add_argument("--write", action="store_true", help="put the table into docs/studies")
    args = parser.parse_args()
    text = table(AtTruth(args.run, args.data / "truth"), score_run(args.run, args.data / "truth"))
    print(text)
    if args.write:
        study.write_block(study.PAGES / "information.md", args.data.name, text)


if __name__ == "__main__":
    main()
