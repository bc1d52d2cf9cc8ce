"""From a recipe to a graph of keyed steps. No compute: nothing is built, loaded or measured here.

    costs (per network and target) ──┐                    only where a prune works back from a budget
    teacher ──┬── export ────────────│────────────────── baseline ──┐
              ├── distill keep 0.5 ──┴ prune ── export ── quantize ─┼── measure (per target) ── verdict (per target)
              └── distill keep 0.25 ── ...                          ┘

A step's key is a digest of its parents' keys, its settings, the code and library versions that matter, the data, the
seed, and those facts of the target that its stage declares to look at (`Stage.sees`). Equal keys are one step: a prefix
that several students or targets share runs once.

A prune to a budget may take several trials. Their aims are an argument here: the plan with one more trial is the plan
with one more aim, and whatever was computed keeps its key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import data_sources, digests, sources
from pipeline.code import closure
from pipeline.recipe import ModelSpec, Recipe, StageCall
from pipeline.steps import Goal, Plan, PlannedStep
from stages import COSTS_SEE, STAGES
from stages.base import Origin, Stage
from stages.settings import (
    CascadeConfig,
    CostsConfig,
    DistillConfig,
    ExportConfig,
    PruneConfig,
    QuantizeConfig,
    Student,
)
from targets.budget import SLOW
from targets.documents import Frozen, KeyPath
from targets.errors import InputError
from targets.measure import samples_for
from targets.target import Target, facts

__all__ = ["Aims", "budgeted", "plan"]

Aims = Mapping[tuple[str, str], Sequence[float]]

_TEACHER_CODE = {"torch": "stages.teacher", "onnx": "stages.graph"}
_COSTS_LIBRARIES = ("torch", "torch-pruning", "onnx", "onnxscript", "onnxruntime")
_BOUNDS = {name: PruneConfig.model_fields[name].default for name in ("trials", "minutes")}  # of the loop, not of a step


def budgeted(recipe: Recipe) -> PruneConfig | None:
    """The settings of the prune that works back from a budget, if the recipe has one."""
    configs = (call.config for call in recipe.stages)
    return next((config for config in configs if isinstance(config, PruneConfig) and config.to), None)


def plan(recipe: Recipe, base: Path, aims: Aims | None = None) -> Plan:
    """Lays out the steps of a recipe.

    Args:
        base: the recipe's folder, which relative paths in it start from.
        aims: by name of the target and branch, the aims of further trials of a prune to a budget.
    """
    closure.cache_clear()  # in a notebook, files may have changed since the last plan
    return _Planner(recipe, base, aims or {}).plan()


@dataclass
class _Front:
    """How far the branches of one target have come: key of each one's last step, and the network each began as."""

    target: Target
    baseline: str
    branches: dict[str, str]
    origins: dict[str, ModelSpec]
    trials: dict[str, dict[str, float]]
    first: set[str]  # branches that are no further trials


class _Planner:
    def __init__(self, recipe: Recipe, base: Path, aims: Aims) -> None:
        self.recipe, self.base, self.aims = recipe, base, aims
        self.steps: dict[str, PlannedStep] = {}
        self.data = data_sources.data_digest(recipe.data, base)
        self.form: Literal["torch", "onnx"] = recipe.model.form
        self.calls = tuple(_chain(recipe.stages, self.form))

    def plan(self) -> Plan:
        targets = self.recipe.resolved_targets(self.base)
        if budgeted(self.recipe):  # what is out of reach is known before anything is trained
            for target, model in itertools.product(targets, self._origins()):
                self._costs(model, target)
        teacher = self._teacher()
        exports = [call.config for call in self.calls if call.name == "export"] or [ExportConfig()]
        fronts = []
        for target in targets:
            baseline = teacher if self.form == "onnx" else self._stage(teacher, "export", exports[0], target, teacher)
            fronts.append(
                _Front(target, baseline, {"teacher": teacher}, {"teacher": self.recipe.model}, {}, {"teacher"})
            )
        for call in self.calls:
            if isinstance(call.config, DistillConfig) and call.config.together:
                self._together(call.config, fronts, teacher)
            else:
                for front in fronts:
                    self._advance(front, call, teacher)
        goals = (Goal(front.target, front.baseline, front.branches, front.trials) for front in fronts)
        return Plan(tuple(self.steps.values()), tuple(goals), self.data)

    def _origins(self) -> Iterator[ModelSpec]:
        """The networks that may arrive at a prune to a budget: the teacher, or students of their own."""
        students = [s for call in self.calls if isinstance(call.config, DistillConfig) for s in call.config.students]
        yield from [self._own(s) for s in students if s.source] if students else [self.recipe.model]

    def _own(self, student: Student) -> ModelSpec:
        assert student.source is not None
        return ModelSpec(source=student.source, args=student.args)

    def _teacher(self) -> str:
        model = self.recipe.model
        return self._add(
            PlannedStep("", "teacher", "teacher", "teacher", "teacher", config=model.train),
            {"model": sources.model_digest(model, self.base)},
            code=_TEACHER_CODE[self.form],
            libraries=("torch",) if self.form == "torch" else ("onnx",),
        )

    def _costs(self, model: ModelSpec, target: Target) -> str:
        """What structures of a network cost on a target, which its weights and the target's limits do not change."""
        bare = model.model_copy(update={"weights": None, "train": None})
        prune, quantize = budgeted(self.recipe), next((c.config for c in self.calls if c.name == "quantize"), None)
        assert prune is not None
        export = next((call.config for call in self.calls if isinstance(call.config, ExportConfig)), ExportConfig())
        config = CostsConfig(exclude=prune.exclude, opset=export.opset)
        if isinstance(quantize, QuantizeConfig):
            ships = {"int8": True, "pays": quantize.pays, "float_nodes": quantize.exclude}
            config = config.model_copy(update=ships)
        of = "" if model is self.recipe.model else f" of {model.source.rpartition(':')[2]}"
        step = PlannedStep(
            *("", "costs", f"costs{of} on {target.name}", "", "costs"),
            config=config,
            target=target,
            at=self._at("prune", prune),
            origin=Origin(model.source, dict(model.args)),
        )
        seen = {
            "model": sources.model_digest(bare, self.base),
            "target": facts(target, COSTS_SEE),
            "samples": samples_for(target),
            "slow": [metric for metric in SLOW if getattr(target.budget, metric) is not None],
        }
        return self._add(step, seen, code="stages.structure.survey", libraries=_COSTS_LIBRARIES)

    def _advance(self, front: _Front, call: StageCall, teacher: str) -> None:
        """One more stage on every branch of a target."""
        if isinstance(call.config, CascadeConfig):
            self._cascade(front, call.config, teacher)
            return
        before, front.branches = front.branches, {}
        for branch, parent in before.items():
            for name, config in self._split(front, branch, call.config):
                costs = ""
                if isinstance(config, PruneConfig) and config.to:
                    costs = self._costs(front.origins[branch], front.target)
                front.branches[name] = self._stage(parent, call.name, config, front.target, teacher, name, costs=costs)

    def _split(self, front: _Front, branch: str, config: Frozen) -> Iterator[tuple[str, Frozen]]:
        """One branch per student of a distillation, and per trial of a prune to a budget; any other stage stays on its
        branch."""
        if isinstance(config, DistillConfig) and config.students:
            for student in config.students:
                front.origins[student.title] = self._own(student) if student.source else front.origins[branch]
                front.first.add(student.title)
                yield student.title, config.model_copy(update={"students": (student,)})
        elif isinstance(config, PruneConfig) and config.to:
            for i, aim in enumerate((config.aim, *self.aims.get((front.target.name, branch), ()))):
                name = f"fit {i + 1}" if branch == "teacher" else f"{branch}, fit {i + 1}"
                front.origins[name] = front.origins[branch]
                front.trials.setdefault(branch, {})[name] = aim
                if i == 0:
                    front.first.add(name)
                yield name, config.model_copy(update={**_BOUNDS, "aim": aim})
        else:
            yield branch, config

    def _cascade(self, front: _Front, config: CascadeConfig, teacher: str) -> None:
        """One more branch, which joins two."""
        names = [name for name in front.branches if name in front.first]
        small = config.small or next((name for name in names if name != config.large), names[0])
        large = config.large or next((name for name in reversed(names) if name != small), names[-1])
        missing = [name for name in (small, large) if name not in front.branches]
        if missing or small == large:
            told = f"there is no branch {missing[0]!r}" if missing else "a cascade joins two branches"
            raise InputError(told, help=f"name two of {', '.join(front.branches)}: cascade: {{small: ..., large: ...}}")
        front.branches["cascade"] = self._stage(
            front.branches[large], "cascade", config, front.target, teacher, "cascade", (front.branches[small],)
        )

    def _together(self, config: DistillConfig, fronts: Sequence[_Front], teacher: str) -> None:
        """One training for branches of all targets; further trials, which come later, learn alone."""
        if config.students:
            for front in fronts:
                ((branch, parent),) = front.branches.items()
                family = self._family((parent,), config, teacher)
                titles = [student.title for student in config.students]
                front.origins |= dict.fromkeys(titles, front.origins[branch])
                front.first |= set(titles)
                front.branches = {t: self._member(family, i, parent, t) for i, t in enumerate(titles)}
            return
        joined = [key for front in fronts for name, key in front.branches.items() if name in front.first]
        joined = list(dict.fromkeys(joined))
        alone = config.model_copy(update={"together": False})
        family = self._family(joined, config, teacher) if len(joined) > 1 else ""
        for front in fronts:
            for name, key in front.branches.items():
                if family and name in front.first:
                    front.branches[name] = self._member(family, joined.index(key), key, name)
                else:
                    front.branches[name] = self._stage(key, "distill", alone, front.target, teacher, name)

    def _family(self, parents: Sequence[str], config: DistillConfig, teacher: str) -> str:
        first, *others = parents
        step = PlannedStep(
            *("", "family", "distill together", "together", "distill", (first, teacher, *others), config),
            at=self._at("distill", config),
            teacher=teacher,
            others=tuple(others),
        )
        return self._add(step, {}, code="stages.family", libraries=STAGES["distill"].libraries)

    def _member(self, family: str, number: int, parent: str, branch: str) -> str:
        made = self.steps[family]
        step = PlannedStep("", "member", f"distill {branch}", branch, "distill", (parent, family), made.config)
        step = replace(step, member=number, at=made.at)
        return self._add(step, {"member": number}, code="stages.family", libraries=("torch",))

    def _stage(
        self,
        parent: str,
        name: str,
        config: Frozen,
        target: Target,
        teacher: str,
        branch: str | None = None,
        others: tuple[str, ...] = (),
        costs: str = "",
    ) -> str:
        stage: Stage = STAGES[name]
        branch = branch or self.steps[parent].branch
        teacher = teacher if stage.needs_teacher else ""
        parents = tuple(filter(None, (parent, teacher, *others, costs)))
        fields = stage.looks_at(config)
        looked_at = target if fields else None
        step = PlannedStep("", "stage", f"{name} {branch}", branch, name, parents, config, looked_at)
        step = replace(step, at=self._at(name, config), teacher=teacher, others=others, costs=costs)
        seen: dict[str, Any] = {"target": facts(target, fields)} if fields else {}
        for student in config.students if isinstance(config, DistillConfig) else ():
            if student.source:
                seen["student"] = sources.code_digest(student.source, self.base)
        return self._add(step, seen, code=stage.run.partition(":")[0], libraries=stage.libraries)

    def _at(self, name: str, config: Frozen) -> KeyPath:
        asked = next((i for i, call in enumerate(self.recipe.stages) if _same(call, name, config)), None)
        return ("stages",) if asked is None else ("stages", asked, name)

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
    """Is this the recipe's call behind a planned step? A distillation's students, a prune's aim and bounds, and
    what was trained together have been dealt out by then."""
    if call.name != name:
        return False
    if isinstance(config, DistillConfig):
        assert isinstance(call.config, DistillConfig)
        if bool(config.students) != bool(call.config.students):
            return False
    dealt: dict[str, Any] = {
        k: None for k in ("students", "together", "aim", *_BOUNDS) if k in type(config).model_fields
    }
    return config.model_copy(update=dealt) == call.config.model_copy(update=dealt)


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
