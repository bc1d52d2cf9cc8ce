"""What a profile tells, in sentences and rows that the terminal and HTML share."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.report import words
from pipeline.report.model import Number
from pipeline.report.profile_model import ModelRow, OperatorRow, Profile

__all__ = [
    "METRICS",
    "answer",
    "called",
    "compared",
    "counted",
    "interval_name",
    "measured",
    "named",
    "placed",
    "times",
    "top",
]

METRICS = (
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_mean_ms",
    "throughput_per_s",
    "peak_memory_mb",
    "session_ms",
    "energy_mj",
    "size_mb",
)


_NAMELESS = "(without a name)"


def interval_name(found: Profile) -> str:
    """ "95 % interval"."""
    return f"{100 * found.confidence:g} % interval"


def counted(found: Profile) -> str:
    """ "batch 1, 2 threads": of the numbers in full."""
    return f"batch {found.batch}, {words.plural(found.threads, 'thread')}"


def answer(found: Profile, model: ModelRow) -> str:
    """The number that was asked for, as a sentence without its model."""
    p50 = model.numbers.get("latency_p50_ms")
    told = "p50 " + words.spread("latency_p50_ms", p50.model_dump()) if p50 else model.missing["latency_p50_ms"]
    return f"{told}, {counted(found)}"


def measured(model: ModelRow) -> list[tuple[str, str, str, str]]:
    """(metric, value, interval, what stands behind it) of all numbers, in the usual order; what is missing says why."""
    rows = []
    for metric in METRICS:
        got = model.numbers.get(metric)
        if got is not None:
            digits = words.places(got.value, got.low, got.high)
            value = words.quantity(metric, got.value, digits)
            interval = words.span(got.low, got.high, digits)
            if not interval and got.samples > 1:  # the clock's own step is as wide
                interval = " to ".join([words.number(got.value, digits)] * 2)
            rows.append((words.label(metric), value, interval, _behind(metric, got)))
        elif metric in model.missing:
            rows.append((words.label(metric), "-", "", model.missing[metric]))
    return rows


def _behind(metric: str, got: Number) -> str:
    """Samples, or the instrument where it is not the clock."""
    if metric == "energy_mj":
        return got.instrument
    if metric == "throughput_per_s":
        return "from the median latency"
    return "" if got.samples == 1 else f"{got.samples:,} samples"


def compared(found: Profile) -> list[str]:
    """One sentence for each model beside the first."""
    if not found.models:
        return []
    first, *others = found.models
    return [_compared(first.name, other.name, other.ratio) for other in others]


def _compared(first: str, other: str, ratio: Number | None) -> str:
    if ratio is None:
        return f"{first} and {other}: too few blocks to compare"
    value, low, high = ratio.value, ratio.low, ratio.high
    if low <= 1 <= high:
        shown = words.span(low, high, 3)
        return f"{first} and {other}: no difference shown (ratio {words.number(value, 3)}, {shown})"
    word = "faster"
    if high < 1:
        value, low, high, word = 1 / value, 1 / high, 1 / low, "slower"
    digits = max(2, words.places(value, low, high))
    shown = words.span(low, high, digits)
    return f"{first} is {words.number(value, digits)} times {word} than {other}{f' ({shown})' if shown else ''}"


def placed(model: ModelRow) -> str:
    """Where the operators ran."""
    if not model.placement:
        return "what ran where is not known"
    count, nodes = sum(model.placement.values()), sum((model.assignment or {}).values())
    fused = f" ({words.plural(nodes, 'node')} before fusion)" if nodes else ""
    if len(model.placement) == 1:
        return f"{words.plural(count, 'operator')}{fused}, all on {next(iter(model.placement))}"
    parts = (model.placement, model.assignment or {})
    ran, was = (", ".join(f"{n:,} on {name}" for name, n in part.items()) for part in parts)
    return f"{words.plural(count, 'operator')}: {ran}" + (
        f"; {words.plural(nodes, 'node')} before fusion: {was}" if was else ""
    )


def times(model: ModelRow) -> str:
    """What the operators' times are worth."""
    if model.profiler is None:
        return ""
    took = model.profiler
    told = f"Medians of {words.plural(took.runs, 'run')} under the runtime's profiler"
    p50 = model.numbers.get("latency_p50_ms")
    if p50 and took.run_us > 1e3 * p50.value:
        told += f", which made a run {words.number(took.run_us / 1e3 / p50.value, 2)} times as long"
    if took.added_us:
        told += f"; {words.number(took.added_us, 1)} µs that it added are taken off each"
    return told + "."


def top(model: ModelRow, count: int) -> tuple[list[OperatorRow], str]:
    """The dearest operators, and a sentence on the rest."""
    rows = sorted(model.operators, key=lambda op: -op.us)
    shown, rest = rows[:count], rows[count:]
    if not rest:
        return shown, ""
    return shown, f"{len(rest):,} more, {words.share(sum(op.share for op in rest))} of the time"


def called(op: OperatorRow) -> str:
    """An operator as the file calls it, else as the runtime does."""
    return op.node or op.name or _NAMELESS


def named(nodes: Iterable[str], most: int = 4) -> str:
    """ "a, b, c and 5 more"."""
    names = [words.clean(name) or _NAMELESS for name in nodes]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
