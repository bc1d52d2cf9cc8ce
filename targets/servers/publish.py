"""Writes a layout into a model repository, whole or not at all, while a server may be reading there.

    DEST/.attar.lock                  held (flock) by the one who publishes; gone when it is done
    DEST/<name>/.attar-XXXX/          everything that is new, written and flushed to disk
    DEST/<name>/<shared files>        then renamed to its place: shared files, last of them the list of their digests,
    DEST/<name>/<version>/            the version as a whole,
    DEST/<root files>                 and what names the model to the server

Only renames happen in sight, and each file and each version is whole at any time. A kill leaves hidden names, which the
next publication removes: Triton and OpenVINO take folders with a number for versions; MLServer looks for
`**/model-settings.json` by glob, which skips hidden folders. A kill between two renames leaves shared files of the new
version beside the old one, which has the same inputs and outputs: the next publication writes them anew. A
version that is there is never written over, and no link is followed or made.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
    https://github.com/SeldonIO/MLServer/blob/master/mlserver/repository/repository.py
    https://docs.openvino.ai/2025/model-server/ovms_docs_models_repository.html
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from targets.errors import Fault, InputError
from targets.files import sync
from targets.servers.disk import (
    HIDDEN,
    alone,
    inside,
    make_folder,
    newest,
    no_link,
    read,
    sweep,
    sync_tree,
    unwritable,
    write,
)
from targets.servers.neighbours import same_face, suits
from targets.servers.shipment import Layout
from targets.sha256sums import LAYOUT, parsed, render

__all__ = ["Change", "changes", "place", "publish", "remove", "retract"]

_NAME = re.compile(r"(\.attar-)?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True)
class Change:
    """What a publication does to one file beside the version. `before` is None where there is none yet."""

    path: Path
    before: bytes | None
    after: bytes


def publish(layout: Layout, dest: Path, name: str, version: int | None = None) -> Path:
    """Writes a layout into `dest` as one version of the model `name`.

    Args:
        version: from 1; None: one more than the newest that is there.

    Returns:
        The folder of the version.

    Raises:
        InputError: the version exists; the newest one there has other inputs or outputs, or is for another kind of
            server; a link is in the way; `dest` cannot be written, or the disk is full. Then all is as it was.
    """
    with alone(dest):
        return place(layout, dest, name, version)


def place(layout: Layout, dest: Path, name: str, version: int | None = None) -> Path:
    """`publish` for one who is `alone` in `dest` already."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} must be letters, digits, - _ and ., a letter or digit first: it names a folder")
    if version is not None and version < 1:
        raise InputError(f"version {version} must be at least 1: servers take no other")
    home = dest / name
    no_link(home)
    made = not home.exists()
    staged: Path | None = None
    try:
        suits(layout, dest, name)
        sweep(dest)
        make_folder(home)
        sweep(home)
        number = version or (newest(home) or 0) + 1
        into = home / str(number)
        if os.path.lexists(into):
            what = f"version {number} is there already, and no version is ever written over"
            help = "leave the version open, so that the next free number is taken"
            raise InputError(Fault(what, file=str(into), help=help))
        todo = changes(layout, dest, name)
        staged = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=home))
        fresh = staged / "version"
        for file, content in {**layout.version, **_added(layout, number)}.items():
            write(fresh / inside(file), content)
        for position, change in enumerate(todo):
            write(staged / str(position), change.after)
        sync_tree(staged)
        same_face(home, fresh)
        _commit(fresh, into, staged, todo, first=len(todo) - len(layout.root))
    except OSError as error:
        raise unwritable(dest, error) from None
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        if made:
            with suppress(OSError):  # it holds the version now
                home.rmdir()
    return into


def retract(folder: Path, undo: tuple[Change, ...] = ()) -> None:
    """Takes a version away again, at once and whole, for one who is `alone` there.

    Args:
        folder: as `publish` returned it.
        undo: what else the publication changed, from `changes` before it; a file that has been changed since stays.

    Raises:
        InputError: it cannot be taken away.
    """
    home = folder.parent
    try:
        for change in reversed(undo):
            if change.before != change.after and read(change.path) == change.after:
                _restore(change, home / f"{HIDDEN}undo", home)
        aside = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=home))
        folder.rename(aside / "version")
        sync(home)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        what = f"could not be taken away again: {error.strerror}"
        raise InputError(Fault(what, file=str(folder), help="remove it by hand")) from None
    with suppress(OSError):  # older versions stay
        home.rmdir()


def remove(home: Path) -> None:
    """Takes a hidden model away, for one who is `alone` there. What stays is left to the next publication."""
    assert home.name.startswith(HIDDEN)
    shutil.rmtree(home, ignore_errors=True)


def changes(layout: Layout, dest: Path, name: str) -> tuple[Change, ...]:
    """What publishing a layout does to files beside the version: shared ones, their list, those of the root.

    Raises:
        InputError: a link or a folder is in the way, or what is there cannot be kept.
    """
    home = dest / name
    found = [Change(p := home / inside(file), read(p), data) for file, data in layout.shared.items()]
    if layout.shared:
        before = read(path := home / LAYOUT)
        found.append(Change(path, before, _listing(path, before, layout.shared)))
    for file, made in layout.root.items():
        before = read(path := dest / inside(file))
        found.append(Change(path, before, made(before)))
    return tuple(found)


def _added(layout: Layout, number: int) -> dict[str, bytes]:
    """What the server wants beside the artifact's files, and the list of that."""
    if clash := sorted({*layout.version} & {*layout.added, LAYOUT}):
        what = "is the artifact's, and what the server needs has the same name"
        raise InputError(Fault(what, file=clash[0], help="an artifact as `attar run` leaves it has no such file"))
    made = {file: data(number) if callable(data) else data for file, data in layout.added.items()}
    return {**made, LAYOUT: render(_digests(made))} if made else {}


def _listing(path: Path, before: bytes | None, shared: Mapping[str, bytes]) -> bytes:
    """The list of a model's shared files: also of those that lie there and that only an earlier publication wrote."""
    there = parsed(before or b"", deep=True)
    if there is None:
        help = "take it away: it will be written anew, for the files of this publication"
        raise InputError(Fault("is not as attar wrote it", file=str(path), help=help))
    kept = {name: digest for name, digest in there.items() if os.path.lexists(path.parent / name)}
    return render({**kept, **_digests(shared)}, deep=True)


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _commit(fresh: Path, into: Path, staged: Path, todo: tuple[Change, ...], first: int) -> None:
    """Renames all to its place: the first files of `todo`, the version, the other files. What fails undoes the rest."""
    done: list[Change] = []
    try:
        for position, change in enumerate(todo):
            if position == first:
                fresh.rename(into)
            if change.before != change.after:
                done.append(change)  # first: an interruption may come between the two
                make_folder(change.path.parent)
                (staged / str(position)).replace(change.path)
        if not into.exists():
            fresh.rename(into)
        for each in {into.parent, *(change.path.parent for change in todo)}:
            sync(each)
    except BaseException:
        if into.exists():
            into.rename(staged / "back")
        for change in reversed(done):
            _restore(change, staged / "undo", into.parent)
        raise


def _restore(change: Change, aside: Path, home: Path) -> None:
    """Puts back what a publication changed."""
    if change.before is not None:
        write(aside, change.before)
        aside.replace(change.path)
        return
    change.path.unlink(missing_ok=True)
    if home in change.path.parent.parents:
        with suppress(OSError):  # a folder in the model's own, if it is empty now
            change.path.parent.rmdir()
