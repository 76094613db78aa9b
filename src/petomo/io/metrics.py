"""``metrics.jsonl``: one JSON object per iteration, appended as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petomo.io.artefacts import to_json
from petomo.io.atomic import disk_errors, write_text


def _lines(path: Path) -> list[str]:
    """Whole lines; one that a crash cut short is dropped."""
    if not path.exists():
        return []
    return [f"{line}\n" for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]]


def append_metrics(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one line."""
    with disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(to_json(record) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All records in order; an absent file has none."""
    return [json.loads(line) for line in _lines(Path(path))]


def truncate_metrics(path: str | Path, count: int) -> None:
    """Keep the first ``count`` lines: those that a checkpoint knows of."""
    path = Path(path)
    if path.exists():
        write_text(path, "".join(_lines(path)[:count]))


def drop_metrics(path: str | Path, stages: tuple[str, ...]) -> None:
    """Remove the lines of stages that start anew, and those of their parts, named ``stage/part``."""
    path = Path(path)
    if path.exists():
        kept = [
            line
            for line in _lines(path)
            if str(json.loads(line).get("stage")).partition("/")[0] not in stages
        ]
        write_text(path, "".join(kept))
