"""The folder that attar keeps on a device: `$XDG_CACHE_HOME/attar`, or `~/.cache/attar`; only its owner may look in.

    lease               locked by the run that measures there now; the lock ends with its process
    probe-<sha256>.pyz  the probe itself
    files/<sha256>      files that were sent once; at most 1 GB, what was not used for longest goes first
    work/<name>/        the workspace of the run that holds the lease; any other is a leftover, and is removed

Where that folder cannot be written, a folder of the same kind is used below the system's place for temporary files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Cache", "CacheError", "plain"]

LIMIT_BYTES = 1_000_000_000
_OLD_S = 30 * 86_400.0
_CHUNK = 1 << 20


class CacheError(Exception):
    """What the caller can understand without a traceback."""


def plain(name: str) -> str:
    """The name, once it is a file's name and nothing else."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
        raise CacheError(f"{name!r} is no plain file name")
    return name


class Cache:
    """The folder, opened.

    Attributes:
        root: the folder.
        note: why it is not where it should be; empty if it is.
    """

    def __init__(self) -> None:
        home = os.environ.get("XDG_CACHE_HOME", "")
        wanted = Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "attar"  # noqa: PTH111, PTH117
        self._lease: int | None = None
        self.note = ""
        try:
            self.root = _own(wanted)
        except OSError as error:
            other = Path(tempfile.gettempdir()) / f"attar-{os.getuid()}"
            self.note = f"{wanted} cannot be used ({error.strerror or error}): files are kept in {other}"
            self.root = _own(other)

    def keep_probe(self, probe: bytes) -> Path:
        """Stores the probe; gives its path. Probes of other versions go when they were not used for a month."""
        path = self.root / f"probe-{hashlib.sha256(probe).hexdigest()}.pyz"
        if path.is_symlink() or not path.is_file() or path.read_bytes() != probe:
            aside = path.with_suffix(f".{os.getpid()}.part")
            try:
                aside.write_bytes(probe)
                os.replace(aside, path)  # noqa: PTH105  the name of the guarantee
            finally:
                _remove(aside)  # a full disk
        os.utime(path)
        for other in self.root.glob("probe-*"):
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > _OLD_S:
                    other.unlink()
        return path

    def lease(self, run: str) -> dict[str, Any]:
        """Takes the lease for a run. Gives {} then; else who holds it: {"pid", "run", "since"}, as far as is known."""
        if self._lease is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.root / "lease", flags, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(handle)
                os.close(handle)
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                return {"pid": 0, "run": "", "since": time.time(), **holder}
            self._lease = handle
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "run": run, "since": time.time()}).encode(), 0)
        return {}

    def workspace(self) -> Path:
        """A new, empty workspace; what former runs left is removed."""
        if self._lease is None:
            raise CacheError("a workspace needs the lease")
        work = self.root / "work"
        _remove(work)
        work.mkdir(mode=0o700)
        return Path(tempfile.mkdtemp(dir=work))

    def release(self) -> None:
        """Gives the lease back."""
        if self._lease is not None:
            os.ftruncate(self._lease, 0)
            os.close(self._lease)
            self._lease = None

    def fetch(self, digest: str, to: Path) -> bool:
        """Copies a stored file; false where there is none. One that is not what its name says is removed."""
        stored = self.root / "files" / plain(digest)
        try:
            with os.fdopen(os.open(stored, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source:
                got = _copy(iter(lambda: source.read(_CHUNK), b""), to)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EIO, errno.EISDIR):
                raise
            got = ""
        if got != digest:
            for path in (to, stored):
                _remove(path)
            return False
        os.utime(stored)
        return True

    def store(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Stores a file as it arrives."""
        files = self.root / "files"
        files.mkdir(mode=0o700, exist_ok=True)
        aside = files / f"{plain(digest)}.{os.getpid()}.part"
        try:
            got = _copy(chunks, aside)
            if got != digest:
                raise CacheError(f"a file arrived with the digest {got[:12]}, and {digest[:12]} was announced")
            os.replace(aside, files / digest)  # noqa: PTH105
        finally:
            _remove(aside)

    def shrink(self, limit: int = LIMIT_BYTES) -> None:
        """Removes the files that were not used for longest, until the rest fits."""
        found = []
        for path in (self.root / "files").glob("*"):
            with suppress(OSError):  # another run may be at it, too
                found.append((path.lstat().st_mtime, path.lstat().st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if path.suffix == ".part" and time.time() - used < _OLD_S / 30:
                continue  # being written
            if total > limit or path.suffix == ".part":
                with suppress(OSError):
                    path.unlink()
                    total -= size


def _own(folder: Path) -> Path:
    """Makes the folder, for its owner alone. Raises CacheError where somebody else could have a hand in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise CacheError(f"{folder} is a symbolic link, and is not followed: remove it, or set XDG_CACHE_HOME there")
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise CacheError(f"{folder} is no folder of this user: remove it, or set XDG_CACHE_HOME there")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    with tempfile.TemporaryFile(dir=folder):  # a read-only file system, a full one
        return folder


def _holder(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return {"pid": int(found["pid"]), "run": str(found["run"]), "since": float(found["since"])}
    except (ValueError, KeyError, TypeError):
        return {}  # not written yet


def _remove(path: Path) -> None:
    """Removes whatever is there; of a link, only the link."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy(chunks: Iterable[bytes], to: Path) -> str:
    """Writes a new file; gives its sha-256."""
    digest = hashlib.sha256()
    _remove(to)
    with to.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
