"""Trials of a prune to a budget, as a run drives them: what the last one spent decides the next one's aim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import validate
from pipeline.plan import budgeted, plan
from pipeline.steps import Goal, Plan, PlannedStep
from pipeline.trials import Trial, next_aim
from stages.settings import PruneConfig
from targets.budget import judge

if TYPE_CHECKING:
    from pipeline.runner import Runner

__all__ = ["Fitting"]


@dataclass
class Fitting:
    """All trials of one run.

    Attributes:
        aims: of further trials, by target and branch.
        told: by target and trial, why another one followed, or none.
    """

    runner: Runner
    aims: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    told: dict[str, dict[str, str]] = field(default_factory=dict)

    def again(self, goal: Goal, found: Mapping[str, Any]) -> bool:
        """Runs one more trial for each branch of a target that needs one.

        Args:
            found: what `validate.on_validation` gave for all candidates so far.

        Returns:
            Whether there is anything new to measure.
        """
        config = budgeted(self.runner.recipe)
        if config is None:
            return False
        more = [self._branch(goal, branch, found, config) for branch in goal.trials]  # each, even if one has run
        return any(more)

    def _branch(self, goal: Goal, branch: str, found: Mapping[str, Any], config: PruneConfig) -> bool:
        """One more trial of one branch, if it needs one and may have it."""
        trials = goal.trials[branch]
        tried = []
        for name, used in trials.items():
            checks = judge(goal.target.budget, validate.read(found["models"][name]))
            entry = self.runner.entry(_prune(self.runner.plan, goal, name).key)
            tried.append(Trial(used, checks, whole=not entry.values["changed"]))
        aim, why = next_aim(tried, config.aim)
        if aim is not None and (spent := self._used_up(goal, list(trials), config)):
            aim, why = None, f"{why}, but {spent}"
        if aim is not None and (obstacle := self._run(goal.target.name, branch, aim)):
            aim, why = None, f"{why}, but {obstacle}"
        last, told = list(trials)[-1], self.told.setdefault(goal.target.name, {})
        if why and told.get(last) != why:  # a branch that is done is asked again while another one goes on
            told[last] = why
            self.runner.note(last, why)
        return aim is not None

    def _used_up(self, goal: Goal, names: Sequence[str], config: PruneConfig) -> str:
        """Which bound on trials is reached; empty if none is."""
        if len(names) >= config.trials:
            return f"prune.trials ({config.trials}) are used up"
        keys = {step.key for n in names for step in _from_prune(self.runner.plan.lineage(goal.candidates[n]))}
        seconds = sum(done.seconds for done in self.runner.done if done.key in keys)
        return f"prune.minutes ({config.minutes:g}) are used up" if seconds > config.minutes * 60 else ""

    def _run(self, target: str, branch: str, aim: float) -> str:
        """Runs a branch with one more aim up to its end; or says why not."""
        aims = {**self.aims, (target, branch): (*self.aims.get((target, branch), ()), aim)}
        laid = plan(self.runner.recipe, self.runner.base, aims)
        if not {step.key for step in self.runner.plan.steps} <= {step.key for step in laid.steps}:
            return "code or data changed meanwhile: the same command starts from them as they are now"
        goal = laid.goal(target)
        *before, new = goal.trials[branch]
        prune = _prune(laid, goal, new)
        for step in laid.lineage(prune.key):
            self.runner.step(step)
        made = self.runner.entry(prune.key).files["weights.safetensors"]
        known = (self.runner.entry(_prune(laid, goal, name).key) for name in before)
        if any(entry.files["weights.safetensors"] == made for entry in known):
            return "that leads to a structure that was tried already"
        self.aims, self.runner.plan = aims, laid
        for step in laid.steps:
            self.runner.step(step)
        return ""


def _from_prune(lineage: tuple[PlannedStep, ...]) -> Iterator[PlannedStep]:
    begun = False
    for step in lineage:
        begun = begun or bool(step.costs)
        if begun:
            yield step


def _prune(laid: Plan, goal: Goal, name: str) -> PlannedStep:
    """The step that pruned a candidate to the budget."""
    return next(_from_prune(laid.lineage(goal.candidates[name])))
