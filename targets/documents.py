"""YAML files that people write, read so that every fault can point at its line.

A `Document` is the parsed values together with where each key stands. `validate` turns values into a pydantic model, or
into all faults at once.

Scalars follow YAML 1.2's core rules, not PyYAML's 1.1: `1e-3` is a number, and `no`, `on`, `12:30` and `2024-01-02` are
text. Only plain values are read: keys are text, and tags that build objects are faults like any other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from targets.errors import Fault, InputError, nearest
from targets.wording import place, words

__all__ = ["Document", "Frozen", "KeyPath", "faults_of", "overlaid", "parse", "read", "show_key", "validate"]


class Frozen(BaseModel):
    """Base of all settings: cannot be changed, refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_WHOLE: Any = object()  # None is a value that a file can hold
_RECIPE = "`attar new NAME` writes a recipe to start from"


def show_key(path: KeyPath) -> str:
    """("stages", 1, "prune", "keep") -> "stages[1].prune.keep"."""
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


@dataclass(frozen=True)
class Document:
    """A parsed YAML file.

    Attributes:
        file: its name as the user gave it.
        value: plain dicts, lists and scalars.
        lines: line (from 1) of each key path.
        overridden: key paths that `--set` gave; their faults point there and not at the file.
    """

    file: str
    text: str
    value: Any
    lines: Mapping[KeyPath, int]
    overridden: frozenset[KeyPath] = field(default=frozenset())

    @property
    def folder(self) -> Path:
        """Where the file lies; relative paths in it start from here."""
        return Path(self.file).absolute().parent

    def fault(self, path: KeyPath, what: str, help: str = "") -> Fault:
        """A fault at `path`, or at the nearest key above it that the file has."""
        above = [path[:n] for n in range(len(path), 0, -1)]
        if not self.overridden.isdisjoint(above):
            return Fault(what, show_key(path), "--set", help=help)
        line = next((self.lines[at] for at in above if at in self.lines), 0)
        return Fault(what, show_key(path), self.file, line, _line(self.text, line), help)

    def override(self, assignments: Mapping[str, str]) -> Document:
        """The document with `--set a.b.0.c=value` applied; values are read as YAML.

        Raises:
            InputError: a value is not YAML, or a path leads through something that is neither a mapping nor an
                existing list item.
        """
        value, faults, done = _copy(self.value), [], set(self.overridden)
        for dotted, raw in assignments.items():
            try:
                dotted = re.sub(r"\[(\d+)\]", r".\1", dotted)  # as faults show it: stages[0].distill
                done.add(_assign(value, dotted.split("."), _plain_value(raw)))
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                faults.append(Fault(f"{raw!r} is not YAML: {_problem(error)}", dotted, "--set"))
            except LookupError as error:
                help = "paths look like stages.0.distill.epochs"
                faults.append(Fault(str(error.args[0]), dotted, "--set", help=help))
        if faults:
            raise InputError(faults)
        return replace(self, value=value, overridden=frozenset(done))


def _assign(value: Any, parts: list[str], new: Any) -> KeyPath:
    """Sets the value at `parts`, in place, making mappings on the way. Raises LookupError where there is no place."""
    path: KeyPath = ()
    here = value
    for i, part in enumerate(parts):
        key: str | int
        if isinstance(here, dict) and part:
            key = part
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            key = int(part)
        else:
            kind = f"a list of {len(here)}" if isinstance(here, list) else "a mapping"
            kind = kind if isinstance(here, (list, dict)) else repr(here)
            raise LookupError(f"no place for {part!r}: {show_key(path) or 'the top'} is {kind}")
        path = (*path, key)
        if i == len(parts) - 1:
            here[key] = new
        elif isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
    return path


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def read(path: Path | str, *, kind: str = "recipe", start: str = _RECIPE) -> Document:
    """Reads and parses a file.

    Args:
        kind: what the file is, for the help text.
        start: how to get such a file, for the help text.

    Raises:
        InputError: the file is missing, is no UTF-8 text, or does not parse.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        help = nearest(path.name, near) if near else f"give the path of a {kind} file; {start}"
        raise InputError(Fault("no such file", file=str(path), help=help)) from None
    except UnicodeDecodeError as error:
        what = f"is no UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise InputError(Fault(what, file=str(path), help=f"give the path of a {kind} file")) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(Fault(what, file=str(path), help=f"give the path of a {kind} file")) from None
    return parse(text, str(path), start=start)


def parse(text: str, file: str, *, start: str = _RECIPE) -> Document:
    """Parses YAML text; see `read`."""
    try:
        node = _compose(text)
        walk = _Walk(Document(file, text, None, {}))
        if node is not None:
            walk(node, ())
        if walk.faults:
            raise InputError(walk.faults)
        value = None if node is None else _Loader("").construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 0
        what, help = f"is not YAML: {_problem(error)}", "check indentation, colons and quotes"
        raise InputError(Fault(what, file=file, line=line, text=_line(text, line), help=help)) from None
    if not isinstance(value, dict):
        kinds = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}
        got = "is empty" if value is None else f"holds {kinds[type(value)]}, where keys are expected"
        raise InputError(Fault(got, file=file, help=start))
    return Document(file, text, value, walk.lines)


class _Loader(yaml.SafeLoader):
    """Safe, with YAML 1.2's core rules for scalars."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's own way to hold them


_TAG = "tag:yaml.org,2002:"
for _name, _first, _pattern in (
    ("null", ["~", "n", "N", ""], r"~|null|Null|NULL|"),
    ("bool", list("tTfF"), r"true|True|TRUE|false|False|FALSE"),
    ("int", list("-+0123456789"), r"[-+]?(0|[1-9][0-9]*)"),
    ("float", list("-+.0123456789"), r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"),
    ("float", list("-+."), r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    ("merge", ["<"], r"<<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _plain_value(raw: str) -> Any:
    node = _compose(raw)
    if node is None:
        return None
    walk = _Walk(Document("", raw, None, {}))
    walk(node, ())
    if walk.faults:
        raise ValueError(walk.faults[0].what)
    return _Loader("").construct_document(node)


class _Walk:
    """Visits every node of a parsed text: notes the lines of keys, and what is wrong with the keys themselves."""

    def __init__(self, doc: Document) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.doc = replace(doc, lines=self.lines)
        self.faults: list[Fault] = []

    def __call__(self, node: yaml.Node, path: KeyPath) -> None:
        if len(path) > 50:
            raise ValueError("nested more than 50 levels deep, or an alias that holds itself")
        if len(self.lines) > 100_000:
            raise ValueError("more than 100000 values, aliases counted each time")
        name = node.tag.removeprefix(_TAG)
        if name not in {"map", "seq", "str", "int", "float", "bool", "null"}:
            tag = node.tag.replace(_TAG, "!!")
            line = node.start_mark.line + 1
            what, help = f"has the tag {tag}", "only plain text, numbers, lists and keys are read"
            self.faults.append(Fault(what, show_key(path), self.doc.file, line, _line(self.doc.text, line), help))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._pair(key, value, path)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.lines[(*path, i)] = item.start_mark.line + 1
                self(item, (*path, i))

    def _pair(self, key: yaml.Node, value: yaml.Node, path: KeyPath) -> None:
        line, at = key.start_mark.line + 1, (*path, key.value if isinstance(key, yaml.ScalarNode) else "?")
        if at in self.lines:
            self.faults.append(self.doc.fault(at, f"is given twice (also at line {line})", "keep one of the two"))
            return
        self.lines[at] = line
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            self.faults.append(self.doc.fault(at, "is no text, as keys must be", "put the key in quotes"))
        self(value, at)


def _line(text: str, line: int) -> str:
    lines = text.splitlines()
    return lines[line - 1] if 0 < line <= len(lines) else ""


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {hex(error.character)} at position {error.position} is not allowed"
    if isinstance(error, RecursionError):
        return "nested too deep"
    problem: str = getattr(error, "problem", None) or str(error).splitlines()[0]
    context: str = getattr(error, "context", None) or ""
    return f"{context}, {problem}" if problem.startswith("but ") else problem


def validate(doc: Document, model: type[M], value: Any = _WHOLE, at: KeyPath = (), command: str = "") -> M:
    """Checks the document (or the part `value` of it, which stands at `at`) against a pydantic model.

    Types are taken as they are written: `true` is no number, `"5"` is no number, 5 is no text.

    Args:
        command: the command that lists the keys, for the help text.

    Raises:
        InputError: all faults of this part, each with its line.
    """
    value = doc.value if value is _WHOLE else value
    if endless := [doc.fault((*at, *path), f"{number} must be a finite number") for path, number in _endless(value)]:
        raise InputError(endless)
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise InputError(faults_of(error, doc, model, at, command, value)) from None


def _endless(value: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, float]]:
    """Where infinite numbers and NaN stand: they have no JSON form, so no key could be made of them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield at, value
    elif isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _endless(inner, (*at, key))


def faults_of(
    error: ValidationError,
    doc: Document,
    model: type[BaseModel],
    at: KeyPath = (),
    command: str = "",
    value: Any = _WHOLE,
) -> list[Fault]:
    """Pydantic's complaints about `value` (by default the whole document), in attar's words, in the file's order."""
    value = doc.value if value is _WHOLE else value
    found = []
    for details in error.errors(include_url=False):
        path = place(details["loc"], value, details["type"])
        found.append(doc.fault((*at, *path), *words(details, path, model, command)))
    return sorted(dict.fromkeys(found), key=lambda fault: fault.line)


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key, mappings within mappings too; anything else is replaced."""
    both = dict(under)
    for key, value in over.items():
        mine = both.get(key)
        both[key] = overlaid(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both
