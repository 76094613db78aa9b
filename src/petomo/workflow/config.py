"""The configuration of a run: the data, a section for every stage, and how to compute.

Read with `load_config`; a mistake is a sentence that names file, line and key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
)

from petomo.io.atomic import write_text
from petomo.io.settings import DataSettings, Section
from petomo.io.yaml import Document, apply_overrides, dump_yaml, read_yaml, validate
from petomo.workflow.stage_settings import (
    AlignmentSettings,
    AnalysisSettings,
    BrightFieldSettings,
    CompletionSettings,
    EndToEndSettings,
    PtychographySettings,
    RefinementSettings,
    VolumeSettings,
)


class ComputeSettings(Section):
    """Where and how the numbers are crunched."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto = CUDA where there is one"
    )
    threads: PositiveInt | None = Field(
        default=None, description="processor threads; null = what torch chooses"
    )
    precision: Literal["float32", "float64"] = Field(default="float32", description="of all reconstructions")
    seed: NonNegativeInt = Field(default=0, description="of every random order and start")


class OutputSettings(Section):
    """What is kept while running."""

    save_every: PositiveInt = Field(default=10, description="iterations between checkpoints")


def _plain_name(value: str) -> str:
    """A name, which becomes that of the run folder, may not lead elsewhere."""
    if value in (".", "..") or any(c in "/\\" or not c.isprintable() for c in value):
        raise ValueError("should be a name without / and \\, which petomo puts below runs/")
    return value


class Config(Section):
    """A whole run."""

    version: Literal[1] = Field(default=1, description="of this file format")
    name: Annotated[str, AfterValidator(_plain_name)] = Field(
        default="", max_length=100, description="default: the YAML file's name"
    )
    data: DataSettings = DataSettings()
    volume: VolumeSettings = VolumeSettings()
    bright_field: BrightFieldSettings = BrightFieldSettings()
    ptychography: PtychographySettings = PtychographySettings()
    alignment: AlignmentSettings = AlignmentSettings()
    end_to_end: EndToEndSettings = EndToEndSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    refinement: RefinementSettings = RefinementSettings()
    completion: CompletionSettings = CompletionSettings()
    compute: ComputeSettings = ComputeSettings()
    output: OutputSettings = OutputSettings()


OTHER_NAMES = {
    "kv": "energy_kev", "voltage": "energy_kev", "energy": "energy_kev", "probe_kv": "energy_kev",
    "energy_ev": "energy_kev", "conv_angle": "semiangle_mrad", "convergence_angle": "semiangle_mrad",
    "probe_conv_angle": "semiangle_mrad", "semiangle": "semiangle_mrad", "semiangle_cutoff": "semiangle_mrad",
    "semiconvergence_angle": "semiangle_mrad", "defocus": "defocus_angstrom", "c10": "defocus_angstrom",
    "df": "defocus_angstrom", "step_size_angstrom": "scan_step_angstrom", "scan_step": "scan_step_angstrom",
    "pos_scan_step_size": "scan_step_angstrom", "scan_rotation": "scan_rotation_degree",
    "com_rotation": "scan_rotation_degree", "rotation": "scan_rotation_degree", "transpose": "flip",
    "meas_flipt": "flip", "dk": "dk_per_angstrom", "dx": "real_pixel_angstrom", "diff_step":
    "diffraction_step_mrad", "tilt": "stage_tilt_degree", "tilt_degree": "stage_tilt_degree",
    "tilt_angles": "stage_tilt_degree", "angles": "stage_tilt_degree", "obj_tilts": "stage_tilt_degree",
    "folder": "root", "path": "root", "files": "tilts", "voxel": "voxel_angstrom", "voxel_size":
    "voxel_angstrom", "pixel_size": "voxel_angstrom", "thickness": "thickness_angstrom", "lr": "step_size",
    "learning_rate": "step_size", "start_iter": "start", "after": "start", "end_iter": "stop", "end": "stop",
    "niter": "iterations", "num_iter": "iterations", "num_iters": "iterations", "epochs": "iterations",
    "obj_nlayer": "slices", "num_slices": "slices", "nlayer": "slices", "dz": "slice_thickness_angstrom",
    "obj_slice_thickness": "slice_thickness_angstrom", "slice_thickness": "slice_thickness_angstrom",
    "num_probes": "probe_modes", "probe_pmode_max": "probe_modes", "pmode_max": "probe_modes", "modes":
    "probe_modes", "max_batch_size": "batch_size", "grouping": "batch_size", "noise_model": "loss",
    "optimizer": "solver", "sigma": "sigma_angstrom", "cutoff": "cutoff_per_angstrom", "min_distance":
    "min_distance_angstrom", "dtype": "precision", "n_threads": "threads", "random_seed": "seed",
}  # fmt: skip
"""Names other programs use, to our names; only for suggestions."""

PATHS = (("data", "root"), ("data", "stage_tilt_degree"), ("alignment", "poses"))


def _resolve_paths(document: Document, overridden: set[str], folder: Path) -> Document:
    """Make paths absolute: from the YAML file's folder, or the working folder where given by --set."""
    values: dict[str, Any] = dict(document.values)
    if values.get("data") is None or isinstance(values["data"], dict):
        values["data"] = {"root": str(folder), **(values.get("data") or {})}
    for section, key in PATHS:
        group = values.get(section)
        if isinstance(group, dict) and isinstance(group.get(key), str):
            base = Path.cwd() if overridden & {section, f"{section}.{key}"} else folder
            values[section] = group | {key: str((base / Path(group[key]).expanduser()).resolve())}
    return Document(document.source, values, document.places)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and validate a configuration.

    Parameters
    ----------
    path : path
        YAML 1.2 file. Relative paths in it count from its own folder.
    overrides : sequence of str
        ``a.b=value`` strings; relative paths in them count from the working folder.

    Raises
    ------
    UserError
        One sentence per mistake.
    """
    document = apply_overrides(read_yaml(path), overrides)
    overridden = {override.partition("=")[0] for override in overrides}
    document = _resolve_paths(document, overridden, Path(path).resolve().parent)
    document.values.setdefault("name", Path(path).stem)
    return validate(document, Config, OTHER_NAMES)


def dump_config(config: Config, path: str | Path) -> None:
    """Write the configuration with every default filled in; `load_config` gives it back."""
    write_text(path, dump_yaml(config.model_dump(mode="json")))
