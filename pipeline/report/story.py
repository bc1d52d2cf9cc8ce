"""What a report tells, in sentences and rows that the terminal, Markdown and HTML share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.report import words
from pipeline.report.model import CandidateRow, CheckRow, Number, Report, TargetRow
from targets.budget import METRICS, Verdict

__all__ = [
    "SPLITS",
    "TEACHER",
    "Line",
    "chosen",
    "columns",
    "findings",
    "fitting",
    "gaps",
    "interval_name",
    "lines",
    "measured",
    "merging",
    "model_file",
    "ordered",
    "payback",
    "shortfall",
    "shortfalls",
    "steps",
    "verdict",
    "warnings",
]

TEACHER = "float teacher"
SPLITS = (
    "Training and calibration use the train split, choices the validation split; the verdict is taken once, on test"
)

_ORDER = (
    "accuracy",
    "accuracy_drop_points",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_mean_ms",
    "throughput_per_s",
    "size_mb",
    "peak_memory_mb",
    "energy_mj",
    "speedup_p50",
    "speedup_mean",
    "fallback_nodes",
    "float_int8_nodes",
    "parity_percent",
)


@dataclass(frozen=True)
class Line:
    """One line of the table of candidates. The float teacher is the first and has no verdict."""

    name: str
    measured: Mapping[str, Number]
    reason: str
    verdict: Verdict | None = None
    chosen: bool = False


def lines(report: Report, target: TargetRow) -> list[Line]:
    """The float teacher and all candidates of one target, in the report's order."""
    first = Line(TEACHER, target.baseline, "the baseline of every comparison")
    return [first, *(_line(row, target) for row in report.candidates if row.target == target.target)]


def _line(row: CandidateRow, target: TargetRow) -> Line:
    reason = words.prose(row.reason)
    if row.chosen:
        reason = f"{'shipped' if target.artifact else 'nearest, not shipped'}: {reason}"
        reason = reason.replace("nearest, not shipped: nearest to the budget: ", "nearest, not shipped: ")
    return Line(row.name, row.measured, reason, row.verdict, row.chosen)


def columns(table: Iterable[Line]) -> list[str]:
    """What candidates are compared by: the usual metrics that at least one line has; counts, if one is not 0."""
    table = list(table)
    had = {m for line in table for m, got in line.measured.items() if got.value or not m.endswith("_nodes")}
    return [metric for metric in ordered(had) if metric in _ORDER]


def ordered(metrics: Iterable[str]) -> list[str]:
    """Metrics in the usual order, others behind them by name."""
    return sorted(metrics, key=lambda m: (_ORDER.index(m) if m in _ORDER else len(_ORDER), m))


def warnings(target: TargetRow) -> list[str]:
    """What the device said about the measurement that a reader should know first: "the machine was busy"."""
    notes = target.environment.get("notes", ())
    return [str(note) for note in notes] if isinstance(notes, (list, tuple)) else [str(notes)]


def findings(report: Report, target: TargetRow) -> list[str]:
    """What the target's runtime does with the chosen model that its file does not say, and answers that differ."""
    row, parity = chosen(report, target), target.test.get("parity_percent")
    told = list(row.findings) if row is not None else []
    if parity is not None and parity.value < 100:
        count = round(parity.samples * (1 - parity.value / 100))
        told.append(f"{count} of {parity.samples:,} test examples get another class than on the machine that made it")
    return told


def chosen(report: Report, target: TargetRow) -> CandidateRow | None:
    """The chosen candidate of a target."""
    return next((row for row in report.candidates if row.target == target.target and row.chosen), None)


def model_file(target: TargetRow) -> str:
    """The model's path relative to the report; empty where there is none."""
    return f"{target.folder}/model.onnx" if target.chosen else ""


def interval_name(target: TargetRow) -> str:
    """ "95 % interval", or "interval" where the level is not known."""
    return f"{target.confidence:.0%} interval".replace("%", " %", 1) if target.confidence else "interval"


def verdict(report: Report, target: TargetRow) -> str:
    """The verdict on one target as a sentence; `shortfalls` says what a budget that is not met lacks."""
    count = len(target.checks)
    if target.verdict == "failed":
        return "A step broke before this target could be judged."
    if target.verdict == "met":
        holds = {0: "the budget sets no limit", 1: "the one limit holds"}.get(count, f"all {count} limits hold")
        return f"{target.chosen} is shipped: {holds}."
    row = chosen(report, target)
    turned = ", which met the budget on the validation split" if row is not None and row.verdict == "met" else ""
    lead = "The nearest miss" if target.verdict == "missed" else "It could not be decided; nearest"
    return f"Nothing is shipped. {lead} is {target.chosen}{turned}."


def shortfalls(target: TargetRow) -> list[str]:
    """What keeps a target's budget from being met, one sentence for each open check; the missed ones first."""
    open_checks = [check for check in target.checks if check.verdict != "met"]
    return [shortfall(check) for check in sorted(open_checks, key=lambda check: check.verdict != "missed")]


def shortfall(check: CheckRow) -> str:
    """How far a check is from being met: "latency p95 0.52 ms, 0.12 ms (30 %) over the limit of 0.4 ms"."""
    name, bound = words.label(check.metric), words.limit(check.metric, check.limit)
    if check.value is None or check.low is None or check.high is None:
        return f"{name}: {check.note or 'not measured'}; the limit is {bound}"
    decimals = words.places(check.value, check.low, check.high, check.limit)
    got = words.quantity(check.metric, check.value, decimals)
    if check.verdict == "inconclusive":
        interval = words.span(check.low, check.high, decimals)
        return f"{name} {got} ({interval or 'exact'}) against a limit of {bound}: {check.note or 'undecided'}"
    gap = abs(check.value - check.limit)
    part = f" ({words.number(100 * gap / check.limit, 0 if gap > 0.1 * check.limit else 1)} %)" if check.limit else ""
    side = "under" if METRICS.get(check.metric) == "at least" else "over"
    return f"{name} {got}, {words.quantity(check.metric, gap, decimals)}{part} {side} the limit of {bound}"


def measured(check: CheckRow) -> tuple[str, str]:
    """The measured value of a check and its interval, as they are written: ("0.312 ms", "0.301 to 0.320")."""
    if check.value is None or check.low is None or check.high is None:
        return "-", "not measured"
    decimals = words.places(check.value, check.low, check.high, check.limit)
    value = words.quantity(check.metric, check.value, decimals)
    return value, words.span(check.low, check.high, decimals) or "exact"


def merging(report: Report, target: TargetRow) -> str:
    """What the mean of all candidates' outputs would give, against the chosen one; empty where there is no merge."""
    merge, row = target.merge, chosen(report, target)
    if not merge:
        return ""
    names = [str(name) for name in merge["of"]]
    latency, size = float(merge["latency_p50_ms"]), float(merge["size_mb"])
    told = (
        f"Merging (mean of the outputs of {', '.join(names[:-1])} and {names[-1]}) would reach "
        f"{words.spread('accuracy', merge['accuracy'])} on the validation split, at "
        f"{words.quantity('latency_p50_ms', latency)} p50 and {words.quantity('size_mb', size)}"
    )
    if row is None or not {"accuracy", "latency_p50_ms", "size_mb"} <= row.measured.keys():
        return told + "."
    gain = merge["accuracy"]["value"] - row.measured["accuracy"].value
    slower = words.number(latency / row.measured["latency_p50_ms"].value)
    larger = words.number(size / row.measured["size_mb"].value)
    sign = "+" if gain >= 0 else "-"
    points = words.quantity("accuracy_drop_points", abs(gain), 1)
    return f"{told}: {sign}{points} against {row.name}, for {slower}× its latency and {larger}× its size."


def payback(target: TargetRow) -> str:
    """After how many inferences the compression has saved the energy that it took; empty where that is not known."""
    found = target.payback
    if found is None or found.spent.joules is None:
        return ""
    grade, took = found.instrument.partition(":")[0], words.energy(found.spent.joules)
    lead = f"Energy ({grade}): all steps after the teacher's training took {took}"
    if found.inferences is None:
        return f"{lead}; the model saves nothing over the {TEACHER}, so that it is never paid back."
    bounds = [words.rounded(bound) if bound is not None else "no end" for bound in (found.low, found.high)]
    saved = words.quantity("energy_mj", found.saved_mj)
    return (
        f"{lead}; the model saves {saved} per inference against the {TEACHER}, so that it is paid back after "
        f"{words.rounded(found.inferences)} inferences ({bounds[0]} to {bounds[1]})."
    )


def fitting(report: Report, target: TargetRow) -> str:
    """What a prune to the budget predicted of the chosen model against what was measured, and why it was tried again;
    empty where nothing was pruned to a budget."""
    row, parts = chosen(report, target), []
    for metric, value in target.predicted.items():
        if row is not None and (got := row.measured.get(metric)) is not None and got.value:
            off = value / got.value - 1
            apart = f"{words.number(100 * abs(off), 1)} % {'above' if off > 0 else 'below'}"
            parts.append(
                f"{words.label(metric)} {words.quantity(metric, value)} "
                + (f"({words.quantity(metric, got.value)} measured: {apart})" if abs(off) >= 5e-4 else "(as measured)")
            )
    told = f"Predicted before it was trained, of {target.chosen}: {', '.join(parts)}." if parts else ""
    return " ".join(filter(None, [told, *(f"{words.prose(trial)}." for trial in target.trials)]))


def steps(report: Report) -> str:
    """How many steps were computed or found stored, how long the run took, and attar's own share of that."""
    count, stored = len(report.steps), sum(step.stored for step in report.steps)
    told = f"{words.plural(count, 'step')}: {count - stored} computed, {stored} stored"
    if stored == count:  # then all of the run is overhead, and its share says nothing
        return f"{told}; {words.duration(report.seconds)} in all"
    return (
        f"{told}; {words.duration(report.seconds)} in all, {words.share(report.frame_share)} of it attar's own overhead"
    )


def gaps(report: Report, target: TargetRow) -> list[str]:
    """What was not measured, and how far the numbers reach."""
    row = chosen(report, target)
    found = row.measured if row is not None else {}
    told = []
    for metric in METRICS:
        name, got = words.label(metric).capitalize(), found.get(metric)
        if got is not None and got.instrument.startswith("estimate"):
            told.append(f"{name} is not measured but estimated ({got.instrument}).")
        elif got is None and metric.startswith("latency_p") and found:
            told.append(f"{name} is not given: a percentile is printed only where enough samples support it.")
        elif got is None:
            told.append(f"{name} was not measured.")
    told.append(
        "Times, throughput and memory hold for the machine and runtime named here; the ratio to the float teacher was "
        "taken in turns on that machine and travels better than milliseconds do."
    )
    count = target.test["accuracy"].samples if "accuracy" in target.test else None
    split = f"the {count:,} examples of the test split" if count else "the test split"
    told.append(
        f"Accuracy is known for {split} only; robustness to other inputs, accuracy per class and the calibration of "
        "probabilities were not looked at."
    )
    return told
