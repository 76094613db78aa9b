"""All that a run has left, so that two runs can be compared to the last bit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from petomo.io.artefacts import read_json
from petomo.io.metrics import read_metrics
from petomo.io.volumes import read_mrc


def digest(folder: Path) -> dict:
    """All that must not depend on kills: the names of the files and every number in them."""
    out = {"names": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                file.visititems(lambda key, item, name=name: out.update({f"{name} {key}": _numbers(item)}))
        elif path.suffix == ".mrc":
            out[name] = read_mrc(path)[0].tobytes()
        elif path.suffix in (".json", ".xyz", ".txt", ".yaml") and path.name not in (
            "summary.json",
            "state.json",
        ):
            out[name] = path.read_text()
    times = ("seconds", "stage_seconds")
    out["metrics"] = [
        {k: v for k, v in r.items() if k not in times} for r in read_metrics(folder / "metrics.jsonl")
    ]
    summary = read_json(folder / "summary.json")
    out["summary"] = {k: v for k, v in summary.items() if k not in times}
    out["finished"] = [list(read_json(folder / "state.json")["finished"]), list(summary["stage_seconds"])]
    return out


def _numbers(item) -> tuple:
    attributes = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
    return (repr(attributes), item[()].tobytes() if isinstance(item, h5py.Dataset) else b"")


def differences(a: dict, b: dict) -> list[str]:
    """What differs between two digests."""
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]
