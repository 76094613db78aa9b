"""Damaged heaps of HDF5 files, on which the HDF5 library would turn forever.

Text of variable length lies in global heap collections (HDF5 file format specification, III.E). An object of
index 0 is the free space at a collection's end; where damage leaves one of size 0 before it, the library
steps on by its size, and so stays where it is.
"""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path

from petomo.core.errors import UserError

_SEARCHED = 2**24
"""Bytes at a file's start that are searched: text is written early, patterns fill the rest."""
_LEAST = 4096
_HEADER = 16


def refuse_endless_heap(path: Path) -> None:
    """Refuse an HDF5 file with such a heap.

    Raises
    ------
    UserError
        Saying that it is damaged.
    """
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        at = content.find(b"GCOL", 0, _SEARCHED)
        while at >= 0:
            size = _number(content, at + 8, 8)
            known = content[at + 4 : at + 8] == b"\x01\0\0\0" and size >= _LEAST
            if known and _is_endless(content, at + _HEADER, at + size):
                raise UserError(
                    f"{path}: this is not a readable HDF5 file (a heap of its texts is damaged); "
                    "copy it again"
                )
            at = content.find(b"GCOL", at + 1, _SEARCHED)


def _number(content: mmap, at: int, length: int) -> int:
    return int.from_bytes(content[at : at + length], "little")


def _is_endless(content: mmap, at: int, end: int) -> bool:
    """Whether an object of no size comes before the end of a collection."""
    end = min(end, len(content))
    while at + _HEADER <= end:
        index, size = _number(content, at, 2), _number(content, at + 8, 8)
        if index == 0:
            if size == 0:
                return True
            at += size
        else:
            at += _HEADER + -(-size // 8) * 8
    return False
