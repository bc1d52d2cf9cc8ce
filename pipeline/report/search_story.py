"""What a search's report tells, in sentences and rows that the terminal, Markdown and HTML share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report import story, words
from pipeline.report.model import Number
from pipeline.report.pictures import listed
from pipeline.report.search_model import PickRow, Search, SearchTarget, TrialRow
from targets.budget import Verdict

__all__ = ["Line", "columns", "ended", "frontier", "lines", "shortfalls", "space", "trials", "verdict"]

_COLUMNS = (
    *("accuracy", "accuracy_drop_points", "latency_p50_ms", "latency_mean_ms"),
    *("size_mb", "energy_mj", "speedup_p50"),
)


@dataclass(frozen=True)
class Line:
    """One trial on one target, as the table has it."""

    name: str
    settings: tuple[str, ...]
    candidate: str
    measured: Mapping[str, Number]
    verdict: Verdict
    reason: str
    chosen: bool
    unbeaten: bool


def trials(made: Search) -> str:
    """How many trials there were, and how the settings were proposed."""
    broken = sum(not trial.found for trial in made.trials)
    told = f"{words.plural(len(made.trials), 'trial')}, proposed by {made.sampler}"
    told += f", {made.earlier} of them by an earlier call" if made.earlier else ""
    told += f"; {broken} failed" if broken else ""
    computed, stored = (sum(getattr(t, kind) for t in made.trials[made.earlier :]) for kind in ("computed", "stored"))
    return f"{told}; {computed} steps computed, {stored} stored; {words.duration(made.seconds)} in all"


def ended(made: Search) -> str:
    """Why the search ended."""
    return f"It ended as {made.ended}."


def space(made: Search) -> list[tuple[str, str]]:
    """The space, as (key, values)."""
    return [(key, _values(of)) for key, of in made.space.items()]


def _values(of: Any) -> str:
    if not isinstance(of, Mapping):
        return ", ".join(json.dumps(value, ensure_ascii=False) for value in of)
    told = f"{of['low']:g} to {of['high']:g}"
    return told + (f" in steps of {of['step']:g}" if of["step"] else "") + (", logarithmic" if of["log"] else "")


def verdict(made: Search, target: SearchTarget) -> str:
    """The pick for a target, as a sentence."""
    pick = made.pick(target.target)
    if pick is None:
        return "No trial could be measured."
    count = len(pick.checks)
    holds = {0: "the budget sets no limit", 1: "the one limit holds"}.get(count, f"all {count} limits hold")
    whose = f"trial {pick.trial} ({pick.candidate})"
    if pick.verdict == "met":
        return f"The pick is {whose}: {holds}, with accuracy on the test split."
    turned = made.trial(pick.trial).on(target.target)
    met = ", which met the budget on the validation split" if turned is not None and turned.verdict == "met" else ""
    if pick.verdict == "missed":
        return f"Nothing meets the budget. The nearest miss is {whose}{met}."
    return f"It could not be decided. Nearest to the budget is {whose}{met}."


def shortfalls(pick: PickRow | None) -> list[str]:
    """What keeps a pick from meeting the budget."""
    checks = pick.checks if pick is not None else ()
    open_checks = [check for check in checks if check.verdict != "met"]
    return [story.shortfall(check) for check in sorted(open_checks, key=lambda check: check.verdict != "missed")]


def frontier(made: Search, target: SearchTarget) -> str:
    """The trials that no other one beats."""
    if len(target.frontier) == 0 or len(made.trials) < 2:
        return ""
    beside = listed([words.label(metric) for metric in target.metrics])
    return f"On the frontier of {beside}: {', '.join(made.trial(number).name for number in target.frontier)}."


def lines(made: Search, target: SearchTarget) -> list[Line]:
    """All trials on a target: the pick, the others on the frontier, the beaten ones, those that failed."""
    pick = made.pick(target.target)
    chosen = pick.trial if pick is not None else None
    found = [_line(trial, target, trial.number == chosen) for trial in made.trials]
    return sorted(found, key=lambda line: (not line.chosen, not line.unbeaten, line.verdict == "failed"))


def _line(trial: TrialRow, target: SearchTarget, chosen: bool) -> Line:
    settings = tuple(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in trial.settings.items())
    row = trial.on(target.target)
    if row is None:
        return Line(trial.name, settings, "", {}, "failed", trial.reason, False, False)
    unbeaten = trial.number in target.frontier
    return Line(
        trial.name, settings, row.candidate, row.measured, row.verdict, words.prose(row.reason), chosen, unbeaten
    )


def columns(table: list[Line], target: SearchTarget) -> list[str]:
    """The metrics that at least one trial has; the mean latency where it is limited."""
    had = [metric for metric in _COLUMNS if any(metric in line.measured for line in table)]
    return [metric for metric in had if metric != "latency_mean_ms" or metric in target.limits]
