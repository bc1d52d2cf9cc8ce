"""From a recipe to a graph of keyed steps. No compute: nothing is built, loaded or measured here.

    teacher ──┬── export ─────────────────────────────── baseline ──┐
              ├── distill keep 0.5 ── prune ── export ── quantize ──┼── measure (per target) ── verdict (per target)
              └── distill keep 0.25 ── ...                          ┘

A step's key is a digest of its parents' keys, its settings, the code and library versions that matter, the data, the
seed, and those facts of the target that its stage declares to look at (`Stage.sees`). Equal keys are one step: a prefix
that several students or targets share runs once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import data_sources, digests, sources
from pipeline.code import closure
from pipeline.recipe import Recipe, StageCall
from stages import STAGES
from stages.base import Stage
from stages.settings import DistillConfig, ExportConfig
from targets.documents import Frozen, KeyPath
from targets.target import Target, facts

__all__ = ["Goal", "Plan", "PlannedStep", "plan"]

_TEACHER_CODE = {"torch": "stages.teacher", "onnx": "stages.graph"}


@dataclass(frozen=True)
class PlannedStep:
    """One step. `parents` are keys of steps; the first is the candidate that the stage takes.

    Attributes:
        kind: "teacher" makes the first candidate, "stage" changes one.
        branch: the candidate's name: "teacher", "keep 0.5".
        config: settings of the stage; for a teacher its training settings or None.
        target: the target that a stage looks at, or None if it looks at none.
        at: where the recipe asks for it.
    """

    key: str
    kind: Literal["teacher", "stage"]
    title: str
    branch: str
    stage: str
    parents: tuple[str, ...] = ()
    config: Frozen | None = None
    target: Target | None = None
    at: KeyPath = ("model",)


@dataclass(frozen=True)
class Goal:
    """What is judged on one target: candidates by branch name, and the float teacher, each by key of its last step."""

    target: Target
    baseline: str
    candidates: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """Steps in an order that respects parents, and one goal per target. `data` is the digest of the data's source."""

    steps: tuple[PlannedStep, ...]
    goals: tuple[Goal, ...]
    data: str

    def step(self, key: str) -> PlannedStep:
        """The step with this key."""
        return next(step for step in self.steps if step.key == key)

    def title(self, key: str) -> str:
        """How the step with this key is called; the key itself for steps that are not in the plan."""
        return next((step.title for step in self.steps if step.key == key), key[:12])

    def lineage(self, key: str) -> tuple[PlannedStep, ...]:
        """The chain of steps that made a candidate, teacher first."""
        step = self.step(key)
        return (*self.lineage(step.parents[0]), step) if step.parents else (step,)


def plan(recipe: Recipe, base: Path) -> Plan:
    """Lays out the steps of a recipe.

    Args:
        base: the recipe's folder, which relative paths in it start from.
    """
    closure.cache_clear()  # in a notebook, files may have changed since the last plan
    return _Planner(recipe, base).plan()


class _Planner:
    def __init__(self, recipe: Recipe, base: Path) -> None:
        self.recipe, self.base = recipe, base
        self.steps: dict[str, PlannedStep] = {}
        self.data = data_sources.data_digest(recipe.data, base)
        self.form: Literal["torch", "onnx"] = recipe.model.form

    def plan(self) -> Plan:
        teacher = self._teacher()
        goals = []
        for target in self.recipe.resolved_targets(self.base):
            calls = list(_chain(self.recipe.stages, self.form))
            exports = [call.config for call in calls if call.name == "export"] or [ExportConfig()]
            baseline = teacher if self.form == "onnx" else self._stage(teacher, "export", exports[0], target, teacher)
            branches = {"teacher": teacher}
            for call in calls:
                branches = {
                    name: self._stage(parent, call.name, config, target, teacher, name)
                    for branch, parent in branches.items()
                    for name, config in _split(branch, call.config)
                }
            goals.append(Goal(target, baseline, branches))
        return Plan(tuple(self.steps.values()), tuple(goals), self.data)

    def _teacher(self) -> str:
        model = self.recipe.model
        return self._add(
            PlannedStep("", "teacher", "teacher", "teacher", "teacher", config=model.train),
            {"model": sources.model_digest(model, self.base)},
            code=_TEACHER_CODE[self.form],
            libraries=("torch",) if self.form == "torch" else ("onnx",),
        )

    def _stage(
        self, parent: str, name: str, config: Frozen, target: Target, teacher: str, branch: str | None = None
    ) -> str:
        stage: Stage = STAGES[name]
        before = self.steps[parent]
        branch = branch or before.branch
        parents = (parent, teacher) if stage.needs_teacher else (parent,)
        asked = next((i for i, call in enumerate(self.recipe.stages) if _same(call, name, config)), None)
        at: KeyPath = ("stages",) if asked is None else ("stages", asked, name)
        fields = stage.looks_at(config)
        looked_at = target if fields else None
        step = PlannedStep("", "stage", f"{name} {branch}", branch, name, parents, config, looked_at, at)
        seen: dict[str, Any] = {"target": facts(target, fields)} if fields else {}
        for student in config.students if isinstance(config, DistillConfig) else ():
            if student.source:
                seen["student"] = sources.code_digest(student.source, self.base)
        return self._add(step, seen, code=stage.run.partition(":")[0], libraries=stage.libraries)

    def _add(self, step: PlannedStep, seen: Mapping[str, Any], code: str, libraries: Sequence[str]) -> str:
        key = digests.of_json(
            {
                "stage": step.stage,
                "branch": step.branch,
                "parents": step.parents,
                "config": step.config.model_dump(mode="json") if step.config else None,
                "data": self.data,
                "seed": self.recipe.seed,
                "code": digests.of_code(code),
                "libraries": digests.of_libraries(("numpy", *libraries)),
                "seen": seen,
            }
        )
        if key not in self.steps:
            self.steps[key] = replace(step, key=key, title=self._unused(step.title))
        return key

    def _unused(self, title: str) -> str:
        """A title that no other step has: "distill keep 0.5", then "distill keep 0.5 (2)"."""
        taken = {step.title for step in self.steps.values()}
        numbered = (f"{title} ({i})" for i in itertools.count(2))
        return next(name for name in itertools.chain([title], numbered) if name not in taken)


def _same(call: StageCall, name: str, config: Frozen) -> bool:
    """Is this the recipe's call behind a planned step? A distillation's students have been dealt out by then."""
    if call.name != name or not isinstance(config, DistillConfig):
        return call.name == name and call.config == config
    assert isinstance(call.config, DistillConfig)
    alone = {"students": ()}
    return bool(config.students) == bool(call.config.students) and config.model_copy(
        update=alone
    ) == call.config.model_copy(update=alone)


def _split(branch: str, config: Frozen) -> Iterator[tuple[str, Frozen]]:
    """One branch per student of a distillation; any other stage stays on its branch."""
    if isinstance(config, DistillConfig) and config.students:
        for student in config.students:
            yield student.title, config.model_copy(update={"students": (student,)})
    else:
        yield branch, config


def _chain(calls: Sequence[StageCall], form: str) -> Iterator[StageCall]:
    """The stages as they run. `quantize` works on the exported graph, so in a recipe that names it before `export` the
    export moves in front of it."""
    exports = [call for call in calls if call.name == "export"]
    for call in calls:
        if form == "torch" and STAGES[call.name].takes == "onnx":
            yield exports[0] if exports else StageCall(name="export", config=ExportConfig())
            form = "onnx"
        if call.name == "export":
            if form == "onnx":
                continue
            form = "onnx"
        yield call
