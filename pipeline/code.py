"""Code that a recipe names ("module:function"), looked at without running it: where its source lies, what it imports,
and whether the function is there."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from targets.errors import Fault, InputError, nearest

__all__ = ["HOUSE", "closure", "faults_of", "importable", "imports", "is_function", "is_library", "is_there", "locate"]

HOUSE = ("pipeline", "stages", "targets")

_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_function(source: str) -> bool:
    """Whether a source is of the form "module:function"."""
    return _FUNCTION.fullmatch(source) is not None


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
    if beside is not None and top not in HOUSE and (found := _source(beside, parts)):
        return found
    # Python itself is asked for the first part only, since for more it would import the parents. So a package that an
    # import hook finds (an editable install) is found here too.
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # ValueError: a module made by hand, which has no spec
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None
    return next((found for root in spec.submodule_search_locations or () if (found := _source(Path(root), rest))), None)


def _source(root: Path, parts: Sequence[str]) -> Path | None:
    base = root.joinpath(*parts)
    files = (base / "__init__.py", base.with_suffix(".py"))
    return next((path.resolve() for path in files if is_there(path) and path.is_file()), None)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; False too where the name is impossible or the way to it is closed."""
    try:
        return path.exists()
    except OSError:
        return False


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Makes modules beside a recipe importable, as `locate` finds them, and as they are now: another recipe's module of
    the same name, or an earlier state of this one's, is forgotten."""
    entry = str(folder.resolve())
    _forget(entry)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        _forget(entry)


def _forget(folder: str) -> None:
    """Drops imported modules that lie in `folder` and belong to no library and not to attar."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in HOUSE or name == "__main__" or not file:
            continue
        if Path(file).is_relative_to(folder) and not is_library(Path(file)):
            del sys.modules[name]
    importlib.invalidate_caches()


def faults_of(source: str, beside: Path) -> list[Fault]:
    """Why "module:function" cannot be called, as far as its source tells: at most one fault, of the key `source`."""
    module, _, name = source.partition(":")
    path = locate(module, beside)
    if path is None:
        known = {f"{p.stem}:{name}" for p in beside.glob("*.py")} | {f"stages.zoo:{name}"}
        what = f"{source!r}: there is no module {module!r} beside the recipe or installed"
        return [Fault(what, "source", help=nearest(source, known))]
    try:
        names = _defined(_parse(path))
    except InputError as error:
        return [Fault(f"{source!r}: {error}", "source")]
    if names is None or name in names:
        return []
    public = [known for known in names if not known.startswith("_")]
    return [Fault(f"{source!r}: {module} has no function {name!r}", "source", help=nearest(name, public))]


def _defined(tree: ast.Module) -> set[str] | None:
    """Names that a module binds at its top level; None if that cannot be told (a star import, a `__getattr__`)."""
    names: set[str] = set()
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.Assign() | ast.AnnAssign():
                names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            case ast.If() | ast.Try() | ast.With():
                blocks = [getattr(node, block, []) for block in ("body", "orelse", "finalbody")]
                blocks += [handler.body for handler in getattr(node, "handlers", [])]
                waiting += [statement for block in blocks for statement in block]
    return None if names & {"*", "__getattr__"} else names


@cache
def closure(module: str, beside: Path | None = None) -> Mapping[str, Path]:
    """Source files, by module name, of a module and of all that it imports of the same author: modules of the same
    top-level package, modules that lie beside that package or beside the recipe, and attar's own. Imports inside
    functions count, those for type checking do not. What is imported by a name computed at run time is not seen.

    Args:
        beside: the recipe's folder, resolved.

    Raises:
        InputError: there is no source, or a file does not parse.
    """
    start = locate(module, beside)
    if start is None:
        where = f"in {beside} or " if beside else ""
        raise InputError(f"module {module!r} has no Python source {where}on Python's path")
    depth = module.count(".") + (start.name == "__init__.py")
    homes = [home for home in (beside, start.parents[depth]) if home and not is_library(home)]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or (path := locate(name, beside)) is None:
            continue
        top = name.partition(".")[0]
        near = any(path.is_relative_to(home) for home in homes) and not is_library(path)
        if not near and top not in (*HOUSE, module.partition(".")[0]):
            continue
        found[name] = path
        waiting += imports(path, name)
        if top not in HOUSE and "." in name:
            waiting.append(name.rpartition(".")[0])  # a package's __init__ runs before its modules
    return found


def is_library(path: Path) -> bool:
    """Whether a path belongs to an installed library or to Python's own."""
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(_STDLIB)


def imports(path: Path, module: str) -> tuple[str, ...]:
    """Names of modules that a source file imports, at the top or inside functions, type-checking blocks left out."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _imported(path, path.read_bytes(), package)


@cache  # many steps stand on the same files, and reading one as Python takes longer than all else about it
def _imported(path: Path, source: bytes, package: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in _running(_parse(path, source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _parse(path: Path, source: bytes | None = None) -> ast.Module:
    try:
        return ast.parse(path.read_bytes() if source is None else source)
    except SyntaxError as error:
        text = (error.text or "").rstrip()
        raise InputError(Fault(f"is not Python: {error.msg}", "", str(path), error.lineno or 0, text)) from None
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
