"""Immutable, lazy handles on a tilt series of 4D-STEM datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from petomo.core.bad_pixels import mend
from petomo.core.errors import UserError


class PatternSource(Protocol):
    """Anything that can hand out diffraction patterns by scan index without loading the rest."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Patterns ``(len(indices), ky, kx)`` in the order asked for, in the file's number type."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Patterns that already lie in memory (or in a memory map), shape ``(k, ky, kx)``."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, ky, kx)."""
        return self.array.shape  # pyright: ignore[reportReturnType]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Patterns in the order asked for."""
        return np.asarray(self.array[indices])


def scan_positions(
    scan_shape: tuple[int, int], scan_step: tuple[float, float], rotation: float = 0.0
) -> Tensor:
    """Nominal scan positions ``(k, 2)`` as (x, y) in angstrom, origin at the centre of the scan.

    Parameters
    ----------
    scan_shape : (int, int)
        (scan_y, scan_x), flattened row by row.
    scan_step : (float, float)
        Step along (y, x) in angstrom.
    rotation : float
        Angle in radian from the scan's fast axis to the detector's x axis.
    """
    ny, nx = scan_shape
    y = (torch.arange(ny, dtype=torch.float64) - (ny - 1) / 2) * scan_step[0]
    x = (torch.arange(nx, dtype=torch.float64) - (nx - 1) / 2) * scan_step[1]
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    c, s = np.cos(rotation), np.sin(rotation)
    return grid @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)


def mirrored(patterns: np.ndarray, axis: int) -> np.ndarray:
    """Patterns mirrored about the zero frequency, pixel ``n // 2``, which stays where it is.

    A plain flip would move it to ``n // 2 - 1`` where ``n`` is even; there the first pixel, the Nyquist
    frequency of both signs, keeps its place.
    """
    out = np.flip(patterns, axis)
    return out if patterns.shape[axis] % 2 else np.roll(out, 1, axis)


@dataclass(frozen=True)
class FourDSTEM:
    """One tilt: diffraction patterns on a scan grid, with their calibration.

    Parameters
    ----------
    source : PatternSource
        Centred patterns in counts, zero frequency at ``n // 2``.
    energy_ev, semiangle_mrad : float
        Beam energy and convergence semi-angle.
    scan_shape : (int, int)
        (scan_y, scan_x).
    scan_step : (float, float)
        Step along (y, x) in angstrom.
    detector_sampling : (float, float)
        Detector pixel along (ky, kx) in 1/angstrom.
    stage_tilt : float
        Nominal stage tilt about y in radian.
    defocus : float or None
        First guess in angstrom, positive = underfocus (C10 = -defocus).
    scan_rotation : float
        Radian, see `scan_positions`.
    counts_per_electron : float
        Detector gain; `patterns` returns electrons.
    flip : (bool, bool, bool)
        Mirror the patterns up-down, left-right (see `mirrored`), then transpose, in that order.
    bad_pixels : tuple of (int, int)
        Pixels (ky, kx) of the source's patterns that measured nothing. `patterns` has them mended, and
        `bad_pixel_mask` says where they are, so that a loss can leave them out.
    name : str
        For messages: the file or key it came from.
    unrecorded : np.ndarray or None
        True at pixels (ky, kx) of the source's patterns where no detector was or its own mask hides it; they
        hold zero, which is no measurement of zero, so that `unmeasured_mask` has them for the losses.
    """

    source: PatternSource
    energy_ev: float
    semiangle_mrad: float
    scan_shape: tuple[int, int]
    scan_step: tuple[float, float]
    detector_sampling: tuple[float, float]
    stage_tilt: float = 0.0
    defocus: float | None = None
    scan_rotation: float = 0.0
    counts_per_electron: float = 1.0
    flip: tuple[bool, bool, bool] = (False, False, False)
    name: str = ""
    bad_pixels: tuple[tuple[int, int], ...] = ()
    unrecorded: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        k = self.scan_shape[0] * self.scan_shape[1]
        if self.source.shape[0] != k:
            raise ValueError(
                f"{self.name or 'dataset'}: {self.source.shape[0]} patterns do not fill a scan of "
                f"{self.scan_shape[0]} x {self.scan_shape[1]} positions"
            )

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """(ky, kx) after flips."""
        ky, kx = self.source.shape[1:]
        return (kx, ky) if self.flip[2] else (ky, kx)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Real-space pixel (y, x) in angstrom whose Nyquist frequency is the detector's edge."""
        (ky, kx), (dy, dx) = self.pattern_shape, self.detector_sampling
        return (1 / (ky * dy), 1 / (kx * dx))

    def patterns(self, indices: np.ndarray | Sequence[int] | slice | None = None) -> np.ndarray:
        """Electrons per pixel, float32 ``(k, ky, kx)``, centred, flips applied; only these are read.

        Bad pixels are replaced by the median of their neighbours.
        """
        if indices is None:
            indices = slice(None)
        index = np.arange(len(self))[indices] if isinstance(indices, slice) else np.asarray(indices)
        out = self._flipped(self._read(index))
        out = np.ascontiguousarray(out, dtype=np.float32) / np.float32(self.counts_per_electron)
        if self.bad_pixel_mask is None or self.unmeasured_mask is None:
            return out
        return mend(out, self.bad_pixel_mask, ~self.unmeasured_mask)

    @property
    def bad_pixel_mask(self) -> np.ndarray | None:
        """True where the detector measures nothing, ``(ky, kx)`` with flips applied; None if all are good."""
        if not self.bad_pixels:
            return None
        mask = np.zeros((1, *self.source.shape[1:]), bool)
        mask[0, *np.transpose(self.bad_pixels)] = True
        return self._flipped(mask)[0]

    @property
    def unmeasured_mask(self) -> np.ndarray | None:
        """True where nothing was measured: bad pixels and unrecorded ones; as `bad_pixel_mask`."""
        bad = self.bad_pixel_mask
        if self.unrecorded is None:
            return bad
        mask = self._flipped(self.unrecorded[None])[0]
        return mask if bad is None else mask | bad

    @property
    def recorded_shape(self) -> tuple[int, int]:
        """(ky, kx) of the smallest pattern about the same centre that holds all recorded pixels."""
        if self.unrecorded is None:
            return self.pattern_shape
        seen, shape = ~self._flipped(self.unrecorded[None])[0], []
        for axis in (0, 1):
            where = np.flatnonzero(seen.any(1 - axis)) - seen.shape[axis] // 2
            shape.append(int(max(-2 * where[0], 2 * where[-1] + 1)))
        return shape[0], shape[1]

    @property
    def recorded_pixel_size(self) -> tuple[float, float]:
        """As `pixel_size`, of the recorded part."""
        (ky, kx), (dy, dx) = self.recorded_shape, self.detector_sampling
        return (1 / (ky * dy), 1 / (kx * dx))

    def _flipped(self, patterns: np.ndarray) -> np.ndarray:
        up_down, left_right, transpose = self.flip
        patterns = mirrored(patterns, 1) if up_down else patterns
        patterns = mirrored(patterns, 2) if left_right else patterns
        return patterns.transpose(0, 2, 1) if transpose else patterns

    def _read(self, index: np.ndarray) -> np.ndarray:
        """Patterns as stored; a file that went bad since it was opened is told in a sentence."""
        try:
            return self.source.read(index)
        except (UserError, IndexError):
            raise
        except MemoryError as error:
            raise UserError(
                f"{self.name}: its patterns take more memory than there is; store it in smaller chunks, or "
                "copy it again if it should be small"
            ) from error
        except FileNotFoundError as error:
            raise UserError(f"{self.name}: this file is no longer there; put it back") from error
        except Exception as error:  # every file format has failures of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
            raise UserError(
                f"{self.name}: its patterns cannot be read ({reason}); the file is damaged or was cut short, "
                "so copy it again, or name it in data.exclude"
            ) from error

    def positions(self) -> Tensor:
        """Nominal scan positions ``(k, 2)``, (x, y) in angstrom, float64."""
        return scan_positions(self.scan_shape, self.scan_step, self.scan_rotation)

    @property
    def scan_area(self) -> float:
        """Scanned area in square angstrom."""
        return len(self) * self.scan_step[0] * self.scan_step[1]


@dataclass(frozen=True)
class TiltSeries:
    """A tuple of tilts, in the order given."""

    tilts: tuple[FourDSTEM, ...]
    name: str = field(default="")

    def __post_init__(self):
        if not self.tilts:
            raise ValueError("a tilt series needs at least one tilt")
        for key in ("pattern_shape", "energy_ev", "detector_sampling"):
            values = [getattr(t, key) for t in self.tilts]
            for tilt, value in zip(self.tilts, values, strict=True):
                if value != values[0]:
                    raise ValueError(
                        f"{tilt.name}: {key} is {value}, but {self.tilts[0].name} has {values[0]}; "
                        "all tilts of a series need the same"
                    )

    def __len__(self) -> int:
        return len(self.tilts)

    def __iter__(self):
        return iter(self.tilts)

    def __getitem__(self, index: int) -> FourDSTEM:
        return self.tilts[index]

    @property
    def stage_tilts(self) -> Tensor:
        """Nominal stage tilts in radian, float64."""
        return torch.tensor([t.stage_tilt for t in self.tilts], dtype=torch.float64)
