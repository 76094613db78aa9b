"""The Fourier transforms of the MKL inside torch, for compiled code to call one wave at a time.

torch's own calls make a plan, a tensor and a way through the interpreter for every transform, and take one
more pass over memory; a small wave spends as long there as in the transform. The functions are those of
Intel's documented DFTI interface. Where torch has no MKL, or hides it, `find` says so.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from llvmlite import binding
from numba import types

#: of mkl_dfti.h
_COMPLEX, _TRANSFORMS, _PLACEMENT, _IN_DISTANCE, _OUT_DISTANCE, _THREADS = 32, 7, 11, 14, 15, 27
_IN_PLACE, _APART = 43, 44

#: ``status = forward(handle, wave, out)`` and its unscaled inverse, for functions of numba; all are
#: addresses, and what works in place takes no notice of ``out``
forward, backward = (
    types.ExternalFunction(name, types.intp(types.uintp, types.uintp, types.uintp))
    for name in ("DftiComputeForward", "DftiComputeBackward")
)


@lru_cache
def find() -> ctypes.CDLL | None:
    """The library with the transforms, its symbols known to numba from now on; None where there is none."""
    for path in (Path(torch.__file__).parent / "lib").glob("*torch_cpu.*"):
        try:
            library = ctypes.CDLL(str(path))
            for name in ("DftiComputeForward", "DftiComputeBackward"):
                binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        except (OSError, AttributeError):
            continue
        return library
    return None


class Plan(NamedTuple):
    """Handles of the transforms of one window, complex64 ``(y, x)``."""

    whole: int  #: both axes, in place
    apart: int  #: both axes, from one wave to another
    rows: int  #: the last axis of every row, in place; 0 where rows and transpositions are not faster
    columns: int  #: the same of the transposed window


@lru_cache
def plan(rows: int, columns: int, by_rows: bool) -> Plan:
    """Transforms of a window; MKL lets any number of threads use them at once."""
    return Plan(
        _describe((rows, columns), _IN_PLACE),
        _describe((rows, columns), _APART),
        _describe((columns,), _IN_PLACE, rows) if by_rows else 0,
        _describe((rows,), _IN_PLACE, columns) if by_rows else 0,
    )


def _describe(lengths: tuple[int, ...], placement: int, number: int = 1) -> int:
    """Handle of a committed transform, which lives as long as the process."""
    library, handle, long = find(), ctypes.c_void_p(), ctypes.c_long
    assert library is not None, "torch has no MKL to call"
    create = getattr(library, f"DftiCreateDescriptor_s_{'1d' if len(lengths) == 1 else 'md'}")
    sides = [long(lengths[0])] if len(lengths) == 1 else [long(len(lengths)), (long * len(lengths))(*lengths)]
    settings = {_PLACEMENT: placement, _THREADS: 1}
    if number > 1:
        settings |= {_TRANSFORMS: number, _IN_DISTANCE: lengths[0], _OUT_DISTANCE: lengths[0]}
    failed = create(ctypes.byref(handle), _COMPLEX, *sides)
    for key, value in settings.items():
        failed = failed or library.DftiSetValue(handle, key, long(value))
    failed = failed or library.DftiCommitDescriptor(handle)
    if failed or handle.value is None:
        raise RuntimeError(f"MKL makes no transform of {lengths}: status {failed}")
    return handle.value
