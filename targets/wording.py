"""Pydantic's complaints in attar's words: the value got, the values allowed, what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from targets.errors import nearest

__all__ = ["place", "words"]

KeyPath = tuple[str | int, ...]

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "string_type": "text",
    "tuple_type": "a list",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def place(loc: KeyPath, value: Any, kind: str) -> KeyPath:
    """The key path of a complaint: `loc` without what pydantic adds to it (names of a union's arms)."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        known = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if known:
            value = value[part]
        if known or (kind == "missing" and i == len(loc) - 1):
            kept.append(part)
    return tuple(kept)


def words(details: ErrorDetails, path: KeyPath, model: type[BaseModel], command: str) -> tuple[str, str]:
    """(what, help) of one complaint about `path`. `command` lists the keys that there are."""
    kind, got = details["type"], show_value(details["input"])
    owner, field, leaf = _find(model, path)
    help = field.description if field is not None and field.description else ""
    if command:
        help = f"{help}; see `{command}`" if help else f"see `{command}`"
    if kind == "extra_forbidden":
        known = owner.model_fields if owner is not None else ()
        return "unknown key", nearest(str(path[-1]), known, command=command)
    if kind == "missing":
        return "is required and missing", help
    if kind == "value_error":
        return details["msg"].removeprefix("Value error, "), help
    if kind == "literal_error":
        return f"{got} must be one of {details.get('ctx', {}).get('expected', '')}", help
    bounds = [f"{word} {limit:g}" for key, word in _BOUNDS.items() if (limit := _bound(field, leaf, key)) is not None]
    if bounds and kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}:
        return f"{got} must be {' and '.join(bounds)}", help
    if kind in _KINDS:
        return f"{got} must be {_KINDS[kind]}", help
    message = details["msg"].removeprefix("Input should be ")
    return (f"{got} must be {message}" if message != details["msg"] else f"{got}: {message}"), help


def show_value(value: Any) -> str:
    """A value as it is written in a file, cut after 60 characters."""
    written = isinstance(value, (str, float))
    shown = repr(value) if written else json.dumps(value, default=str, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _find(model: type[BaseModel], loc: KeyPath) -> tuple[type[BaseModel] | None, FieldInfo | None, Any]:
    """Follows a key path through the types: (model that holds or should hold the last key, nearest field, type)."""
    owner: type[BaseModel] | None = None
    field: FieldInfo | None = None
    here: Any = model
    for part in loc:
        for arm in _arms(here):
            if isinstance(arm, type) and issubclass(arm, BaseModel):
                owner, field = arm, arm.model_fields.get(str(part))
                here = field.annotation if field is not None else None
                break
            if get_origin(arm) is dict:
                owner, here = None, get_args(arm)[1]
                break
            if isinstance(part, int) and get_origin(arm) in (list, tuple):
                inner = [a for a in get_args(arm) if a is not Ellipsis]
                owner, here = None, inner[min(part, len(inner) - 1)]
                break
    return owner, field, here


def _arms(annotation: Any) -> Iterator[Any]:
    """`A | B | None` -> A, B, NoneType; `Annotated[A, ...]` -> A."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _arms(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for arm in get_args(annotation):
            yield from _arms(arm)
    else:
        yield annotation


def _bound(field: FieldInfo | None, leaf: Any, key: str) -> float | None:
    whole = field is not None and field.annotation is leaf
    for item in [*(field.metadata if field is not None and whole else ()), *_metadata(leaf)]:
        found = getattr(item, key, None)
        if isinstance(found, (int, float)):
            return found
    return None


def _metadata(annotation: Any) -> Iterator[Any]:
    """What stands inside `Annotated[float, Field(gt=0)] | None`."""
    if get_origin(annotation) is Annotated:
        for item in get_args(annotation)[1:]:
            yield from getattr(item, "metadata", [item])
    elif get_origin(annotation) in (Union, UnionType):
        for arm in get_args(annotation):
            yield from _metadata(arm)
