"""Whether the folder of a published model is as it was shipped: what its versions share, and each of them.

    DEST/NAME/LAYOUT.SHA256SUMS    digests of what they share: `sha256sum -c LAYOUT.SHA256SUMS` needs no attar
    DEST/NAME/VERSION/             see `pipeline.evidence`

What lies in DEST itself is edited by its owner, and in no list.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline import evidence
from pipeline.lists import Reading, attempt, entries, fault, inside, matches, no_artifact, strays
from targets.errors import Fault
from targets.servers.neighbours import SETTINGS

__all__ = ["A_MODEL", "A_RUN", "accounted", "files", "is_model", "shared", "verified", "versions"]

A_RUN, _AN_ARTIFACT, A_MODEL = "a run's folder", "an artifact's folder", "the folder of a published model"


def is_model(folder: Path) -> bool:
    """Whether this is the folder of a model, and of no single version: nothing of an artifact lies in it. One whose
    list was taken away is known by its versions.

    Raises:
        InputError: the folder cannot be looked into.
    """
    if _any(folder, evidence.SUMS, evidence.MANIFEST, evidence.MODEL) or not os.path.isdir(folder):  # noqa: PTH112  Path's raises
        return False
    numbered = (_any(version, evidence.SUMS, evidence.MANIFEST) for version in versions(folder))
    return _any(folder, evidence.LAYOUT) or any(numbered)


def versions(folder: Path) -> tuple[Path, ...]:
    """What servers take for versions, lowest first: everything that is called by a number.

    Raises:
        InputError: the folder cannot be looked into.
    """
    found = (entry for entry in entries(folder) if entry.name.isascii() and entry.name.isdigit())
    return tuple(sorted(found, key=lambda entry: (int(entry.name), entry.name)))


def verified(folder: Path) -> tuple[Fault, ...]:
    """What is not as it was shipped, in a model's folder and in all its versions: empty if all is. Any other folder is
    `evidence.verified`.

    Raises:
        InputError: the folder cannot be looked into, or is neither a model's nor an artifact's.
    """
    if not is_model(folder):
        if not _any(folder, evidence.SUMS, evidence.MANIFEST) and (found := inside(folder)):
            whole = (each.parent if is_model(each.parent) else each for each in found)
            raise no_artifact(folder, meant=dict.fromkeys(whole))
        return evidence.verified(folder)
    reading, numbered, faults = Reading(folder), versions(folder), list[Fault]()
    listed = attempt(partial(reading.laid, deep=True), faults)
    if not _any(folder, evidence.LAYOUT):
        faults.append(fault(folder / evidence.LAYOUT, "is missing: it lists what the versions share"))
    elif listed is not None:
        faults += matches(reading, listed)
        faults += strays(folder, {*listed, evidence.LAYOUT, *(version.name for version in numbered)})
        if loads := [name for name in listed if name.rpartition("/")[2] == SETTINGS]:
            what = "is what MLServer serves a folder by: it belongs to a version, not to what they share"
            faults += [fault(folder / name, what) for name in loads]
    if not numbered:
        help = "if nothing is left to serve, remove the folder; else ship the model again"
        faults.append(fault(folder, "is the folder of a model, and holds no version of it", help))
    for version in numbered:
        if version.is_symlink():
            faults.append(fault(version, "is a symbolic link", "take it away"))
        else:
            faults += attempt(partial(evidence.verified, version), faults) or ()
    return tuple(faults)


def files(folder: Path) -> dict[str, str]:
    """Digests by name of all that is listed in an artifact's or a version's folder, or in a model's and its versions;
    once it is `verified`."""
    if not is_model(folder):
        return {**evidence.listed(folder), **evidence.laid(folder)}
    found = evidence.laid(folder, deep=True)
    for version in versions(folder):
        found |= {f"{version.name}/{name}": digest for name, digest in files(version).items()}
    return found


def shared(folder: Path) -> list[str]:
    """What lies in a model's folder beside its versions: no signature covers it; once it is `verified`."""
    return sorted({evidence.LAYOUT, *evidence.laid(folder, deep=True)})


def _any(folder: Path, *names: str) -> bool:
    return any(os.path.lexists(folder / name) for name in names)


def accounted(path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and those above it, as far as one more file would spoil them, and what each is.

    Args:
        path: from `os.path.realpath`; there may be nothing yet.
    """
    for folder in (path, *path.parents):
        if os.path.lexists(folder / "recipe.lock"):
            yield folder, A_RUN
        elif all(os.path.lexists(folder / name) for name in (evidence.MANIFEST, evidence.MODEL)):
            yield folder, _AN_ARTIFACT
        elif os.path.lexists(folder / evidence.LAYOUT):
            yield folder, A_MODEL
