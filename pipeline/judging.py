"""From finished candidates to a verdict on one target; steps like any other, keyed and stored.

measure         all candidates and the float teacher, in turns
                pruned to the budget, and too much or too little is spent?  one more trial, and measure again
choose          on validation, by the budget
verdict         accuracy of the chosen one on test, once
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import digests, reference, validate
from pipeline.choose import Choice, choose
from pipeline.fitting import Fitting
from pipeline.steps import Goal
from targets.budget import Check, Measurement, judge
from targets.target import MEASURED_BY, Target, facts

if TYPE_CHECKING:
    from pipeline.runner import Runner

__all__ = ["Judging", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What was found on one target. `checks` are taken on test; `choice` was made on validation; `trials` says why a
    prune to the budget was tried again, or not."""

    goal: Goal
    choice: Choice
    measured: Mapping[str, Mapping[str, Measurement]]
    raw: Mapping[str, Any]
    merge: Mapping[str, Any] | None
    findings: Mapping[str, tuple[str, ...]]
    test: Mapping[str, Measurement]
    checks: tuple[Check, ...]
    reference: bytes
    trials: tuple[str, ...] = ()


class Judging:
    """The end of one run, target by target."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self._fitting = runner, Fitting(runner)

    def chosen(self, name: str) -> tuple[dict[str, Any], Choice]:
        """Measures all candidates of a target, tries again what was pruned to its budget and spends too much or too
        little, and chooses. Looks at validation only.

        Args:
            name: of the target.

        Returns:
            What `validate.on_validation` gave, and the choice.
        """
        found = self._measured(self.runner.plan.goal(name))
        while self._fitting.again(self.runner.plan.goal(name), found):
            found = self._measured(self.runner.plan.goal(name))
        goal = self.runner.plan.goal(name)
        measured = {candidate: validate.read(found["models"][candidate]) for candidate in goal.candidates}
        return found, choose(measured, goal.target.budget)

    def judge(self, name: str) -> Outcome:
        """Chooses on a target, and takes the verdict of the chosen one, on test."""
        found, choice = self.chosen(name)
        goal = self.runner.plan.goal(name)
        measured = {candidate: validate.read(values) for candidate, values in found["models"].items()}
        test, kept = self._tested(goal, choice.chosen)
        on_target = {**measured[choice.chosen], "accuracy_drop_points": test["accuracy_drop_points"]}
        findings = {candidate: tuple(told) for candidate, told in found["findings"].items()}
        checks = judge(goal.target.budget, on_target)
        trials = tuple(f"{trial}: {why}" for trial, why in self._fitting.told.get(name, {}).items())
        return Outcome(goal, choice, measured, found["raw"], found["merge"], findings, test, checks, kept, trials)

    def _measured(self, goal: Goal) -> dict[str, Any]:
        """All candidates and the float teacher on the target, with accuracy on validation."""
        target, title = goal.target, f"measure on {goal.target.name}"
        ends = {validate.BASELINE: goal.baseline, **goal.candidates}

        def measure(out: Path, _scratch: Path) -> dict[str, Any]:
            models = {name: self._onnx(key) for name, key in ends.items()}
            say = partial(self.runner.note, title)
            with self.runner.measuring(title):
                found = validate.on_validation(
                    target, models, self.runner.data.validation, say, self.runner.device(target)
                )
            (out / "measured.json").write_text(json.dumps(found), encoding="utf-8")
            return {}

        entry = self.runner.keyed(self._key_on(target, "measure", ends), title, "measure", measure)
        return json.loads(self.runner.store.read(entry, "measured.json"))  # type: ignore[no-any-return]

    def _tested(self, goal: Goal, chosen: str) -> tuple[dict[str, Measurement], bytes]:
        """Accuracy of the chosen candidate beside the float teacher's, on test; and its reference file."""
        ends = {validate.BASELINE: goal.baseline, chosen: goal.candidates[chosen]}

        def verdict(out: Path, _scratch: Path) -> dict[str, Any]:
            baseline, artifact = (self._onnx(key) for key in (goal.baseline, goal.candidates[chosen]))
            keep, device = self.runner.recipe.data.reference, self.runner.device(goal.target)
            test, kept = validate.on_test(goal.target, baseline, artifact, self.runner.data.test, device, keep)
            reference.save(kept, out / reference.NAME)
            return {"test": test}

        key = self._key_on(goal.target, "verdict", ends)
        entry = self.runner.keyed(key, f"verdict on {goal.target.name}", "verdict", verdict)
        return validate.read(entry.values["test"]), self.runner.store.read(entry, reference.NAME)

    def _key_on(self, target: Target, stage: str, ends: Mapping[str, str]) -> str:
        """Key of a step that looks at the machine itself. Limits on times enter that of measuring, which goes on until
        they are decided; a change of another limit is judged anew from what was measured."""
        limits = target.budget.model_dump(exclude_none=True) if stage == "measure" else {}
        return digests.of_json(
            {
                "stage": stage,
                "parents": ends,
                "target": facts(target, MEASURED_BY),
                "reference": self.runner.recipe.data.reference if stage == "verdict" else None,
                "limits": {name: limit for name, limit in limits.items() if name.startswith(("latency_", "speedup_"))},
                "machine": self.runner.device(target).identity(),
                "data": self.runner.plan.data,
                "seed": self.runner.recipe.seed,
                "code": digests.of_code("pipeline.validate"),
                "libraries": digests.of_libraries(("numpy", "onnxruntime")),
            }
        )

    def _onnx(self, key: str) -> Path:
        path = self.runner.candidate(key).onnx
        assert path is not None, "a chain ends in an ONNX file: the recipe's check holds this"
        return path
