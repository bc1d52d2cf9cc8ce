"""Whether an artifact's folder is as the run left it.

    SHA256SUMS          digests of all other files: `sha256sum -c SHA256SUMS` checks them without attar
    manifest.json       digests of the files that were there before it; of recipe, data, teacher and float baseline
    model.sig           who vouches for all of it, if somebody signed (`pipeline.signing`); in no list: it comes last
    LAYOUT.SHA256SUMS   in a published version: digests of what the server's layout added, such as MLServer's class

Digests show that nothing changed by accident. Whoever can write into the folder can write new digests, too: where it
comes from is shown by a signature alone, checked with a key that came another way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import digests
from pipeline.lists import (
    MANIFEST,
    SIGNATURE,
    UNPROVEN,
    Reading,
    attempt,
    contents,
    entries,
    fault,
    inside,
    matches,
    no_artifact,
    strays,
)
from targets import artifact
from targets.artifact import MODEL
from targets.errors import Fault, InputError
from targets.sha256sums import LAYOUT, SUMS, digest, render

__all__ = [
    "CACHE",
    "LAYOUT",
    "MANIFEST",
    "MODEL",
    "SIGNATURE",
    "SUMS",
    "UNPROVEN",
    "Taken",
    "cached",
    "contents",
    "examined",
    "files",
    "laid",
    "listed",
    "manifest",
    "sums",
    "taken",
    "verified",
]

CACHE = "__pycache__"
"""Where Python keeps what it made of a layout's code, once a server ran that."""


@dataclass(frozen=True)
class Taken:
    """An artifact as it was read: each file once.

    Attributes:
        folder: where it lies.
        digests: SHA-256 by name, as written down: of the model, of all other files but the lists and the signature.
        papers: contents by name: of all files but the model.
        added: what a server's layout added to it, and the list of that.
    """

    folder: Path
    digests: Mapping[str, str]
    papers: Mapping[str, bytes]
    added: frozenset[str]

    def paper(self, name: str) -> bytes:
        """What a file holds that not every artifact has.

        Raises:
            InputError: this one has not.
        """
        if name not in self.papers:
            raise InputError(fault(self.folder / name, "is missing, and in no list"))
        return self.papers[name]

    def model(self) -> bytes:
        """The model's file, once more.

        Raises:
            InputError: it was changed since.
        """
        path = self.folder / MODEL
        data = contents(path)
        if digest(data) != self.digests[MODEL]:
            raise InputError(fault(path, "was changed meanwhile"))
        return data


def taken(folder: Path) -> Taken:
    """What is to leave, or to be used: the very bytes that were found to hold. See `verified`.

    Raises:
        InputError: no artifact, or one that does not hold.
    """
    found, faults = examined(folder)
    if faults:
        raise InputError(faults)
    return found


def verified(folder: Path) -> tuple[Fault, ...]:
    """What is not as it was when the run, or `attar ship`, wrote it: empty if all is.

    Every listed file is there, is a regular file with one name, and has its digest; nothing else is there (see
    `cached`); the manifest agrees with the files, and the model loads. A folder that an attar without SHA256SUMS wrote
    is held against the digests in its manifest, of which there is none itself: see `pipeline.lists`.

    Args:
        folder: RUN/TARGET, or a published version, whatever it is called.

    Raises:
        InputError: there is no such folder, or no artifact in it.
    """
    return examined(folder)[1]


def examined(folder: Path) -> tuple[Taken, tuple[Fault, ...]]:
    """What was read of an artifact, and what does not hold: see `verified`. With faults it is not to be used."""
    names, reading, faults = _names(folder), Reading(folder), list[Fault]()
    for name in (SUMS, SIGNATURE):
        if name in names:
            attempt(partial(reading.read, name), faults)
    want = None if faults else attempt(reading.listed, faults)
    added = attempt(reading.laid, faults)
    if want is None or added is None:
        return Taken(folder, {}, {}, frozenset()), tuple(faults)
    lists = {LAYOUT, *added} if LAYOUT in names else set()
    for name in sorted(lists & {*want, MANIFEST, SUMS, SIGNATURE}):
        faults.append(fault(folder / name, f"is no file that both {SUMS} and {LAYOUT} may speak of"))
    faults += matches(reading, {**added, **want})
    python = {CACHE} if attempt(partial(cached, folder), faults) else set()
    unreadable = {CACHE} if any(each.file == str(folder / CACHE) for each in faults) else set()
    faults += strays(folder, {*want, MANIFEST, SUMS, SIGNATURE, LAYOUT, *added, *python, *unreadable})
    if not faults:
        attempt(partial(_agrees, reading, want), faults)
    every = {**added, **want} | ({} if faults else {MANIFEST: reading.digest(MANIFEST)})
    return Taken(folder, every, reading.held, frozenset(lists)), tuple(faults)


def sums(folder: Path) -> bytes:
    """SHA256SUMS of what lies in a folder now.

    Raises:
        InputError: something in it is no regular file of its own.
    """
    return render({path.name: contents(path) for path in entries(folder) if path.name not in (SUMS, SIGNATURE)})


def listed(folder: Path) -> dict[str, str]:
    """Digests by name of the artifact's files; see `Reading.listed`."""
    return Reading(folder).listed()


def laid(folder: Path, *, deep: bool = False) -> dict[str, str]:
    """Digests by name of what a server's layout added to a folder; see `Reading.laid`."""
    return Reading(folder).laid(deep=deep)


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest, as it lies there; see `Reading.manifest`."""
    return Reading(folder).manifest()


def files(folder: Path) -> frozenset[str]:
    """All that belongs to an artifact or a published version: what is listed, the lists, and the signature.

    Raises:
        InputError: a list is damaged.
    """
    lists = [name for name in (SUMS, LAYOUT, SIGNATURE) if os.path.lexists(folder / name)]
    return frozenset({*listed(folder), MANIFEST, *laid(folder), *lists})


def cached(folder: Path) -> bool:
    """Whether a server's Python left what it made of the layout's code there, and nothing else with it.

    Raises:
        InputError: the layout's list is damaged, or the folder cannot be looked into.
    """
    path = folder / CACHE
    stems = tuple(name.removesuffix("py") for name in laid(folder) if name.endswith(".py"))
    if not stems or path.is_symlink() or not path.is_dir():
        return False
    found = entries(path)
    return all(entry.name.startswith(stems) and not entry.is_symlink() and entry.is_file() for entry in found)


def _names(folder: Path) -> set[str]:
    """What lies in the folder of an artifact."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise no_artifact(folder, f"cannot be looked into: {error.strerror}") from None
    if not names & {SUMS, MANIFEST}:
        raise no_artifact(folder, meant=inside(folder))
    return names


def _agrees(reading: Reading, want: Mapping[str, str]) -> None:
    """Whether the manifest says of the files what the list says, and of the model what the model says itself."""
    found, path = reading.manifest(), reading.folder / MANIFEST
    files, recipe, model = (found.get(name) for name in ("files", "recipe", "model"))
    if not isinstance(files, dict) or any(want.get(name) != digest for name, digest in files.items()):
        raise InputError(fault(path, f"names other files, or other digests, than {SUMS}"))
    try:
        same = isinstance(recipe, dict) and digests.of_json(recipe.get("settings")) == recipe.get("digest")
    except (ValueError, RecursionError):  # numbers, texts and depths that a recipe cannot have
        same = False
    if not same:
        raise InputError(fault(path, "holds a recipe that has not the digest it says"))
    loaded = json.loads(json.dumps(asdict(artifact.load(reading.folder / MODEL)) | {"path": MODEL}))
    # another version of attar may say more of a model, or less
    if (
        not isinstance(model, dict)
        or loaded | model != model | loaded
        or not loaded["sha256"] == model.get("sha256") == want[MODEL]
    ):
        raise InputError(fault(path, f"says something else of {MODEL} than the file itself"))
