"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache


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
