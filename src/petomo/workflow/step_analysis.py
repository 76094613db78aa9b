"""After the reconstruction: atoms, resolution, and the report."""

from __future__ import annotations

from ase import Atoms

from petomo.analysis.atoms import nearest_neighbours, trace_atoms
from petomo.analysis.report import write_report
from petomo.analysis.resolution import fourier_shell_correlation
from petomo.io.artefacts import read_half_volumes, write_atoms
from petomo.io.volumes import read_mrc
from petomo.workflow.context import RunContext


def analysis(context: RunContext) -> None:
    """Trace atoms and measure the resolution; leaves ``atoms.xyz`` and entries in ``summary.json``."""
    folder, settings = context.folder, context.config.analysis
    volume, voxel = read_mrc(folder / "volume.mrc")
    atoms = trace_atoms(
        volume,
        voxel,
        settings.atoms.elements,
        min_distance=least_distance(context),
        threshold=settings.atoms.threshold,
    )
    write_atoms(folder / "atoms.xyz", atoms)
    context.summarise(atoms=count_elements(atoms), atom_threshold_volt=atoms.info.get("threshold_volt"))
    if (folder / "half_volumes.h5").exists():
        a, b, size = read_half_volumes(folder / "half_volumes.h5")
        shells = fourier_shell_correlation(a, b, size)
        kinds = ("half_bit", "one_bit", 0.143)
        context.summarise(resolution_angstrom={str(kind): shells.resolution(kind) for kind in kinds})


def least_distance(context: RunContext) -> float:
    """How near two atoms may be, in angstrom: as asked, or as the elements say."""
    atoms = context.config.analysis.atoms
    return atoms.min_distance_angstrom or nearest_neighbours(atoms.elements)


def count_elements(atoms: Atoms) -> dict[str, int]:
    """Atoms of each element, by symbol."""
    symbols = atoms.get_chemical_symbols()
    return {element: symbols.count(element) for element in sorted(set(symbols))}


def report(context: RunContext) -> None:
    """Write ``report.html``."""
    write_report(context.folder)
