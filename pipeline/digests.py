"""Digests that enter the keys of steps: of values, files and code. All are SHA-256 in hexadecimal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from pipeline.code import HOUSE, closure, imports, is_library, is_there, locate

__all__ = ["of_code", "of_file", "of_json", "of_libraries"]


def of_json(value: Any) -> str:
    """Digest of plain values (dicts, lists, strings, numbers), independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_libraries(names: Iterable[str]) -> dict[str, str]:
    """Installed versions, "absent" where there is none. Reads metadata only: nothing is imported."""
    return {name: _version(name) for name in sorted(names)}


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def of_code(module: str, beside: Path | None = None) -> str:
    """Digest of a module's source and of everything of the same author that it imports (see `code.closure`).

    Sources are compared as bytes, so a change in a comment counts; where the files lie does not. A module of an
    installed library stands for the library's version, and so does each library that a user's code imports.

    Args:
        beside: the recipe's folder, where modules are looked for first.

    Raises:
        InputError: there is no source to digest, or a file does not parse.
    """
    top = module.partition(".")[0]
    if top not in HOUSE and (path := locate(module, beside)) and is_library(path):
        libraries = _distributions().get(top)
        if libraries:
            return of_json({"module": module, **of_libraries(libraries)})
    files = closure(module, beside.resolve() if beside else None)
    digest: dict[str, Any] = {name: of_file(path) for name, path in files.items()}
    if top not in HOUSE:  # attar's own stages say which libraries matter to them
        tops = {name.partition(".")[0] for at, path in files.items() for name in imports(path, at)}
        digest["libraries"] = of_libraries({library for top in tops for library in _distributions().get(top, ())})
    return of_json(digest)


def of_named_files(args: Any, base: Path) -> dict[str, str]:
    """Digests of the files that arguments name: every text in them that is the path of a file, from `base` on."""
    if isinstance(args, str):
        path = base / args
        return {args: of_file(path)} if is_there(path) and path.is_file() else {}
    inner = args.values() if isinstance(args, dict) else args if isinstance(args, list) else ()
    return {name: digest for value in inner for name, digest in of_named_files(value, base).items()}


@cache
def _distributions() -> dict[str, list[str]]:
    """Distributions by the top-level names that they install."""
    return {name: sorted(set(found)) for name, found in packages_distributions().items()}
