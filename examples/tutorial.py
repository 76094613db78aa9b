"""The tutorial of docs/tutorial.md: from simulated patterns to atoms in less than a minute on one core.

python examples/tutorial.py [FOLDER]
"""

# %% what is needed
import sys
from pathlib import Path

import numpy as np

import petomo

here = Path(__file__).parent  # in a notebook: Path("examples")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tutorial")  # ... Path("runs/tutorial")

# %% a tilt series to work on, with the truth beside it
petomo.simulate(here / "tutorial_specimen.yaml", folder / "series")

# %% load: settings and data, and what follows from them
plan = petomo.load(here / "tutorial.yaml", f"data.root={folder / 'series'}")
print(plan)

# %% one look at the data
tilt = plan.series[2]
patterns = tilt.patterns([0, 35])
print(f"{tilt.name}: {patterns[1].sum():.0f} electrons in the middle of the scan")

# %% run the first two stages, and look
run = plan.run(folder / "run", until="ptychography", quiet=True)
for name, (_, found) in zip(("tilt 0", "tilt 1"), run.bright_field, strict=False):
    print(f"{name}: {found['defocus_angstrom']:.1f} angstrom underfocus by {found['method']}")
print("refined:", np.round(run.probes.defocus, 1))
print("losses of the first tilt:", np.round(run.losses("ptychography")[:8], 1))

# %% go on to the atoms
run = plan.run(folder / "run", until="analysis", quiet=True)
print(run)
print(run.volume)
print("stage tilts:", *(f"{angle:.2f}" for angle in np.rad2deg(run.poses.theta.numpy())), "degrees")
print("atoms:", run.atoms.get_chemical_formula())

# %% compare with the truth, which a simulation has
score = run.score(folder / "series" / "truth")
atoms = score["atoms"]
print(f"{atoms['found']} of {atoms['true']} atoms found, {atoms['invented']} invented")

# %% take the result elsewhere
for name in ("volume.ome.zarr", "volume.tif", "atoms.cif"):
    print("wrote", run.export(folder / name))

# %% try other settings from a stage on
settings = [f"data.root={folder / 'series'}", "end_to_end.regularizers=[{type: nonnegative}]"]
other, usual = petomo.load(here / "tutorial.yaml", *settings), run.losses()
run = other.run(folder / "run", start_from="end_to_end", until="end_to_end", quiet=True)
print(f"last loss {run.losses()[-1]:.4g} where the potential need not be sparse, {usual[-1]:.4g} before")
