"""Step 1 of the workflow: a direct phase image and the probe's aberrations from the bright-field disk.

`fit_aberrations` is the step as a whole; the methods are in `bright_field_direct`, the contrast measure it
maximises in `bright_field_fit`, the checks of rotation and handedness in `bright_field_shifts` (paper,
section "Bright-field reconstruction").
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from petomo.algorithms.bright_field_direct import (
    Method,
    reconstruct,
    reconstruct_parallax,
    reconstruct_ssb,
    reconstruct_weak_phase,
)
from petomo.algorithms.bright_field_fit import explained_signal, fit_astigmatism, fit_c10, fit_rotation
from petomo.algorithms.bright_field_shifts import RotationCheck, com_rotation, fit_parallax
from petomo.algorithms.bright_field_stack import BrightFieldStack, ScanGeometry, bright_field_stack
from petomo.core.dataset import FourDSTEM
from petomo.core.electron import mrad_to_inverse_angstrom, wavelength


@dataclass(frozen=True)
class BrightFieldResult:
    """Phase image and aberrations of one tilt.

    Parameters
    ----------
    method, reason : str
        How the image was made, and why so, in one sentence.
    phase : Tensor
        Radian, ``(y, x)`` in the scan's frame; first pixel at the first scan position, zero mean.
    sampling : (float, float)
        Pixel of ``phase`` along (y, x) in angstrom: the scan step, or a fraction of it where aliases were
        resolved.
    C10, C12, phi12 : float
        Angstrom and radian, at the specimen's mean plane, in the detector's frame; C10 = -defocus.
    contrast : float
        Share of the bright-field signal explained, see `ExplainedSignal`.
    scan_rotation : float
        Radian, as used for all of the above.
    transposed : bool
        The detector's axes were exchanged for all of the above.
    orientation : RotationCheck
        What the centre of mass says of rotation and handedness, independent of the aberrations.
    warning : str
        Empty, or one sentence if another rotation or handedness fits the data better.
    """

    method: str
    reason: str
    phase: Tensor = field(repr=False)
    sampling: tuple[float, float]
    C10: float
    C12: float
    phi12: float
    contrast: float
    scan_rotation: float
    transposed: bool
    orientation: RotationCheck
    warning: str = ""

    @property
    def defocus(self) -> float:
        """Angstrom, positive = underfocus."""
        return -self.C10


def choose_method(geometry: ScanGeometry, C10: float, pixels: int) -> tuple[Method, tuple[int, int], str]:
    """Method, output pixels per scan step (y, x), and the reason in one sentence.

    SSB where the scan's Nyquist frequency reaches the aperture radius ``alpha / lambda``, where SSB transfers
    best. A coarser scan folds about ``pi (alpha / lambda)^2 step_y step_x`` frequencies on one: the
    weak-phase equations of all disk pixels part them if neighbouring probes overlap and there are eight
    pixels for each. Otherwise parallax needs no more than shifts of at least a scan step across the disk,
    and weak phase without unfolding remains.

    Parameters
    ----------
    geometry : ScanGeometry
    C10 : float
        Angstrom.
    pixels : int
        Images of the stack.
    """
    cutoff = mrad_to_inverse_angstrom(geometry.semiangle_mrad, geometry.energy_ev)
    coarse, alpha = max(geometry.scan_step), geometry.semiangle_mrad * 1e-3
    limits = f"Nyquist frequency {0.5 / coarse:.3g} 1/A {{}} the aperture radius {cutoff:.3g} 1/A"
    if 0.5 / coarse >= cutoff:
        return "ssb", (1, 1), f"SSB, because the scan's {limits.format('reaches')}"
    below = f"the scan's {limits.format('stays below')}"
    folded = math.ceil(math.pi * cutoff**2 * math.prod(geometry.scan_step))
    spread = 2 * alpha * abs(C10)
    probe = spread + 1.22 * wavelength(geometry.energy_ev) / alpha
    if probe >= coarse and pixels >= 8 * folded:
        reason = (
            f"weak phase with aliases resolved, because {below}, but {pixels} disk pixels tell the {folded} "
            f"folded frequencies apart (probe {probe:.3g} A, step {coarse:.3g} A)"
        )
        return "weak_phase", _unfolding(geometry, cutoff), reason
    if spread >= coarse:
        reason = (
            f"parallax, because {below}, {pixels} disk pixels cannot tell {folded} folded frequencies apart, "
            f"and the defocus of {-C10:.3g} A (positive = underfocus) spreads the images over {spread:.3g} A"
        )
        return "parallax", _unfolding(geometry, cutoff), reason
    reason = (
        f"weak phase without resolved aliases, because {below} and a probe of {probe:.3g} A at steps of "
        f"{coarse:.3g} A cannot make up for it: the image is aliased, use a finer scan or more defocus"
    )
    return "weak_phase", (1, 1), reason


def fit_aberrations(
    patterns: Tensor | FourDSTEM,
    geometry: ScanGeometry,
    *,
    fit: Collection[str] = ("C10", "C12"),
    defocus_guess: float = 0.0,
    search: tuple[float, float] = (-300.0, 300.0),
    method: Literal["auto"] | Method = "auto",
    turn: bool = False,
) -> BrightFieldResult:
    """Defocus, astigmatism and a phase image of one scan.

    Parameters
    ----------
    patterns : Tensor or FourDSTEM
        Electrons ``(scan_y, scan_x, ky, kx)``, zero frequency at ``n // 2``.
    geometry : ScanGeometry
        Calibration; a `FourDSTEM` serves as both.
    fit : collection of str
        ``"C10"``, ``"C12"``; what is left out keeps the guess (C12: 0).
    defocus_guess : float
        Angstrom, positive = underfocus.
    search : (float, float)
        Lowest and highest defocus searched, relative to the guess.
    method : str
        ``auto`` or the image's method; the aberrations are fitted in the same way for all of them.
    turn : bool
        Adopt the rotation and handedness that fit best, and refine the rotation; otherwise they are only
        checked.

    Raises
    ------
    ValueError
        If the disk is empty or flat, or too small for the calibration given.
    """
    unknown = set(fit) - {"C10", "C12"}
    if unknown:
        raise ValueError(f"cannot fit {sorted(unknown)} to the bright field, only C10 and C12")
    stack = bright_field_stack(patterns, geometry)
    limits = (-search[1], -search[0]) if "C10" in fit else (0.0, 0.0)
    c10, stack, orientation, warning = _orient(stack, -defocus_guess, limits, turn)
    aberrations, contrast, stack = _refine(stack, c10, fit, turn)
    chosen, upsample, reason = choose_method(geometry, aberrations["C10"], len(stack.q))
    if method not in ("auto", chosen):
        reason = f"{method}, as asked for (the sampling suggests {reason})"
        chosen, upsample = method, _unfolding(geometry, stack.cutoff)
    return BrightFieldResult(
        method=chosen,
        reason=reason,
        # unfolding gets ill-conditioned beyond the aperture radius
        phase=reconstruct(stack, chosen, aberrations, upsample, cutoff=2.0 if upsample == (1, 1) else 1.0),
        sampling=(geometry.scan_step[0] / upsample[0], geometry.scan_step[1] / upsample[1]),
        **aberrations,
        contrast=contrast,
        scan_rotation=stack.rotation,
        transposed=stack.transposed,
        orientation=orientation,
        warning=warning,
    )


def _refine(
    stack: BrightFieldStack, c10: float, fit: Collection[str], turn: bool
) -> tuple[dict[str, float], float, BrightFieldStack]:
    """Aberrations, their contrast, and the stack under the rotation they were fitted with."""
    fine = explained_signal(stack, max_pixels=300)
    if "C10" in fit:
        depth = 1 / (stack.wavelength * stack.cutoff**2)
        c10 = fit_c10(fine, c10, (-0.3 * depth, 0.3 * depth))
    aberrations = {"C10": c10, "C12": 0.0, "phi12": 0.0}
    if turn:
        stack = stack.turned(fit_rotation(fine, aberrations, stack.rotation))
        fine = explained_signal(stack, max_pixels=300)
    if "C12" in fit:
        found = fit_astigmatism(fine, c10)
        aberrations = found if "C10" in fit else {**found, "C10": c10}
    return aberrations, fine(aberrations), stack


def _orient(
    stack: BrightFieldStack, c10: float, search: tuple[float, float], turn: bool
) -> tuple[float, BrightFieldStack, RotationCheck, str]:
    """C10 to a fraction of the depth of focus, and the orientation judged by the contrast it allows."""
    check = com_rotation(stack)
    best, contrast = _coarse_c10(stack, c10, search)
    away = abs(math.remainder(check.rotation - stack.rotation, 2 * math.pi))
    if check.confidence < 0.05 or (not check.transposed and away < math.radians(15)):
        return best, stack, check, ""
    other = (stack.transpose() if check.transposed else stack).turned(check.rotation)
    other_best, other_contrast = _coarse_c10(other, c10, search)
    # opposite rotation and C10 explain the same signal, so only a clear gain counts
    if other_contrast < 1.1 * contrast:
        return best, stack, check, ""
    what = f"a scan rotation of {math.degrees(check.rotation):.0f} degrees"
    what += " with the detector's axes exchanged" if check.transposed else ""
    warning = f"{what} explains {other_contrast:.0%} of the bright-field signal, the given one {contrast:.0%}"
    return (other_best, other, check, warning) if turn else (best, stack, check, warning)


def _coarse_c10(stack: BrightFieldStack, c10: float, search: tuple[float, float]) -> tuple[float, float]:
    contrast = explained_signal(stack, max_pixels=120, max_frequencies=150)
    if search[0] < search[1]:
        c10 = fit_c10(contrast, c10, search)
    return c10, contrast({"C10": c10})


def _unfolding(geometry: ScanGeometry, cutoff: float) -> tuple[int, int]:
    """Output pixels per step that reach the aperture radius."""
    y, x = (max(1, math.ceil(2 * cutoff * step - 1e-6)) for step in geometry.scan_step)
    return y, x


__all__ = [
    "BrightFieldResult",
    "BrightFieldStack",
    "RotationCheck",
    "ScanGeometry",
    "bright_field_stack",
    "choose_method",
    "com_rotation",
    "fit_aberrations",
    "fit_parallax",
    "reconstruct",
    "reconstruct_parallax",
    "reconstruct_ssb",
    "reconstruct_weak_phase",
]
