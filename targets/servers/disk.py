"""Files of a model repository, written so that no reader sees half of one, and no link is followed or made."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from targets.errors import Fault, InputError
from targets.files import NotPlainError, opened, sync

__all__ = [
    "CANDIDATE",
    "GONE",
    "HIDDEN",
    "STAGED",
    "UNDO",
    "alone",
    "inside",
    "make_folder",
    "newest",
    "no_link",
    "read",
    "sweep",
    "sync_tree",
    "take_away",
    "unwritable",
    "versions",
    "write",
]

HIDDEN = ".attar-"
"""How every name begins that is not to be seen by a server."""

CANDIDATE = f"{HIDDEN}candidate-"
"""How a model is called that is on trial: this, and its own name."""

STAGED, GONE, UNDO = f"{HIDDEN}new-", f"{HIDDEN}gone", f"{HIDDEN}undo"
"""In a model's folder: what is being published (and eight more characters), a version and a file being taken back."""

_LEFT = re.compile(rf"{re.escape(CANDIDATE)}.+|{re.escape(STAGED)}[a-z0-9_]{{8}}|{re.escape(GONE)}|{re.escape(UNDO)}")
_WAIT_S = 120.0
_CHUNK = 2**20


@contextmanager
def alone(dest: Path) -> Iterator[None]:
    """Keeps others from publishing into `dest` meanwhile. Makes the folder, and those above it, where there is none;
    they go again if nothing was published.

    Raises:
        InputError: it cannot be written, or somebody else has been at it for two minutes.
    """
    made: list[Path] = []
    try:
        try:
            no_link(dest)
            make_folder(dest, made)
            handle = _locked(dest / ".attar.lock", made)
        except OSError as error:
            raise unwritable(dest, error) from None
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held: whoever waits for it looks whether it is still there
                (dest / ".attar.lock").unlink()
            os.close(handle)
    finally:
        with suppress(OSError):  # it holds what was published
            for folder in reversed(made):
                folder.rmdir()


def make_folder(path: Path, made: list[Path] | None = None) -> None:
    """Makes a folder, and those above it, where there is none; others may read what is made here, whatever the umask
    is: a server often runs as somebody else.

    Args:
        made: gets the folders that were made, the deepest last.
    """
    if path.is_dir():
        return
    make_folder(path.parent, made)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        if made is not None:
            made.append(path)
        path.chmod(0o755)


def sweep(folder: Path) -> None:
    """Removes what a publication left that was killed, and nothing else, whatever it is called."""
    for entry in folder.iterdir():
        if _LEFT.fullmatch(entry.name):
            take_away(entry)


def take_away(entry: Path) -> None:
    """Removes a folder with all that is in it, or a file; of a link only itself."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def versions(home: Path) -> tuple[int, ...]:
    """Numbers of a model's versions, in order; none where there is no such folder."""
    if not home.is_dir():
        return ()
    names = (entry.name for entry in home.iterdir())
    return tuple(sorted(int(name) for name in names if name.isascii() and name.isdigit() and int(name)))


def newest(home: Path) -> int | None:
    """The highest version of a model, if it has any."""
    return max(versions(home), default=None)


def inside(file: str) -> PurePosixPath:
    """A layout's name of a file, once it stays in its folder."""
    path = PurePosixPath(file)
    if path.is_absolute() or not path.parts or ".." in path.parts or not file.isprintable():
        raise ValueError(f"{file!r} does not stay in its folder")
    return path


def no_link(path: Path) -> None:
    """Raises InputError for a symbolic link."""
    if path.is_symlink():
        what = "is a symbolic link, which could be pointed elsewhere later"
        raise InputError(Fault(what, file=str(path), help="give the folder itself"))


def read(path: Path) -> bytes | None:
    """What a file holds; None if there is none. A link, or anything else that is no file of its own, is a fault."""
    no_link(path.parent)
    try:
        with opened(path) as file:
            return file.read()
    except FileNotFoundError:
        return None
    except NotPlainError as error:
        what = str(error)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    raise InputError(Fault(f"{what}; it is in the way", file=str(path), help="take it away"))


def write(path: Path, content: bytes | Path) -> None:
    """A new file, flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        if isinstance(content, bytes):
            out.write(content)
        else:
            with opened(content) as file:
                shutil.copyfileobj(file, out, _CHUNK)
        out.flush()
        os.fchmod(out.fileno(), 0o644)
        os.fsync(out.fileno())


def sync_tree(folder: Path) -> None:
    """Flushes the folders below, and lets others read them: a server often runs as somebody else."""
    for below, _, _ in os.walk(folder, topdown=False):
        Path(below).chmod(0o755)
        sync(Path(below))


def unwritable(dest: Path, error: OSError) -> InputError:
    """The fault of a repository that takes nothing."""
    what = f"cannot be written: {error.strerror or error}"
    return InputError(Fault(what, file=str(dest), help="give a folder that you may write to, with room in it"))


def _locked(path: Path, made: list[Path]) -> int:
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            make_folder(path.parent, made)  # the one who held it made it, failed, and took it away
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.lstat(path)):  # else: the one who held it took it away
                    return handle
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(handle)
                what = f"somebody else has been publishing there for {_WAIT_S:.0f} s"
                raise InputError(Fault(what, file=str(path.parent), help="try again when that is done")) from None
            time.sleep(0.02)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
