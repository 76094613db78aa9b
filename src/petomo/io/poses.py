"""Poses in petomo's JSON, RELION-5's STAR and IMOD's files, in and out.

RELION-5 composes ``Rz(rlnTomoZRot) Ry(rlnTomoYTilt) Rx(rlnTomoXTilt)`` and then shifts the image by
``rlnTomoXShiftAngst`` and ``rlnTomoYShiftAngst``: petomo's own convention (see `petomo.core.pose`), so its
columns are our numbers in degrees and angstrom.

IMOD keeps theta in ``.tlt`` (refined) or ``.rawtlt``, phi in ``.xtilt``, and in ``.xf``, a line per image,
``A11 A12 A21 A22 DX DY``: the map in pixels about the image's centre that brings the tilt axis to y and
removes the shift. Its centre is ``(n - 1) / 2``, ours ``n // 2``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import torch

from petomo.core.errors import UserError
from petomo.core.pose import Poses
from petomo.io.angles import order_by_name, read_angles
from petomo.io.artefacts import read_poses, write_poses
from petomo.io.atomic import write_text
from petomo.io.star import find_block, format_star, read_star
from petomo.io.text import read_text
from petomo.io.volumes import refuse_cut_mrc

POSE_SUFFIXES = (".json", ".star", ".xf")
_STAR = ("rlnTomoXTilt", "rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst")
_STACKS = (".mrc", ".st", ".ali", ".preali")


@dataclass(frozen=True)
class ImageFrame:
    """What IMOD's pixels are.

    Parameters
    ----------
    pixel_size : float
        Angstrom.
    shape : (int, int)
        Image size (y, x); only whether it is odd matters.
    """

    pixel_size: float
    shape: tuple[int, int] = (2, 2)

    @property
    def offset(self) -> np.ndarray:
        """Petomo's centre minus IMOD's, (x, y) in pixels."""
        return np.array([n // 2 - (n - 1) / 2 for n in self.shape[::-1]])

    @classmethod
    def of_stack(cls, path: Path) -> ImageFrame:
        """From the header of an MRC stack."""
        try:
            refuse_cut_mrc(path)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with mrcfile.open(path, header_only=True) as mrc:
                    header, size = mrc.header, mrc.voxel_size
                    shape, (y, x) = (int(header.ny), int(header.nx)), (float(size.y), float(size.x))  # pyright: ignore
        except (OSError, ValueError, Warning) as error:
            raise UserError(f"{path}: this is not a sound MRC file ({error})") from error
        if not (x > 0 and abs(y - x) <= 1e-3 * x):
            raise UserError(f"{path}: its pixels are {x:g} x {y:g} A, but IMOD's files need square ones")
        return cls(x, shape)


def load_poses(
    path: str | Path, names: Sequence[str] | None = None, frame: ImageFrame | None = None
) -> tuple[Poses, list[str]]:
    """Poses (float64) and tilt names from ``.json``, ``.star`` or ``.xf`` (``.tlt`` or ``.rawtlt`` beside).

    Parameters
    ----------
    path : path
        File; its suffix tells the format.
    names : sequence of str, optional
        Tilts wanted: where the file names them all, they are picked and put in this order.
    frame : ImageFrame, optional
        For ``.xf``; default: the image stack of the same name beside it.

    Raises
    ------
    UserError
        If the file is missing or holds something else.
    """
    path = Path(path)
    readers = {".json": read_poses, ".star": _from_star, ".xf": lambda p: _from_imod(p, frame)}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: poses come as {', '.join(POSE_SUFFIXES)}; give one of these")
    poses, found = readers[path.suffix.lower()](path)
    values = (poses.phi, poses.theta, poses.psi, poses.tau)
    if not all(bool(torch.isfinite(value).all()) for value in values) or not len(poses):
        raise UserError(f"{path}: a pose is missing or is not finite; give angles and shifts of every tilt")
    order = order_by_name(found, names) if names is not None else None
    if order is not None:
        return Poses(*(value[order] for value in values)), [found[number] for number in order]
    return poses, found


def save_poses(
    path: str | Path, poses: Poses, names: Sequence[str], frame: ImageFrame | None = None
) -> list[Path]:
    """Write poses as ``.json``, ``.star``, or ``.xf`` with ``.rawtlt``, ``.tlt`` and, for phi, ``.xtilt``.

    Returns
    -------
    list of Path
        What was written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        write_poses(path, poses, names)
        return [path]
    if suffix == ".star":
        write_text(path, _to_star(poses, names, path.stem))
        return [path]
    if suffix in (".xf", ".tlt", ".rawtlt"):
        return _to_imod(path, poses, frame)
    raise UserError(f"{path}: poses can be written as {', '.join(POSE_SUFFIXES)}; give one of these")


def _degrees(poses: Poses) -> np.ndarray:
    """(tilt, 3): phi, theta, psi."""
    return np.rad2deg(torch.stack([poses.phi, poses.theta, poses.psi], -1).detach().double().numpy())


def _poses(degrees: np.ndarray, tau: np.ndarray) -> Poses:
    phi, theta, psi = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float64)).unbind(-1)
    return Poses(phi, theta, psi, torch.as_tensor(tau, dtype=torch.float64))


def _to_star(poses: Poses, names: Sequence[str], title: str) -> str:
    tau = poses.tau.detach().double().numpy()
    numbers = np.concatenate([_degrees(poses), tau], axis=1)
    columns = {"rlnMicrographName": list(names)}
    columns |= {key: [f"{value:.9f}" for value in numbers[:, n]] for n, key in enumerate(_STAR)}
    return format_star(title.replace(" ", "_"), columns)


def _from_star(path: Path) -> tuple[Poses, list[str]]:
    block = find_block(path, read_star(path), _STAR)
    try:
        numbers = np.array([[float(value) for value in block[key]] for key in _STAR]).T
    except ValueError:
        raise UserError(f"{path}: a value of {', '.join(_STAR)} is not a number") from None
    names = block.get("rlnMicrographName") or block.get("rlnMicrographMovieName")
    return _poses(numbers[:, :3], numbers[:, 3:]), names or [str(n) for n in range(len(numbers))]


def _to_imod(path: Path, poses: Poses, frame: ImageFrame | None) -> list[Path]:
    if frame is None:
        raise UserError(f"{path}: IMOD's shifts are in pixels; say how large one is with --pixel-angstrom")
    degrees, tau = _degrees(poses), poses.tau.detach().double().numpy()
    lines = []
    for psi, shift in zip(np.deg2rad(degrees[:, 2]), tau, strict=True):
        matrix = _turn(-psi)
        moved = frame.offset - matrix @ (frame.offset + shift / frame.pixel_size)
        lines.append(" ".join(f"{value:.12f}" for value in (*matrix.ravel(), *moved)))
    columns = {".xf": lines}
    columns |= {suffix: [f"{value:.9f}" for value in degrees[:, 1]] for suffix in (".rawtlt", ".tlt")}
    if np.any(degrees[:, 0]):
        columns[".xtilt"] = [f"{value:.9f}" for value in degrees[:, 0]]
    for suffix, rows in columns.items():
        write_text(path.with_suffix(suffix), "\n".join([*rows, ""]))
    return [path.with_suffix(suffix) for suffix in columns]


def _from_imod(path: Path, frame: ImageFrame | None) -> tuple[Poses, list[str]]:
    theta = next((path.with_suffix(s) for s in (".tlt", ".rawtlt") if path.with_suffix(s).is_file()), None)
    if theta is None:
        raise UserError(f"{path}: the tilts should lie beside it in {path.stem}.tlt or {path.stem}.rawtlt")
    stack = next((path.with_suffix(s) for s in _STACKS if path.with_suffix(s).is_file()), None)
    if frame is None and stack is None:
        raise UserError(
            f"{path}: IMOD's shifts are in pixels; put the image stack {path.stem}.mrc beside it, or "
            f"convert it: petomo poses {path} --pixel-angstrom SIZE --to poses.json"
        )
    frame = frame or ImageFrame.of_stack(stack)  # pyright: ignore[reportArgumentType]
    try:
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        rows = np.array([[float(word) for word in line] for line in lines])
        matrices, moved = rows[:, :4].reshape(-1, 2, 2), rows[:, 4:6]
        assert rows.shape[1] == 6
    except (ValueError, IndexError, AssertionError):
        raise UserError(f"{path}: every line should hold the six numbers A11 A12 A21 A22 DX DY") from None
    if not np.allclose(matrices @ matrices.transpose(0, 2, 1), np.eye(2), atol=1e-3):
        raise UserError(f"{path}: a line stretches or shears the image, but a pose only turns and shifts it")
    angles = [np.array(read_angles(theta))]
    extra = path.with_suffix(".xtilt")
    angles.insert(0, np.array(read_angles(extra)) if extra.is_file() else np.zeros(len(rows)))
    if {len(values) for values in angles} != {len(rows)}:
        raise UserError(f"{path}: this holds {len(rows)} images, but {theta.name} has {len(angles[1])} tilts")
    psi = np.rad2deg(-np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    inverse = np.linalg.inv(matrices)
    tau = -frame.pixel_size * (np.einsum("tij,tj->ti", inverse, moved - frame.offset) + frame.offset)
    return _poses(np.stack([*angles, psi], -1), tau), [str(n) for n in range(len(rows))]


def _turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])
