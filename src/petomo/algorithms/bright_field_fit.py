"""Aberrations and scan rotation of one scan by maximising the signal a weak object explains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from petomo.algorithms.bright_field_direct import folded_frequencies, solve
from petomo.algorithms.bright_field_stack import BrightFieldStack
from petomo.core.threads import shares, spread


@dataclass(frozen=True)
class ExplainedSignal:
    """Contrast as a number: the share of the bright-field signal that a weak phase object explains.

    ``sum_Q |projection of G(., Q) onto the span of Gamma(., Q + m / step)|^2 / sum |G|^2``

    with all aliases of a scan frequency solved for together (variable projection). For a Nyquist-sampled scan
    it is the contrast of the weak-phase image; unlike that image it keeps its peak at the right
    aberrations when the scan is several times too coarse. The sign of C10 shows because the rotation is
    fixed: a turn by 180 degrees with opposite C10 and opposite phase is the one thing it cannot tell.

    Build it with `explained_signal`, then call it with aberrations and, optionally, a scan rotation.
    """

    stack: BrightFieldStack
    upsample: tuple[int, int]
    groups: Tensor
    signal: Tensor = field(repr=False)
    energy: float
    cutoff: float
    ridge: float

    def __call__(self, aberrations: Mapping[str, float], rotation: float | None = None) -> float:
        """Share between 0 and 1."""
        stack = self.stack if rotation is None else self.stack.turned(rotation)
        q = folded_frequencies(stack, self.upsample)[self.groups]

        def explained(share: slice) -> float:
            blocks = solve(
                stack, "weak_phase", aberrations, q[share], self.ridge, self.cutoff, self.signal[share]
            )
            return sum(float(energy.sum()) for _, _, energy in blocks)

        return sum(spread(explained, shares(len(q), least=16))) / self.energy


def explained_signal(
    stack: BrightFieldStack,
    max_pixels: int = 400,
    max_frequencies: int = 256,
    cutoff: float = 1.0,
    ridge: float = 1e-2,
) -> ExplainedSignal:
    """Prepare the contrast measure `ExplainedSignal` of a stack.

    Parameters
    ----------
    stack : BrightFieldStack
    max_pixels, max_frequencies : int
        So many images and scan frequencies (the strongest) are used.
    cutoff : float
        Highest object frequency in aperture radii; higher ones explain more noise than signal.
    ridge : float
        See `petomo.algorithms.bright_field_direct.reconstruct`.
    """
    stack = stack.thinned(max_pixels)
    spectrum = stack.spectrum
    power = (spectrum.abs().square() * stack.weights[:, None, None]).sum(0)
    # the images are real, so that half of the plane tells all; their mean tells nothing
    power[:, power.shape[1] // 2 + 1 :] = 0
    power[0, 0] = 0
    groups = power.flatten().argsort(descending=True)[:max_frequencies]
    groups = groups[power.flatten()[groups] > 0]
    if len(groups) == 0:
        raise ValueError("the bright-field images are all flat: there is nothing to fit aberrations to")
    reach = 2 * cutoff * stack.cutoff
    return ExplainedSignal(
        stack=stack,
        upsample=tuple(max(1, math.ceil(reach * s - 1e-6)) for s in stack.geometry.scan_step),  # pyright: ignore[reportArgumentType]
        groups=groups,
        signal=spectrum.flatten(1).T[groups].contiguous(),
        energy=float(power.flatten()[groups].sum()),
        cutoff=cutoff,
        ridge=ridge,
    )


def fit_c10(contrast: ExplainedSignal, guess: float, search: tuple[float, float]) -> float:
    """C10 in angstrom of the highest contrast, to about 0.5 angstrom.

    Parameters
    ----------
    contrast : ExplainedSignal
    guess : float
        First guess of C10 in angstrom.
    search : (float, float)
        Range about the guess. It is sampled at half the depth of focus ``lambda / alpha^2``, within which the
        contrast has one peak, and the best sample refined.
    """
    depth = 1 / (contrast.stack.wavelength * contrast.stack.cutoff**2)
    samples = np.linspace(*search, max(3, math.ceil((search[1] - search[0]) / (0.5 * depth)) + 1)) + guess
    spacing = samples[1] - samples[0]
    best = samples[int(np.argmax([contrast({"C10": float(c)}) for c in samples]))]
    found = minimize_scalar(
        lambda c: -contrast({"C10": float(c)}),
        bounds=(best - spacing, best + spacing),
        method="bounded",
        options={"xatol": 0.01 * depth},
    )
    return float(found.x)  # pyright: ignore[reportAttributeAccessIssue]


def fit_astigmatism(contrast: ExplainedSignal, c10: float) -> dict[str, float]:
    """C10, C12 and phi12 of the highest contrast near a good C10, by Nelder and Mead's simplex.

    C12 is searched as ``(C12 cos 2 phi12, C12 sin 2 phi12)``, which has no seam.
    """
    depth = 1 / (contrast.stack.wavelength * contrast.stack.cutoff**2)
    start = np.array([c10, 0.0, 0.0])
    found = minimize(
        lambda p: -contrast(_aberrations(p)),
        start,
        method="Nelder-Mead",
        options={
            "xatol": 0.02 * depth,
            "fatol": 1e-5,
            "maxfev": 120,
            "initial_simplex": start + np.vstack([np.zeros(3), 0.25 * depth * np.eye(3)]),
        },
    )
    return _aberrations(found.x)


def fit_rotation(
    contrast: ExplainedSignal,
    aberrations: Mapping[str, float],
    rotation: float,
    width: float = math.radians(10),
) -> float:
    """Scan rotation in radian of the highest contrast within ``width`` of ``rotation``.

    Needs a defocus or an object with detail in all directions; aberrations stay in the detector's frame.
    """
    found = minimize_scalar(
        lambda angle: -contrast(aberrations, float(angle)),
        bounds=(rotation - width, rotation + width),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(found.x)  # pyright: ignore[reportAttributeAccessIssue]


def _aberrations(p: np.ndarray) -> dict[str, float]:
    return {
        "C10": float(p[0]),
        "C12": float(np.hypot(p[1], p[2])),
        "phi12": float(np.arctan2(p[2], p[1]) / 2),
    }
