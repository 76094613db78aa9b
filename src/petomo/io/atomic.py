"""Files that are either whole or absent, whatever happens to the disk or the process."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from petomo.core.errors import UserError

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.[^.]*)?")
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file grows beyond what the system allows (ulimit -f); raise that limit",
    errno.EROFS: "the disk is mounted read-only; choose another one",
    errno.EACCES: "permission is denied; allow writing there, or choose another place",
    errno.EPERM: "permission is denied; allow writing there, or choose another place",
    errno.EIO: "the disk reports an error; check it, or choose another one",
}


def write_failure(path: str | Path, error: OSError) -> UserError | None:
    """A sentence for a write that the disk refused, or None for other errors."""
    reason = _REASONS.get(error.errno or 0)
    return None if reason is None else UserError(f"{path}: this could not be written, because {reason}")


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into a `UserError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise write_failure(path, error) or error from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place once the block succeeds.

    If the block fails the temporary file is removed and whatever was at
    ``path`` before stays untouched; after a kill see `remove_temporaries`.

    Raises
    ------
    UserError
        If the disk is full, read-only or failing.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with disk_errors(path):
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path``, which must not exist, once the block succeeds."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            temporary.mkdir()
            yield temporary
            for written in temporary.iterdir():
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
            os.rename(temporary, path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the file system has such a thing."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `atomic_path` gives."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: str | Path) -> list[Path]:
    """Remove what killed writers left below ``folder``; nobody may be writing there."""
    found = [path for path in Path(folder).rglob(".*") if is_temporary(path)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return found


class _Deferring(io.FileIO):
    """A file that keeps the first write error for later and swallows what comes after.

    HDF5 cannot be closed once a write has failed: it complains without end, or crashes. So it is told
    that all is well, and the error is raised when it is gone.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``, or remember why not."""
        view = memoryview(data).cast("B")
        done = 0
        while self.failure is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or remember why not."""
        if self.failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0


@contextmanager
def atomic_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that takes the place of ``path`` once the block succeeds.

    Raises
    ------
    UserError
        If the disk is full, read-only or failing.
    """
    with atomic_path(path) as temporary, _Deferring(temporary, "w+") as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file
        finally:
            if raw.failure is not None:
                raise raw.failure


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
