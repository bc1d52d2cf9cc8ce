"""Digests that enter the keys of steps: of values, files and code. All are SHA-256 in hexadecimal."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["locate", "of_code", "of_file", "of_json", "of_libraries"]


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


def locate(module: str, beside: Path | None = None) -> Path | None:
    """The source file of a module, found without importing anything (not even its parents).

    Args:
        module: dotted name.
        beside: a folder to search before `sys.path`: the recipe's own.
    """
    parts = module.split(".")
    for root in ([str(beside)] if beside else []) + sys.path:
        base = Path(root or ".").joinpath(*parts)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path.resolve()
    return None


def of_code(module: str, beside: Path | None = None) -> str:
    """Digest of a module's source and of everything it imports, directly or not, from the same top-level package
    (or from the same folder, for a file beside a recipe). A change in a comment counts: sources are compared as bytes.
    """
    files = {str(name): of_file(path) for name, path in sorted(_closure(module, beside).items())}
    return of_json(files)


@cache
def _closure(module: str, beside: Path | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = locate(name, beside)
        if name in found or path is None or not _ours(name, module, path, beside):
            continue
        found[name] = path
        waiting += _imports(path, name)
    return found


_HOUSE = ("pipeline", "stages", "targets")


def _ours(name: str, start: str, path: Path, beside: Path | None) -> bool:
    top = name.partition(".")[0]
    if top in _HOUSE or top == start.partition(".")[0]:
        return True
    return beside is not None and path.is_relative_to(beside.resolve()) and "site-packages" not in path.parts


def _imports(path: Path, module: str) -> Iterator[str]:
    """Names of modules that a source file imports, at the top or inside functions, type-checking blocks left out."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            yield base
            for alias in node.names:
                yield f"{base}.{alias.name}"


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that can run: `if TYPE_CHECKING:` blocks are skipped."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _running(node)
