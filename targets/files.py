"""Files that are read without following a link, and written so that no reader sees half of one."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

__all__ = ["NotPlainError", "opened", "sync", "write_atomically"]


class NotPlainError(OSError):
    """What there is under a name is no regular file of its own; the message says what it is."""


def opened(path: Path) -> BufferedReader:
    """Opens a regular file for reading, and looks at it only through the open file. A pipe does not block.

    Raises:
        NotPlainError: a symbolic link, something else that is no file, or a file with several names.
        OSError: it is missing, a folder, or cannot be read.
    """
    try:
        file = open(path, "rb", opener=_no_link)  # noqa: SIM115  the caller closes it
    except OSError:
        if Path(path).is_symlink():
            raise NotPlainError("is a symbolic link, which could be pointed elsewhere later") from None
        raise
    status, what = os.fstat(file.fileno()), ""
    if not stat.S_ISREG(status.st_mode):
        what = "is no regular file"
    elif status.st_nlink > 1:
        what = f"has {status.st_nlink} names (hard links), so that others may change it"
    if what:
        file.close()
        raise NotPlainError(what)
    return file


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees either the old bytes or all of the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(aside).unlink()
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Flushes what a folder lists."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
