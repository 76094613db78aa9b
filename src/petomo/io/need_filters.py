"""Whether HDF5 can undo a dataset's compression."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from petomo.core.errors import UserError
from petomo.io.calibration import as_string


def need_filters(path: Path, dataset: Any) -> None:
    """Make sure that the dataset's compression can be undone, or say what is missing."""
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(number)
        if h5py.h5z.filter_avail(code):
            continue
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401  # pyright: ignore[reportMissingImports]
        if not h5py.h5z.filter_avail(code):
            short = as_string(name).partition(";")[0] or "a filter"
            raise UserError(
                f"{path}: `{dataset.name}` is compressed with {short} (HDF5 filter {code}), which is not "
                "installed; pip install 'petomo[readers]', or store the file with gzip"
            )
