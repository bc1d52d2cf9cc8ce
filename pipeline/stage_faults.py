"""Faults in how the stages of a recipe stand to each other, and to its targets, as its text shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline import code
from pipeline.recipe import StageCall, TargetSpec
from stages import STAGES
from stages.base import Form
from stages.settings import CascadeConfig, DistillConfig, PruneConfig
from targets.documents import Document, KeyPath, validate
from targets.errors import Fault, InputError

__all__ = ["Call", "budget", "chain", "joined", "students"]


class Call(NamedTuple):
    """One item of the list of stages: `stage` is None if it is faulty or unknown."""

    at: KeyPath
    name: str
    stage: StageCall | None


def students(doc: Document, calls: Sequence[Call], base: Path) -> Iterator[Fault]:
    """Students whose source is not there or whose title is taken, and a second distillation that has students."""
    branching: KeyPath | None = None
    for at, _, stage in calls:
        if stage is None or not isinstance(stage.config, DistillConfig):
            continue
        titles: dict[str, int] = {}
        for j, student in enumerate(stage.config.students):
            here: KeyPath = (*at, "students", j)
            if student.source is not None:
                if code.is_function(student.source):
                    for fault in code.faults_of(student.source, base):
                        yield doc.fault((*here, fault.key) if fault.key else here, fault.what, fault.help)
                else:
                    what = f"{student.source!r} must be 'module:function'"
                    yield doc.fault((*here, "source"), what, "for example stages.zoo:resnet")
            first = titles.setdefault(student.title, j)
            if first != j:
                yield doc.fault(here, f"{student.title!r} is what students[{first}] is called", "give one a `name`")
        if stage.config.students and branching is not None:
            what = "has students, and an earlier distill has some too: a recipe branches once"
            yield doc.fault((*at, "students"), what, "without students, distill trains what comes in")
        if stage.config.students:
            branching = at


def chain(doc: Document, calls: Sequence[Call]) -> Iterator[Fault]:
    """Stages whose forms do not fit. One that takes an ONNX network may stand before the export, which runs first."""
    model = doc.value.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    form: Form = "onnx" if isinstance(source, str) and source.endswith(".onnx") else "torch"
    start, exported = form, ""
    waiting: dict[str, str] = {}  # stages that work on the exported network -> where they stand
    for at, name, _ in calls:
        if name not in STAGES:
            continue
        stage, place = STAGES[name], f"stages[{at[1]}].{name}"
        needs = f"{name} takes a {stage.takes} network"
        if stage.takes == "onnx":
            if name in waiting:
                yield doc.fault(at, f"{name} is done already, at {waiting[name]}", "keep one of the two")
            waiting[name] = place
        elif start == "onnx":
            help = 'start from the torch network: model: {source: "module:function", weights: ...}'
            yield doc.fault(at, f"{needs}; model.source is an ONNX file, which is not turned back into one", help)
        elif form == "onnx":
            yield doc.fault(at, f"{needs}; {exported} already made it onnx", f"put {name} before it")
        elif waiting and stage.gives != "onnx":
            before = next(iter(waiting.values()))
            yield doc.fault(at, f"{needs}; {before} works on the exported one", f"put {name} before it")
        elif stage.gives == "onnx":
            form, exported = "onnx", place
    if form == "torch" and all(call.name in STAGES for call in calls):
        yield doc.fault(("stages",), "ends in a torch network, where an ONNX file is wanted", "add `- export: {}`")


def budget(doc: Document, calls: Sequence[Call], base: Path) -> Iterator[Fault]:
    """A prune to a budget that cannot work: there are two, something before or after it decides what stays too, or
    nothing is limited."""
    prunes = [(call, call.stage.config) for call in calls if call.stage]
    found = [call for call, config in prunes if isinstance(config, PruneConfig) and config.to]
    for call in found[1:]:
        what = f"there is a prune to the budget already, at stages[{found[0].at[1]}]"
        yield doc.fault((*call.at, "to"), what, "keep one of the two")
    if not found:
        return
    for call in calls[: calls.index(found[0])]:
        config = call.stage.config if call.stage else None
        if isinstance(config, DistillConfig) and any(student.keep is not None for student in config.students):
            what = "`keep` decides what stays, and the prune to the budget that follows does so too"
            yield doc.fault((*call.at, "students"), what, "leave the students out: the budget finds the subset")
        elif isinstance(config, PruneConfig) and not config.to:
            what = f"stands before the prune to the budget, at stages[{found[0].at[1]}], which measures whole networks"
            yield doc.fault(call.at, what, "leave it out: the budget finds the subset")
    for call in calls[calls.index(found[0]) + 1 :]:
        if call.stage and isinstance(call.stage.config, DistillConfig) and call.stage.config.students:
            what = f"the prune to the budget, at stages[{found[0].at[1]}], already decided what stays of each branch"
            yield doc.fault((*call.at, "students"), what, "leave the students out: distill trains what comes in")
    for i, item in enumerate(doc.value.get("targets") or ()):
        try:
            limits = validate(doc, TargetSpec, item, ("targets", i)).resolve(base).budget
        except InputError:  # told where targets are looked at
            continue
        if not limits.costs:
            what = "prune: {to: budget} works back from limits on costs, and this target has none"
            yield doc.fault(("targets", i), what, "add one, such as budget: {latency_p95_ms: 2.0}")


def joined(doc: Document, calls: Sequence[Call]) -> Iterator[Fault]:
    """Branches that are to be trained together or joined in a cascade, and are not there or do not go together."""
    names: list[str] | None = ["teacher"]  # None: not to be told from a faulty recipe
    networks: dict[tuple[str | None, str], str] = {}  # source and arguments -> a student of it
    for i, (at, _, stage) in enumerate(calls):
        config = stage.config if stage else None
        if stage is None:
            names = None
        elif isinstance(config, DistillConfig) and config.students:
            names = [student.title for student in config.students]
            networks = {(s.source, json.dumps(s.args, sort_keys=True)): s.title for s in config.students}
            if own := [student.title for student in config.students if student.source] if config.together else []:
                what = f"{own[0]!r} has a source of its own: weights are shared between subsets of one network"
                yield doc.fault((*at, "together"), what, "leave `together` out, or give the student `keep`")
        elif isinstance(config, DistillConfig) and config.together and len(networks) > 1:
            one, two, *_ = networks.values()
            what = f"{one!r} and {two!r} are different networks: weights are shared between subsets of one"
            yield doc.fault((*at, "together"), what, "leave `together` out")
        elif isinstance(config, PruneConfig) and config.to and names is not None:
            names = [f"{name}, fit 1" if name != "teacher" else "fit 1" for name in names]
        elif isinstance(config, CascadeConfig):
            yield from _cascade(doc, at, config, names)
            if later := [call for call in calls[i + 1 :] if call.name in STAGES]:
                what = f"{later[0].name} cannot follow a cascade, which joins finished branches"
                yield doc.fault(later[0].at, what, "put cascade last")
        if isinstance(config, DistillConfig) and config.together:
            for what in ("features", "attention"):
                if getattr(config, what):
                    told = "cannot be matched in branches that learn together: they differ inside"
                    yield doc.fault((*at, what), told, "leave `together` or this out")


def _cascade(doc: Document, at: KeyPath, config: CascadeConfig, names: list[str] | None) -> Iterator[Fault]:
    if names is None:
        return
    if len(names) < 2:
        what = "a cascade joins two branches, and this recipe has one"
        yield doc.fault(at, what, "add a distill with two students, such as students: [{keep: 0.5}, {keep: 0.25}]")
        return
    if "cascade" in names:
        yield doc.fault(at, "a student is called 'cascade', as the branch that this makes", "give it another `name`")
    if len(names) > 2 and not (config.small and config.large):
        what = f"which two of {len(names)} branches? ({', '.join(names)})"
        yield doc.fault(at, what, f"name them: cascade: {{small: {names[-1]}, large: {names[0]}}}")
    for key, name in (("small", config.small), ("large", config.large)):
        if name is not None and name not in names:
            yield doc.fault((*at, key), f"there is no branch {name!r}", f"the branches are {', '.join(names)}")
    if config.small and config.small == config.large:
        yield doc.fault((*at, "small"), "is the large one too", "a cascade joins two different branches")
