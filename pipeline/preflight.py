"""What a recipe's text alone cannot tell: does the model build, do the patterns in it match anything.

Builds the untrained networks (no data, no training), and asks the devices what they are, so that one that is not there
is told before hours of training. Runs before the first step of a run, and in `attar check` (which reaches no other
machine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pipeline import space
from pipeline.code import importable
from pipeline.faults import check
from pipeline.recipe import Recipe
from stages import STAGES
from stages.base import Origin
from stages.settings import DistillConfig, PruneConfig
from targets.devices import Device
from targets.documents import Document, KeyPath
from targets.errors import Fault, InputError
from targets.hardware import beyond
from targets.measure import connect
from targets.target import Target

__all__ = ["preflight", "preflight_search"]

# extra -> what it must bring
_EXTRAS = {
    "compress": ("torch", "torch_pruning", "onnxscript", "safetensors", "neural_compressor", "sklearn", "PIL"),
}


def preflight(
    recipe: Recipe, document: Document, device: Callable[[Target], Device] = connect, *, remote: bool = True
) -> None:
    """Looks at the devices, builds the networks of a recipe and matches its patterns against them.

    Args:
        device: how a target's device is reached.
        remote: also look at devices that are not this machine.

    Raises:
        InputError: all faults found.
        DeviceError: a device cannot be reached.
    """
    targets = list(enumerate(recipe.resolved_targets(document.folder)))
    looked_at = [(i, target) for i, target in targets if remote or target.device == "local"]
    if unfit := [fault for i, target in looked_at for fault in _unfit(target, device(target), document, i)]:
        raise InputError(unfit)
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


def preflight_search(recipe: Recipe, document: Document) -> None:
    """Builds the networks that a search may come to, one value of its space at a time.

    Raises:
        InputError: all faults found.
    """
    if recipe.search is None or recipe.model.form == "onnx":
        return
    import stages.network  # noqa: F401  # as above

    bare, found = space.without_search(document), []
    with importable(document.folder):
        for key, value in space.alternatives(recipe.search):
            changed = bare.override(space.as_sets({key: value}))
            at: KeyPath = ("search", "space", key)
            found += [document.fault(at, space.said(key, value, f), f.help) for f in _faults(check(changed), changed)]
    if found:
        raise InputError(dict.fromkeys(found))


def _unfit(target: Target, device: Device, document: Document, i: int) -> Iterator[Fault]:
    """Why a device cannot run what is made for its target."""
    found, where = device.identity(), "here" if target.device == "local" else f"on {target.device}"
    at: KeyPath = ("targets", i)
    if not found["onnxruntime"]:
        what = f"there is no onnxruntime {where}, for its Python {found['python']}"
        yield document.fault(at, what, "pip install onnxruntime numpy there, or name another Python: connection.python")
        return
    provider = target.runtime.provider
    if provider not in found["providers"]:
        what = f"onnxruntime {found['onnxruntime']} has no {provider} {where}"
        yield document.fault(at, what, f"it has {', '.join(found['providers'])}")
    if too_new := beyond(found["onnxruntime"], target.opset, target.ir_version):
        name, asked, most = too_new
        what = f"onnxruntime {found['onnxruntime']} {where} takes {name} {most} at most, and {target.name} says {asked}"
        key = "opset" if name == "opset" else "ir_version"
        yield document.fault(at, what, f"state `{key}: {most}` in a profile of your own, or update onnxruntime there")


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
