"""The rows of a plan as a table for people, which is Markdown as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines: the acquisitions and what comes of them, then the elements, then what to mind.

    Parameters
    ----------
    rows : sequence of dict
        ``cases`` of ``plan.json``.
    """
    done = [row for row in rows if "trouble" not in row]
    symbols = list(dict.fromkeys(symbol for row in done for symbol in row["elements"]))
    extra = ["full h"] if any(row["hours_full"] is not None for row in done) else []
    head = [
        *("case", "e/A^2 a tilt", "in all", "tilts", "degrees", "step A", "across A", "along A"),
        *("found", "invented", "shifts A", "angles", "hours", *extra),
    ]
    lines = _aligned([head, *(_case(row, bool(extra)) for row in rows)])
    if symbols:
        names = [f"{symbol} {what}" for symbol in symbols for what in ("found", "rmsd A")]
        lines += ["", *_aligned([["case", *names], *(_elements(row, symbols) for row in done)])]
    return [*lines, "", *_remarks(rows)]


def _case(row: dict[str, Any], full: bool) -> list[str]:
    low, high = row["tilt_range_degree"]
    asked = [
        row["name"],
        *(_dose(row[f"dose_{of}_per_square_angstrom"]) for of in ("per_tilt", "total")),
        str(row["tilts"]),
        f"{low:g} to {high:g}",
        "x".join(dict.fromkeys(f"{step:g}" for step in row["scan_step_angstrom"])),
    ]
    if "trouble" in row:
        return asked + ["-"] * (7 + full)
    return [
        *asked,
        _number(row["resolution_across_angstrom"], ".2f"),
        _number(row["resolution_along_angstrom"], ".2f"),
        f"{row['recall']:.1%}",
        f"{row['invented_share']:.1%}",
        _number(row["shift_median_angstrom"], ".3f"),
        _number(row["angle_rms_degree"], ".2f"),
        f"{row['hours']:.2g}",
        *([f"{row['hours_full']:.2g}"] if full else []),
    ]


def _elements(row: dict[str, Any], symbols: Sequence[str]) -> list[str]:
    out = [row["name"]]
    for symbol in symbols:
        part = row["elements"].get(symbol)
        out.append(f"{part['found']} of {part['true']}" if part else "-")
        out.append(_number(part and part["rmsd_angstrom"], ".3f"))
    return out


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _dose(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = [("-" * width if i == 0 else "-" * (width - 1) + ":") for i, width in enumerate(widths)]
    return [
        f"| {cells[0]:<{widths[0]}} | "
        + " | ".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
        + " |"
        for cells in (rows[0], rule, *rows[1:])
    ]


def _remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures mean, and cases to mistrust."""
    lines = [
        "across, along: resolution (full period) across and along the beam, where the correlation with the "
        "true potential falls below 0.5; found: true atoms that have a traced one within 0.7 A.",
    ]
    for row in rows:
        name = row["name"]
        if "trouble" in row:
            lines.append(f"{name}: could not be reconstructed ({row['trouble']})")
            continue
        if row["probe_overlap"] <= 0:
            lines.append(f"{name}: neighbouring probes do not overlap; take smaller steps or more defocus")
        if edge := " and ".join(row["at_the_edge"]):
            lines.append(f"{name}: along {edge} the correlation holds to the detector's edge")
    fewest = min((row["atoms"] for row in rows if "atoms" in row), default=0)
    if 0 < fewest < 200:
        lines.append(
            f"of {fewest} atoms one more or less is {1 / fewest:.1%}: a difference of a few may be chance; "
            "more `repeats` tell"
        )
    return lines
