"""What a plan is made of: steps, what is judged in the end, and both together. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stages.base import Origin
from targets.documents import Frozen, KeyPath
from targets.target import Target

__all__ = ["Goal", "Plan", "PlannedStep"]


@dataclass(frozen=True)
class PlannedStep:
    """One step. `parents` are keys of steps; the first is the candidate that the stage takes.

    Attributes:
        kind: "teacher" makes the first candidate, "stage" changes one, "family" trains several at once and "member"
            takes one out of it, "costs" measures what structures of a network cost.
        branch: the candidate's name: "teacher", "keep 0.5".
        config: settings of the stage; for a teacher its training settings or None.
        target: the target that a stage looks at, or None if it looks at none.
        at: where the recipe asks for it.
        teacher, costs: keys of the parents that are these.
        others: keys of the parents that are more candidates.
        origin: the network whose structures cost.
        member: number in the family.
    """

    key: str
    kind: Literal["teacher", "costs", "stage", "family", "member"]
    title: str
    branch: str
    stage: str
    parents: tuple[str, ...] = ()
    config: Frozen | None = None
    target: Target | None = None
    at: KeyPath = ("model",)
    teacher: str = ""
    costs: str = ""
    others: tuple[str, ...] = ()
    origin: Origin | None = None
    member: int = 0


@dataclass(frozen=True)
class Goal:
    """What is judged on one target: candidates by branch name, and the float teacher, each by key of its last step.

    Attributes:
        trials: of branches that were pruned to a budget: branch -> its candidates, each with the aim of its prune.
    """

    target: Target
    baseline: str
    candidates: Mapping[str, str]
    trials: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Steps in an order that respects parents, and one goal per target. `data` is the digest of the data's source."""

    steps: tuple[PlannedStep, ...]
    goals: tuple[Goal, ...]
    data: str

    def step(self, key: str) -> PlannedStep:
        """The step with this key."""
        return next(step for step in self.steps if step.key == key)

    def goal(self, target: str) -> Goal:
        """What is judged on the target of this name."""
        return next(goal for goal in self.goals if goal.target.name == target)

    def title(self, key: str) -> str:
        """How the step with this key is called; the key itself for steps that are not in the plan."""
        return next((step.title for step in self.steps if step.key == key), key[:12])

    def lineage(self, key: str) -> tuple[PlannedStep, ...]:
        """The chain of steps that made a candidate, teacher first."""
        step = self.step(key)
        return (*self.lineage(step.parents[0]), step) if step.parents else (step,)
