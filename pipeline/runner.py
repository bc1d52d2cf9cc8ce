"""The loop that runs a plan.

    for each step of the plan, parents first:
        in the store?   say so
        else            lock it, look again, compute it in a fresh folder, store it
    for each target:
        measure         all candidates and the float teacher, in turns          } steps like any other:
        choose          on validation, by the budget                            } keyed and stored
        verdict         accuracy of the chosen one on test, once                }
    report

A kill loses at most the step in hand, and of a training only the epoch in hand. A step that fails is not stored.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pipeline import digests, reference, validate
from pipeline.choose import Choice, choose
from pipeline.events import Events
from pipeline.plan import Goal, Plan, PlannedStep
from pipeline.recipe import Recipe
from pipeline.splits import load_data
from pipeline.store import Entry, Store
from stages import STAGES
from stages.base import Candidate, Context, Origin, perform
from stages.data import Splits
from targets.budget import Check, Measurement, judge
from targets.devices import Device
from targets.documents import Document, KeyPath, show_key
from targets.energy import Spent, counting
from targets.errors import AttarError, Fault, InputError, StageError
from targets.measure import connect
from targets.target import Target, facts, load, only

__all__ = ["Outcome", "Runner", "StepDone"]


_LOOKED_AT = ("device", "machine", "has_any", "has_none", "runtime", "meter", "energy")


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


@dataclass(frozen=True)
class Outcome:
    """What was found on one target. `checks` are taken on test; `choice` was made on validation."""

    goal: Goal
    choice: Choice
    measured: Mapping[str, Mapping[str, Measurement]]
    raw: Mapping[str, Any]
    merge: Mapping[str, Any] | None
    findings: Mapping[str, tuple[str, ...]]
    test: Mapping[str, Measurement]
    checks: tuple[Check, ...]
    reference: bytes


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
            self._keyed(step.key, step.title, step.stage, partial(self._compute, step))
        outcomes = [self._judge(goal) for goal in self.plan.goals]
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

    def _keyed(self, key: str, title: str, stage: str, compute: Callable[[Path, Path], Mapping[str, Any]]) -> Entry:
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
        seen = STAGES[step.stage].looks_at(step.config) if step.target else ()
        context = Context(
            data=self.data,
            out=out,
            scratch=scratch,
            seed=self.recipe.seed,
            teacher=self.candidate(step.parents[1]) if len(step.parents) > 1 else None,
            target=only(step.target, seen) if step.target else None,
            say=partial(self._note, step.title),
            progress=lambda share, what: self.events("progress", step.title, share=share, what=what),
        )
        try:
            if step.kind == "teacher":
                made = self._teacher(context)
            else:
                assert step.config is not None
                made = perform(STAGES[step.stage], self.candidate(step.parents[0]), step.config, context)
        except InputError as error:
            raise InputError([self._placed(fault, step.at) for fault in error.faults]) from error
        last = made.steps[-1]
        for note in last.notes:
            context.say(note)
        done = {"changed": last.changed, "notes": list(last.notes), "metrics": dict(last.metrics)}
        return done if step.parents else {**done, "data": self._data_summary()}

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

    def _judge(self, goal: Goal) -> Outcome:
        """Measures all candidates, chooses one, and takes its verdict."""
        found = self._measured(goal)
        measured = {name: validate.read(values) for name, values in found["models"].items()}
        choice = choose({name: measured[name] for name in goal.candidates}, goal.target.budget)
        test, kept = self._tested(goal, choice.chosen)
        on_target = {**measured[choice.chosen], "accuracy_drop_points": test["accuracy_drop_points"]}
        findings = {name: tuple(told) for name, told in found["findings"].items()}
        checks = judge(goal.target.budget, on_target)
        return Outcome(goal, choice, measured, found["raw"], found["merge"], findings, test, checks, kept)

    def _measured(self, goal: Goal) -> dict[str, Any]:
        """All candidates and the float teacher on the target, with accuracy on validation."""
        target, title = goal.target, f"measure on {goal.target.name}"
        ends = {validate.BASELINE: goal.baseline, **goal.candidates}

        def measure(out: Path, _scratch: Path) -> dict[str, Any]:
            models = {name: self._onnx(key) for name, key in ends.items()}
            say = partial(self._note, title)
            with self.store.lock("measure", partial(self.events, "waiting", title)):  # one run at a time measures
                found = validate.on_validation(target, models, self.data.validation, say, self.device(target))
            (out / "measured.json").write_text(json.dumps(found), encoding="utf-8")
            return {}

        entry = self._keyed(self._key_on(target, "measure", ends), title, "measure", measure)
        return json.loads(self.store.read(entry, "measured.json"))  # type: ignore[no-any-return]

    def _tested(self, goal: Goal, chosen: str) -> tuple[dict[str, Measurement], bytes]:
        """Accuracy of the chosen candidate beside the float teacher's, on test; and its reference file."""
        ends = {validate.BASELINE: goal.baseline, chosen: goal.candidates[chosen]}

        def verdict(out: Path, _scratch: Path) -> dict[str, Any]:
            baseline, artifact = (self._onnx(key) for key in (goal.baseline, goal.candidates[chosen]))
            keep, device = self.recipe.data.reference, self.device(goal.target)
            test, kept = validate.on_test(goal.target, baseline, artifact, self.data.test, device, keep)
            reference.save(kept, out / reference.NAME)
            return {"test": test}

        key = self._key_on(goal.target, "verdict", ends)
        entry = self._keyed(key, f"verdict on {goal.target.name}", "verdict", verdict)
        return validate.read(entry.values["test"]), self.store.read(entry, reference.NAME)

    def _key_on(self, target: Target, stage: str, ends: Mapping[str, str]) -> str:
        """Key of a step that looks at the machine itself. Limits on times enter that of measuring, which goes on until
        they are decided; a change of another limit is judged anew from what was measured."""
        limits = target.budget.model_dump(exclude_none=True) if stage == "measure" else {}
        return digests.of_json(
            {
                "stage": stage,
                "parents": ends,
                "target": facts(target, _LOOKED_AT),
                "reference": self.recipe.data.reference if stage == "verdict" else None,
                "limits": {name: limit for name, limit in limits.items() if name.startswith(("latency_", "speedup_"))},
                "machine": self.device(target).identity(),
                "data": self.plan.data,
                "seed": self.recipe.seed,
                "code": digests.of_code("pipeline.validate"),
                "libraries": digests.of_libraries(("numpy", "onnxruntime")),
            }
        )

    def _note(self, title: str, text: str) -> None:
        self.events("note", title, text=text)

    def _onnx(self, key: str) -> Path:
        path = self.candidate(key).onnx
        assert path is not None, "a chain ends in an ONNX file: the recipe's check holds this"
        return path
