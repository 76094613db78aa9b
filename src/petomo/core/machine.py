"""What the machine has, and how long things take in words."""

from __future__ import annotations

import os


def installed_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def duration_in_words(seconds: float) -> str:
    """Two digits in a unit that suits: 12 s, 3.4 minutes, 5 hours, 2 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{max(1, round(seconds))} s"
