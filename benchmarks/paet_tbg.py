"""Linear tomography and atom tracing on a published ptychographic phase series, beside its authors' result.

The data are the simulated amorphous carbon of the supplement to "Three-dimensional imaging of individual
carbon atoms" (Kim et al., github.com/pAET-TBG/Supplementary-Data-Codes, folder 14): 37 phase projections made
by multislice and ePIE, 7514 true atoms, and the authors' traced and refined atoms. Both sets of atoms are
scored the same way: after one rigid motion, one to one, within 0.7 A.

Two conventions are not in the files. The second Euler angle is minus petomo's theta, found by projecting the
true atoms; a residual cannot tell, since the mirrored specimen fits as well. The pixel is where the
projections of the true atoms agree best with the phases, as the authors scale their own result.

The phases are blurred by the probe. Their mean power spectrum falls like a Gaussian's, which gives the blur
(Wilson 1942) that is taken out before the tomography, up to where the spectrum meets the noise.
"""

import argparse
import time
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch
from skimage.filters import threshold_otsu

from petomo.algorithms.linear_tomography import TomographyOptions, linear_tomography
from petomo.analysis.atoms import find_peaks, trace_atoms
from petomo.analysis.matching import match_atoms, register
from petomo.core.grid import Grid
from petomo.core.pose import Poses
from petomo.models.projections import ProjectionGeometry

PIXEL = 0.3385
BAND = (0.5, 1.0)  # 1/angstrom: from where atoms scatter independently to where noise takes over
SHORTEST_BOND = 1.1  # angstrom
PREFIX = "14_Amorphous_carbon_simulation_"


def load(folder: Path, name: str, key: str) -> np.ndarray:
    """One array, axes as h5py gives them for the newer files: the last axis of MATLAB first."""
    path = folder / f"{PREFIX}{name}.mat"
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            return np.array(file[key])
    return scipy.io.loadmat(path)[key]


def sharpen(projections: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Projections without their Gaussian blur, and its standard deviation in angstrom."""
    projections = projections - projections.mean((1, 2), keepdim=True)
    grid = Grid(tuple(projections.shape[1:]), PIXEL)
    q2 = grid.frequencies(0)[:, None] ** 2 + grid.frequencies(1) ** 2
    power = torch.fft.fft2(projections).abs().square().mean(0)
    rings = (q2.sqrt() * 20).long()
    count = torch.bincount(rings.flatten())
    mean = torch.bincount(rings.flatten(), power.flatten()) / count
    square = torch.bincount(rings.flatten(), q2.flatten()) / count
    noise = mean[int(20 * 0.9 * 0.5 / PIXEL) : int(20 * 0.5 / PIXEL)].mean()
    fit = slice(int(20 * BAND[0]), int(20 * BAND[1]))
    slope = np.polyfit(square[fit].numpy(), torch.log(mean[fit] - noise).numpy(), 1)[0]
    sigma = float(np.sqrt(-slope)) / (2 * np.pi)
    gain = torch.exp(2 * np.pi**2 * sigma**2 * q2 - (q2 / BAND[1] ** 2) ** 4)
    return torch.fft.ifft2(torch.fft.fft2(projections) * gain).real, sigma


def trace(volume: np.ndarray) -> np.ndarray:
    """Positions of atoms of one element: peaks above the gap between two sorts of heights (Otsu 1979)."""
    _, heights = find_peaks(volume, PIXEL, threshold=0.0, min_distance=SHORTEST_BOND)
    atoms = trace_atoms(
        volume, PIXEL, min_distance=SHORTEST_BOND, threshold=threshold_otsu(heights), smoothing=0.0
    )
    return atoms.positions


def reconstruct(projections: torch.Tensor, tilts: torch.Tensor, iterations: int) -> torch.Tensor:
    size = projections.shape[-1]
    geometry = ProjectionGeometry(Grid((size,) * 3, PIXEL), (size, size))
    options = TomographyOptions(iterations, fit_offsets=True)
    volume = torch.zeros(geometry.volume.shape)
    for status in linear_tomography(projections, Poses.from_tilts(tilts), geometry, options):
        volume = status.state["volume"]
        print(f"iteration {status.iteration:3d}  mean squared error {status.loss:.3e} rad^2", flush=True)
    return volume


def score(found: np.ndarray, true: np.ndarray) -> str:
    match = match_atoms(register(found, true).apply(found), true)
    rmsd = np.sqrt(np.mean(match.distance**2))
    return f"{len(found):8d} {len(match):8d} {len(found) - len(match):8d} {1e2 * rmsd:10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the supplement's .mat files")
    parser.add_argument("--iterations", type=int, default=40)
    arguments = parser.parse_args()
    projections = torch.from_numpy(load(arguments.data, "input_data_Projections", "projections"))
    tilts = torch.from_numpy(-np.deg2rad(load(arguments.data, "input_data_Angles", "angles")[1])).double()
    true = load(arguments.data, "input_data_atom_tracing_model_original", "atom").T
    theirs = load(arguments.data, "output_data_atom_tracing_model_refinement_total", "model").T
    start = time.perf_counter()
    sharp, blur = sharpen(projections)
    print(f"blur of the phases: {blur:.3f} A")
    volume = reconstruct(sharp, tilts, arguments.iterations)
    middle = time.perf_counter()
    ours = trace(volume.numpy())
    end = time.perf_counter()
    print(f"tomography {middle - start:.0f} s, tracing {end - middle:.0f} s, {len(true)} true atoms")
    print(f"{'':26s} {'atoms':>8s} {'found':>8s} {'false':>8s} {'rmsd (pm)':>10s}")
    print(f"{'petomo':26s} {score(ours, true)}")
    print(f"{'authors, traced + refined':26s} {score(0.99645 * theirs, true)}")


if __name__ == "__main__":
    main()
