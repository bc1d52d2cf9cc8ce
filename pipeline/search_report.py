"""What a search found, as rows of its report, and the folder that it leaves.

<out>/report.html  report.json  report.md        every trial, the frontier, the picks
<out>/events.jsonl                               what happened, in order
<out>/search.lock                                what was searched, and with which libraries
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pipeline import frontier, space
from pipeline.choose import Choice, choose
from pipeline.judging import Outcome
from pipeline.report import search_html, search_markdown
from pipeline.report.model import CheckRow, Number, numbers
from pipeline.report.search_model import FoundRow, PickRow, Search, SearchTarget, TrialRow
from pipeline.validate import BASELINE, read
from targets.budget import Measurement, worst
from targets.files import write_atomically
from targets.target import Target

__all__ = ["MARK", "command", "found", "pick", "ranked", "target_row", "write"]

MARK = "search.lock"
_AXES = ("accuracy_drop_points", "latency_p50_ms", "latency_mean_ms", "size_mb", "energy_mj")


def found(target: Target, measured: Mapping[str, Any], choice: Choice) -> FoundRow:
    """What a trial chose on a target.

    Args:
        measured: what `validate.on_validation` gave.
    """
    best = choice.ranked[0]
    return FoundRow(
        target=target.name,
        candidate=best.name,
        verdict=best.verdict,
        measured=numbers(read(measured["models"][best.name])),
        baseline=numbers(read(measured["models"][BASELINE])),
    )


def ranked(trials: Sequence[TrialRow], targets: Iterable[Target]) -> tuple[list[TrialRow], dict[str, int]]:
    """The trials with the reason of each on each target, and the number of the best on each."""
    reasons: dict[tuple[int, str], str] = {}
    best: dict[str, int] = {}
    for target in targets:
        measured = {trial.number: row.measured for trial in trials if (row := trial.on(target.name)) is not None}
        if not measured:
            continue
        named = {trial.name: trial.number for trial in trials}
        choice = choose({f"trial {number}": _measurements(got) for number, got in measured.items()}, target.budget)
        best[target.name] = named[choice.chosen]
        reasons |= {(named[one.name], target.name): one.reason for one in choice.ranked}
    done = []
    for trial in trials:
        rows = [row.model_copy(update={"reason": reasons[trial.number, row.target]}) for row in trial.found]
        done.append(trial.model_copy(update={"found": tuple(rows)}))
    return done, best


def _measurements(row: Mapping[str, Number]) -> dict[str, Measurement]:
    return {name: Measurement(name, **number.model_dump()) for name, number in row.items()}


def target_row(target: Target, trials: Sequence[TrialRow]) -> SearchTarget:
    """A target with its frontier, in all that its trials were measured in."""
    measured = {trial.number: row.measured for trial in trials if (row := trial.on(target.name)) is not None}
    limits = target.budget.model_dump(exclude_none=True)
    metrics = [m for m in _AXES if measured and all(m in row for row in measured.values())]
    if "latency_mean_ms" not in limits and "latency_mean_ms" in metrics:
        metrics.remove("latency_mean_ms")
    return SearchTarget(
        target=target.name,
        summary=target.summary,
        limits=limits,
        frontier=frontier.frontier(measured, metrics) if metrics else (),
        metrics=tuple(metrics),
        confidence=target.meter.confidence,
    )


def pick(target: Target, trial: TrialRow, outcome: Outcome, made_by: str) -> PickRow:
    """The best trial for a target, with its verdict on test."""
    return PickRow(
        target=target.name,
        trial=trial.number,
        candidate=outcome.choice.chosen,
        verdict=worst(check.verdict for check in outcome.checks),
        checks=tuple(CheckRow(**asdict(check)) for check in outcome.checks),
        test=numbers(outcome.test),
        command=made_by,
    )


def command(file: str, overrides: Mapping[str, str], settings: Mapping[str, JsonValue]) -> str:
    """What makes the pick: `attar run recipe.yaml --set stages.0.prune.keep=0.5`."""
    sets = [f"{key}={value}" for key, value in {**overrides, **space.as_sets(settings)}.items()]
    return shlex.join(["attar", "run", file, *(word for each in sets for word in ("--set", each))])


def write(folder: Path, made: Search, key: str) -> None:
    """Writes everything but the event log into `folder`."""
    lock = {"version": 1, "search": key, "recipe": made.recipe, "space": made.space, "libraries": made.libraries}
    write_atomically(folder / MARK, _json(lock))
    write_atomically(folder / "report.html", search_html.render(made).encode())
    write_atomically(folder / "report.md", search_markdown.render(made).encode())
    write_atomically(folder / "report.json", _json(made.model_dump(mode="json")))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
