"""How plans, runs and volumes look in a notebook: HTML without scripts, all text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure


def plan_html(name: str, lines: Sequence[str]) -> str:
    """A configuration's name and what follows from it, a line a sentence."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<div><b>{escape(name)}</b><ul>{items}</ul></div>"


def volume_html(words: str, figure: Figure) -> str:
    """Slices of a volume below what it is in words."""
    return f"<div>{_line(words)}{_image(figure, words)}</div>"


def run_html(
    words: str,
    finished: Mapping[str, float],
    metrics: Sequence[Mapping[str, Any]],
    volume: Figure | None = None,
) -> str:
    """A table of stages with seconds, iterations, first and last loss; then the volume.

    Parameters
    ----------
    words : str
        The run in words.
    finished : mapping
        Seconds of each finished stage.
    metrics : sequence of mapping
        Records of ``metrics.jsonl``.
    volume : Figure, optional
        Slices of the volume.
    """
    stages = dict.fromkeys([*(str(record["stage"]) for record in metrics), *finished])
    rows = [("stage", "seconds", "iterations", "first loss", "last loss")]
    for stage in stages:
        losses = [record["loss"] for record in metrics if str(record["stage"]) == stage]
        seconds = f"{finished[stage]:.1f}" if stage in finished else ""
        first, last = (_number(losses[0]), _number(losses[-1])) if losses else ("", "")
        rows.append((stage, seconds, str(len(losses) or ""), first, last))
    head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    table = "".join(f"<tr>{row}</tr>" for row in body)
    picture = "" if volume is None else _image(volume, "slices of the volume")
    head = head.replace("td>", "th>")
    return f"<div>{_line(words)}<table><tr>{head}</tr>{table}</table>{picture}</div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _line(words: str) -> str:
    return f"<div>{escape(words)}</div>"


def _image(figure: Figure, words: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img style="max-width:100%" alt="{escape(words)}" src="data:image/png;base64,{data}">'
