"""A solver's state in one HDF5 file: nested, bit exact, versioned, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from petomo.core.errors import UserError
from petomo.io.atomic import atomic_hdf5

VERSION = 1
State = Mapping[str, Any]


def _write(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        item, kind = group.create_dataset(name, data=value.detach().cpu().resolve_conj().numpy()), "tensor"
    elif isinstance(value, np.ndarray):
        item, kind = group.create_dataset(name, data=value), "array"
    elif isinstance(value, Mapping):
        item, kind = group.create_group(name, track_order=True), "mapping"
        for number, (key, inner) in enumerate(value.items()):
            if not isinstance(key, (str, int)):
                raise TypeError(f"{item.name}: a checkpoint's keys are strings or integers, not {key!r}")
            _write(item, str(number), inner)
            item[str(number)].attrs["key"] = json.dumps(key)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        item, kind = (
            group.create_group(name, track_order=True),
            "tuple" if isinstance(value, tuple) else "list",
        )
        for number, inner in enumerate(value):
            _write(item, str(number), inner)
    elif value is None or isinstance(value, (bool, int, float, str)):
        item, kind = group.create_dataset(name, data=json.dumps(value)), "scalar"
    else:
        raise TypeError(f"{group.name}/{name}: a checkpoint cannot hold a {type(value).__name__}")
    item.attrs["kind"] = kind


def _read(item: Any) -> Any:
    kind = item.attrs["kind"]
    if kind == "tensor":
        # cloned into memory aligned as torch does: linear algebra may round by where its numbers lie
        return torch.from_numpy(np.asarray(item[()])).clone()
    if kind == "array":
        return np.asarray(item[()])
    if kind == "scalar":
        return json.loads(item.asstr()[()])
    members = [item[str(number)] for number in range(len(item))]
    if kind == "mapping":
        return {json.loads(member.attrs["key"]): _read(member) for member in members}
    return (tuple if kind == "tuple" else list)(map(_read, members))


def save_checkpoint(path: str | Path, state: State) -> None:
    """Write a nested state atomically; `load_checkpoint` gives it back bit for bit.

    Parameters
    ----------
    path : path
        File to write; what was there before is replaced only once the new file is whole.
    state : mapping
        Strings or integers to tensors, numpy arrays, numbers, strings, None, lists, tuples and mappings
        of these. Tensors come back on the processor, without gradient.

    Raises
    ------
    TypeError
        If something else is in it.
    UserError
        If the disk is full, read-only or failing; the earlier file is untouched then.
    """
    with atomic_hdf5(path) as file:
        file.attrs["petomo_checkpoint"] = VERSION
        _write(file, "state", state)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises
    ------
    UserError
        If the file is missing, damaged, no checkpoint, or of another version.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such checkpoint; run the stage from its start")
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("petomo_checkpoint")
            if version != VERSION:
                raise UserError(
                    f"{path}: this is checkpoint version {version}, but this petomo reads version {VERSION}; "
                    "delete it to run the stage from its start"
                )
            return _read(file["state"])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path}: the checkpoint is damaged; delete it to run the stage from its start"
        ) from error
