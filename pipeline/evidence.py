"""Whether an artifact's folder is as the run left it.

    SHA256SUMS          digests of all other files: `sha256sum -c SHA256SUMS` checks them without attar
    manifest.json       digests of the files that were there before it; of recipe, data, teacher and float baseline
    model.sig           who vouches for all of it, if somebody signed (`pipeline.signing`); in no list: it comes last
    LAYOUT.SHA256SUMS   in a published version: digests of what the server's layout added, such as MLServer's class

Digests show that nothing changed by accident. Whoever can write into the folder can write new digests, too: where it
comes from is shown by a signature alone, checked with a key that came another way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline import digests
from targets.errors import Fault, InputError
from targets.files import NotPlainError, opened
from targets.sha256sums import LAYOUT, SUMS, parsed, render

__all__ = [
    "CACHE",
    "LAYOUT",
    "MANIFEST",
    "MODEL",
    "SIGNATURE",
    "SUMS",
    "cached",
    "contents",
    "files",
    "laid",
    "listed",
    "manifest",
    "matches",
    "strays",
    "sums",
    "verified",
]

SIGNATURE, MANIFEST, MODEL = "model.sig", "manifest.json", "model.onnx"

CACHE = "__pycache__"
"""Where Python keeps what it made of a layout's code, once a server ran that."""

T = TypeVar("T")
_AGAIN = "take the folder again from the run, or from where it was published"


def sums(folder: Path) -> bytes:
    """SHA256SUMS of what lies in a folder now.

    Raises:
        InputError: something in it is no regular file of its own.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.name not in (SUMS, SIGNATURE))
    return render({name: hashlib.sha256(contents(folder / name)).hexdigest() for name in names})


def verified(folder: Path) -> tuple[Fault, ...]:
    """What is not as it was when the run, or `attar ship`, wrote it: empty if all is.

    Every listed file is there, is a regular file with one name, and has its digest; nothing else is there (see
    `cached`); the manifest agrees with the files, and the model loads. A folder that an attar without SHA256SUMS wrote
    is held against the digests in its manifest, of which there is none itself: see `listed`.

    Args:
        folder: RUN/TARGET, or a published version, whatever it is called.

    Raises:
        InputError: there is no such folder, or no artifact in it.
    """
    names = _names(folder)
    faults: list[Fault] = []
    for name in (SUMS, SIGNATURE):
        if name in names:
            _try(partial(contents, folder / name), faults)
    want = _try(partial(listed, folder), faults) if not faults else None
    added = _try(partial(laid, folder), faults)
    if want is None or added is None:
        return tuple(faults)
    for name in sorted({LAYOUT, *added} & {*want, MANIFEST, SUMS, SIGNATURE}):
        faults.append(_fault(folder / name, f"is no file that both {SUMS} and {LAYOUT} may speak of"))
    faults += matches(folder, {**added, **want})
    known = {*want, MANIFEST, SUMS, SIGNATURE, LAYOUT, *added} | ({CACHE} if cached(folder) else set())
    faults += strays(folder, known)
    if not faults:
        _try(partial(_agrees, folder, want), faults)
    return tuple(faults)


def matches(folder: Path, want: Mapping[str, str]) -> list[Fault]:
    """Files that have not the digests written down for them; names may lead into folders below."""
    faults: list[Fault] = []
    for name, digest in want.items():
        _try(partial(_compare, folder, name, digest), faults)
    return faults


def strays(folder: Path, known: Iterable[str]) -> list[Fault]:
    """What lies there and is none of these names. A folder in which one of them lies is looked into."""
    known = {*known}
    faults = []
    for entry in sorted(folder.iterdir()):
        below = {name.partition("/")[2] for name in known if name.startswith(f"{entry.name}/")}
        if below and entry.is_dir() and not entry.is_symlink():
            faults += strays(entry, below)
        elif entry.name not in known:
            faults.append(_fault(entry, "is in no list: it was added later", f"take it away, or {_AGAIN}"))
    return faults


def listed(folder: Path) -> dict[str, str]:
    """Digests by name as SHA256SUMS has them, or the manifest of a folder that was made before there was one.

    Raises:
        InputError: the list is missing where the manifest says that there is one, is damaged, or lacks a file.
    """
    path = folder / SUMS
    if not os.path.lexists(path):
        found = manifest(folder)
        if found.get("sums"):
            raise InputError(_fault(path, "is missing, and the manifest says that it was written"))
        files = found.get("files")
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            raise InputError(_fault(folder / MANIFEST, "lists no files"))
        try:
            render(files)  # the same names as in a list of today: none leads out of the folder
        except InputError as error:
            raise InputError(_fault(folder / MANIFEST, f"lists what it cannot: {error.faults[0].what}")) from None
        return dict(files)
    listing = _parsed(path)
    for name in (MANIFEST, MODEL):
        if name not in listing:
            raise InputError(_fault(path, f"does not list {name}"))
    return listing


def laid(folder: Path, *, deep: bool = False) -> dict[str, str]:
    """Digests by name of what a server's layout added to a folder; empty where it added nothing.

    Args:
        deep: names may lead into folders below, as in the folder of a model.

    Raises:
        InputError: the list is damaged.
    """
    path = folder / LAYOUT
    return _parsed(path, deep) if os.path.lexists(path) else {}


def files(folder: Path) -> tuple[str, ...]:
    """All that belongs to an artifact or a published version: what is listed, the lists, and the signature."""
    lists = [name for name in (SUMS, LAYOUT, SIGNATURE) if os.path.lexists(folder / name)]
    return tuple(sorted({*listed(folder), MANIFEST, *laid(folder), *lists}))


def cached(folder: Path) -> bool:
    """Whether a server's Python left what it made of the layout's code there, and nothing else with it."""
    path = folder / CACHE
    stems = tuple(name.removesuffix("py") for name in laid(folder) if name.endswith(".py"))
    if not stems or path.is_symlink() or not path.is_dir():
        return False
    return all(entry.name.startswith(stems) and not entry.is_symlink() and entry.is_file() for entry in path.iterdir())


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest, as it lies there.

    Raises:
        InputError: it is missing, or no JSON object.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(contents(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(_fault(path, "is no manifest: no JSON object"))
    return found


def contents(path: Path) -> bytes:
    """What a file holds; see `targets.files.opened`.

    Raises:
        InputError: it is missing, a link, no regular file, has several names, or cannot be read.
    """
    try:
        with opened(path) as file:
            return file.read()
    except FileNotFoundError:
        what = "is missing"
    except NotPlainError as error:
        what = str(error)
    except OSError as error:
        what = f"is no regular file, or cannot be read: {error.strerror}"
    raise InputError(_fault(path, what))


def _names(folder: Path) -> set[str]:
    """What lies in the folder of an artifact."""
    help = "give the folder of an artifact: RUN/TARGET, as `attar run` left it, or a published version"
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise InputError(Fault(f"cannot be looked into: {error.strerror}", file=str(folder), help=help)) from None
    if not names & {SUMS, MANIFEST}:
        inside = [path.parent for deep in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(f"{deep}/{MANIFEST}"))]
        help = f"did you mean {' or '.join(map(str, inside[:3]))}?" if inside else help
        raise InputError(Fault(f"holds no artifact: no {MANIFEST}, no {SUMS}", file=str(folder), help=help))
    return names


def _parsed(path: Path, deep: bool = False) -> dict[str, str]:
    found = parsed(contents(path), deep=deep)
    if found is None:
        raise InputError(_fault(path, "is not as attar wrote it: a line of it is damaged, or moved"))
    return found


def _compare(folder: Path, name: str, want: str) -> None:
    path = folder / name
    for above in path.parents[: name.count("/")]:
        if above.is_symlink():
            raise InputError(_fault(above, "is a symbolic link"))
    if hashlib.sha256(contents(path)).hexdigest() != want:
        raise InputError(_fault(path, "was changed: it has another digest than is written down for it"))


def _agrees(folder: Path, want: Mapping[str, str]) -> None:
    """Whether the manifest says of the files what the list says, and of the model what the model says itself."""
    from targets import artifact

    found, path = manifest(folder), folder / MANIFEST
    files, recipe, model = (found.get(name) for name in ("files", "recipe", "model"))
    if not isinstance(files, dict) or any(want.get(name) != digest for name, digest in files.items()):
        raise InputError(_fault(path, f"names other files, or other digests, than {SUMS}", _AGAIN))
    if not isinstance(recipe, dict) or digests.of_json(recipe.get("settings")) != recipe.get("digest"):
        raise InputError(_fault(path, "holds a recipe that has not the digest it says", _AGAIN))
    loaded = json.loads(json.dumps(asdict(artifact.load(folder / MODEL)) | {"path": MODEL}))
    # another version of attar may say more of a model, or less
    if not isinstance(model, dict) or loaded | model != model | loaded or model.get("sha256") != loaded["sha256"]:
        raise InputError(_fault(path, f"says something else of {MODEL} than the file itself", _AGAIN))


def _try(act: Callable[[], T], faults: list[Fault]) -> T | None:
    try:
        return act()
    except InputError as error:
        faults += error.faults
        return None


def _fault(path: Path, what: str, help: str = _AGAIN) -> Fault:
    return Fault(what, file=str(path), help=help)
