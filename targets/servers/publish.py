"""Writes a layout into a model repository, whole or not at all, while a server may be reading there.

    DEST/.attar.lock                  held (flock) by the one who publishes; gone when it is done
    DEST/<name>/.attar-new-XXXX/      everything that is new, written and flushed to disk; for `settled` a list of that
    DEST/<name>/<shared files>        then renamed to its place: shared files, last of them the list of their digests,
    DEST/<name>/<version>/            the version as a whole,
    DEST/<root files>                 and what names the model to the server

Only renames happen in sight, and each file and each version is whole at any time. A kill leaves hidden names, which the
next publication removes: Triton and OpenVINO take folders with a number for versions; MLServer looks for
`**/model-settings.json` by glob, which skips hidden folders. A kill between two renames leaves shared files of the new
version beside the old one, which has the same inputs and outputs: the next publication writes them anew. A
version that is there is never written over, nor is a shared file that is not as attar wrote it: those are known by
their list, or by the list that a killed publication left. No link is followed or made.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
    https://github.com/SeldonIO/MLServer/blob/master/mlserver/repository/repository.py
    https://docs.openvino.ai/2025/model-server/ovms_docs_models_repository.html
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from targets.errors import Fault, InputError
from targets.files import sync
from targets.servers.disk import (
    CANDIDATE,
    STAGED,
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
from targets.servers.neighbours import CONFIG, same_face, suits
from targets.servers.shipment import Layout
from targets.servers.undo import Change, restore, settled, written
from targets.sha256sums import LAYOUT, digest, parsed, render

__all__ = ["changes", "place", "publish", "remove"]

_NAME = re.compile(r"(\.attar-)?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def publish(layout: Layout, dest: Path, name: str) -> Path:
    """Writes a layout into `dest` as a version of the model `name`: one more than the newest that is there.

    Returns:
        The folder of the version.

    Raises:
        InputError: the newest one there has other inputs or outputs, or is for another kind of server; a link is in
            the way, or a shared file that attar did not write; `dest` cannot be written, or the disk is full. Then all
            is as it was.
    """
    with alone(dest):
        return place(layout, dest, name)


def place(layout: Layout, dest: Path, name: str, version: int | None = None) -> Path:
    """`publish` for one who is `alone` in `dest` already.

    Args:
        version: from 1; None: one more than the newest that is there.

    Raises:
        InputError: as `publish`; or the version exists.
    """
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
        settled(home)  # before what it needs for that is swept away
        sweep(home)
        number = version or (newest(home) or 0) + 1
        into = home / str(number)
        if os.path.lexists(into):
            what = f"version {number} is there already, and no version is ever written over"
            help = "leave the version open, so that the next free number is taken"
            raise InputError(Fault(what, file=str(into), help=help))
        todo = changes(layout, dest, name)
        staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=home))
        fresh = staged / "version"
        for file, content in {**layout.version, **_added(layout, number)}.items():
            write(fresh / inside(file), content)
        for position, change in enumerate(todo):
            write(staged / str(position), change.after)
            if change.path == home / LAYOUT:
                write(staged / LAYOUT, written(todo, home))  # it stays there, for `settled`
        sync_tree(staged)
        same_face(home, fresh)
        _commit(fresh, into, staged, todo, first=len(todo) - len(layout.root))
    except OSError as error:
        raise unwritable(dest, error) from None
    finally:
        if staged is not None:
            with suppress(InputError, OSError):  # else it stays, and the next one makes the list true by it
                settled(home)
                shutil.rmtree(staged, ignore_errors=True)
        if made:
            with suppress(OSError):  # it holds the version now
                home.rmdir()
    return into


def remove(home: Path) -> None:
    """Takes a hidden model away, for one who is `alone` there. What stays is left to the next publication."""
    assert home.name.startswith(CANDIDATE)
    shutil.rmtree(home, ignore_errors=True)


def changes(layout: Layout, dest: Path, name: str) -> tuple[Change, ...]:
    """What publishing a layout does to files beside the version: shared ones, their list, those of the root.

    Raises:
        InputError: a link or a folder is in the way, or a shared file that attar did not write; or what is there
            cannot be kept.
    """
    found = _shared(layout, dest / name) if layout.shared else []
    for file, made in layout.root.items():
        before = read(path := dest / inside(file))
        found.append(Change(path, before, _made(made, path, before)))
    return tuple(found)


def _added(layout: Layout, number: int) -> dict[str, bytes]:
    """What the server wants beside the artifact's files, and the list of that."""
    if clash := sorted({*layout.version} & {*layout.added, LAYOUT}):
        what = "is the artifact's, and what the server needs has the same name"
        raise InputError(Fault(what, file=clash[0], help="an artifact as `attar run` leaves it has no such file"))
    made = {file: data(number) if callable(data) else data for file, data in layout.added.items()}
    return {**made, LAYOUT: render(made)} if made else {}


def _made(made: Callable[[bytes | None], bytes], path: Path, before: bytes | None) -> bytes:
    try:
        return made(before)
    except InputError as error:
        raise InputError([replace(fault, file=str(path)) for fault in error.faults]) from None
    except RecursionError:
        help = "take it away, and it is written anew; or give another DEST"
        raise InputError(Fault("is nested too deeply to be read", file=str(path), help=help)) from None


def _shared(layout: Layout, home: Path) -> list[Change]:
    """What becomes of the shared files, and of their list: that has those, too, that only an earlier publication wrote.

    Raises:
        InputError: see `changes`. All files that attar did not write are named.
    """
    text = read(path := home / LAYOUT)
    listed = parsed(text or b"", deep=True)
    if listed is None:
        help = "take it away: it will be written anew, for the files of this publication"
        raise InputError(Fault("is not as attar wrote it", file=str(path), help=help))
    found, theirs = dict[str, Change](), list[Fault]()
    for file, data in layout.shared.items():
        before = read(at := home / inside(file))
        after = before if before is not None and file in layout.kept else data
        found[file] = Change(at, before, after)
        if before not in (None, after) and digest(before or b"") != listed.get(file):
            keep = "; or --keep-config leaves it as it is" * (file == CONFIG)
            what = "is not as attar wrote it, and would be written over"
            theirs.append(Fault(what, file=str(at), help=f"move it away, and it is written anew{keep}"))
    if theirs:
        raise InputError(theirs)
    kept = {name: sha for name, sha in listed.items() if os.path.lexists(home / name)}
    now = render({**kept, **{file: change.after for file, change in found.items()}}, deep=True)
    return [*found.values(), Change(path, text, now)]


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
            restore(change, into.parent)
        raise
