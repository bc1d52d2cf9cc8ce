"""Writes a layout into a model repository, whole or not at all, while a server may be reading there.

    DEST/.attar.lock                  held (flock) by the one who publishes; gone when it is done
    DEST/<name>/.attar-XXXX/          everything that is new, written and flushed to disk
    DEST/<name>/<shared files>        then renamed to its place: shared files,
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

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from targets import artifact
from targets.errors import Fault, InputError
from targets.servers.disk import (
    HIDDEN,
    alone,
    inside,
    make_folder,
    no_link,
    read,
    sweep,
    sync,
    sync_tree,
    unwritable,
    write,
)
from targets.servers.shipment import Layout

__all__ = ["Change", "changes", "newest", "place", "publish", "remove", "retract"]

MODEL = "model.onnx"
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
        InputError: the version exists; the newest one there has other inputs or outputs; a link is in the way; `dest`
            cannot be written, or the disk is full. Then all is as it was.
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
        for file, content in layout.version.items():
            write(fresh / inside(file), content(number) if callable(content) else content)
        for position, change in enumerate(todo):
            write(staged / str(position), change.after)
        sync_tree(staged)
        _same_face(home, fresh)
        _commit(fresh, into, staged, todo, first=len(layout.shared))
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
    """What publishing a layout does to files beside the version: shared ones first, then those of the root.

    Raises:
        InputError: a link or a folder is in the way, or what is there cannot be kept.
    """
    home = dest / name
    found = [Change(p := home / inside(file), read(p), data) for file, data in layout.shared.items()]
    for file, made in layout.root.items():
        before = read(path := dest / inside(file))
        found.append(Change(path, before, made(before)))
    return tuple(found)


def newest(home: Path) -> int | None:
    """The highest version of a model, if it has any."""
    if not home.is_dir():
        return None
    names = (entry.name for entry in home.iterdir())
    return max((int(name) for name in names if name.isascii() and name.isdigit() and int(name)), default=None)


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


def _same_face(home: Path, fresh: Path) -> None:
    """Refuses a version that its model's clients, or the shared files, would not fit."""
    number = newest(home)
    if number is None:
        return
    help = "ship it under another --name"
    new, old = fresh / MODEL, home / str(number) / MODEL
    try:
        then, now = (artifact.load(path, batched=False) for path in (old, new))
    except InputError as error:
        what = f"version {number} there is no model that attar shipped: {error.faults[0].what}"
        raise InputError(Fault(what, file=str(old), help=help)) from None
    if (was := _face(then)) != (will := _face(now)):
        what = f"version {number} there is {was}, and this one {will}: its clients would break"
        raise InputError(Fault(what, file=str(home), help=help))


def _face(model: artifact.Artifact) -> str:
    def told(values: tuple[artifact.Value, ...]) -> str:
        return ", ".join(
            f"{v.name} {v.dtype} ({', '.join(str(size) if isinstance(size, int) else '?' for size in v.shape)})"
            for v in values
        )

    return f"{told(model.inputs)} -> {told(model.outputs)}"
