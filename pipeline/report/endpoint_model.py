"""What comes of asking an endpoint: the answers set beside others, and times with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.report.model import Number
from targets.documents import Frozen
from targets.servers.agreement import Agreement
from targets.servers.turns import Rate
from targets.statistics import Interval, geometric_mean, paired_ratio, quantile_interval, samples_needed

__all__ = ["Answers", "Probed", "added", "numbers"]

Blocks = Sequence[Sequence[float]]

_QUANTILES = {"latency_p50_ms": 0.50, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}


class Answers(Frozen):
    """How the server's answers agree with others; see `targets.servers.agreement.Agreement`."""

    verdict: Literal["equal", "close", "differs"]
    examples: int
    ulps: int
    difference: float | None
    steps: float | None
    other_class: int
    near_ties: int
    told: str = Field(description="all of it in words")

    @staticmethod
    def of(found: Agreement) -> Answers:
        """The values of JSON: what is infinite is none."""
        values = asdict(found) | {"difference": found.difference if np.isfinite(found.difference) else None}
        return Answers(**values, told=str(found))


class Probed(Frozen):
    """An endpoint, asked.

    Attributes:
        verdict: "equal": the answers are those of the bare runtime here, or those stored with the artifact; "close":
            the server is on another machine, and its answers are as near as another processor's may be; else "differs".
        how: tensors travelled. serves: the server in its own words.
        stored, bare: the server's answers beside those stored, and beside the bare runtime's; None: it cannot run here.
        loaded: answers while all clients asked at once, beside those to the same requests one by one.
        server, measured_bare: numbers by metric. throughput_per_s: of all clients together.
        adds: what the server adds: latency_p50_ms (difference), latency_p50_times and throughput_times (ratios).
        client_cores: processor time that the clients took while they were counted, as cores.
        raw: latencies in blocks, milliseconds, and the rates of each round.
    """

    version: Literal[1] = 1
    verdict: Literal["equal", "close", "differs"]
    url: str
    serves: str
    versions: tuple[str, ...]
    how: str
    artifact: str
    sha256: str
    target: str
    stored: Answers
    bare: Answers | None
    loaded: Answers | None
    clients: int
    client_cores: float
    server: dict[str, Number]
    measured_bare: dict[str, Number]
    adds: dict[str, Number]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    raw: dict[str, Any]


def numbers(blocks: Blocks, rates: Sequence[Rate], confidence: float) -> dict[str, Number]:
    """Percentiles, each only where there are samples enough for its interval, and the rate: the geometric mean of
    the rounds, as a rate is never below 0 and its ratio is one of these, too."""
    flat = [ms for block in blocks for ms in block]
    found = {
        metric: _number(quantile_interval(flat, q, confidence), len(flat), "wall clock, in turns")
        for metric, q in _QUANTILES.items()
        if len(flat) >= samples_needed(q, confidence)
    }
    per_s = geometric_mean([rate.per_s for rate in rates], confidence)
    found["throughput_per_s"] = _number(per_s, sum(rate.requests for rate in rates), "wall clock, rounds in turns")
    return {metric: number for metric, number in found.items() if number is not None}


def added(latencies: Mapping[str, Blocks], rates: Mapping[str, Sequence[Rate]], confidence: float) -> dict[str, Number]:
    """What the server adds to the bare runtime, by rounds: each holds both. Of latencies the median over the rounds, as
    one round in which the machine was busy elsewhere would turn a mean."""
    if "bare" not in latencies:
        return {}
    pairs = zip(latencies["server"], latencies["bare"], strict=True)
    medians = np.asarray([(np.median(a), np.median(b)) for a, b in pairs])
    rounds, more, times = len(medians), medians[:, 0] - medians[:, 1], medians[:, 0] / medians[:, 1]
    theirs, ours = ([rate.per_s] for rate in rates["server"]), ([rate.per_s] for rate in rates["bare"])
    found = {
        "latency_p50_ms": _number(quantile_interval(more, 0.5, confidence), rounds, "difference of block medians"),
        "latency_p50_times": _number(quantile_interval(times, 0.5, confidence), rounds, "ratio of block medians"),
        "throughput_times": _number(
            paired_ratio(list(theirs), list(ours), confidence), len(rates["bare"]), "ratio of rounds"
        ),
    }
    return {name: number for name, number in found.items() if number is not None}


def _number(found: Interval | None, samples: int, instrument: str) -> Number | None:
    if found is None:
        return None
    return Number(value=found.value, low=found.low, high=found.high, samples=samples, instrument=instrument)
