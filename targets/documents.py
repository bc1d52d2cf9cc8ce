"""YAML files that people write, read so that every fault can point at its line.

A `Document` is the parsed values together with where each key stands. `validate` turns values into a pydantic model, or
into all faults at once. YAML is loaded safely: tags that build objects are faults like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from targets.errors import Fault, InputError, nearest

__all__ = ["Document", "Frozen", "KeyPath", "faults_of", "parse", "read", "show_key", "validate"]


class Frozen(BaseModel):
    """Base of all settings: cannot be changed, refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


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
    """

    file: str
    text: str
    value: Any
    lines: Mapping[KeyPath, int]

    def fault(self, path: KeyPath, what: str, help: str = "") -> Fault:
        """A fault at `path`, or at the nearest key above it that the file has."""
        at = path
        while at and at not in self.lines:
            at = at[:-1]
        line = self.lines.get(at, 0)
        text = self.text.splitlines()[line - 1] if line else ""
        return Fault(what, show_key(path), self.file, line, text, help)

    def override(self, assignments: Mapping[str, str]) -> Document:
        """The document with `--set a.b.0.c=value` applied; values are read as YAML.

        Raises:
            InputError: a path leads through something that is neither a mapping nor an existing list item.
        """
        value, faults = _copy(self.value), []
        for dotted, raw in assignments.items():
            try:
                new = yaml.safe_load(raw)
            except yaml.YAMLError as error:
                faults.append(Fault(f"{raw!r} is not YAML: {_problem(error)}", dotted, "--set"))
                continue
            parts: list[str | int] = [int(p) if p.isdigit() else p for p in dotted.split(".")]
            here: Any = value
            for i, part in enumerate(parts):
                fits = (isinstance(here, dict) and isinstance(part, str)) or (
                    isinstance(here, list) and isinstance(part, int) and part < len(here)
                )
                if not fits:
                    kind = f"a list of {len(here)}" if isinstance(here, list) else f"{here!r}"
                    above = show_key(tuple(parts[:i])) or "the top"
                    faults.append(
                        Fault(
                            f"no place for {part!r}: {above} is {kind}",
                            dotted,
                            "--set",
                            help="paths look like stages.0.distill.epochs",
                        )
                    )
                    break
                if i == len(parts) - 1:
                    here[part] = new
                elif isinstance(here, dict):
                    if here.get(part) is None:
                        here[part] = {}
                    here = here[part]
                else:
                    here = here[part]
        if faults:
            raise InputError(faults)
        return replace(self, value=value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def read(path: Path | str) -> Document:
    """Reads and parses a file.

    Raises:
        InputError: the file is missing, is no UTF-8 text, or does not parse.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        help = nearest(path.name, near) if near else "give the path of a recipe file; `attar new NAME` writes one"
        raise InputError(Fault("no such file", file=str(path), help=help)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Fault(f"cannot be read: {error}", file=str(path))) from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Document:
    """Parses YAML text; see `read`."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        faults: list[Fault] = []
        if node is not None:
            _walk(node, (), lines, faults, Document(file, text, None, lines))
        if faults:
            raise InputError(faults)
        value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 0
        shown = text.splitlines()[line - 1] if 0 < line <= len(text.splitlines()) else ""
        what = f"is not YAML: {_problem(error) if isinstance(error, yaml.YAMLError) else error}"
        raise InputError(
            Fault(what, file=file, line=line, text=shown, help="check indentation, colons and quotes")
        ) from None
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        got = "is empty" if value is None else f"holds a {type(value).__name__}, where keys are expected"
        raise InputError(Fault(got, file=file, help="`attar new NAME` writes a recipe to start from"))
    return Document(file, text, value, lines)


def _walk(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], faults: list[Fault], doc: Document, depth: int = 0
) -> None:
    if depth > 50:
        raise ValueError("nested more than 50 levels deep, or an alias that holds itself")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key.value)
            at = (*path, name)
            if at in lines:
                faults.append(
                    doc.fault(at, f"is given twice (also at line {key.start_mark.line + 1})", "keep one of the two")
                )
            lines[at] = key.start_mark.line + 1
            _walk(value, at, lines, faults, doc, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
            _walk(item, (*path, i), lines, faults, doc, depth + 1)


def validate(doc: Document, model: type[M], value: Any = None, at: KeyPath = (), command: str = "") -> M:
    """Checks the document (or the part `value` of it, which stands at `at`) against a pydantic model.

    Args:
        command: the command that lists the keys, for the help text.

    Raises:
        InputError: all faults of this part, each with its line.
    """
    try:
        return model.model_validate(doc.value if value is None else value)
    except ValidationError as error:
        raise InputError(faults_of(error, doc, model, at, command)) from None


def faults_of(
    error: ValidationError, doc: Document, model: type[BaseModel], at: KeyPath = (), command: str = ""
) -> list[Fault]:
    """Pydantic's complaints, in attar's shape and words."""
    return [doc.fault((*at, *d["loc"]), *_words(d, model, command)) for d in error.errors(include_url=False)]


def _words(details: ErrorDetails, model: type[BaseModel], command: str) -> tuple[str, str]:
    """(what, help) of one complaint."""
    got, context, kind = details["input"], details.get("ctx", {}), details["type"]
    field = _field(model, details["loc"])
    help = field.description if field is not None and field.description else ""
    if command:
        help = f"{help}; see `{command}`" if help else f"see `{command}`"
    if kind == "extra_forbidden":
        owner = _owner(model, details["loc"])
        return "unknown key", nearest(str(details["loc"][-1]), owner.model_fields if owner else (), command=command)
    if kind == "missing":
        return "is required and missing", help
    if kind == "value_error":
        return f"{context.get('error', details['msg'])}", help
    bounds = [
        f"{word} {limit:g}"
        for key, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if (limit := _bound(field, key)) is not None
    ]
    if bounds and kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}:
        return f"{got!r} must be {' and '.join(bounds)}", help
    if kind == "literal_error":
        return f"{got!r} must be one of {context.get('expected', '')}", help
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{got!r} must be {message}" if message != details["msg"] else f"{got!r}: {message}", help


def _bound(field: Any, key: str) -> float | None:
    if field is None:
        return None
    stack = [*field.metadata, *_annotated(field.annotation)]
    for item in stack:
        found = getattr(item, key, None)
        if isinstance(found, (int, float)):
            return found
    return None


def _annotated(annotation: Any) -> list[Any]:
    """Metadata inside `Annotated[float, Field(gt=0)] | None`."""
    found: list[Any] = []
    for arg in getattr(annotation, "__args__", ()):
        for item in getattr(arg, "__metadata__", ()):
            found += getattr(item, "metadata", [item])
    return found


def _owner(model: type[BaseModel], loc: KeyPath) -> type[BaseModel] | None:
    """The model that should hold the last key of `loc`."""
    here: Any = model
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        field = here.model_fields.get(part) if isinstance(here, type) and issubclass(here, BaseModel) else None
        here = _model_in(field.annotation) if field is not None else None
        if here is None:
            return None
    return here  # type: ignore[no-any-return]


def _field(model: type[BaseModel], loc: KeyPath) -> Any:
    names = tuple(part for part in loc if isinstance(part, str))
    owner = _owner(model, names) if names else None
    return owner.model_fields.get(names[-1]) if owner is not None else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `M`, `M | None`, `tuple[M, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        if (found := _model_in(arg)) is not None:
            return found
    return None
