"""Compressed blocks that unpack to more than the file declares, found before memory is spent on them.

Zlib, bzip2 and LZMA streams do not say their length, and the libraries that unpack them grow without a limit,
so these are counted in pieces that are thrown away. Blosc, LZ4 and Zstandard say it in their first bytes.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from petomo.core.errors import UserError

_SMALL = 2048
_HARMLESS = 2**25
_DEFLATE = 1032
"""Most bytes that deflate makes of one."""
_PIECE = 2**20
_STREAMS: dict[str, Any] = {
    "zlib": partial(zlib.decompressobj, wbits=47),
    "gzip": partial(zlib.decompressobj, wbits=47),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


def touched(shape: tuple[int, ...], chunks: tuple[int, ...], where: Any) -> Iterator[tuple[int, ...]]:
    """Indices of the chunks that ``array[where]`` needs; ``where`` indexes the first axes."""
    where = where if isinstance(where, tuple) else (where,)
    ranges = []
    for axis, (length, chunk) in enumerate(zip(shape, chunks, strict=True)):
        part = where[axis] if axis < len(where) else slice(None)
        start, stop = (part, part + 1) if isinstance(part, int) else part.indices(length)[:2]
        ranges.append(range(start // chunk, -(-stop // chunk)))
    return itertools.product(*ranges)


def could_swell(codec: str, stored: int, size: int) -> bool:
    """Whether a block of ``stored`` bytes is worth a look, ``size`` being declared."""
    if codec in ("zlib", "gzip"):
        return stored * _DEFLATE > max(2 * size, _HARMLESS)
    return stored > _SMALL


def refuse_swelling(path: Path) -> UserError:
    """What to tell the user about a block that unpacks to more than declared."""
    return UserError(
        f"{path}: a block of its patterns unpacks to more than the file declares, which would fill the "
        "memory; it is damaged, so copy it again"
    )


def unpacks_to_more(codec: str, data: bytes, size: int) -> bool:
    """Whether a block unpacks to more than ``size`` bytes (with a little room for checksums).

    Parameters
    ----------
    codec : str
        Zarr's name; a codec not known here is trusted.
    data : bytes
        The stored block; for blosc, lz4 and zstd its first 32 bytes suffice.
    size : int
        Bytes declared.
    """
    limit = size + 1024
    if codec in _STREAMS:
        return _count(codec, data, limit) > limit
    said = {"blosc": _blosc, "lz4": _lz4, "zstd": _zstd}.get(codec, lambda _: None)(data)
    return said is not None and said > limit


def _count(codec: str, data: bytes, limit: int) -> int:
    """Bytes that a stream, or several after each other, unpack to, counted until there are too many."""
    total = 0
    try:
        while data and total <= limit:
            stream = _STREAMS[codec]()
            piece = len(stream.decompress(data, _PIECE))
            while piece and total <= limit:
                total += piece
                piece = (
                    len(stream.decompress(getattr(stream, "unconsumed_tail", b""), _PIECE))
                    if not stream.eof
                    else 0
                )
            data = stream.unused_data if stream.eof else b""
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        pass  # damaged: the library that reads it says so
    return total


def _blosc(data: bytes) -> int | None:
    return int.from_bytes(data[4:8], "little") if len(data) >= 16 else None


def _lz4(data: bytes) -> int | None:
    return int.from_bytes(data[:4], "little") if len(data) >= 4 else None


def _zstd(data: bytes) -> int | None:
    """Content size of a frame (RFC 8878, section 3.1.1.1), None if it is not given."""
    if len(data) < 18 or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flag, single = data[4] >> 6, data[4] >> 5 & 1
    width = (1 if single else 0, 2, 4, 8)[flag]
    start = 5 + (1 - single) + (0, 1, 2, 4)[data[4] & 3]
    return (
        int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0) if width else None
    )
