"""Which models and limits a page draws: accuracy against latency, size and energy, with the frontier. `charts` places
them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline import frontier
from pipeline.report import charts, story, words
from pipeline.report.labels import Noted
from pipeline.report.model import CandidateRow, Number, Report, TargetRow
from pipeline.report.search_model import Search, SearchTarget
from targets.budget import worst

__all__ = ["COSTS", "costs", "groups", "listed", "of_search", "of_targets", "told"]

COSTS = ("latency_p50_ms", "latency_mean_ms", "size_mb", "energy_mj")
_SAME = (
    "device",
    "cpu",
    "settings",
    "onnxruntime",
)  # of the environment: what makes the times of two targets comparable


def costs(measured: Iterable[Mapping[str, Number]], limits: Iterable[str]) -> list[str]:
    """What there is a picture of: what at least two models were measured in; the mean latency where it is limited."""
    rows, limited = list(measured), set(limits)
    return [
        metric
        for metric in COSTS
        if sum({metric, "accuracy"} <= row.keys() for row in rows) >= 2
        and (metric != "latency_mean_ms" or metric in limited)
    ]


def groups(report: Report) -> list[list[TargetRow]]:
    """Targets that are one machine and runtime with several budgets, where there are at least two of them."""
    found: dict[str, list[TargetRow]] = {}
    for target in report.targets:
        same = {key: target.environment.get(key) for key in _SAME}
        found.setdefault(repr(same), []).append(target)
    return [targets for targets in found.values() if len(targets) > 1]


def told(report: Report, target: TargetRow) -> str:
    """The candidates that no other one beats in accuracy and all costs; empty where there is nothing to choose from."""
    rows = {row.name: row.measured for row in report.candidates if row.target == target.target}
    metrics = costs(rows.values(), [check.metric for check in target.checks])
    unbeaten = frontier.frontier(rows, ("accuracy", *metrics)) if metrics else ()
    if len(rows) < 2 or not unbeaten:
        return ""
    beside = [words.label(metric) for metric in metrics]
    return f"On the frontier of accuracy against {listed(beside)}: {', '.join(unbeaten)}."


def of_targets(
    report: Report, targets: Sequence[TargetRow], metric: str, width: float = 720, height: float = 400
) -> charts.Scatter | None:
    """All candidates of one target, or of several that are one machine, the limits of each, and the pick of each."""
    models = [*_teacher(targets[0], metric), *_candidates(report, targets, metric)]
    if len(targets) == 1 and models:
        models += _merged(targets[0], metric)
    checks = [(target, check) for target in targets for check in target.checks]
    ceilings = [
        (check.limit, _noted(target.target, words.limit(metric, check.limit), len(targets)))
        for target, check in checks
        if check.metric == metric
    ]
    floors = [
        (target.baseline["accuracy"].value - check.limit, target.target)
        for target, check in checks
        if check.metric == "accuracy_drop_points" and "accuracy" in target.baseline
    ]
    return _drawn(models, metric, ceilings, _shared(floors, len(targets)), width, height)


def of_search(
    made: Search, target: SearchTarget, metric: str, width: float = 720, height: float = 400
) -> charts.Scatter | None:
    """What every trial chose on a target, its limits, and its pick."""
    rows = [(trial, row) for trial in made.trials if (row := trial.on(target.target)) is not None]
    pick, models, floors = made.pick(target.target), [], []
    for trial, row in rows:
        if not {metric, "accuracy"} <= row.measured.keys():
            continue
        chosen = pick is not None and pick.trial == trial.number
        kind = "chosen" if chosen else "candidate"
        models.append(
            charts.Model(
                trial.name, kind, row.measured[metric], row.measured["accuracy"], row.verdict if chosen else ""
            )
        )
        if chosen and {metric, "accuracy"} <= row.baseline.keys():
            models.insert(0, charts.Model(story.TEACHER, "teacher", row.baseline[metric], row.baseline["accuracy"]))
        if chosen and "accuracy_drop_points" in target.limits and "accuracy" in row.baseline:
            floors = [(row.baseline["accuracy"].value - target.limits["accuracy_drop_points"], target.target)]
    ceilings = []
    if metric in target.limits:
        ceilings = [(target.limits[metric], f"limit {words.limit(metric, target.limits[metric])}")]
    return _drawn(models, metric, ceilings, _shared(floors, 1), width, height)


def _drawn(
    models: Sequence[charts.Model],
    metric: str,
    ceilings: Noted,
    floors: Noted,
    width: float,
    height: float,
) -> charts.Scatter | None:
    """The picture, with the candidates that others beat in both of its axes told apart."""
    rows = {
        model.name: {metric: model.cost, "accuracy": model.accuracy}
        for model in models
        if model.kind in ("candidate", "chosen")
    }
    unbeaten = frontier.frontier(rows, (metric, "accuracy"))
    shown = [
        charts.Model(m.name, "beaten", m.cost, m.accuracy) if m.kind == "candidate" and m.name not in unbeaten else m
        for m in models
    ]
    return charts.scatter(
        shown, metric, ceilings, floors, frontier.edge(rows, metric, "accuracy"), width=width, height=height
    )


def _teacher(target: TargetRow, metric: str) -> list[charts.Model]:
    got = target.baseline
    if not {metric, "accuracy"} <= got.keys():
        return []
    return [charts.Model(story.TEACHER, "teacher", got[metric], got["accuracy"])]


def _candidates(report: Report, targets: Sequence[TargetRow], metric: str) -> list[charts.Model]:
    """One model per file: several budgets may share it."""
    verdicts = {target.target: target.verdict for target in targets}
    rows = [row for row in report.candidates if row.target in verdicts and {metric, "accuracy"} <= row.measured.keys()]
    files: dict[tuple[str, str], list[CandidateRow]] = {}
    for row in rows:
        files.setdefault((row.name, row.sha256), []).append(row)
    found = []
    for same in files.values():
        chosen = [row for row in same if row.chosen]
        first = (chosen or same)[0]
        name = first.name
        if len(targets) > 1:
            twice = len({row.sha256 for row in rows if row.name == name}) > 1
            whose = [row.target for row in (chosen or (same if twice else ()))]
            name = f"{', '.join(whose)}: {name}" if whose else name
        kind = "chosen" if chosen else "candidate"
        verdict = worst(verdicts[row.target] for row in chosen) if chosen else ""
        found.append(charts.Model(name, kind, first.measured[metric], first.measured["accuracy"], verdict))
    return found


def _merged(target: TargetRow, metric: str) -> list[charts.Model]:
    """All candidates run one after another: the sum of what they cost, where it is known."""
    merge: Mapping[str, Any] = target.merge or {}
    if metric not in merge:
        return []
    cost = Number(value=merge[metric], low=merge[metric], high=merge[metric], samples=0, instrument="sum")
    accuracy = Number(**{key: merge["accuracy"][key] for key in Number.model_fields})
    return [charts.Model("merged", "merged", cost, accuracy)]


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _noted(name: str, limit: str, targets: int) -> str:
    return f"limit {limit}" if targets == 1 else f"{name}: {limit}"


def _shared(floors: Iterable[tuple[float, str]], targets: int) -> list[tuple[float, str]]:
    """Limits on accuracy, those that are written alike as one."""
    noted = sorted((f"{words.number(floor, 1)} %", floor, name) for floor, name in floors)
    found = []
    for shown, same in itertools.groupby(noted, key=lambda item: item[0]):
        group = list(same)
        found.append((group[0][1], _noted(", ".join(name for _, _, name in group), shown, targets)))
    return found
