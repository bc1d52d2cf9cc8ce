"""What a recipe's text alone cannot tell: does the model build, do the patterns in it match anything.

Builds the untrained networks (no data, no training). Runs before the first step of a run, and in `attar check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pipeline.code import importable
from pipeline.recipe import Recipe
from stages import STAGES
from stages.base import Origin
from stages.settings import DistillConfig, PruneConfig
from targets.documents import Document, KeyPath
from targets.errors import Fault, InputError

__all__ = ["preflight"]

# extra -> what it must bring
_EXTRAS = {
    "compress": ("torch", "torch_pruning", "onnxscript", "safetensors", "neural_compressor", "sklearn", "PIL"),
}


def preflight(recipe: Recipe, document: Document) -> None:
    """Builds the networks of a recipe and matches its patterns against them.

    Raises:
        InputError: all faults found.
    """
    from onnxruntime import get_available_providers

    providers = get_available_providers()
    wanted = [target.runtime.provider for target in recipe.resolved_targets(document.folder)]
    absent = [
        document.fault(("targets", i), f"onnxruntime has no {name} here", f"it has {', '.join(providers)}")
        for i, name in enumerate(wanted)
        if name not in providers
    ]
    if absent:
        raise InputError(absent)
    extras = {stage.extra for call in recipe.stages if (stage := STAGES[call.name]).extra}
    for extra in sorted(extras):
        if missing := [name for name in _EXTRAS[extra] if find_spec(name) is None]:
            what = f"this recipe needs {', '.join(missing)}, not installed here"
            raise InputError(what, help=f"pip install 'attar[{extra}]'")
    if recipe.model.form == "onnx":
        return
    import stages.network  # noqa: F401  # torch, before a torch.py or json.py beside the recipe can stand in its way

    with importable(document.folder):
        faults = list(_faults(recipe, document))
    if faults:
        raise InputError(faults)


def _faults(recipe: Recipe, document: Document) -> Iterator[Fault]:
    teacher, fault = _built(recipe.model.source, recipe.model.args, document, ("model",))
    if fault:
        yield fault
    networks = [teacher]  # that can arrive at a stage: names survive pruning and recovery
    for i, call in enumerate(recipe.stages):
        at: KeyPath = ("stages", i, call.name)
        if isinstance(call.config, DistillConfig):
            if call.config.students:
                networks = [teacher] if any(student.keep for student in call.config.students) else []
            for j, student in enumerate(call.config.students):
                if student.source:
                    own, fault = _built(student.source, student.args, document, (*at, "students", j))
                    networks.append(own)
                    if fault:
                        yield fault
            for network in networks:
                yield from _unmatched(network, tuple(call.config.features), document, (*at, "features"))
                yield from _unmatched(network, tuple(call.config.attention), document, (*at, "attention"))
        if isinstance(call.config, PruneConfig):
            for network in networks:
                yield from _unmatched(network, call.config.exclude, document, (*at, "exclude"))


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
