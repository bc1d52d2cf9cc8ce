"""Whether an artifact's folder is as the run left it.

    SHA256SUMS      digests of all other files, as `sha256sum` writes them: `sha256sum -c SHA256SUMS` needs no attar
    manifest.json   digests of the files that were there before it; of recipe, data, teacher and float baseline
    model.sig       who vouches for all of it, if somebody signed (`pipeline.signing`); in no list, for it comes last

Digests show that nothing changed by accident. Whoever can write into the folder can write new digests, too: where it
comes from is shown by a signature alone, checked with a key that came another way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline import digests
from targets.errors import Fault, InputError

__all__ = [
    "MANIFEST",
    "MODEL",
    "SIGNATURE",
    "SUMS",
    "contents",
    "files",
    "listed",
    "manifest",
    "others",
    "published",
    "render",
    "sums",
    "verified",
]

SUMS, SIGNATURE, MANIFEST, MODEL = "SHA256SUMS", "model.sig", "manifest.json", "model.onnx"

T = TypeVar("T")
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\n\0]+)\n")
_AGAIN = "take the folder again from the run, or from where it was published"


def render(files: Mapping[str, str]) -> bytes:
    """SHA256SUMS of digests by file name: a line "DIGEST  NAME" each, by name.

    https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html: "untagged"; names that it would
    have to escape are refused.

    Raises:
        InputError: a name with a slash, a backslash or what cannot be printed; or one with no digest.
    """
    lines = {name: f"{digest}  {name}\n" for name, digest in sorted(files.items())}
    for name, line in lines.items():
        if not _LINE.fullmatch(line) or not name.isprintable() or name in (".", ".."):
            raise InputError(f"{name!r} cannot be the name of an artifact's file", help="rename it, or take it away")
    return "".join(lines.values()).encode()


def sums(folder: Path) -> bytes:
    """SHA256SUMS of what lies in a folder now.

    Raises:
        InputError: something in it is no regular file of its own.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.name not in (SUMS, SIGNATURE))
    return render({name: hashlib.sha256(contents(folder / name)).hexdigest() for name in names})


def verified(folder: Path, *, beside: bool = False) -> tuple[Fault, ...]:
    """What is not as it was when the run wrote it: empty if all is.

    Every listed file is there, is a regular file with one name, and has its digest; nothing else is there; the
    manifest agrees with the files, and the model loads. A folder that an attar without SHA256SUMS wrote is held
    against the digests in its manifest, of which there is none itself: see `listed`.

    Args:
        folder: RUN/TARGET, or a published version.
        beside: there may be other files, which a server's layout adds: `others` names them.

    Raises:
        InputError: there is no such folder, or no artifact in it.
    """
    names = _names(folder)
    faults: list[Fault] = []
    for name in (SUMS, SIGNATURE):
        if name in names:
            _try(partial(contents, folder / name), faults)
    want = _try(partial(listed, folder), faults) if not faults else None
    if want is None:
        return tuple(faults)
    for name in want:
        _try(partial(_compare, folder / name, want[name]), faults)
    for name in () if beside else others(folder):
        faults.append(_fault(folder / name, "is in no list: it was added later", f"take it away, or {_AGAIN}"))
    if not faults:
        _try(partial(_agrees, folder, want), faults)
    return tuple(faults)


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
    text = contents(path)
    lines = [_LINE.fullmatch(line) for line in text.decode(errors="replace").splitlines(keepends=True)]
    found = {match[2]: match[1] for match in lines if match}
    if None in lines or render(found) != text:
        raise InputError(_fault(path, "is not as attar wrote it: a line of it is damaged, or moved"))
    for name in (MANIFEST, MODEL):
        if name not in found:
            raise InputError(_fault(path, f"does not list {name}"))
    return found


def files(folder: Path) -> tuple[str, ...]:
    """All that belongs to an artifact: what is listed, the lists, and the signature if there is one."""
    lists = [name for name in (SUMS, SIGNATURE) if os.path.lexists(folder / name)]
    return tuple(sorted({*listed(folder), MANIFEST, *lists}))


def others(folder: Path) -> tuple[str, ...]:
    """What lies in the folder and does not belong to the artifact."""
    return tuple(sorted({entry.name for entry in folder.iterdir()} - {*files(folder), SUMS, SIGNATURE}))


def published(folder: Path) -> bool:
    """Whether this is a version of a published model: its folder is called by a number, as every server wants it, and
    does not lie in a run's, whose targets may be called so as well."""
    folder = folder.resolve()
    return folder.name.isdecimal() and not (folder.parent / "recipe.lock").exists()


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
    """What a file holds. It is opened without following a link, and looked at only through the open file.

    Raises:
        InputError: it is missing, a link, no regular file, has several names, or cannot be read.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(_fault(path, "is no regular file"))
            if status.st_nlink > 1:
                raise InputError(_fault(path, f"has {status.st_nlink} names (hard links): others may change it"))
            return file.read()
    except FileNotFoundError:
        raise InputError(_fault(path, "is missing")) from None
    except OSError as error:
        what = "is a symbolic link" if path.is_symlink() else f"is no regular file, or cannot be read: {error.strerror}"
        raise InputError(_fault(path, what)) from None


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


def _compare(path: Path, want: str) -> None:
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
