"""Takes back what was published: a version, and what its publication changed beside it.

    DEST/<name>/.attar-gone    the version, renamed at once and then emptied; two lists: before it, what it wrote
    DEST/<name>/.attar-undo    a file as it was before, which is then renamed to its place

The version goes first: that needs no room on the disk, and makes some. A kill after that leaves the files beside it as
they are; they fit the version before as well, and the next publication writes them anew. It knows attar's own files by
their list, so that must be true by then: see `settled`. What lies aside stays until `forget`: whoever finds it knows
that a server may not have been told yet.
"""

from __future__ import annotations

import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from targets.errors import Fault, InputError
from targets.files import sync
from targets.servers.disk import GONE, STAGED, UNDO, inside, no_link, read, take_away, unwritable, write
from targets.sha256sums import LAYOUT, digest, parsed, render

__all__ = ["Change", "forget", "noted", "recalled", "restore", "retract", "settled", "written"]


@dataclass(frozen=True)
class Change:
    """What a publication does to one file beside the version. `before` is None where there is none yet."""

    path: Path
    before: bytes | None
    after: bytes


def retract(folder: Path, undo: Sequence[Change] = ()) -> tuple[str, ...]:
    """Takes a version away again, at once and whole, for one who is `alone` there; `forget` ends it.

    Args:
        folder: of the version.
        undo: what else its publication changed; a file that has been changed since stays. Their list comes last.

    Returns:
        Which files could not be put back, and why; empty: all is as it was.

    Raises:
        InputError: the version cannot be taken away, and nothing was.
    """
    home = folder.parent
    aside = home / GONE
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.rename(aside)
    except OSError as error:
        what = f"could not be taken away again: {error.strerror}"
        raise InputError(Fault(what, file=str(folder), help="remove it by hand")) from None
    with suppress(OSError):
        for entry in aside.iterdir():
            take_away(entry)
    last = [change for change in undo if change.path == home / LAYOUT]
    with suppress(OSError):  # no room: then nothing can be put back, either
        for change in last:
            write(aside / LAYOUT, change.before or b"")
            write(aside / f"{LAYOUT}.after", written(undo, home))
    stays = []
    for change in [*reversed([change for change in undo if change not in last]), *last]:
        try:
            if change.before != change.after and read(change.path) == change.after:
                restore(change, home)
        except (InputError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error.faults[0].what
            stays.append(f"{change.path} stays as version {folder.name} had it: {why}")
    with suppress(OSError):
        sync(home)
    return tuple(stays)


def forget(home: Path) -> None:
    """Removes what lies aside once the server was told; not while the list is false, which the next one puts right."""
    with suppress(InputError, OSError):
        settled(home)
        shutil.rmtree(home / GONE, ignore_errors=True)
        home.rmdir()  # older versions stay


def settled(home: Path) -> None:
    """Has the list of a model's shared files be true where a kill came between it and them; for one who is `alone`.

    Raises:
        InputError: it cannot be read, or not be written.
    """
    no_link(home)
    try:
        left = [entry for entry in home.iterdir() if entry.name.startswith((STAGED, GONE))] if home.is_dir() else []
        left = [entry for entry in left if entry.is_dir() and not entry.is_symlink()]
        _corrected(home, [text for entry in left for path in entry.glob(f"{LAYOUT}*") if (text := read(path))])
    except OSError as error:
        raise unwritable(home, error) from None


def _corrected(home: Path, lists: Iterable[bytes]) -> None:
    """Has the list there say of each file that one of these lists knows as it is what they say."""
    path = home / LAYOUT
    known = parsed(read(path) or b"", deep=True)
    if known is None:
        return  # the next publication says so
    now = dict(known)
    for text in lists:
        for name, sha in (parsed(text, deep=True) or {}).items():
            data = read(home / inside(name))
            if data is not None and digest(data) == sha:
                now[name] = sha
    if now != known:
        restore(Change(path, render(now, deep=True), b""), home)


def written(undo: Iterable[Change], home: Path) -> bytes:
    """The list of the shared files that changes write; what is its owner's, and stays as it is, is not in it."""
    found = [each for each in undo if each.before != each.after and home in each.path.parents]
    files = {each.path.relative_to(home).as_posix(): each.after for each in found if each.path != home / LAYOUT}
    return render(files, deep=True)


def restore(change: Change, home: Path) -> None:
    """Puts back what a publication of the model in `home` changed.

    Raises:
        OSError: it cannot.
    """
    if change.before is not None:
        aside = home / UNDO
        aside.unlink(missing_ok=True)
        try:
            write(aside, change.before)
            aside.replace(change.path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        return
    change.path.unlink(missing_ok=True)
    if home in change.path.parent.parents:
        with suppress(OSError):  # a folder in the model's own, if it is empty now
            change.path.parent.rmdir()


def noted(undo: Iterable[Change], dest: Path) -> bytes:
    """Changes in `dest` as JSON: what `recalled` reads again."""
    rows = [
        (each.path.relative_to(dest).as_posix(), None if each.before is None else _text(each.before), _text(each.after))
        for each in undo
        if each.before != each.after
    ]
    return (json.dumps(rows, indent=1) + "\n").encode()


def recalled(note: bytes, dest: Path) -> tuple[Change, ...]:
    """The changes in `dest` that `noted` wrote down.

    Raises:
        ValueError: it did not write this.
    """
    try:
        rows = json.loads(note)
        if not isinstance(rows, list):
            raise TypeError("is no list")  # noqa: TRY301  told as all else that is no note
        return tuple(
            Change(dest / inside(file), None if before is None else _bytes(before), _bytes(after))
            for file, before, after in rows
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)
