"""What the figures share: panels, colours, scale bars, colour bars, embedding as PNG."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from PIL import Image

# Okabe & Ito's palette: told apart with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
PLANES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))  # cut, across, down the panel
_DPI = 160  # of the images
_SHOWN_DPI = 115  # of a page's pixels, of which three panels fill a line
_MARGIN = 6  # pixels around a panel that is cut out


def grid(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, filled row by row; sizes of a panel in inches."""
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.tick_params(labelsize=8)
    return figure, axes


def title(axis: Axes, text: str, **options: Any) -> None:
    """Title of a panel in the common size."""
    axis.set_title(text, fontsize=9, **options)


def label(axis: Axes, x: str, y: str) -> None:
    """Axis labels in the common size."""
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)


def plain_log(axis: Axes) -> None:
    """Logarithmic y axis with plain numbers at 1, 2 and 5."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def colourbar(figure: Figure, image, axis: Axes, unit: str) -> None:
    """A slim colour bar with its unit."""
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=8)


def bar_length(width: float) -> float:
    """Round length (1, 2 or 5 times a power of ten) of about a quarter of ``width``."""
    target = width / 4
    power = 10 ** math.floor(math.log10(target))
    return max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9))


def scale_bar(axis: Axes, pixels: int, pixel_size: float) -> float:
    """Draw a scale bar into an image of pixels; returns its length in angstrom."""
    length = bar_length(pixels * pixel_size)
    low, high = sorted(axis.get_ylim())
    x, y, height = 0.05 * pixels - 0.5, low + 0.05 * (high - low), 0.02 * (high - low)
    axis.add_patch(Rectangle((x, y), length / pixel_size, height, fc="white", ec="black", lw=0.6))
    axis.text(
        x, y + 1.6 * height, f"{length:g} Å", color="white", fontsize=8, va="bottom",
        bbox={"facecolor": "black", "alpha": 0.45, "pad": 1, "edgecolor": "none"},
    )  # fmt: skip
    return length


def element_colours(symbols: np.ndarray) -> tuple[dict[str, str], dict[str, float]]:
    """Colour and marker area of each element present, the heaviest first."""
    present = sorted(set(symbols.tolist()), key=lambda s: -atomic_numbers[s])
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(present)}
    return colours, {s: 45.0 / (1 + 0.8 * i) for i, s in enumerate(present)}


@dataclass(frozen=True)
class Panel:
    """One panel of a figure as a PNG in a ``data:`` address; sizes in pixels of a page."""

    source: str
    width: int
    height: int
    title: str


def as_panels(figure: Figure) -> list[Panel]:
    """The figure's panels as images, each with its colour bar, so that a narrow page can stack them."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    shown = [axis for axis in figure.axes if axis.axison or axis.images]
    bars = [axis for axis in shown if axis.get_label() == "<colorbar>"]
    boxes = {axis: axis.get_tightbbox() for axis in shown}
    owners: dict[Axes, list[Any]] = {axis: [boxes[axis]] for axis in shown if axis not in bars}
    for bar in bars:
        owners[min(owners, key=lambda axis: _gap(axis, bar))].append(boxes[bar])
    panels = []
    for axis, parts in owners.items():
        words = (axis.get_title() or axis.get_title("left")).replace("\n", ", ")
        panels.append(_cut(pixels, Bbox.union([b for b in parts if b is not None]), words))
    return panels + [_cut(pixels, legend.get_window_extent(), "legend") for legend in figure.legends]


def _gap(axis: Axes, bar: Axes) -> float:
    """How far a colour bar is from standing at the right of an axis."""
    own, other = axis.get_window_extent(), bar.get_window_extent()
    return abs(other.x0 - own.x1) + abs((other.y0 + other.y1) - (own.y0 + own.y1)) / 2


def _cut(pixels: np.ndarray, box: Any, words: str) -> Panel:
    height, width = pixels.shape[:2]
    left, right = max(0, int(box.x0) - _MARGIN), min(width, int(box.x1) + _MARGIN)
    top, bottom = max(0, height - int(box.y1) - _MARGIN), min(height, height - int(box.y0) + _MARGIN)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right])).save(
        buffer, format="png", compress_level=7
    )
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    scale = _SHOWN_DPI / _DPI
    return Panel(source, round(scale * (right - left)), round(scale * (bottom - top)), words)
