"""Figures of the data and of what was fitted to them; each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure

from petomo.analysis.panels import COLOURS, bar_length, colourbar, grid, label, plain_log, scale_bar, title
from petomo.core.electron import defocus_in_words

_SHOWN_TILTS = 6


def spread(count: int, shown: int = _SHOWN_TILTS) -> list[int]:
    """Up to ``shown`` indices spread evenly over ``count`` items, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, shown))})


def stage_name(record: Mapping[str, Any]) -> str:
    """Stage of a line of ``metrics.jsonl``, and which part of it where its loss is of another kind."""
    return " ".join(str(record[key]) for key in ("stage", "part") if record.get(key))


def loss_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss over iterations, one panel per stage, with its noise floor where one is known.

    Parameters
    ----------
    records : sequence of mapping
        Lines of ``metrics.jsonl``: ``stage``, ``iteration``, ``loss``, optionally ``tilt``, ``noise_floor``.
    """
    records = [r for r in records if r.get("loss") is not None]
    stages = list(dict.fromkeys(stage_name(r) for r in records))
    figure, axes = grid(len(stages), columns=3, width=3.2, height=2.6)
    for axis, stage in zip(axes, stages, strict=True):
        mine = [r for r in records if stage_name(r) == stage]
        tilts = list(dict.fromkeys(r.get("tilt") for r in mine))
        for tilt in tilts:
            curve = [r for r in mine if r.get("tilt") == tilt]
            axis.plot(
                [r["iteration"] for r in curve],
                [r["loss"] for r in curve],
                color=COLOURS[0],
                alpha=1.0 if len(tilts) == 1 else 0.5,
                lw=1.4 if len(tilts) == 1 else 0.9,
                marker="." if len(curve) < 3 else None,
            )
        last = {r.get("tilt"): r["noise_floor"] for r in mine if r.get("noise_floor") is not None}
        if last:
            floor = float(np.mean(list(last.values())))
            axis.axhline(floor, color=COLOURS[1], ls="--", lw=1.2, label=f"noise floor {floor:.4g}")
            axis.legend(fontsize=8, frameon=False, loc="upper right")
        if all(r["loss"] > 0 for r in mine):
            plain_log(axis)
        name = stage.replace("_", " ")
        title(axis, f"{name} ({len(tilts)} tilts)" if len(tilts) > 1 else name)
        label(axis, "iteration", "loss")
    return figure


def bright_field_images(
    tilts: Sequence[tuple[np.ndarray, Mapping[str, Any]]], field: Sequence[float] | None = None
) -> Figure:
    """Direct phase images of some tilts in radian, with method and fitted defocus.

    Parameters
    ----------
    tilts : sequence of (phase, attributes)
        As `petomo.io.artefacts.read_bright_field` gives them.
    field : (float, float), optional
        Height and width of an image in angstrom (it may have more pixels than the scan), for its scale bar.
    """
    shown = spread(len(tilts))
    figure, axes = grid(len(shown), columns=3, width=3.0, height=2.4)
    for axis, number in zip(axes, shown, strict=True):
        phase, attributes = tilts[number]
        pixel = (field[0] / phase.shape[0], field[1] / phase.shape[1]) if field else (1.0, 1.0)
        image = axis.imshow(phase, cmap="gray", origin="lower", aspect=pixel[0] / pixel[1])
        colourbar(figure, image, axis, "rad")
        if field:
            scale_bar(axis, phase.shape[1], pixel[1])
        axis.set_xticks([])
        axis.set_yticks([])
        words = defocus_in_words(attributes.get("defocus_angstrom"))
        title(axis, f"tilt {number}: {attributes.get('method', 'phase')}\n{words}")
        label(axis, "scan x", "scan y")
    return figure


def domain_colouring(wave: np.ndarray) -> np.ndarray:
    """RGB of a complex image: hue is the phase, brightness the root of the amplitude."""
    amplitude = np.abs(wave)
    value = np.sqrt(amplitude / max(float(amplitude.max()), 1e-30))
    hue = (np.angle(wave) / (2 * np.pi)) % 1
    return matplotlib.colors.hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.9), value], axis=-1))


def probe_modes(
    probes: Sequence[np.ndarray], pixel_size: tuple[float, float], defocus: Sequence[float] | None = None
) -> Figure:
    """Probe modes in real space, one row per shown tilt, with each mode's share of the intensity.

    Parameters
    ----------
    probes : sequence of np.ndarray
        Complex ``mode y x`` per tilt.
    pixel_size : (float, float)
        (y, x) in angstrom.
    defocus : sequence of float, optional
        Per tilt in angstrom.
    """
    shown = spread(len(probes), 3)
    columns = max(len(probes[i]) for i in shown)
    figure, axes = grid(len(shown) * columns, columns=columns, width=2.2, height=2.35)
    panels = np.array(axes).reshape(len(shown), columns)
    for row, number in zip(panels, shown, strict=True):
        power = (np.abs(probes[number]) ** 2).sum(axis=(1, 2))
        words = "" if defocus is None else f", {defocus_in_words(defocus[number])}"
        for mode, axis in enumerate(row):
            axis.set_axis_off()
            if mode < len(power):
                axis.imshow(
                    domain_colouring(probes[number][mode]),
                    origin="lower",
                    aspect=pixel_size[0] / pixel_size[1],
                )
                share = f"{100 * power[mode] / max(power.sum(), 1e-30):.1f} %"
                title(axis, f"tilt {number}{words}\n{share}" if mode == 0 else share, loc="left")
                scale_bar(axis, probes[number].shape[-1], pixel_size[1])
    return figure


def scan_positions(refined: Sequence[np.ndarray], initial: Sequence[np.ndarray]) -> Figure:
    """Arrows from initial to refined scan positions of some tilts, their common offset removed.

    Parameters
    ----------
    refined, initial : sequence of np.ndarray
        Per tilt ``(k, 2)``, (x, y) in angstrom.
    """
    shown = spread(len(refined))
    figure, axes = grid(len(shown), columns=3, width=3.0, height=2.7)
    for axis, number in zip(axes, shown, strict=True):
        start, step = initial[number], refined[number] - initial[number]
        offset = step.mean(axis=0)
        step = step - offset
        shift_x, shift_y = np.round(offset, 2) + 0.0  # no minus before a zero
        rms = float(np.sqrt((step**2).sum(axis=1).mean()))
        spacing = float(np.sqrt(np.prod(np.ptp(start, axis=0)) / max(len(start), 1)))
        magnified = bar_length(4 * 0.7 * spacing / rms) if rms > 0 and spacing > 0 else 1.0
        axis.quiver(
            *start.T, *(magnified * step).T, angles="xy", scale_units="xy", scale=1, width=0.005,
            color=COLOURS[0],
        )  # fmt: skip
        axis.plot(*start.T, ".", ms=1.5, color="0.5")
        axis.set_aspect("equal")
        words = f"tilt {number}: rms {rms:.2g} Å, arrows x {magnified:g}"
        title(axis, f"{words}\ncommon offset ({shift_x:.2f}, {shift_y:.2f}) Å")
        label(axis, "x (Å)", "y (Å)")
    return figure


def poses(
    angles_degree: np.ndarray, tau: np.ndarray, nominal_degree: Sequence[float] | None = None
) -> Figure:
    """Poses over the tilts: theta against its nominal value, phi, psi and both shifts.

    Parameters
    ----------
    angles_degree : np.ndarray
        phi, theta, psi in degrees, shape ``(tilt, 3)``.
    tau : np.ndarray
        (x, y) in angstrom, shape ``(tilt, 2)``.
    nominal_degree : sequence of float, optional
        Nominal stage tilts.
    """
    figure, axes = grid(3, columns=3, width=3.2, height=2.6)
    known = nominal_degree is not None and len(nominal_degree) == len(tau)
    nominal = np.asarray(nominal_degree, dtype=float) if known else np.arange(len(tau), dtype=float)
    below = "nominal tilt (degree)" if known else "tilt number"
    theta = angles_degree[:, 1] - nominal if known else angles_degree[:, 1]
    curves = (
        [("theta - nominal" if known else "theta", theta)],
        [("phi", angles_degree[:, 0]), ("psi", angles_degree[:, 2])],
        [("tau x", tau[:, 0]), ("tau y", tau[:, 1])],
    )
    for axis, lines, unit in zip(axes, curves, ("degree", "degree", "Å"), strict=True):
        for (name, values), colour, marker in zip(lines, COLOURS, "os", strict=False):
            axis.plot(nominal, values, marker=marker, ms=3.5, lw=1, color=colour, label=name)
        if known or unit == "Å":
            axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.legend(fontsize=8, frameon=False)
        label(axis, below, unit)
    return figure


def pattern_pair(measured: np.ndarray, model: np.ndarray) -> Figure:
    """A measured pattern, its model and their difference in noise widths, centred, square-root scale.

    Parameters
    ----------
    measured, model : np.ndarray
        Electrons ``ky kx``.
    """
    figure, axes = grid(3, columns=3, width=3.0, height=2.8)
    top = float(np.sqrt(max(measured.max(), model.max(), 1e-12)))
    for axis, pattern, name in zip(axes, (measured, model), ("measured", "model"), strict=False):
        image = axis.imshow(np.sqrt(np.maximum(pattern, 0)), cmap="viridis", vmin=0, vmax=top, origin="lower")
        title(axis, f"{name}: {pattern.sum():.4g} electrons")
        colourbar(figure, image, axis, "√electrons")
    # 2 (sqrt(n) - sqrt(m)) has unit variance for Poisson counts
    difference = 2 * (np.sqrt(np.maximum(measured, 0)) - np.sqrt(np.maximum(model, 0)))
    image = axes[2].imshow(difference, cmap="RdBu_r", vmin=-4, vmax=4, origin="lower")
    title(axes[2], "difference, in noise widths")
    colourbar(figure, image, axes[2], "σ")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure
