"""The settings of every stage: each key, its unit, its default and its limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from petomo.io.settings import Section
from petomo.workflow.regularizer_settings import L1Real, NonNegative, RegularizerSettings

Loss = Literal["amplitude", "poisson"]


class Schedule(Section):
    """When and how fast one unknown is refined."""

    step_size: NonNegativeFloat = Field(
        default=1.0, description="relative step; 0 leaves the unknown as it is"
    )
    start: NonNegativeInt = Field(default=0, description="first iteration in which it is refined")
    stop: PositiveInt | None = Field(
        default=None, description="iteration at which refinement ends; null = never"
    )

    def active(self, iteration: int) -> bool:
        """Whether the unknown is refined in this iteration (counted from 0)."""
        return self.step_size > 0 and self.start <= iteration and (self.stop is None or iteration < self.stop)


class VolumeSettings(Section):
    """The grid of the potential."""

    voxel_angstrom: PositiveFloat | None = Field(
        default=None, description="null = the detector's real-space pixel"
    )
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        default=None, description="[z, y, x] voxels; null = from the field of view and the thickness"
    )
    thickness_angstrom: PositiveFloat | None = Field(
        default=None, description="extent along the beam at zero tilt; null = as wide as the field of view"
    )


class BrightFieldSettings(Section):
    """Step 1a: direct phase images and the probe's aberrations."""

    method: Literal["auto", "ssb", "weak_phase", "parallax", "none"] = Field(
        default="auto", description="auto picks one from the sampling and says why"
    )
    fit: list[Literal["C10", "C12"]] = Field(default=["C10", "C12"], description="aberrations to fit")
    defocus_range_angstrom: tuple[float, float] = Field(
        default=(-300.0, 300.0), description="[lowest, highest] defocus searched, relative to the first guess"
    )

    @model_validator(mode="after")
    def _ordered(self) -> BrightFieldSettings:
        if self.defocus_range_angstrom[0] >= self.defocus_range_angstrom[1]:
            raise ValueError("has a defocus_range_angstrom that is not [lowest, highest]")
        return self


class PtychographySettings(Section):
    """Step 2a: one multislice mixed-state ptychography per tilt (paper, Algorithm 1)."""

    slices: PositiveInt = Field(default=3, description="slices of the object")
    slice_thickness_angstrom: PositiveFloat | None = Field(
        default=None, description="null = thickness / slices"
    )
    probe_modes: PositiveInt = Field(default=3, description="incoherent modes of the probe")
    start_probe: Literal["aperture", "mean_pattern"] = Field(
        default="aperture",
        description="a sharp aperture, or the root of the mean pattern as in the paper's Algorithm 1",
    )
    mode_power: PositiveFloat = Field(
        default=0.02, lt=0.5, description="share of the intensity that each mode after the first starts with"
    )
    iterations: PositiveInt = Field(default=20, description="passes over a tilt's patterns")
    batch_size: PositiveInt = Field(default=64, description="patterns per step")
    momentum: NonNegativeFloat = Field(
        default=0.5, lt=1, description="share of a pass's change by which the object goes on before the next"
    )
    loss: Loss = Field(default="amplitude", description="amplitude (paper Eq. 16) or Poisson likelihood")
    sparsity: NonNegativeFloat = Field(
        default=0.0, description="L1 of the phase, in radian per full step; 0 for none"
    )
    object: Schedule = Field(default=Schedule(step_size=1.5), description="the tilt's phase slices")
    probe: Schedule = Field(default=Schedule(step_size=0.5, start=1), description="the probe's modes")
    positions: Schedule = Field(default=Schedule(step_size=0.5, start=8), description="single scan positions")
    affine: Schedule = Field(
        default=Schedule(step_size=0.0),
        description="one affine map of the scan; a single tilt cannot tell it from a stretched object",
    )


class BundleSettings(Section):
    """Poses from sparse blobs that explain all projections together."""

    rounds: NonNegativeInt = Field(default=2, description="linear tomography and fit, alternating; 0 = off")
    iterations: PositiveInt = Field(default=300, description="steps of a fit")
    blobs: PositiveInt = Field(default=4000, description="most blobs")
    threshold: PositiveFloat = Field(
        default=0.05, lt=1, description="lowest blob, as a share of the highest in the linear volume"
    )
    min_distance_angstrom: PositiveFloat = Field(default=1.2, description="nearest two blobs can start")
    width_angstrom: PositiveFloat = Field(default=0.4, description="first guess of a blob's width (sigma)")
    blur_angstrom: NonNegativeFloat = Field(
        default=0.5, description="blur of the first round (sigma), which catches tilts that are farther off"
    )
    affine: bool = Field(default=True, description="let every scan be a little stretched and sheared")


class AlignmentSettings(Section):
    """Step 2b: poses and a first volume from the projections (paper, Algorithm 2)."""

    iterations: NonNegativeInt = Field(
        default=4, description="most outer iterations at each sampling; 0 = take the nominal poses"
    )
    inner_iterations: PositiveInt = Field(default=8, description="volume updates per outer iteration")
    downsample: PositiveInt = Field(default=2, description="least binning of the projections")
    background_threshold: NonNegativeFloat = Field(
        default=0.1, lt=1, description="phases below this share of a projection's range are background"
    )
    refine: list[Literal["shifts", "theta", "phi", "psi"]] = Field(
        default=["shifts", "theta", "phi", "psi"], description="what the alignment may move"
    )
    poses: str | None = Field(
        default=None,
        description="poses to start from instead of aligning: poses.json, RELION .star or IMOD .xf",
    )
    bundle: BundleSettings = Field(default=BundleSettings(), description="refinement with sparse blobs")


class EndToEndSettings(Section):
    """Step 3: one volume against all diffraction patterns (paper, Algorithm 3)."""

    iterations: PositiveInt = Field(default=24, description="passes over all patterns of all tilts")
    batch_size: PositiveInt | None = Field(
        default=None,
        description="patterns per step; null = all of a tilt, which turns the volume least often",
    )
    slices: PositiveInt | None = Field(
        default=None, description="slices the volume is binned to; null = from the depth of field"
    )
    slice_thickness_angstrom: PositiveFloat | None = Field(
        default=None, description="thickness of a slice in angstrom"
    )
    loss: Loss = Field(default="amplitude", description="amplitude (paper Eq. 16) or Poisson likelihood")
    solver: Literal["preconditioned", "sgd"] = Field(
        default="preconditioned", description="sgd = the paper's plain gradient descent"
    )
    interpolation: Literal["spline", "cubic", "linear"] = Field(
        default="spline", description="how the volume is rotated; see docs/studies/interpolators.md"
    )
    absorption: bool = Field(default=False, description="true = complex potential")
    momentum: NonNegativeFloat = Field(
        default=0.95, lt=1, description="share of a pass's change by which the volume goes on before the next"
    )
    volume: Schedule = Field(default=Schedule(step_size=1.5), description="the potential")
    probe: Schedule = Field(default=Schedule(step_size=0.5, start=1), description="the probe's modes")
    positions: Schedule = Field(
        default=Schedule(step_size=0.0, start=8), description="single scan positions; try step_size 0.5"
    )
    affine: Schedule = Field(
        default=Schedule(step_size=0.7, start=12), description="shift and affine map of every tilt's scan"
    )
    poses: Schedule = Field(
        default=Schedule(step_size=0.0, start=8), description="the angles of every tilt; try step_size 0.7"
    )
    regularizers: list[RegularizerSettings] = Field(
        default=[L1Real(type="l1_real", weight=0.4), NonNegative(type="nonnegative")],
        description="applied in this order",
    )

    @model_validator(mode="after")
    def _one_slicing(self) -> EndToEndSettings:
        if self.slices is not None and self.slice_thickness_angstrom is not None:
            raise ValueError("gives both slices and slice_thickness_angstrom; give one of them")
        return self


class FSCSettings(Section):
    """Fourier shell correlation of two half sets."""

    half_sets: bool = Field(
        default=False, description="true = reconstruct two half sets as well (doubles the time)"
    )
    split: Literal["checkerboard"] = Field(
        default="checkerboard", description="which scan positions go to which half"
    )


class AtomSettings(Section):
    """Atom tracing."""

    elements: list[str] | None = Field(
        default=None, description="chemical symbols expected; null = positions only"
    )
    min_distance_angstrom: PositiveFloat | None = Field(
        default=None, description="nearest two atoms can be; null = 1.5, or 1.0 with H, B, C or N"
    )
    threshold: NonNegativeFloat | None = Field(
        default=None, description="lowest peak in volts; null = from the noise"
    )


class AnalysisSettings(Section):
    """What is measured on the final volume."""

    fsc: FSCSettings = FSCSettings()
    atoms: AtomSettings = AtomSettings()


class RefinementSettings(Section):
    """After the volume: atoms, poses and scans through the patterns (needs analysis.atoms.elements)."""

    rounds: NonNegativeInt = Field(
        default=2, description="probe fit, refinement, second look at the atoms; 0 = leave the stage out"
    )
    fine_rounds: NonNegativeInt = Field(default=2, description="then with finer voxels and a finer probe")
    fine_voxel_angstrom: PositiveFloat | None = Field(
        default=None, description="null = the detector lies within two thirds of the model's"
    )
    iterations: PositiveInt = Field(
        default=6, description="most quasi-Newton iterations a round, which ends when they gain little"
    )
    half_iterations: NonNegativeInt = Field(
        default=12,
        description="most iterations of two halves of the tilts, which say what the standard errors are; "
        "0 = saves that time and gives those of counting noise alone, which are too small",
    )
    theta_width_degree: PositiveFloat = Field(
        default=0.3, description="most error expected of the stage tilt (standard deviation)"
    )
    affine_width: PositiveFloat = Field(
        default=0.01, description="most distortion expected of a scan, as a share"
    )
    position_width_angstrom: PositiveFloat = Field(
        default=0.1, description="expected error of single scan positions along an axis"
    )


class CompletionSettings(Section):
    """After refined atoms: the volume again with their geometry, and one that starts from them."""

    iterations: NonNegativeInt = Field(
        default=4, description="passes over the data for each; 0 = leave the stage out"
    )
