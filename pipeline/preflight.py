"""What a recipe's text alone cannot tell: does the model build, do the patterns in it match anything.

Builds the untrained networks (no data, no training). Runs before the first step of a run, and in `attar check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.code import importable
from pipeline.recipe import Recipe
from stages import STAGES
from stages.base import Origin
from stages.settings import DistillConfig, PruneConfig
from targets.documents import Document, KeyPath
from targets.errors import Fault, InputError

__all__ = ["preflight"]

# extra -> an import that stands for it
_EXTRAS = {"compress": "torch"}


def preflight(recipe: Recipe, document: Document) -> None:
    """Builds the networks of a recipe and matches its patterns against them.

    Raises:
        InputError: all faults found.
    """
    extras = {stage.extra for call in recipe.stages if (stage := STAGES[call.name]).extra}
    missing = sorted(extra for extra in extras if extra and find_spec(_EXTRAS[extra]) is None)
    if missing:
        names = ",".join(missing)
        raise InputError("this recipe needs libraries that are not installed", help=f"pip install 'attar[{names}]'")
    if recipe.model.form == "onnx":
        return
    with importable(Path(document.file).absolute().parent):
        faults = list(_faults(recipe, document))
    if faults:
        raise InputError(faults)


def _faults(recipe: Recipe, document: Document) -> Iterator[Fault]:
    teacher, fault = _built(recipe.model.source, recipe.model.args, document, ("model",))
    if fault:
        yield fault
    for i, call in enumerate(recipe.stages):
        at: KeyPath = ("stages", i, call.name)
        if isinstance(call.config, PruneConfig):
            yield from _unmatched(teacher, call.config.exclude, document, (*at, "exclude"))
        if isinstance(call.config, DistillConfig):
            yield from _unmatched(teacher, tuple(call.config.features), document, (*at, "features"))
            yield from _unmatched(teacher, tuple(call.config.attention), document, (*at, "attention"))
            for j, student in enumerate(call.config.students):
                if student.source:
                    _, fault = _built(student.source, student.args, document, (*at, "students", j))
                    if fault:
                        yield fault


def _built(source: str, args: Mapping[str, Any], document: Document, at: KeyPath) -> tuple[Any, Fault | None]:
    """The untrained network, or why there is none."""
    from stages.network import construct

    try:
        return construct(Origin(source, args)), None
    except InputError as error:
        return None, document.fault((*at, "source"), error.faults[0].what, error.faults[0].help)


def _unmatched(network: Any, patterns: tuple[str, ...], document: Document, at: KeyPath) -> Iterator[Fault]:
    from stages.network import matching

    if network is None:
        return
    for pattern in patterns:
        try:
            matching(network, (pattern,))
        except InputError as error:
            yield document.fault((*at, pattern), error.faults[0].what, error.faults[0].help)
