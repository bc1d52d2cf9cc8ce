"""What may be spent on a target, and whether a model stays within it.

`judge` is pure: no clock, no files, no device. It compares measurements (each with an interval) with limits and says
`met`, `missed` or `inconclusive`; the last when the interval straddles the limit, so that more samples could turn it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from targets.documents import Frozen

__all__ = ["COSTS", "METRICS", "SLOW", "Budget", "Check", "Measurement", "Verdict", "judge", "worst"]

Verdict = Literal["met", "missed", "inconclusive", "failed"]

Positive = Annotated[float, Field(gt=0)]


class Budget(Frozen):
    """Limits for one target. `None` means: not limited."""

    accuracy_drop_points: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="percentage points of accuracy that may be lost against the float teacher on the test split"
    )
    latency_p50_ms: Positive | None = Field(None, description="median latency of one request at batch 1, milliseconds")
    latency_p95_ms: Positive | None = Field(None, description="95th percentile of latency at batch 1, milliseconds")
    latency_p99_ms: Positive | None = Field(None, description="99th percentile of latency at batch 1, milliseconds")
    latency_mean_ms: Positive | None = Field(
        None,
        description="mean latency of one request at batch 1, milliseconds: what counts where some inputs take longer",
    )
    throughput_per_s: Positive | None = Field(None, description="inferences a second that must at least be reached")
    size_mb: Positive | None = Field(None, description="size of the model file, megabytes (10^6 bytes)")
    peak_memory_mb: Positive | None = Field(None, description="peak resident memory of a serving process, megabytes")
    energy_mj: Positive | None = Field(None, description="energy of one inference, millijoules, idle subtracted")
    speedup_p50: Positive | None = Field(
        None,
        description="times that p50 must at least be shorter than the float model's, in turns; 1: no slower",
    )
    fallback_nodes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="nodes that may run on another execution provider than the one asked for"
    )
    float_int8_nodes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="nodes that are quantized in the file and may yet run in float"
    )

    @property
    def costs(self) -> dict[str, float]:
        """The limits that a smaller structure helps to hold, by metric."""
        return {name: limit for name, limit in self.model_dump(exclude_none=True).items() if name in COSTS}


METRICS: Mapping[str, Literal["at most", "at least"]] = {
    name: "at least" if name in ("throughput_per_s", "speedup_p50") else "at most" for name in Budget.model_fields
}

COSTS = frozenset(METRICS) - {"accuracy_drop_points", "fallback_nodes", "float_int8_nodes"}
"""Metrics that a smaller structure makes better."""

SLOW = ("throughput_per_s", "peak_memory_mb", "energy_mj")
"""Metrics of costs that take more to measure than latencies do."""


@dataclass(frozen=True)
class Measurement:
    """One measured number with its interval.

    Attributes:
        metric: a key of `METRICS`, or any other name for what is only shown (`accuracy`, `speedup_p50`).
        value: the point estimate, in the unit that the name ends with.
        low, high: the confidence interval; both equal `value` where the number is exact (a file's size).
        samples: how many observations stand behind it.
        instrument: what measured it: "onnxruntime 1.32, wall clock", "file size", "estimate: ...".
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    instrument: str


@dataclass(frozen=True)
class Check:
    """One limit set against one measurement. `value`, `low`, `high` are None where nothing was measured."""

    metric: str
    limit: float
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    note: str = ""


def judge(budget: Budget, measured: Mapping[str, Measurement]) -> tuple[Check, ...]:
    """Sets every stated limit against its measurement, in the order of `Budget`'s fields.

    A limit without a measurement is `inconclusive`: it was asked for and could not be shown. An estimate may miss a
    limit but never meets one. Without any limit there is nothing to check.
    """
    checks = []
    timed = any(name.startswith("latency_") for name in measured)
    for metric, sense in METRICS.items():
        limit = getattr(budget, metric)
        if limit is None:
            continue
        got = measured.get(metric)
        if got is None:
            few = timed and metric.startswith("latency_")
            note = "too few samples for this percentile" if few else "not measured on this target"
            checks.append(Check(metric, limit, None, None, None, "inconclusive", note))
            continue
        best, last = (got.low, got.high) if sense == "at most" else (-got.high, -got.low)
        bound = limit if sense == "at most" else -limit
        verdict: Verdict = "met" if last <= bound else "missed" if best > bound else "inconclusive"
        note = "the interval straddles the limit" if verdict == "inconclusive" else ""
        if verdict == "met" and got.instrument.startswith("estimate"):
            verdict, note = "inconclusive", f"{got.instrument}; an estimate cannot meet a limit"
        checks.append(Check(metric, limit, got.value, got.low, got.high, verdict, note))
    return tuple(checks)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a whole from its parts: failed, else missed, else inconclusive, else met."""
    found = set(verdicts)
    for verdict in ("failed", "missed", "inconclusive"):
        if verdict in found:
            return verdict
    return "met"
