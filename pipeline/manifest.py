"""An artifact's manifest as its readers need it: `pipeline.output` writes it, and it may have been changed since.

Digests say that a manifest is the one that was written, not by which version of attar, nor in good faith. So its form
is checked before anything is made of it: names become folders and tags, numbers are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline import evidence
from pipeline.report.model import CheckRow, Number
from targets.budget import Verdict
from targets.documents import Frozen
from targets.errors import Fault, InputError
from targets.target import Target

__all__ = ["Data", "Manifest", "formed", "of", "parse"]


class _Part(Frozen, extra="ignore"):
    """A part of which some is needed; another version of attar may write more."""


class _Value(_Part):
    name: str
    shape: tuple[int | str, ...]
    dtype: str


class _Model(_Part):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[_Value, ...]
    outputs: tuple[_Value, ...]


class _Number(Number, extra="ignore"):
    pass


class _Check(CheckRow, extra="ignore"):
    pass


class _Source(_Part):
    source: str


class _Settings(_Part):
    task: str
    model: _Source


class _Recipe(_Part):
    name: str = Field(min_length=1)
    digest: str
    settings: _Settings


class Data(_Part):
    """What the model was made of; `preprocessing` is as free as the file: whoever acts on it checks it."""

    source: str
    digest: str
    classes: tuple[str, ...] = ()
    examples: dict[str, int] = Field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None


class _Step(_Part):
    title: str


class _Teacher(_Part):
    source: str
    files: dict[str, str]


class _Baseline(_Part):
    name: str
    sha256: str


class Manifest(_Part):
    """What is needed of a manifest."""

    version: Literal[1]
    attar: str
    verdict: Verdict
    target: Target
    checks: tuple[_Check, ...]
    model: _Model
    test: dict[str, _Number]
    measured: dict[str, _Number]
    environment: dict[str, Any]
    candidate: str
    files: dict[str, str]
    lineage: tuple[_Step, ...]
    recipe: _Recipe
    data: Data
    libraries: dict[str, str]
    teacher: _Teacher | None = None
    baseline: _Baseline | None = None


def of(found: evidence.Taken) -> Manifest:
    """The manifest of an artifact that was taken.

    Raises:
        InputError: it has not the form that this version of attar writes.
    """
    return parse(found.papers[evidence.MANIFEST], found.folder / evidence.MANIFEST)


def parse(data: bytes, path: Path) -> Manifest:
    """A manifest's bytes, which came from `path`; see `of`."""
    with formed(path):
        return Manifest.model_validate_json(data, strict=True)


@contextmanager
def formed(path: Path, part: str = "") -> Iterator[None]:
    """What pydantic has against the manifest at `path`, or a part of it, as the fault of its reader.

    Raises:
        InputError: with the first place that is wrong, "data.preprocessing.mean".
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (*filter(None, [part]), *first["loc"])))
        help = "another version of attar made it: run its recipe again with this one (`attar run`)"
        what = f"is no manifest that this attar reads: {first['msg']}"
        raise InputError(Fault(what, where, str(path), help=help)) from None
