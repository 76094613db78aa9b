"""The picture of the README, from a run folder of `make demo`.

python docs/picture.py demo/run docs/demo.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from petomo.analysis.panels import element_colours, scale_bar
from petomo.io.artefacts import read_atoms, read_json, read_patterns, read_poses
from petomo.io.volumes import read_mrc

CROP_ANGSTROM = 7.5  # half the side of what is shown of the volume


def main(run: Path, target: Path) -> None:
    """One pattern, one tilt's projection, two slabs of the volume, the atoms."""
    figure = Figure(figsize=(14, 3.5), dpi=110, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    FigureCanvasAgg(figure)
    pattern, projection, across, along = (figure.add_subplot(1, 5, place) for place in range(1, 5))
    atoms = figure.add_subplot(1, 5, 5, projection="3d")
    draw_pattern(pattern, run)
    draw_projection(projection, run)
    draw_slabs((across, along), run)
    draw_atoms(atoms, run)
    for axis in (pattern, projection, across, along):
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(target, bbox_inches="tight", pad_inches=0.05)


def draw_pattern(axis, run: Path) -> None:
    """What the microscope gives: one noisy pattern out of thousands."""
    measured = read_patterns(run / "patterns.h5")["median"]["measured"]
    data = read_json(run / "summary.json")["input"]
    axis.imshow(np.sqrt(measured), cmap="magma", origin="lower")
    count = data["tilts"] * int(np.prod(data["scan_shape"]))
    axis.set_title(f"one of {count} patterns,\nroot of the electrons", fontsize=10)


def draw_projection(axis, run: Path) -> None:
    """What ptychography makes of the tilt nearest to zero."""
    stack, voxel = read_mrc(run / "projections.mrc")
    nearest = int(read_poses(run / "poses.json")[0].theta.abs().argmin())
    image = cropped(stack[nearest], voxel[1:])
    axis.imshow(image, cmap="gray", origin="lower")
    scale_bar(axis, image.shape[1], voxel[2])
    axis.set_title("ptychography of one tilt,\nphase in radian", fontsize=10)


def draw_slabs(axes, run: Path) -> None:
    """The volume, 1 angstrom thick, across the beam and along it."""
    volume, voxel = read_mrc(run / "volume.mrc")
    volume = cropped(volume, voxel)
    planes = [slab(volume, axis, voxel[axis]) for axis in (0, 1)]
    high = np.quantile(planes[0], 0.99)
    for axis, plane, name in zip(axes, planes, ("x and y", "x and z (beam upwards)"), strict=True):
        axis.imshow(plane, cmap="gray", origin="lower", vmin=0, vmax=high)
        scale_bar(axis, plane.shape[1], voxel[2])
        axis.set_title(f"one volume of all tilts,\n{name}, 1 Å thick", fontsize=10)


def draw_atoms(axis, run: Path) -> None:
    """Traced atoms."""
    found = read_atoms(run / "atoms.xyz")
    symbols = np.array(found.get_chemical_symbols())
    colours, sizes = element_colours(symbols)
    for symbol in colours:
        place = found.positions[symbols == symbol]
        axis.scatter(
            *place.T, s=1.6 * sizes[symbol], color=colours[symbol], label=symbol, edgecolors="k", lw=0.3
        )
    axis.set_box_aspect((1, 1, 1), zoom=1.25)
    axis.view_init(18, -62)
    axis.set_axis_off()
    axis.legend(fontsize=9, loc="lower left", frameon=False, ncols=3, columnspacing=0.8, handletextpad=0.1)
    axis.set_title(f"{len(found)} atoms", fontsize=10)


def cropped(array: np.ndarray, voxel) -> np.ndarray:
    """The middle of an image or a volume."""
    cuts = []
    for n, size in zip(array.shape, voxel, strict=True):
        half = min(n // 2, round(CROP_ANGSTROM / size))
        cuts.append(slice(n // 2 - half, n // 2 + half + 1))
    return array[tuple(cuts)]


def slab(volume: np.ndarray, axis: int, size: float) -> np.ndarray:
    """Mean over 1 angstrom around the brightest plane near the middle."""
    half = max(1, round(0.5 / size))
    weight = (volume**2).sum(tuple(i for i in range(3) if i != axis))
    middle = volume.shape[axis] // 2
    near = np.arange(middle - round(1.5 / size), middle + round(1.5 / size) + 1)
    best = near[weight[near].argmax()]
    return volume.take(np.arange(best - half, best + half + 1), axis).mean(axis)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
