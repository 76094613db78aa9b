"""Figures of the result: slices, spectrum, resolution, atoms; each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from petomo.analysis.panels import COLOURS, PLANES, colourbar, element_colours, grid, label, scale_bar, title
from petomo.analysis.resolution import ShellCorrelation, radial_power_spectrum


def orthogonal_slices(
    volume: np.ndarray, voxel_size: Sequence[float], thickness: float = 1.0, unit: str = "V"
) -> Figure:
    """Three orthogonal slabs through the origin, mean over ``thickness`` angstrom.

    Parameters
    ----------
    volume : np.ndarray
        Potential ``z y x``.
    voxel_size : sequence of float
        Angstrom along z y x.
    thickness : float
        Of a slab in angstrom.
    unit : str
        Of the volume's values.
    """
    figure, axes = grid(3, columns=3, width=3.2, height=3.0)
    slabs = []
    for axis_cut in range(3):
        half = max(1, round(thickness / voxel_size[axis_cut])) / 2
        centre = volume.shape[axis_cut] // 2
        first = max(0, int(np.ceil(centre - half + 0.5)))
        cut = np.arange(first, min(first + round(2 * half), volume.shape[axis_cut]))
        slabs.append(volume.take(cut, axis=axis_cut).mean(axis=axis_cut))
    low, high = (float(np.quantile(np.concatenate([s.ravel() for s in slabs]), q)) for q in (0.002, 0.998))
    for axis, (cut, across, down), slab in zip(axes, PLANES, slabs, strict=True):
        size = {name: voxel_size["zyx".index(name)] for name in (across, down)}
        image = axis.imshow(
            slab,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-9),
            origin="lower",
            aspect=size[down] / size[across],
        )
        colourbar(figure, image, axis, unit)
        scale_bar(axis, slab.shape[1], size[across])
        title(axis, f"{cut} = 0, {thickness:g} Å thick")
        axis.set_xticks([])
        axis.set_yticks([])
        label(axis, across, down)
    return figure


def power_spectrum(volume: np.ndarray, voxel_size: Sequence[float]) -> Figure:
    """Three central planes of the power spectrum (log scale) and its radial mean.

    Parameters
    ----------
    volume : np.ndarray
        Potential ``z y x`` in volts.
    voxel_size : sequence of float
        Angstrom along z y x.
    """
    figure, axes = grid(4, columns=2, width=4.4, height=3.4)
    for axis, (cut, across, down) in zip(axes, PLANES, strict=False):
        # a central plane of the transform is the transform of a projection
        projection = volume.sum(axis="zyx".index(cut), dtype=float)
        power = np.abs(np.fft.fftshift(np.fft.fft2(projection - projection.mean(), norm="ortho"))) ** 2
        logarithm = np.log10(power + power.max() * 1e-8 + 1e-300)
        limit = [0.5 / voxel_size["zyx".index(name)] for name in (across, down)]
        image = axis.imshow(
            logarithm, cmap="magma", vmin=float(np.quantile(logarithm, 0.2)), origin="lower",
            extent=(-limit[0], limit[0], -limit[1], limit[1]),
        )  # fmt: skip
        colourbar(figure, image, axis, "log10 power")
        title(axis, f"q{down} q{across} at q{cut} = 0")
        label(axis, f"q{across} (1/Å)", f"q{down} (1/Å)")
    _radial(axes[3], volume, voxel_size)
    return figure


def _radial(axis: Axes, volume: np.ndarray, voxel_size: Sequence[float]) -> None:
    spectrum = radial_power_spectrum(volume - volume.mean(), tuple(voxel_size))
    keep = (spectrum.frequency > 0) & (spectrum.power > 0)
    axis.semilogy(spectrum.frequency[keep], spectrum.power[keep], color=COLOURS[0])
    nyquist = 0.5 / max(voxel_size)
    axis.axvline(nyquist, color="0.6", ls=":", lw=1)
    label(axis, "q (1/Å)", "mean power (V²)")
    _period_axis(axis)
    title(axis, "radial mean (dotted: Nyquist)", pad=22)


def _period_axis(axis: Axes) -> None:
    """Resolution in angstrom along the top."""
    top = axis.get_xlim()[1]
    periods = [p for p in (5.0, 3.0, 2.0, 1.5, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2) if 1 / p < top]
    ticks = [p for i, p in enumerate(periods) if i == 0 or 1 / p - 1 / periods[i - 1] > 0.04 * top]
    twin = axis.secondary_xaxis("top")
    twin.set_xticks([1 / p for p in ticks], [f"{p:g}" for p in ticks], fontsize=7)
    twin.set_xlabel("Å", fontsize=8)


def shell_correlation(
    curve: ShellCorrelation, directions: Mapping[str, ShellCorrelation] | None = None
) -> Figure:
    """Fourier shell correlation with its thresholds, and in cones about axes where given."""
    figure, (axis,) = grid(1, columns=1, width=6.4, height=3.6)
    for (name, part), colour in zip((directions or {}).items(), COLOURS[3:], strict=False):
        axis.plot(part.frequency, part.correlation, lw=0.9, color=colour, label=f"cone about {name}")
    axis.plot(curve.frequency, curve.correlation, color=COLOURS[0], lw=1.8, label="FSC")
    for name, style in (("half_bit", "--"), ("one_bit", "-.")):
        words = name.replace("_", "-")
        axis.plot(
            curve.frequency, curve.threshold(name), style, color="0.35", lw=1, label=f"{words} threshold"
        )
    axis.axhline(0.143, color="0.35", ls=":", lw=1, label="0.143")
    axis.set_ylim(min(-0.1, float(curve.correlation.min())), 1.05)
    axis.set_xlim(0, float(curve.frequency[-1]))
    axis.legend(fontsize=8, frameon=False)
    label(axis, "q (1/Å)", "correlation")
    _period_axis(axis)
    return figure


def atom_projections(atoms: Atoms) -> Figure:
    """Atoms seen along z, y and x, coloured by element, the nearest drawn last."""
    figure, axes = grid(3, columns=3, width=3.2, height=3.2)
    symbols = np.array(atoms.get_chemical_symbols())
    colours, sizes = element_colours(symbols)
    for axis, (cut, across, down) in zip(axes, PLANES, strict=True):
        order = np.argsort(atoms.positions[:, "xyz".index(cut)])
        x, y = (atoms.positions[order, "xyz".index(name)] for name in (across, down))
        axis.scatter(
            x, y, s=[sizes[s] for s in symbols[order]], c=[colours[s] for s in symbols[order]],
            edgecolors="k", linewidths=0.3, alpha=0.85,
        )  # fmt: skip
        axis.set_aspect("equal")
        title(axis, f"along {cut}")
        label(axis, f"{across} (Å)", f"{down} (Å)")
    for symbol, colour in colours.items():
        axes[0].scatter(
            [],
            [],
            s=sizes[symbol],
            c=colour,
            edgecolors="k",
            linewidths=0.3,
            label=f"{symbol} ({(symbols == symbol).sum()})",
        )
    figure.legend(loc="outside lower center", ncols=max(len(colours), 1), fontsize=9, frameon=False)
    return figure
