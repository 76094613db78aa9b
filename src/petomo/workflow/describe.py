"""What a tilt series and a configuration imply, in numbers and in words."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from petomo.core.dataset import TiltSeries
from petomo.core.electron import defocus_in_words, mrad_to_inverse_angstrom, wavelength
from petomo.core.errors import UserError
from petomo.core.machine import duration_in_words
from petomo.core.memory import READ_BYTES
from petomo.io.readers import open_tilt
from petomo.io.settings import DataSettings
from petomo.io.sources import open_source
from petomo.physics.multislice import default_chunk
from petomo.workflow.config import Config
from petomo.workflow.grids import CACHE_BYTES, Grids, plan_grids, slicing

#: Passes of step 3 that a coarse round of the refinement takes, a fine one, and its standard errors,
#: as measured: docs/studies/speed.md
REFINEMENT_PASSES = (15, 48, 93)

#: Keys of the configuration, and the attribute of a file that says the same.
ATTRIBUTES = {
    "data.energy_kev": "energy_ev",
    "data.semiangle_mrad": "semiangle_mrad",
    "data.scan_step_angstrom": "scan_step_angstrom",
    "data.dk_per_angstrom": "detector_sampling_inv_angstrom",
    "data.stage_tilt_degree": "nominal_tilt_deg",
    "data.defocus_angstrom": "nominal_defocus_angstrom",
    "data.scan_rotation_degree": "scan_rotation_deg",
}


def defocus_sentence(defocus: float | None) -> str:
    """A defocus in angstrom (positive = underfocus) and what it means."""
    words = defocus_in_words(defocus, unit="A")
    if defocus is None or math.isnan(defocus):
        return f"{words}: the bright-field step searches for it"
    if round(abs(defocus), 1) == 0:
        return f"{words} at the specimen's centre plane"
    where = "after" if defocus > 0 else "before"
    return f"{words} (C10 = {-defocus:.4g} A): the beam crosses over {where} the specimen's centre plane"


def probe_diameter(defocus: float | None, semiangle_mrad: float, energy_ev: float) -> float:
    """Diameter of the probe at the specimen in angstrom: diffraction limit and defocus in quadrature."""
    alpha = semiangle_mrad * 1e-3
    return math.hypot(1.22 * wavelength(energy_ev) / alpha, 2 * abs(defocus or 0.0) * alpha)


def facts(
    series: TiltSeries,
    config: Config,
    electrons: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Derived numbers, units in the keys, ready for JSON.

    Parameters
    ----------
    series : TiltSeries
        Opened series.
    config : Config
        Settings.
    electrons : sequence of float, optional
        Electrons recorded per tilt, from `petomo.io.readers.validate_counts`.
    device : torch.device, optional
        Whose memory is reckoned with, by default the processor's.

    Raises
    ------
    UserError
        If no grids follow from the numbers.
    """
    try:
        return _facts(series, config, electrons, device)
    except (ArithmeticError, ValueError) as error:
        raise UserError(
            f"{series.name}: no grids follow from these numbers ({error}); look at energy, semi-angle, "
            "detector pixel, scan step, defocus and the volume's size"
        ) from error


def _facts(
    series: TiltSeries, config: Config, electrons: Sequence[float] | None, device: torch.device | None
) -> dict[str, Any]:
    first = series[0]
    lam = wavelength(first.energy_ev)
    disk = mrad_to_inverse_angstrom(first.semiangle_mrad, first.energy_ev)
    k_max = min(n // 2 * dk for n, dk in zip(first.recorded_shape, first.detector_sampling, strict=True))
    grids = plan_grids(series, config)
    angles = [math.degrees(tilt.stage_tilt) for tilt in series]
    diameter = probe_diameter(first.defocus, first.semiangle_mrad, first.energy_ev)
    out: dict[str, Any] = {
        "tilts": len(series),
        "stage_tilt_degree": [min(angles), max(angles)],
        "stage_tilts_degree": angles,
        "scan_shape": list(first.scan_shape),
        "scan_step_angstrom": list(first.scan_step),
        "pattern_shape": list(first.pattern_shape),
        "energy_kev": first.energy_ev / 1e3,
        "semiangle_mrad": first.semiangle_mrad,
        "detector_sampling_per_angstrom": list(first.detector_sampling),
        "wavelength_angstrom": lam,
        "bright_field_radius_pixels": disk / max(first.detector_sampling),
        "k_max_per_angstrom": k_max,
        "k_max_mrad": k_max * lam * 1e3,
        "pixel_angstrom": list(first.pixel_size),
        "voxel_angstrom": [grids.voxel] * 3,
        "volume_shape": list(grids.volume_shape),
        "nyquist_angstrom": 2 * grids.voxel,
        "defocus_angstrom": first.defocus,
        "probe_diameter_angstrom": diameter,
        "probe_overlap": 1 - max(first.scan_step) / diameter,
        "depth_of_field_angstrom": lam / (first.semiangle_mrad * 1e-3) ** 2,
        "memory_bytes": _memory(series, config, grids, device),
    }
    if electrons is not None:
        doses = [count / tilt.scan_area for count, tilt in zip(electrons, series, strict=True)]
        out |= {"dose_per_tilt_per_square_angstrom": doses, "dose_total_per_square_angstrom": sum(doses)}
    return out


def tilt_lines(series: TiltSeries, numbers: dict[str, Any]) -> list[str]:
    """One line per tilt, so that an angle given to the wrong file is seen."""
    doses = numbers["dose_per_tilt_per_square_angstrom"]
    return [
        f"{tilt.name}: {math.degrees(tilt.stage_tilt):+.2f} degrees, {dose:.4g} e/A^2"
        for tilt, dose in zip(series, doses, strict=True)
    ]


def _memory(series: TiltSeries, config: Config, grids: Grids, device: torch.device | None) -> int:
    """Rough peak of the end-to-end stage in bytes.

    The volume, its gradient, its momentum and its rotated copy; the counts that the reader keeps; all
    slices and the waves of a chunk of patterns.
    """
    number = 8 if config.compute.precision == "float64" else 4
    parts = 2 if config.end_to_end.absorption else 1
    slices, _ = slicing(series, config, grids)
    field, window = math.prod(grids.field), grids.window.shape
    counts = sum(len(tilt) for tilt in series) * math.prod(window) * 4
    if counts > CACHE_BYTES:
        counts = READ_BYTES
    modes = config.ptychography.probe_modes
    chunk = default_chunk(window, modes, device) * modes * math.prod(window)
    workers = torch.get_num_threads() if device is None or device.type == "cpu" else 1
    waves = 2 * number * (chunk * (slices + 4) + 3 * slices * field) * workers
    return number * parts * 4 * math.prod(grids.volume_shape) + counts + waves


def estimated_seconds(series: TiltSeries, config: Config, device: torch.device) -> dict[str, float]:
    """Rough time of the stages that pass over all patterns, from a batch of FFTs timed on the device.

    A pattern costs, per probe mode, two FFTs a slice and one to the detector, and as many again for the
    gradient; a third more for the rest of the pass. The refinement is counted in passes of step 3.
    """
    grids = plan_grids(series, config)
    window, patterns = grids.window.shape, sum(len(tilt) for tilt in series)
    batch = torch.zeros(16, *window, dtype=torch.complex64, device=device)
    seconds = math.inf
    for _ in range(20):  # the first ones make plans
        start = time.perf_counter()
        batch = torch.fft.fft2(batch)
        float(batch[0, 0, 0].real)  # waits for the device
        seconds = min(seconds, (time.perf_counter() - start) / len(batch))
    modes = config.ptychography.probe_modes

    def passes(iterations: int, slices: int) -> float:
        return patterns * iterations * modes * 2 * (2 * slices + 1) * seconds * 1.35

    slices, _ = slicing(series, config, grids)
    settings = config.refinement
    out = {"ptychography": passes(config.ptychography.iterations, config.ptychography.slices)}
    out["end_to_end"] = passes(config.end_to_end.iterations, slices) * (1 + config.analysis.fsc.half_sets)
    if config.analysis.atoms.elements and settings.rounds:
        coarse, fine, halves = REFINEMENT_PASSES
        count = coarse * settings.rounds + fine * settings.fine_rounds + halves
        out["refinement"] = passes(count, slices)
    return out


def time_sentence(seconds: dict[str, float], device: str) -> str:
    """`estimated_seconds` in words."""
    stages = ", ".join(
        f"{stage.replace('_', '-')} {duration_in_words(value)}" for stage, value in seconds.items()
    )
    return f"time roughly, on {device}: {stages}, and as long as the first two for all else"


def file_lines(path: str | Path) -> list[str]:
    """What the metadata of a file of patterns say and leave out, and what follows from them.

    Parameters
    ----------
    path : path
        One tilt.

    Returns
    -------
    list of str
        Empty if the file holds no patterns.
    """
    try:
        source = open_source(Path(path))
    except UserError:
        return []
    stored, missing = source.attributes, []
    for key, attribute in ATTRIBUTES.items():
        if attribute not in stored:
            default = {"data.scan_rotation_degree": "0 is assumed", "data.defocus_angstrom": "searched for"}
            missing.append(key + (f" ({default[key]})" if key in default else ""))
    if len(source.array_shape) == 3:
        missing.append("data.scan_shape")
    try:
        tilt = open_tilt(Path(path), DataSettings(), None if "nominal_tilt_deg" in stored else 0.0)
    except UserError:
        return [f"missing, to be given in the configuration: {', '.join(missing)}"]
    lines = [f"not in the file: {', '.join(missing)}"] if missing else []
    try:
        return [*lines, *sentences(facts(TiltSeries((tilt,), tilt.name), Config()))]
    except UserError as error:  # what the file says is shown all the same
        return [*lines, str(error)]


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def sentences(numbers: dict[str, Any]) -> list[str]:
    """`facts` as lines for people."""
    low, high = numbers["stage_tilt_degree"]
    step, voxel = _times(numbers["scan_step_angstrom"]), _times(numbers["voxel_angstrom"])
    overlap = numbers["probe_overlap"]
    one = numbers["tilts"] == 1
    tilts = (
        f"one tilt at {low:.4g} degrees"
        if one
        else f"{numbers['tilts']} tilts from {low:.4g} to {high:.4g} degrees"
    )
    lines = [
        f"{tilts}, "
        f"scans of {_times(numbers['scan_shape'])} positions at steps of {step} A, "
        f"patterns of {_times(numbers['pattern_shape'])} pixels",
        f"{numbers['energy_kev']:.4g} keV: wavelength {numbers['wavelength_angstrom'] * 100:.4g} pm; "
        f"semi-angle {numbers['semiangle_mrad']:.4g} mrad, "
        f"a bright-field disk of {numbers['bright_field_radius_pixels']:.3g} pixels radius",
        f"detector to {numbers['k_max_per_angstrom']:.4g} 1/A ({numbers['k_max_mrad']:.4g} mrad), "
        f"real-space pixel {_times(numbers['pixel_angstrom'])} A",
        f"volume of about {_times(numbers['volume_shape'])} voxels (z y x) "
        f"of {voxel} A, finest period (Nyquist) {numbers['nyquist_angstrom']:.4g} A",
        defocus_sentence(numbers["defocus_angstrom"]),
        f"probe about {numbers['probe_diameter_angstrom']:.3g} A wide at the specimen: "
        + (
            f"neighbours overlap by {overlap:.0%}"
            if overlap > 0
            else "neighbours do not overlap, as they must"
        ),
        f"depth of field (wavelength / semi-angle^2) {numbers['depth_of_field_angstrom']:.4g} A",
    ]
    if "dose_total_per_square_angstrom" in numbers:
        doses = numbers["dose_per_tilt_per_square_angstrom"]
        lines.append(
            f"dose {min(doses):.4g} to {max(doses):.4g} e/A^2 a tilt, "
            f"{numbers['dose_total_per_square_angstrom']:.4g} e/A^2 in all"
        )
    lines.append(f"memory roughly {numbers['memory_bytes'] / 2**30:.2g} GiB beside the program itself")
    return lines
