"""A run as layers of napari: volumes in angstrom, atoms as points in the colour of their element."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from petomo.analysis.panels import element_colours
from petomo.core.errors import UserError
from petomo.io.artefacts import read_atoms
from petomo.io.volumes import GridData, read_grid

_UNITS = ("angstrom", "angstrom", "angstrom")
_POINT = 0.9  # angstrom, diameter of the largest points


class Viewer(Protocol):
    """The two methods of ``napari.Viewer`` that are used."""

    def add_image(self, data: np.ndarray, **options: Any) -> Any:
        """Add a volume."""
        ...

    def add_points(self, data: np.ndarray, **options: Any) -> Any:
        """Add points ``(point, 3)`` as (z, y, x)."""
        ...


def add_layers(viewer: Viewer, folder: str | Path) -> None:
    """Add what a run folder holds to a napari viewer.

    The potential becomes an image layer (the linear one and the absorption hidden ones), and the atoms one
    layer of points an element, each with its integrated potential, width and uncertainty as features. All
    are placed in angstrom with the coordinate zero at voxel ``n // 2``.

    Parameters
    ----------
    viewer : Viewer
        ``napari.Viewer``, or whatever has its ``add_image`` and ``add_points``.
    folder : path
        Run folder.

    Raises
    ------
    UserError
        If it holds neither a volume nor atoms.
    """
    folder = Path(folder)
    every = ("volume_linear", "absorption", "volume_completed", "volume")
    found = [what for what in every if (folder / f"{what}.mrc").is_file()]
    atoms = folder / "atoms.xyz"
    if not found and not atoms.is_file():
        raise UserError(f"{folder}: there is neither volume.mrc nor atoms.xyz yet; let the run go on first")
    for what in found:
        _add_volume(viewer, read_grid(folder, what), visible=what == found[-1])
    if atoms.is_file():
        _add_atoms(viewer, read_atoms(atoms))


def _add_volume(viewer: Viewer, grid: GridData, visible: bool) -> None:
    low, high = (float(np.quantile(grid.values, q)) for q in (0.02, 0.9995))
    viewer.add_image(
        grid.values,
        name=f"{grid.name} ({grid.unit})",
        scale=grid.spacing,
        translate=grid.origin,
        units=_UNITS,
        axis_labels=grid.axes,
        colormap="gray",
        contrast_limits=(low, max(high, low + 1e-6)),
        rendering="mip",
        visible=visible,
    )


def _add_atoms(viewer: Viewer, atoms: Any) -> None:
    symbols = np.array(atoms.get_chemical_symbols())
    colours, areas = element_colours(symbols)
    largest = max(areas.values(), default=1.0)
    for symbol, colour in colours.items():
        chosen = symbols == symbol
        viewer.add_points(
            atoms.positions[chosen][:, ::-1],
            name=f"{symbol} ({chosen.sum()})",
            face_color=colour,
            border_color="black",
            size=_POINT * float(np.sqrt(areas[symbol] / largest)),
            features=_features(atoms, chosen),
            units=_UNITS,
            axis_labels=("z", "y", "x"),
        )


def _features(atoms: Any, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Everything known of the chosen atoms but their place and element, one column a number."""
    out: dict[str, np.ndarray] = {}
    for name, values in atoms.arrays.items():
        if name in ("numbers", "positions"):
            continue
        if values.ndim == 1:
            out[name] = values[chosen]
        else:
            out |= {f"{name}_{axis}": values[chosen, i] for i, axis in zip(range(3), "xyz", strict=True)}
    return out


def view(folder: str | Path) -> None:
    """Open a run folder in napari and wait until its window is closed.

    Raises
    ------
    UserError
        If napari is not installed, or the folder holds nothing to look at.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder; give a run folder")
    try:
        napari = import_module("napari")
    except ImportError as error:
        raise UserError(
            f"petomo view needs napari ({error}); install it with: pip install 'petomo[view]', "
            f"or look at the page that `petomo report {folder}` writes"
        ) from error
    viewer = napari.Viewer(title=f"petomo: {Path(folder).resolve().name}", ndisplay=3, show=False)
    try:
        add_layers(viewer, folder)
    except BaseException:
        viewer.close()
        raise
    viewer.canvas.overlays.scale_bar.visible = viewer.scene.overlays.axes.visible = True
    viewer.show()
    napari.run()
