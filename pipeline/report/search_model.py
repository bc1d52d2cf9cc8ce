"""What a search found, as data. All that is shown of it (terminal, JSON, Markdown, HTML) is made from this alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from pipeline.report.model import CheckRow, Number
from targets.budget import Verdict
from targets.documents import Frozen

__all__ = ["FoundRow", "PickRow", "Search", "SearchTarget", "TrialRow"]


class FoundRow(Frozen):
    """The candidate that a trial chose on one target. Everything is on the validation split.

    `reason` sets it beside the other trials' and is empty until the search ends; `baseline` is the float teacher,
    measured in turns with it.
    """

    target: str
    candidate: str
    verdict: Verdict
    measured: dict[str, Number]
    baseline: dict[str, Number]
    reason: str = ""


class TrialRow(Frozen):
    """One trial. `verdict` is the worst of its targets'; `failed`, with the reason, where nothing was measured.

    Attributes:
        settings: what it set, by dotted key.
        computed, stored: how many of its steps were computed and found stored.
    """

    number: int
    settings: dict[str, JsonValue]
    verdict: Verdict
    reason: str = ""
    seconds: float = 0.0
    computed: int = 0
    stored: int = 0
    found: tuple[FoundRow, ...] = ()

    @property
    def name(self) -> str:
        """How tables and pictures call it."""
        return f"trial {self.number}"

    def on(self, target: str) -> FoundRow | None:
        """What it found on a target."""
        return next((found for found in self.found if found.target == target), None)


class PickRow(Frozen):
    """The best trial for one target. `verdict`, `checks` and `test` are on the test split, taken once."""

    target: str
    trial: int
    candidate: str
    verdict: Verdict
    checks: tuple[CheckRow, ...]
    test: dict[str, Number]
    command: str


class SearchTarget(Frozen):
    """One target: its limits, and the trials that no other beats on it (see `pipeline.frontier`)."""

    target: str
    summary: str
    limits: dict[str, float]
    frontier: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    confidence: float | None = None


class Search(Frozen):
    """One search, whole. The verdict is the worst of its picks'; `failed` where no trial could be measured.

    Attributes:
        sampler: who proposed settings: grid, random, tpe.
        ended: why no further trial was begun.
        earlier: how many trials an earlier call had finished.
    """

    version: Literal[1] = 1
    attar: str
    name: str
    verdict: Verdict
    recipe: dict[str, Any]
    space: dict[str, Any]
    sampler: str
    ended: str
    earlier: int
    targets: tuple[SearchTarget, ...]
    trials: tuple[TrialRow, ...]
    picks: tuple[PickRow, ...]
    seconds: float
    libraries: dict[str, str] = Field(default_factory=dict)

    def pick(self, target: str) -> PickRow | None:
        """The pick for a target."""
        return next((pick for pick in self.picks if pick.target == target), None)

    def trial(self, number: int) -> TrialRow:
        """The trial with this number."""
        return next(trial for trial in self.trials if trial.number == number)
