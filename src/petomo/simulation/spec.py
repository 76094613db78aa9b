"""What a simulated tilt series is made of; short YAML files suffice."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from petomo.io.settings import PositivePair, Section
from petomo.io.yaml import read_yaml, validate
from petomo.physics.probe import ABERRATIONS
from petomo.physics.scattering_factors import Parametrization

BUILT_IN = ("ptal2o3", "te_carbon")


class SpecimenSpec(Section):
    """The atoms, in the sample frame; the middle of their bounding box becomes the origin."""

    source: str = Field(
        default="ptal2o3",
        description="ptal2o3 (Pt core in an alpha-alumina cube), te_carbon (Te particle beside a carbon "
        "nanotube), or a file of atoms that ASE reads",
    )
    edge_angstrom: PositiveFloat = Field(
        default=14.0, description="edge of the alumina cube, or length of the nanotube"
    )
    core_angstrom: NonNegativeFloat = Field(
        default=8.0, description="edge of the Pt core, or diameter of the Te particle"
    )
    vacancy_share: float | None = Field(
        default=None, ge=0, lt=1, description="share of atoms left out; default: 0.03, for a file 0"
    )
    displacement_rms_angstrom: NonNegativeFloat | None = Field(
        default=None, description="static displacements, rms an axis; default: 0.04, for a file 0"
    )
    rotation_degree: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0), description="[phi, theta, psi] the atoms are turned by beforehand"
    )


class PhononSpec(Section):
    """Frozen phonons: the mean over configurations is the truth."""

    configurations: PositiveInt = Field(
        default=8,
        description="configurations averaged, of phonons, source position and focus; 1: none of them",
    )
    displacement_rms_angstrom: NonNegativeFloat = Field(default=0.07, description="rms an axis")


class CoherenceSpec(Section):
    """Finite source and chromatic focal spread."""

    source_rms_angstrom: NonNegativeFloat = Field(default=0.2, description="rms an axis")
    focal_spread_rms_angstrom: NonNegativeFloat = 15.0


class ErrorSpec(Section):
    """What the microscope does other than its read-outs say."""

    stage_tilt_rms_degree: NonNegativeFloat = 0.2
    phi_mean_degree: float = 0.3
    phi_rms_degree: NonNegativeFloat = 0.1
    psi_mean_degree: float = 0.8
    psi_rms_degree: NonNegativeFloat = 0.1
    shift_max_angstrom: NonNegativeFloat = Field(
        default=2.0, description="shifts are uniform within +- this along x and y"
    )
    scan_affine_rms: NonNegativeFloat = Field(
        default=0.005, description="rms of the four elements of a tilt's scan distortion"
    )
    scan_jitter_rms_angstrom: NonNegativeFloat = Field(
        default=0.08, description="of each position, rms an axis"
    )
    defocus_rms_angstrom: NonNegativeFloat = 8.0


class SimulationSpec(Section):
    """A 4D-STEM tilt series to simulate."""

    seed: NonNegativeInt = 1
    specimen: SpecimenSpec = SpecimenSpec()
    potential: Parametrization = Field(default="lobato", description="scattering factors: lobato or kirkland")
    energy_kev: PositiveFloat = 200.0
    semiangle_mrad: PositiveFloat = 25.0
    defocus_angstrom: float = Field(
        default=60.0, description="at the specimen's centre, positive = underfocus (C10 = -defocus)"
    )
    aberrations: dict[str, float] = Field(
        default={}, description="further Krivanek coefficients in angstrom and degrees: C12, phi12, C30 ..."
    )
    stage_tilt_degree: list[float] = Field(
        default=[-45, -37, -29, -21, -14, -7, 0, 7, 14, 21, 29, 37, 45],
        min_length=1,
        description="nominal stage tilts",
    )
    scan_shape: tuple[PositiveInt, PositiveInt] = Field(default=(14, 18), description="[scan_y, scan_x]")
    scan_step_angstrom: PositivePair = Field(default=(1.5, 1.5), description="[y, x] or one number")
    scan_rotation_degree: float = Field(
        default=0.0, description="angle from the scan's fast axis to the detector's x axis"
    )
    pattern_pixels: tuple[PositiveInt, PositiveInt] | PositiveInt = Field(
        default=48, description="detector pixels, [ky, kx] or one number"
    )
    pixel_angstrom: PositivePair = Field(
        default=(0.3, 0.3),
        description="real-space pixel 1 / (n dk): its Nyquist frequency is the detector's edge; "
        "[y, x] or one number",
    )
    oversample: int = Field(
        default=2, ge=2, description="the wave is sampled this many times finer than pixel_angstrom"
    )
    slice_angstrom: PositiveFloat = Field(default=1.0, description="slice thickness")
    dose_per_tilt: PositiveFloat = Field(
        default=19000.0, description="electrons per square angstrom and tilt"
    )
    phonons: PhononSpec = PhononSpec()
    coherence: CoherenceSpec = CoherenceSpec()
    errors: ErrorSpec = ErrorSpec()

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """(ky, kx)."""
        n = self.pattern_pixels
        return (n, n) if isinstance(n, int) else n

    @property
    def detector_sampling(self) -> tuple[float, float]:
        """Detector pixel along (ky, kx) in 1/angstrom."""
        (ny, nx), (py, px) = self.pattern_shape, self.pixel_angstrom
        return 1 / (ny * py), 1 / (nx * px)

    @model_validator(mode="after")
    def _known_aberrations(self) -> SimulationSpec:
        for name in self.aberrations:
            if name == "C10" or name.replace("phi", "C") not in ABERRATIONS:
                known = ", ".join(key for key in ABERRATIONS if key != "C10")
                raise ValueError(f"has the aberration {name!r}; give defocus_angstrom, {known} or phi12 ...")
        return self

    @model_validator(mode="after")
    def _probe_fits(self) -> SimulationSpec:
        window = min(n * p for n, p in zip(self.pattern_shape, self.pixel_angstrom, strict=True))
        width = 2 * abs(self.defocus_angstrom) * self.semiangle_mrad * 1e-3
        if width > window:
            raise ValueError(
                f"has a probe {width:.3g} angstrom wide, but the window pattern_pixels x pixel_angstrom is "
                f"only {window:.3g}; reduce defocus_angstrom or take more pattern_pixels"
            )
        return self


def read_spec(path: str | Path) -> SimulationSpec:
    """Read a specification; a specimen file is looked for beside it.

    Raises
    ------
    UserError
        One sentence per mistake, with its line.
    """
    spec = validate(read_yaml(path), SimulationSpec)
    source = spec.specimen.source
    if source in BUILT_IN:
        return spec
    specimen = spec.specimen.model_copy(update={"source": str(Path(path).parent / source)})
    return spec.model_copy(update={"specimen": specimen})
