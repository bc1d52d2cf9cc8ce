"""The space that a search explores: settings of stages by dotted key, as `--set` takes them, and the values to try.

    search:
      space:
        stages.0.prune.keep: [0.25, 0.5, 0.75]
        stages.1.distill.temperature: {low: 1, high: 8, log: true}
      trials: 20

Nothing is computed here. `faults` tries every listed value, and both ends of every range, in the recipe.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from targets.documents import Document, Frozen
from targets.errors import Fault, InputError

__all__ = [
    "Range",
    "SearchSpec",
    "Settings",
    "alternatives",
    "as_sets",
    "faults",
    "grid",
    "plain",
    "size",
    "values",
    "without_search",
]

Settings = Mapping[str, JsonValue]
Step = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)]


class Range(Frozen):
    """All values between two bounds, bounds included. Whole numbers where both bounds (and the step) are whole."""

    low: int | float
    high: int | float
    step: Step | None = Field(None, description="from one value to the next; default: 1 for whole numbers")
    log: bool = Field(False, description="low values as often as high ones, on a logarithmic scale")

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("has a step and log: a logarithmic range has no even steps")
        return self

    @property
    def whole(self) -> bool:
        """Are its values whole numbers?"""
        return all(isinstance(x, int) for x in (self.low, self.high, self.step or 1))


def _kind(value: Any) -> str:
    return "range" if isinstance(value, (dict, Range)) else "list"


Choices = Annotated[
    Annotated[tuple[JsonValue, ...], Tag("list")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]


class SearchSpec(Frozen):
    """What `attar search` explores, and for how long. `attar run` does not look at it."""

    space: dict[str, Choices] = Field(
        description="dotted key of a stage's setting -> a list of values, or {low, high, step, log}"
    )
    trials: Annotated[int, Field(ge=1, le=100_000)] = Field(20, description="settings to try, earlier calls counted")
    minutes: Annotated[float, Field(gt=0, le=100_000)] = Field(240, description="after which no further trial begins")
    sampler: Literal["auto", "random", "tpe", "grid"] = Field(
        "auto", description="who proposes settings; auto: grid where all fit into the trials, else tpe"
    )

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if not self.space:
            raise ValueError("has an empty space: there is nothing to search")
        if self.sampler == "grid" and (endless := [key for key, of in self.space.items() if values(of) is None]):
            raise ValueError(f"sampler grid takes lists, whole numbers and ranges with a step; {endless[0]} has none")
        return self


def values(of: tuple[JsonValue, ...] | Range) -> tuple[JsonValue, ...] | None:
    """Every value, in order; None where there is no end of them."""
    if not isinstance(of, Range):
        return of
    step = of.step or (1 if of.whole and not of.log else None)
    if step is None:
        return None
    count = math.floor((of.high - of.low) / step + 1e-9) + 1
    return tuple(plain(of, of.low + i * step) for i in range(count))


def plain(of: Range, value: float) -> int | float:
    """A value of a range as a recipe would have it: without steps, four digits are enough."""
    if of.whole:
        return round(value)
    shown = f"{value:.4g}" if of.step is None else f"{value:.12g}"
    return float(min(max(float(shown), of.low), of.high))


def grid(spec: SearchSpec) -> Iterator[dict[str, JsonValue]] | None:
    """All settings there are, the last key running fastest; None where there is no end of them."""
    listed = {key: values(of) for key, of in spec.space.items()}
    finite = {key: found for key, found in listed.items() if found is not None}
    if len(finite) < len(listed):
        return None
    return (dict(zip(finite, combination, strict=True)) for combination in itertools.product(*finite.values()))


def size(spec: SearchSpec) -> float:
    """How many settings there are; infinite where there is no end of them."""
    return math.prod(math.inf if (found := values(of)) is None else len(found) for of in spec.space.values())


def as_sets(settings: Settings) -> dict[str, str]:
    """Settings as `--set` takes them: dotted key -> value as YAML."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in settings.items()}


def alternatives(spec: SearchSpec) -> Iterator[tuple[str, JsonValue]]:
    """Every listed value and both ends of every range, with its key."""
    for key, of in spec.space.items():
        for value in dict.fromkeys((of.low, of.high)) if isinstance(of, Range) else of:
            yield key, value


def without_search(document: Document) -> Document:
    """The recipe alone, as `attar run` takes it."""
    return replace(document, value={key: part for key, part in document.value.items() if key != "search"})


def faults(
    document: Document, spec: SearchSpec, check: Callable[[Document], object], known: Iterable[Fault]
) -> Iterator[Fault]:
    """Keys that lead nowhere, and values that the recipe cannot take.

    Args:
        check: raises InputError with the faults of a recipe.
        known: what is wrong with the recipe as it stands, which is not told again.
    """
    told = {(fault.key, fault.what) for fault in known}
    paths = {key: _path(key) for key in spec.space}
    sound = set()
    for key, path in paths.items():
        of, at = spec.space[key], ("search", "space", key)
        inside = next((k for k, p in paths.items() if k != key and path[: len(p)] == p), None)
        if path[0] != "stages":
            what = "is no setting of a stage: data, model and targets stay, so that trials compare"
            yield document.fault(at, what, "keys look like stages.0.distill.epochs")
        elif inside is not None:
            yield document.fault(at, f"lies inside {inside}, which is searched too", "keep one of the two")
        elif not isinstance(of, Range) and not of:
            yield document.fault(at, "is an empty list: there is nothing to try", "list values, or give low and high")
        elif not isinstance(of, Range) and len({json.dumps(v, sort_keys=True) for v in of}) < len(of):
            yield document.fault(at, "lists a value twice", "keep one of the two")
        else:
            sound.add(key)
    bare = without_search(document)
    for key, value in alternatives(spec):
        if key not in sound:
            continue
        try:
            check(bare.override(as_sets({key: value})))
        except InputError as error:
            for fault in error.faults:
                if (fault.key, fault.what) not in told:
                    yield document.fault(("search", "space", key), said(key, value, fault), fault.help)


def _path(key: str) -> list[str]:
    return re.sub(r"\[(\d+)\]", r".\1", key).split(".")


def said(key: str, value: JsonValue, fault: Fault) -> str:
    """What a value does to the recipe; its own key need not be said twice."""
    shown = json.dumps(value, ensure_ascii=False)
    if _path(fault.key) == _path(key):
        return fault.what if fault.what.startswith(shown) else f"{shown}: {fault.what}"
    return f"{shown}: {fault.key}: {fault.what}"
