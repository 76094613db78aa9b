"""What a user says about the data; everything is optional where the files say it themselves."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class Section(BaseModel):
    """A group of keys that refuses unknown ones.

    Where a group's default is itself a group, giving some of its keys keeps
    the default's other keys; leaving it empty keeps all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _merge_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Section) and name in values:
                value = values[name]
                if value is None:
                    merged[name] = field.default
                elif isinstance(value, dict):
                    merged[name] = field.default.model_dump() | value
        return merged


def _pair(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value, value] if number else value


PositivePair = Annotated[tuple[PositiveFloat, PositiveFloat], BeforeValidator(_pair)]


class DataSettings(Section):
    """Where the tilt series lies and what its files do not say."""

    root: str | None = Field(
        default=None, description="folder of the tilt series; default: the YAML file's own"
    )
    tilts: str | list[str] = Field(
        default="*.h5", description="a glob or a list of files, one per tilt, sorted by name"
    )
    dataset: str | None = Field(
        default=None,
        description="path inside HDF5 or Zarr, number or title of a vendor file's signal; "
        "default: the only one that fits",
    )
    stage_tilt_degree: list[float] | str | None = Field(
        default=None,
        description="one angle per tilt: a list, or a .tlt, .rawtlt, .mdoc, .star, .json or .npy file; "
        "default: from the files",
    )
    exclude: list[NonNegativeInt] = Field(default=[], description="tilts left out, counted from 0")
    energy_kev: PositiveFloat | None = Field(default=None, description="beam energy in keV")
    semiangle_mrad: PositiveFloat | None = Field(default=None, description="convergence semi-angle in mrad")
    scan_shape: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="[scan_y, scan_x], needed where the file holds a plain list of patterns"
    )
    scan_step_angstrom: PositivePair | None = Field(
        default=None, description="scan step in angstrom, [y, x] or one number"
    )
    scan_rotation_degree: float | None = Field(
        default=None, description="angle from the scan's fast axis to the detector's x axis in degrees"
    )
    flip: tuple[bool, bool, bool] = Field(
        default=(False, False, False),
        description="[up-down, left-right, transpose] of the patterns, in that order",
    )
    dk_per_angstrom: PositivePair | None = Field(
        default=None, description="detector pixel in 1/angstrom as stored, [ky, kx] or one number"
    )
    diffraction_step_mrad: PositivePair | None = Field(
        default=None, description="detector pixel in mrad as stored, [ky, kx] or one number"
    )
    real_pixel_angstrom: PositivePair | None = Field(
        default=None,
        description="real-space pixel 1 / (n dk) of the patterns as stored, [y, x] or one number",
    )
    bad_pixels: list[tuple[NonNegativeInt, NonNegativeInt]] = Field(
        default=[],
        description="[ky, kx] detector pixels as stored, before flips, that no loss counts: [[3, 7], [3, 8]]",
    )
    counts_per_electron: PositiveFloat = Field(default=1.0, description="detector gain")
    defocus_angstrom: float | None = Field(
        default=None, description="first guess in angstrom, positive = underfocus (C10 = -defocus)"
    )

    override: bool = Field(
        default=False, description="true = where files and settings contradict each other, the settings hold"
    )
    scan_window: tuple[NonNegativeInt, PositiveInt, NonNegativeInt, PositiveInt] | None = Field(
        default=None, description="[y0, y1, x0, x1] scan positions to keep, ends excluded; null = all"
    )
    pattern_centre: tuple[NonNegativeFloat, NonNegativeFloat] | None = Field(
        default=None,
        description="[ky, kx] pixel of the undeflected beam as stored, rounded to a whole one; null = n // 2",
    )
    pattern_shape: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="[ky, kx] pixels to cut out around the beam; what lies beyond the detector counts in no "
        "loss; null = as stored",
    )
    zero_below_counts: PositiveFloat | None = Field(
        default=None,
        description="counts below this are readout noise and become 0 (EMPAD, other integrating detectors)",
    )

    @model_validator(mode="after")
    def _window_not_empty(self) -> DataSettings:
        window = self.scan_window
        if window is not None and (window[0] >= window[1] or window[2] >= window[3]):
            raise ValueError("has a scan_window that is not [y0, y1, x0, x1] with y0 < y1 and x0 < x1")
        return self

    @model_validator(mode="after")
    def _one_sampling(self) -> DataSettings:
        names = ("dk_per_angstrom", "diffraction_step_mrad", "real_pixel_angstrom")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"gives the detector sampling {len(given)} times ({', '.join(given)}); give exactly one"
            )
        return self
