"""How much memory is taken at a time, and what becomes of it when it is freed."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

READ_BYTES = 1 << 26  # of counts read at a time


def patterns_at_once(pixels: int) -> int:
    """How many patterns of so many pixels are read at a time."""
    return max(1, READ_BYTES // (4 * pixels))


@lru_cache
def keep_freed_memory(size: int = 1 << 28) -> bool:
    """Let this process keep freed memory up to ``size`` bytes; True where the C library has a say (glibc).

    A chunk of patterns frees as much as it takes, and by default its pages go back to the system and are
    cleared anew for the next chunk, at the cost of a fifth of a pass.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its largest
    return bool(mallopt(-1, size)) and bool(mallopt(-3, 1 << 25))
