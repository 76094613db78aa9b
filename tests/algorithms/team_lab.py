"""What `test_team` has several processes do at once: ``python team_lab.py OUT CASE...`` under a launcher."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_atom_refinement as atoms

from petomo.algorithms.atom_objective import AtomOptions
from petomo.algorithms.atom_refinement import Level, refine_atoms
from petomo.algorithms.descent import noise_floor, reconstruct
from petomo.algorithms.descent_options import DescentOptions, Schedule
from petomo.algorithms.site_review import Candidates, keep_sites
from petomo.core.parallel import ALONE, assembled
from petomo.objectives.losses import Amplitude, Poisson
from petomo.objectives.regularizers import (
    Butterworth,
    DepthKernel,
    L1Real,
    NonNegative,
    Support,
    TotalVariation3D,
)
from ptycho_problems import VOXEL, end_to_end_problem, one_tilt_problem, patterns_of, reader_of

CPU = torch.device("cpu")
EVERYTHING = {
    "volume": Schedule(1.0), "probe": Schedule(0.5), "positions": Schedule(0.5, start=1),
    "affine": Schedule(0.5, start=1), "poses": Schedule(0.5, start=1),
}  # fmt: skip
CASES = {
    "full": (lambda: end_to_end_problem(), DescentOptions(3, 1000, **EVERYTHING), Amplitude()),
    "batches": (lambda: end_to_end_problem(modes=2), DescentOptions(4, 11, **EVERYTHING), Poisson()),
    "plain": (
        lambda: end_to_end_problem(absorption=True),
        DescentOptions(2, 1000, "sgd", Schedule(5.0), Schedule(1e-4)),
        Amplitude(),
    ),
    "filters": (lambda: end_to_end_problem(), DescentOptions(3, 1000, **EVERYTHING), Amplitude()),
    "large phi": (lambda: leaning(0.3), DescentOptions(3, 1000, **EVERYTHING), Amplitude()),
    "single": (
        lambda: one_tilt_problem(torch.float32, modes=2),
        DescentOptions(2, 8, poses=Schedule(0.0)),
        Amplitude(),
    ),
}
TERMS = {
    "filters": [
        DepthKernel(1.0, 0.0, VOXEL),
        TotalVariation3D(0.002),
        NonNegative(),
        Butterworth(1.5, 2, VOXEL),
    ],
    "large phi": [Support(torch.arange(15).expand(13, 15).unsqueeze(-1).expand(13, 15, 16) > 1)],
}


def leaning(phi):
    """Turned by phi so far that whole planes have to be turned."""
    model = end_to_end_problem()
    model.angles.data[:, 0] = phi
    return model


def solve(case, team=ALONE, device=CPU):
    """All that the solver leaves, and what it said."""
    make, options, loss = CASES[case]
    model = make()
    generator = torch.Generator().manual_seed(1)
    read = reader_of([torch.poisson(p, generator=generator).to(device) for p in patterns_of(model)])
    model.volume.data.mul_(0.3)
    model.to(device)
    terms = TERMS.get(case, [L1Real(0.01), NonNegative()])
    said = [s.loss for s in reconstruct(model, read, loss, options, terms, None, team)]
    out = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    return out | {"losses": torch.tensor([*said, noise_floor(model, loss, 5, team)], dtype=torch.float64)}


def refine(team=ALONE, device=CPU):
    """Atoms, of which one is missing, poses, scans and standard errors as they are refined."""
    model = atoms.truth(device=device)
    read, nominal = atoms.reader(model), model.angles.data[:, 1].clone()
    keep_sites(model, atoms.sites().select([0, 2, 3, 4, 5]))
    atoms.nudge(model)
    options = AtomOptions(iterations=2, half_iterations=2, probe_patterns=9, least_wanted=0.05)
    level = Level(model.geometry, read, Poisson(), 8, 2, Candidates((13, 15, 16)))
    start, said = [atoms.probe_model(t) for t in range(len(nominal))], []
    for status in refine_atoms(model, start, [level], nominal, [13, 8], options, None, team):
        said.append(status.loss)
    state = status.state
    out = dict(state["parameters"]) | {f"probe.{t}": w for t, w in enumerate(state["illumination"])}
    return out | {"errors": state["errors"], "losses": torch.tensor(said, dtype=torch.float64)}


def main(folder, *cases):
    torch.set_num_threads(1)
    with assembled() as team:
        for case in cases:
            torch.save(solve(case, team), Path(folder) / f"{case}_{team.rank}.pt")
        torch.save(refine(team), Path(folder) / f"atoms_{team.rank}.pt")
        dealt = team.each(5, lambda i: (team.rank, i))
        torch.save(torch.tensor(dealt), Path(folder) / f"each_{team.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
