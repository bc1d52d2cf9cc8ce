"""Finds every fault that a recipe's text can show, in one go: each part is looked at on its own, so that a fault in one
does not hide those in another. Nothing is imported, decoded or computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline import space, stage_faults
from pipeline.recipe import DataSpec, ModelSpec, Recipe, StageCall, TargetSpec
from pipeline.sources import check_data, check_model
from pipeline.space import SearchSpec
from pipeline.stage_faults import Call
from stages import STAGES
from stages.settings import ExportConfig
from targets.documents import Document, KeyPath, validate
from targets.errors import Fault, InputError, nearest

__all__ = ["check"]

M = TypeVar("M", bound=BaseModel)

WRITTEN = {"report.html", "report.json", "report.md", "recipe.lock", "events.jsonl"}  # beside the targets' folders
MISSING, UNKNOWN = "is required and missing", "unknown key"  # as `targets.wording` has them


def check(doc: Document) -> Recipe:
    """The recipe in a document.

    Raises:
        InputError: all faults, in the order of lines.
    """
    base = doc.folder
    faults: list[Fault] = []
    calls = _calls(doc, faults)
    recipe = _part(doc, Recipe, (), {**doc.value, "stages": []}, faults)
    # what is asked of a part is asked of those keys alone, so that a fault in another one does not hide the answer
    if (data := _part(doc, DataSpec, ("data",), _only(doc.value.get("data"), "source", "args"))) is not None:
        faults += _anchored(doc, ("data",), check_data(data, base))
    given = _only(doc.value.get("model"), "source", "args", "weights", "train")
    if isinstance(given, dict) and given.get("train") is not None:
        given["train"] = {}
    if (model := _part(doc, ModelSpec, ("model",), given)) is not None:
        faults += _anchored(doc, ("model",), check_model(model, base))
    faults += _targets(doc, calls, base)
    faults += stage_faults.students(doc, calls or (), base)
    if calls is not None:
        faults += stage_faults.chain(doc, calls)
        faults += stage_faults.budget(doc, calls, base)
        faults += stage_faults.joined(doc, calls)
    asked = doc.value.get("search")
    if asked is not None and (spec := _part(doc, SearchSpec, ("search",), asked)) is not None:
        faults += list(space.faults(doc, spec, check, faults))
    if faults or recipe is None:
        raise InputError(sorted(_told_once(faults), key=lambda fault: fault.line))
    return recipe.model_copy(update={"stages": tuple(call.stage for call in calls or () if call.stage)})


def _part(
    doc: Document,
    model: type[M],
    at: KeyPath,
    value: Any,
    faults: list[Fault] | None = None,
    command: str = "attar schema",
) -> M | None:
    """A part of the recipe, None if it is faulty; its faults go to `faults`, or have been told by a larger part."""
    try:
        return validate(doc, model, value, at, command)
    except InputError as error:
        if faults is not None:
            faults += error.faults
        return None


def _only(value: Any, *keys: str) -> Any:
    return {key: value[key] for key in keys if key in value} if isinstance(value, dict) else value


def _told_once(faults: Sequence[Fault]) -> list[Fault]:
    """Without repetitions, and without the second half of a misspelling: "sourse" is unknown, and "source" missing."""
    missing = [fault for fault in faults if fault.what == MISSING]
    for fault in faults:
        above, _, name = fault.key.rpartition(".")
        beside = {m.key.rpartition(".")[2]: m for m in missing if m.key.rpartition(".")[0] == above}
        if fault.what == UNKNOWN and (meant := get_close_matches(name, beside, n=1)):
            missing.remove(beside[meant[0]])
    return [fault for fault in dict.fromkeys(faults) if fault.what != MISSING or fault in missing]


def _anchored(doc: Document, at: KeyPath, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Faults of which the keys are relative to `at`, with their lines. One inside of another file stays as it is."""
    for fault in faults:
        inside = fault.file and Path(fault.file).is_file()
        yield fault if inside else doc.fault((*at, *filter(None, [fault.key])), fault.what, fault.help)


def _calls(doc: Document, faults: list[Fault]) -> list[Call] | None:
    """The list of stages; None if it is none."""
    items = doc.value.get("stages", [])
    if not isinstance(items, list):
        what, help = "must be a list: one stage per item", "start each with a dash: - export: {}"
        faults.append(doc.fault(("stages",), what, help))
        return None
    calls = []
    for i, item in enumerate(items):
        at: KeyPath = ("stages", i)
        if not isinstance(item, dict) or len(item) != 1:
            faults.append(doc.fault(at, *_misshapen(item)))
            calls.append(Call(at, "", None))
            continue
        ((name, settings),) = item.items()
        stage = None
        if name not in STAGES:
            faults.append(doc.fault((*at, name), "unknown stage", nearest(name, STAGES, command="attar stages")))
        else:
            settings = {} if settings is None else settings
            config = _part(doc, STAGES[name].Config, (*at, name), settings, faults, f"attar stages show {name}")
            stage = None if config is None else StageCall(name=name, config=config)
        calls.append(Call((*at, name), name, stage))
    return calls


def _misshapen(item: Any) -> tuple[str, str]:
    """What is wrong with an item that is no stage with its settings, and how to put it right."""
    if isinstance(item, str):
        return f"{item!r} must be a stage with its settings", f"write `- {item}: {{}}`"
    if not isinstance(item, dict) or not item:
        return f"{item!r} must be a stage with its settings", "write `- export: {}`"
    names = [name for name in item if name in STAGES]
    others = [name for name in item if name not in STAGES]
    if names and others:
        return f"{', '.join(others)} stands beside {names[0]}, not below it", f"indent settings further than {names[0]}"
    return f"holds {len(item)} stages ({', '.join(item)}), where one is expected", "start each with a dash of its own"


def _order(doc: Document, at: KeyPath, limits: Any) -> Iterator[Fault]:
    """Limits on percentiles that contradict each other: a rarer latency is never the shorter one."""
    names = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
    known = [n for n in names if isinstance(limits, dict) and isinstance(limits.get(n), (int, float))]
    for common, rare in pairwise(known):
        if limits[common] > limits[rare]:
            what = (
                f"{limits[common]:g} is above {rare} {limits[rare]:g}, which no latency can hold without holding this"
            )
            yield doc.fault((*at, common), what, "leave it out, or set it below the rarer percentile's limit")


def _targets(doc: Document, calls: Sequence[Call] | None, base: Path) -> Iterator[Fault]:
    """Profiles that are not there or have faults, names that are taken, and exports above a target's opset."""
    items = doc.value.get("targets")
    taken: dict[str, int] = {}
    for i, item in enumerate(items if isinstance(items, list) else ()):
        at: KeyPath = ("targets", i)
        spec = _part(doc, TargetSpec, at, _only(item, "use", "name"))
        if spec is None:
            continue
        try:
            target = spec.resolve(base)
        except InputError as error:
            yield from _anchored(doc, (*at, "use"), error.faults)
            continue
        name = target.name
        if name in WRITTEN:
            yield doc.fault(at, f"{name!r} is the name of a file that every run writes", "give it another `name`")
        limits = {**target.budget.model_dump(), **(item["budget"] if isinstance(item.get("budget"), dict) else {})}
        if limits["energy_mj"] is not None and target.meter.energy_s == 0:
            what = f"energy is not counted on {name}: its meter.energy_s is 0, so this limit could never be met"
            yield doc.fault((*at, "budget", "energy_mj"), what, "leave it out, or raise meter.energy_s")
        yield from _order(doc, (*at, "budget"), item.get("budget"))
        for call in calls or ():
            asked = call.stage.config.opset if call.stage and isinstance(call.stage.config, ExportConfig) else None
            if asked is not None and asked > target.opset:
                what = f"{asked} is above the opset {target.opset} that target {name} takes"
                yield doc.fault((*call.at, "opset"), what, "leave it out to get the highest that fits")
        first = taken.setdefault(name.casefold(), i)  # folders are named so, and some file systems ignore case
        if first != i:
            yield doc.fault(at, f"{name!r} is the name of targets[{first}] too", "give one of them a `name`")
