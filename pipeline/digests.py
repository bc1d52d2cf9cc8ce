"""Digests that enter the keys of steps: of values, files and code. All are SHA-256 in hexadecimal."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from targets.errors import Fault, InputError

__all__ = ["locate", "of_code", "of_file", "of_json", "of_libraries", "parse"]


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
        beside: a folder to search first: the recipe's own. attar's packages are never taken from there.

    Returns:
        None where there is no such module, or where it has no Python source (built in, compiled).
    """
    top, *rest = parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    if beside is not None and top not in _HOUSE and (found := _source(Path(beside), parts)):
        return found
    # Python itself looks for the first part only, since for more it would import the parents: so a package that is
    # installed by an import hook (an editable install) is found too.
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # ValueError: a module that was made by hand and has no spec
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None
    return next((found for root in spec.submodule_search_locations or () if (found := _source(Path(root), rest))), None)


def _source(root: Path, parts: Sequence[str]) -> Path | None:
    base = root.joinpath(*parts)
    files = (base / "__init__.py", base.with_suffix(".py"))
    return next((path.resolve() for path in files if path.is_file()), None)


def of_code(module: str, beside: Path | None = None) -> str:
    """Digest of a module's source and of all of its own code that it imports, directly or not: modules of the same
    top-level package, modules that lie in the same folder as that package, modules beside the recipe, and attar's own.
    What other libraries do is a matter of their versions (`of_libraries`); what is imported by a name computed at run
    time, or read from data files, is not seen. A change in a comment counts: sources are compared as bytes.

    A module of an installed library stands for the version of that library.

    Raises:
        InputError: there is no source to digest, or a file does not parse.
    """
    beside = beside.resolve() if beside else None
    top = module.partition(".")[0]
    start = locate(module, beside)
    if start is None:
        where = f"in {beside} or " if beside else ""
        raise InputError(f"module {module!r} has no Python source {where}on Python's path")
    if top not in _HOUSE and _is_library(start) and (libraries := packages_distributions().get(top)):
        return of_json({"module": module, **of_libraries(libraries)})
    return of_json({name: of_file(path) for name, path in _closure(module, start, beside).items()})


@cache
def _closure(module: str, start: Path, beside: Path | None) -> Mapping[str, Path]:
    homes = [home for home in (beside, start.parents[_depth(module, start)]) if home and not _is_library(home)]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or (path := locate(name, beside)) is None:
            continue
        top = name.partition(".")[0]
        if top not in (*_HOUSE, module.partition(".")[0]) and not any(_under(path, home) for home in homes):
            continue
        found[name] = path
        waiting += _imports(path, name)
        if top not in _HOUSE and "." in name:
            waiting.append(name.rpartition(".")[0])  # a package's __init__ runs before its modules
    return found


_HOUSE = ("pipeline", "stages", "targets")


def _depth(module: str, path: Path) -> int:
    """How far above a module's file the folder lies that holds its top-level package."""
    return module.count(".") + (path.name == "__init__.py")


def _is_library(folder: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(folder.parts)) or folder.is_relative_to(_STDLIB)


_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()


def _under(path: Path, home: Path) -> bool:
    """Whether a file lies in `home`, and not in an environment that was set up in there."""
    return path.is_relative_to(home) and not _is_library(path.parent)


def _imports(path: Path, module: str) -> Iterator[str]:
    """Names of modules that a source file imports, at the top or inside functions, type-checking blocks left out."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running(parse(path)):
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


def parse(path: Path) -> ast.Module:
    """A source file's syntax tree; nothing of it runs.

    Raises:
        InputError: the file does not parse.
    """
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        fault = Fault(f"is not Python: {error.msg}", "", str(path), error.lineno or 0, (error.text or "").rstrip())
        raise InputError(fault) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Fault(f"is not Python: {error}", file=str(path))) from None


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that can run: the body of `if TYPE_CHECKING:` is skipped."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _running(other)
            continue
        yield node
        yield from _running(node)
