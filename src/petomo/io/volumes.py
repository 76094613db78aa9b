"""Volumes and image stacks as MRC files (Cheng et al., J. Struct. Biol. 192 (2015) 146)."""

from __future__ import annotations

import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import ArrayLike

from petomo.core.errors import UserError
from petomo.io.atomic import atomic_path


@dataclass(frozen=True)
class GridData:
    """Numbers on a regular grid, with what a viewer needs to put it in its place.

    Parameters
    ----------
    values : np.ndarray
        Real ``z y x``, or ``tilt y x`` for images.
    spacing : (float, float, float)
        Step of each axis: angstrom, for the axis ``tilt`` 1.
    axes : (str, str, str)
        ``("z", "y", "x")`` or ``("tilt", "y", "x")``.
    name, unit : str
        What the numbers are, and their unit (``V`` or ``rad``).
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    axes: tuple[str, str, str] = ("z", "y", "x")
    name: str = "potential"
    unit: str = "V"

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along each axis."""
        return self.values.shape

    @property
    def origin(self) -> tuple[float, ...]:
        """Coordinate of the first point of each axis; zero is at ``n // 2``, for ``tilt`` at the first."""
        return tuple(
            0.0 if axis == "tilt" else -(n // 2) * step
            for axis, n, step in zip(self.axes, self.shape, self.spacing, strict=True)
        )

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)


def _float32(array: ArrayLike, what: str) -> np.ndarray:
    values = np.asarray(array, dtype=np.float32)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"{what} needs three axes, got shape {values.shape}")
    return np.ascontiguousarray(values)


def _sizes(size: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    sizes = (
        (float(size),) * count if isinstance(size, (int, float)) else tuple(float(number) for number in size)
    )
    if len(sizes) != count or not all(number > 0 for number in sizes):
        raise ValueError(f"needs one positive size or {count}, got {size}")
    return sizes


def write_mrc(path: str | Path, volume: ArrayLike, voxel_size: float | tuple[float, ...]) -> None:
    """Write a volume ``z y x`` atomically as float32.

    The header places the coordinate origin at voxel ``n // 2``, both in cells
    (nstart, which CCP4 programs read) and in angstrom (origin, which ChimeraX reads).

    Parameters
    ----------
    path : path
        File to write.
    volume : array
        Real ``z y x``; volts for a potential.
    voxel_size : float or (float, float, float)
        (z, y, x) in angstrom.
    """
    values, (dz, dy, dx) = _float32(volume, "a volume"), _sizes(voxel_size, 3)
    with atomic_path(path) as temporary, mrcfile.new(temporary, data=values) as mrc:
        mrc.set_volume()
        mrc.voxel_size = (dx, dy, dz)
        mrc.nstart = tuple(-(n // 2) for n in values.shape[::-1])
        nz, ny, nx = values.shape
        origin = mrc.header.origin  # pyright: ignore[reportOptionalMemberAccess]
        origin.x, origin.y, origin.z = -(nx // 2) * dx, -(ny // 2) * dy, -(nz // 2) * dz


def write_stack(path: str | Path, images: ArrayLike, pixel_size: float | tuple[float, ...]) -> None:
    """Write images ``tilt y x`` atomically as a float32 MRC image stack.

    Parameters
    ----------
    path : path
        File to write.
    images : array
        Real ``tilt y x``; radian for phase projections.
    pixel_size : float or (float, float)
        (y, x) in angstrom.
    """
    values, (dy, dx) = _float32(images, "an image stack"), _sizes(pixel_size, 2)
    with atomic_path(path) as temporary, mrcfile.new(temporary, data=values) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = (dx, dy, 1.0)


def refuse_cut_mrc(path: Path) -> None:
    """Refuse an MRC file whose header declares more than the file holds, before memory is taken for it.

    Raises
    ------
    UserError
        Saying how many bytes are declared and there.
    """
    with open(path, "rb") as file:
        header = file.read(1024)
    if header[208:211] != b"MAP":  # not MRC, or compressed: mrcfile tells
        return
    order = ">" if header[212:213] == b"\x11" else "<"
    *shape, mode = struct.unpack(f"{order}4i", header[:16])
    (extended,) = struct.unpack(f"{order}i", header[92:96])
    sizes = {0: 1, 1: 2, 2: 4, 4: 8, 6: 2, 12: 2}
    declared = 1024 + max(0, extended) + math.prod(max(0, n) for n in shape) * sizes.get(mode, 0)
    if declared > (stored := path.stat().st_size):
        raise UserError(
            f"{path}: this is not a sound MRC file (its header declares {declared} bytes, but it holds "
            f"{stored}); it was cut short, so copy it again"
        )


def read_mrc(path: str | Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Array ``z y x`` (or ``tilt y x``) of an MRC file and its voxel size (z, y, x) in angstrom.

    Raises
    ------
    UserError
        If the file is missing or not MRC.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; an MRC volume is needed here")
    try:
        refuse_cut_mrc(Path(path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with mrcfile.open(path) as mrc:
                size = mrc.voxel_size
                return np.array(mrc.data), (float(size.z), float(size.y), float(size.x))
    except (ValueError, Warning) as error:
        raise UserError(f"{path}: this is not a sound MRC file ({error})") from error


ARTEFACTS = {
    "volume": ("volume.mrc", "potential", "V"),
    "volume_completed": ("volume_completed.mrc", "potential completed by atoms", "V"),
    "volume_linear": ("volume_linear.mrc", "phase per length by linear tomography", "rad/A"),
    "absorption": ("absorption.mrc", "absorptive potential", "V"),
    "projections": ("projections.mrc", "phase projections", "rad"),
}
"""Gridded artefacts of a run: file, name of the numbers, unit."""


def read_grid(folder: str | Path, what: str = "volume") -> GridData:
    """A gridded artefact of a run folder; ``what`` is a key of `ARTEFACTS`.

    Raises
    ------
    UserError
        If there is no such artefact, or its file is damaged.
    """
    if what not in ARTEFACTS:
        raise UserError(f"{what}: a run has no such artefact; choose one of {', '.join(ARTEFACTS)}")
    file, name, unit = ARTEFACTS[what]
    path = Path(folder) / file
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; the stage that writes it has not run")
    values, spacing = read_mrc(path)
    if values.ndim != 3:
        raise UserError(
            f"{path}: this has {values.ndim} axes instead of 3; run the stage that writes it again"
        )
    if what == "projections":
        return GridData(values, (1.0, *spacing[1:]), ("tilt", "y", "x"), name, unit)
    return GridData(values, spacing, name=name, unit=unit)
