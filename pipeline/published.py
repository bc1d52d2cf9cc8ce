"""Whether the folder of a published model is as it was shipped: what its versions share, and each of them.

    DEST/NAME/LAYOUT.SHA256SUMS    digests of what they share: `sha256sum -c LAYOUT.SHA256SUMS` needs no attar
    DEST/NAME/VERSION/             see `pipeline.evidence`

What lies in DEST itself is edited by its owner, and in no list.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import evidence
from targets.errors import Fault, InputError

__all__ = ["files", "is_model", "verified", "versions"]


def is_model(folder: Path) -> bool:
    """Whether this is the folder of a model, and of no single version."""
    there = (os.path.lexists(folder / name) for name in (evidence.LAYOUT, evidence.SUMS, evidence.MANIFEST))
    return [*there] == [True, False, False]


def versions(folder: Path) -> tuple[Path, ...]:
    """What servers take for versions, lowest first: everything that is called by a number."""
    found = (entry for entry in folder.iterdir() if entry.name.isascii() and entry.name.isdigit())
    return tuple(sorted(found, key=lambda entry: (int(entry.name), entry.name)))


def verified(folder: Path) -> tuple[Fault, ...]:
    """What is not as it was shipped, in a model's folder and in all its versions: empty if all is."""
    try:
        shared = evidence.laid(folder, deep=True)
    except InputError as error:
        return error.faults
    numbered = versions(folder)
    faults = evidence.matches(folder, shared)
    faults += evidence.strays(folder, {*shared, evidence.LAYOUT, *(version.name for version in numbered)})
    for version in numbered:
        if version.is_symlink():
            faults.append(Fault("is a symbolic link", file=str(version), help="take it away"))
            continue
        try:
            faults += evidence.verified(version)
        except InputError as error:
            faults += error.faults
    return tuple(faults)


def files(folder: Path) -> dict[str, str]:
    """Digests by name of all that is listed, in a model's folder and its versions; once it is `verified`."""
    found = evidence.laid(folder, deep=True)
    for version in versions(folder):
        listed = {**evidence.listed(version), **evidence.laid(version)}
        found |= {f"{version.name}/{name}": digest for name, digest in listed.items()}
    return found
