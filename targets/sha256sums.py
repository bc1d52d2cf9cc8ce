"""Lists of digests, as `sha256sum` writes them: `sha256sum -c LIST` checks one without attar.

    SHA256SUMS           the files of an artifact
    LAYOUT.SHA256SUMS    what a server's layout added to a folder: beside an artifact, or for all versions of a model

A line "DIGEST  NAME" for each file, by name, and nothing else: each list can be written in one way only.

https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html: "untagged"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from targets.errors import InputError

__all__ = ["LAYOUT", "SUMS", "digest", "parsed", "render"]

SUMS, LAYOUT = "SHA256SUMS", "LAYOUT.SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  ([^\\\n\0]+)\n")


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def render(files: Mapping[str, str | bytes], *, deep: bool = False) -> bytes:
    """The list of files by name.

    Args:
        files: their digests, or their contents.
        deep: names may lead into folders below: warmup/golden_sample.

    Raises:
        InputError: a name that `sha256sum` would have to escape, that cannot be printed, or leads elsewhere; or one
            with no digest.
    """
    lines = {}
    for name, given in sorted(files.items()):
        lines[name] = f"{digest(given) if isinstance(given, bytes) else given}  {name}\n"
        parts = name.split("/") if deep else [name]
        plain = all(part not in ("", ".", "..") and "/" not in part for part in parts)
        if not plain or not _LINE.fullmatch(lines[name]) or not name.isprintable():
            raise InputError(f"{name!r} cannot be the name of an artifact's file", help="rename it, or take it away")
    return "".join(lines.values()).encode()


def parsed(text: bytes, *, deep: bool = False) -> dict[str, str] | None:
    """Digests by name; None where the text is not to the letter what `render` writes."""
    lines = [_LINE.fullmatch(line) for line in text.decode(errors="replace").splitlines(keepends=True)]
    found = {match[2]: match[1] for match in lines if match}
    try:
        return found if None not in lines and render(found, deep=deep) == text else None
    except InputError:
        return None
