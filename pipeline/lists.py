"""A folder whose files are in lists of digests: what the lists say, and whether the files are still that.

Names of files are `pipeline.evidence`'s to explain. No link is followed, and what cannot be read is a fault of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from targets.artifact import MODEL
from targets.errors import Fault, InputError
from targets.files import NotPlainError, opened
from targets.sha256sums import LAYOUT, SUMS, parsed, render

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "UNPROVEN",
    "Reading",
    "attempt",
    "contents",
    "entries",
    "fault",
    "inside",
    "matches",
    "no_artifact",
    "strays",
]

SIGNATURE, MANIFEST = "model.sig", "manifest.json"

UNPROVEN = ".attar-unproven"
"""In a version's folder until its server was found to answer as the artifact did; see `pipeline.takeover`."""

_AGAIN = "take the folder again from the run, or from where it was published"

T = TypeVar("T")


class Reading:
    """A folder's files as they were found: each is read once, so that what was checked is what is used.

    Attributes:
        folder: where they lie.
        held: contents by name, of all that was read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """What a file holds. The name may lead into a folder below.

        Raises:
            InputError: see `contents`; or a folder above it is a link.
        """
        if name not in self.held:
            self.held[name] = contents(self._place(name))
        return self.held[name]

    def digest(self, name: str) -> str:
        """SHA-256 of a file; see `read`. The model, of up to 2 GB, is not held."""
        if name == MODEL:
            with _plain(self._place(name)) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(self.read(name)).hexdigest()

    def listed(self) -> dict[str, str]:
        """Digests by name as SHA256SUMS has them, or the manifest of a folder that was made before there was one.

        Raises:
            InputError: the list is missing where the manifest says that there is one, is damaged, or lacks a file.
        """
        path = self.folder / SUMS
        if os.path.lexists(path):
            listing = self._parsed(SUMS)
            for name in (MANIFEST, MODEL):
                if name not in listing:
                    raise InputError(fault(path, f"does not list {name}"))
            return listing
        found = self.manifest()
        if found.get("sums"):
            raise InputError(fault(path, "is missing, and the manifest says that it was written"))
        files = found.get("files")
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            raise InputError(fault(self.folder / MANIFEST, "lists no files"))
        try:
            render(files)  # the same names as in a list of today: none leads out of the folder
        except InputError as error:
            raise InputError(fault(self.folder / MANIFEST, f"lists what it cannot: {error.faults[0].what}")) from None
        return dict(files)

    def laid(self, *, deep: bool = False) -> dict[str, str]:
        """Digests by name of what a server's layout added; empty where it added nothing.

        Args:
            deep: names may lead into folders below, as in the folder of a model.

        Raises:
            InputError: the list is damaged.
        """
        return self._parsed(LAYOUT, deep) if os.path.lexists(self.folder / LAYOUT) else {}

    def manifest(self) -> dict[str, Any]:
        """The manifest, as it lies there.

        Raises:
            InputError: it is missing, or no JSON object.
        """
        try:
            found = json.loads(self.read(MANIFEST))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise InputError(fault(self.folder / MANIFEST, "is no manifest: no JSON object"))
        return found

    def _place(self, name: str) -> Path:
        path = self.folder / name
        for above in path.parents[: name.count("/")]:
            if above.is_symlink():
                raise InputError(fault(above, "is a symbolic link"))
        return path

    def _parsed(self, name: str, deep: bool = False) -> dict[str, str]:
        found = parsed(self.read(name), deep=deep)
        if found is None:
            raise InputError(fault(self.folder / name, "is not as attar wrote it: a line of it is damaged, or moved"))
        return found


def matches(files: Reading, want: Mapping[str, str]) -> list[Fault]:
    """Files that have not the digests written down for them."""
    faults: list[Fault] = []
    for name, digest in want.items():
        if attempt(partial(files.digest, name), faults) not in (None, digest):
            what = "was changed: it has another digest than is written down for it"
            faults.append(fault(files.folder / name, what))
    return faults


def strays(folder: Path, known: Iterable[str]) -> list[Fault]:
    """What lies there and is none of these names. A folder in which one of them lies is looked into."""
    known, faults = {*known}, list[Fault]()
    for entry in attempt(partial(entries, folder), faults) or ():
        below = {name.partition("/")[2] for name in known if name.startswith(f"{entry.name}/")}
        if below and not entry.is_symlink() and entry.is_dir():
            faults += strays(entry, below)
        elif entry.name == UNPROVEN and entry.name not in known:
            what = "says that this version was never proven on its server: its `attar ship --load` did not end"
            help = f"ship the model again with --load, which takes this version away first; or remove {folder}"
            faults.append(fault(entry, what, help))
        elif entry.name not in known:
            faults.append(fault(entry, "is in no list: it was added later", f"take it away, or {_AGAIN}"))
    return faults


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name.

    Raises:
        InputError: it cannot be looked into.
    """
    try:
        found = sorted(folder.iterdir())
        for entry in found:
            entry.lstat()  # a folder may give names, and no more
    except OSError as error:
        raise InputError(fault(folder, f"cannot be looked into: {error.strerror}", _LOOK)) from None
    return found


def contents(path: Path) -> bytes:
    """What a file holds; see `targets.files.opened`.

    Raises:
        InputError: it is missing, a link, no regular file, has several names, or cannot be read.
    """
    with _plain(path) as file:
        return file.read()


def attempt(act: Callable[[], T], faults: list[Fault]) -> T | None:
    """What it returns; where it raises InputError, None, and the faults are put to the others."""
    try:
        return act()
    except InputError as error:
        faults += error.faults
        return None


def inside(folder: Path) -> list[Path]:
    """Folders of artifacts in a folder, at most three deep; but for names that are hidden, or cannot be printed. None
    where it cannot be looked into."""
    try:
        found = [path.parent for deep in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(f"{deep}/{MANIFEST}"))]
    except OSError:
        return []
    return [path for path in found if not any(map(_odd, path.relative_to(folder).parts))]


def no_artifact(
    folder: Path, what: str = f"holds no artifact: no {MANIFEST}, no {SUMS}", meant: Iterable[Path] = ()
) -> InputError:
    """The fault of a folder that is no artifact's. `meant`: those that might be."""
    named = [quote(str(path)) for path in meant]
    few = " or ".join(named[:3] + ["..."] * (len(named) > 3))
    help = "give the folder of an artifact: RUN/TARGET, as `attar run` left it, or a published version"
    return InputError(fault(folder, what, f"did you mean {few}?" if named else help))


def fault(path: Path, what: str, help: str = _AGAIN) -> Fault:
    """A fault of a file, or of a folder."""
    return Fault(what, file=str(path), help=help)


def _odd(name: str) -> bool:
    return name.startswith(".") or not name.isprintable()


_LOOK = "let the user who verifies read it"


@contextmanager
def _plain(path: Path) -> Iterator[BufferedReader]:
    """A regular file of its own, open, with what can go wrong as a fault."""
    try:
        with opened(path) as file:
            yield file
            return
    except FileNotFoundError:
        what = "is missing"
    except NotPlainError as error:
        what = str(error)
    except OSError as error:
        what = f"is no regular file, or cannot be read: {error.strerror}"
    raise InputError(fault(path, what))
