"""Small text files of other programs."""

from __future__ import annotations

from pathlib import Path

from petomo.core.errors import UserError

MAX_BYTES = 2**26


def read_text(path: Path) -> str:
    """Content of a text file.

    Raises
    ------
    UserError
        If it is missing, far too large or not text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes are too many for a table of tilts")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; correct its name") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not a text file, but a table of tilts should be") from None
