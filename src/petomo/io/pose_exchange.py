"""The command that shows poses and hands them to other programs."""

from __future__ import annotations

import math
from pathlib import Path

from petomo.core.errors import UserError
from petomo.io.poses import ImageFrame, load_poses, save_poses


def exchange_poses(source: Path, to: Path | None, pixel_angstrom: float | None) -> list[str]:
    """Read poses of a run folder or file; write them to ``to``, or say them.

    Parameters
    ----------
    source : Path
        Run folder, or a file that `petomo.io.poses.load_poses` reads.
    to : Path, optional
        File to write; its suffix tells the format.
    pixel_angstrom : float, optional
        Pixel of IMOD's files; default: that of the run's projections or of the stack beside the file.

    Returns
    -------
    list of str
        Lines for the user.

    Raises
    ------
    UserError
        If the source is not understood, or the target exists already.
    """
    if pixel_angstrom is not None and not (pixel_angstrom > 0 and math.isfinite(pixel_angstrom)):
        raise UserError(f"--pixel-angstrom is {pixel_angstrom}, but should be a positive number")
    frame = None if pixel_angstrom is None else ImageFrame(pixel_angstrom)
    file, stack = source, source.with_suffix(".mrc")
    if source.is_dir():
        file, stack = source / "poses.json", source / "projections.mrc"
        if not file.is_file():
            raise UserError(f"{file}: there is no such file; the stage that finds the poses has not run")
    if frame is None and stack.is_file():
        frame = ImageFrame.of_stack(stack)
    poses, names = load_poses(file, frame=frame)
    if to is not None:
        if to.exists():
            raise UserError(f"{to}: this file exists already; give another name")
        return [f"wrote {path}" for path in save_poses(to, poses, names, frame)]
    width = max(len(name) for name in names)
    lines = [f"{'tilt':{width}}  phi deg  theta deg  psi deg    tau x A    tau y A"]
    for number, name in enumerate(names):
        phi, theta, psi = (math.degrees(getattr(poses, key)[number]) for key in ("phi", "theta", "psi"))
        x, y = poses.tau[number].tolist()
        lines.append(f"{name:{width}} {phi:8.3f} {theta:10.3f} {psi:8.3f} {x:10.3f} {y:10.3f}")
    return lines
