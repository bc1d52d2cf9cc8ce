"""The loop that runs a plan.

    for each step of the plan, parents first:
        in the store?   say so
        else            lock it, look again, compute it in a fresh folder, store it
    for each target:
        measure, choose, verdict (`pipeline.judging`); more steps where a prune to the budget is tried again
    report

A kill loses at most the step in hand, and of a training only the epoch in hand. A step that fails is not stored.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pipeline.events import Events
from pipeline.judging import Judging, Outcome
from pipeline.recipe import Recipe
from pipeline.splits import load_data
from pipeline.steps import Plan, PlannedStep
from pipeline.store import Entry, Store
from stages import COSTS_SEE, STAGES
from stages.base import Candidate, Context, Origin, Step, perform
from stages.data import Splits
from stages.settings import CostsConfig, DistillConfig
from targets.devices import Device
from targets.documents import Document, KeyPath, show_key
from targets.energy import Spent, counting
from targets.errors import AttarError, Fault, InputError, StageError
from targets.measure import connect
from targets.target import Target, facts, load, only

__all__ = ["Outcome", "Runner", "StepDone"]


@dataclass(frozen=True)
class StepDone:
    """A finished step: where it is stored, and whether it was found there or computed now."""

    key: str
    title: str
    stage: str
    entry: Entry
    stored: bool

    @property
    def spent(self) -> Spent:
        """What computing it took of energy on this machine."""
        return Spent(**self.entry.values.get("energy", {}))

    @property
    def seconds(self) -> float:
        """What it took when it was computed."""
        return float(self.entry.values["seconds"])


@dataclass
class Runner:
    """Runs the plan of one recipe against one store.

    Args:
        base: the recipe's folder.
        fresh: compute everything again, whatever is stored.
        document: the recipe's text, for faults that stages find.
    """

    recipe: Recipe
    base: Path
    plan: Plan
    store: Store
    events: Events
    fresh: bool = False
    document: Document | None = None
    done: list[StepDone] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)  # by target name, connected when first needed
    other_seconds: float = 0.0  # for torch to wake and networks to be built beforehand; for another run's step

    def run(self) -> list[Outcome]:
        """Runs everything.

        Raises:
            InputError: data or model turn out to be unusable.
            StageError, DeviceError: a step broke; `done` tells what had been finished.
        """
        started = time.monotonic()
        self.events("run_started", steps=len(self.plan.steps) + 2 * len(self.plan.goals))
        for step in self.plan.steps:
            self.step(step)
        judging = Judging(self)
        outcomes = [judging.judge(goal.target.name) for goal in self.plan.goals]
        self.events("run_done", seconds=time.monotonic() - started)
        return outcomes

    @property
    def busy_seconds(self) -> float:
        """Seconds of this run that went into steps; the rest is the frame's own."""
        return sum(step.seconds for step in self.done if not step.stored)

    @cached_property
    def data(self) -> Splits:
        """The three splits, loaded when the first step needs them."""
        try:
            return load_data(self.recipe.data, self.base, self.recipe.seed)
        except InputError as error:
            raise InputError([self._placed(fault, ("data",)) for fault in error.faults]) from error

    def device(self, target: Target) -> Device:
        """The device of a target, one for the whole run."""
        return self.devices.setdefault(target.name, connect(target))

    def candidate(self, key: str) -> Candidate:
        """The outcome of a finished step, as files of this run's own."""
        return Candidate.load(self.store.checkout(self.entry(key)))

    def entry(self, key: str) -> Entry:
        """The store's record of a finished step."""
        return next(step.entry for step in self.done if step.key == key)

    def measuring(self, title: str) -> AbstractContextManager[None]:
        """Held while a step measures: one run of this store at a time."""
        return self.store.lock("measure", partial(self.events, "waiting", title))

    def step(self, step: PlannedStep) -> None:
        """One step of the plan, if it was not done yet."""
        if any(done.key == step.key for done in self.done):
            return
        entry = self.keyed(step.key, step.title, step.stage, partial(self._compute, step))
        if step.kind == "costs" and not all(self.store.has(other.key) for other in self.plan.steps):
            self._check_reach(step, entry)

    def _check_reach(self, step: PlannedStep, entry: Entry) -> None:
        """Before anything is trained: can the smallest structure hold the limits?"""
        from stages.structure.choice import out_of_reach  # wakes torch
        from stages.structure.table import Costs

        found = json.loads(self.store.read(entry, "costs.json"))
        for i, target in enumerate(self.recipe.resolved_targets(self.base)):
            if step.target is None or facts(target, COSTS_SEE) != facts(step.target, COSTS_SEE):
                continue
            if told := out_of_reach(Costs.from_json(found), target.budget.costs, **found["units"]):
                raise InputError([self._placed(fault, ("targets", i, "budget")) for fault in told])

    def keyed(self, key: str, title: str, stage: str, compute: Callable[[Path, Path], Mapping[str, Any]]) -> Entry:
        """Finds the step in the store, or computes and stores it."""
        entry = None if self.fresh else self.store.find(key)
        stored = entry is not None
        if entry is None:
            asked = time.monotonic()
            with self.store.lock(key, lambda: self.events("waiting", title)):
                self.other_seconds += time.monotonic() - asked
                entry = None if self.fresh else self.store.find(key)  # another run may have just made it
                stored = entry is not None
                if entry is None:
                    entry = self._computed(key, title, compute)
        if stored:
            self.events("step_stored", title)
        self.done.append(StepDone(key, title, stage, entry, stored))
        return entry

    def _computed(self, key: str, title: str, compute: Callable[[Path, Path], Mapping[str, Any]]) -> Entry:
        self.events("step_started", title)
        started = time.monotonic()
        try:
            if self.fresh:
                shutil.rmtree(self.store.scratch(key))
            out = self.store.fresh()
            with counting(load("local").energy) as spent:
                values = compute(out, self.store.scratch(key))
            seconds = time.monotonic() - started
            entry = self.store.put(key, out, {**values, "seconds": seconds, "energy": spent.to_json()})
        except AttarError as error:
            self.events("step_failed", title, error=str(error))
            raise
        except OSError as error:
            self.events("step_failed", title, error=str(error))
            place = f" ({error.filename})" if error.filename else ""
            raise StageError(
                f"{title}: {error.strerror or error}{place}; nothing that was finished is lost: make room or mend the "
                "path, then give the same command again"
            ) from error
        except Exception as error:  # a user's own code or a library's; the traceback is kept in the event log
            first = (str(error).strip() or "no message").splitlines()[0]
            self.events("step_failed", title, error=str(error), traceback=traceback.format_exc())
            raise StageError(f"{title}: {type(error).__name__}: {first} (events.jsonl has the traceback)") from error
        self.events("step_done", title, seconds=seconds)
        return entry

    def _compute(self, step: PlannedStep, out: Path, scratch: Path) -> dict[str, Any]:
        """Runs one stage in its frame."""
        context = Context(
            data=self.data,
            out=out,
            scratch=scratch,
            seed=self.recipe.seed,
            teacher=self.candidate(step.teacher) if step.teacher else None,
            others=tuple(map(self.candidate, step.others)),
            costs=self.store.checkout(self.entry(step.costs)) if step.costs else None,
            target=only(step.target, _looked_at(step)) if step.target else None,
            say=partial(self.note, step.title),
            progress=lambda share, what: self.events("progress", step.title, share=share, what=what),
        )
        try:
            last = self._made(step, context)
        except InputError as error:
            raise InputError([self._placed(fault, step.at) for fault in error.faults]) from error
        for note in last.notes:
            context.say(note)
        done = {"changed": last.changed, "notes": list(last.notes), "metrics": dict(last.metrics)}
        return done if step.kind != "teacher" else {**done, "data": self._data_summary()}

    def _made(self, step: PlannedStep, context: Context) -> Step:
        """Leaves what a step makes in `context.out`; gives what is to be told about it."""
        if step.kind == "teacher":
            return self._teacher(context).steps[-1]
        assert step.config is not None
        if step.kind == "costs":
            from stages.structure.survey import survey  # wakes torch

            assert step.origin is not None
            assert isinstance(step.config, CostsConfig)
            with self.measuring(step.title):
                return survey(step.origin, step.config, context)
        if step.kind == "member":
            from stages.family import member

            made = member(self.store.checkout(self.entry(step.parents[1])), step.member, context.out)
            return made.steps[-1]
        candidate = self.candidate(step.parents[0])
        if step.kind == "family":
            from stages.family import family

            assert isinstance(step.config, DistillConfig)
            members = family((candidate, *context.others), step.config, context)
            return Step("distill", notes=(f"{len(members)} subsets were trained together",))
        return perform(STAGES[step.stage], candidate, step.config, context).steps[-1]

    def _placed(self, fault: Fault, at: KeyPath) -> Fault:
        """A fault that a stage found, with the line of the recipe that it is about."""
        if fault.file or self.document is None:
            return fault
        inner = fault.key.removeprefix(show_key(at)).lstrip(".")
        told = self.document.fault((*at, inner) if inner else at, fault.what, fault.help)
        return replace(told, key=f"{show_key(at)}.{inner}" if inner else show_key(at))

    def _data_summary(self) -> dict[str, Any]:
        """What the report and the manifest say about the data; kept with the first step, so that a run in which
        everything is stored need not load any."""
        data = self.data
        return {
            "digest": data.digest,
            "examples": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
            "classes": list(data.classes),
            "preprocessing": data.train.preprocessing.model_dump(mode="json"),
        }

    def _teacher(self, context: Context) -> Candidate:
        model = self.recipe.model
        if model.form == "onnx":
            from stages.graph import from_onnx

            return from_onnx(self.base / model.source, context.data, context.out)
        from stages.teacher import teach  # wakes torch

        origin = Origin(model.source, dict(model.args))
        return teach(origin, self.base / model.weights if model.weights else None, model.train, context)

    def note(self, title: str, text: str) -> None:
        """Tells a person one sentence about a step or a candidate."""
        self.events("note", title, text=text)


def _looked_at(step: PlannedStep) -> tuple[str, ...]:
    """Fields of the target that a step gets to see. Costs look at what has a limit, not at the limits."""
    return (*COSTS_SEE, "budget") if step.kind == "costs" else STAGES[step.stage].looks_at(step.config)
