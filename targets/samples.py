"""Raw samples as they came from a device, and the measurements with intervals that they support. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.budget import Measurement
from targets.statistics import (
    Interval,
    drift,
    geometric_mean,
    mean_of_blocks,
    paired_ratio,
    quantile_interval,
    ratio_of_means,
)

__all__ = ["PERCENTILES", "Measured", "Samples", "measurements", "notes"]

PERCENTILES = {"latency_p50_ms": 0.50, "latency_p90_ms": 0.90, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}

_DRIFT = 0.05  # changes of the median over a measurement that are told, as a share
_FAR, _MANY = 2.0, 0.01  # latencies beyond so many medians are outliers, told from this share of them on


@dataclass(frozen=True)
class Samples:
    """What was observed of one model. Block i of every model was taken in the same round.

    Attributes:
        latency_ms: blocks of single requests at batch 1.
        throughput_per_s: one rate per block.
        session_ms: time to create a session, one per creation.
        peak_memory_mb: most resident memory of a process that serves only this model, one per process (10^6 bytes).
        operators, assignment, energy, warmup, inputs: as the probe answered (see `targets.probe`); None where not asked
            for.
    """

    latency_ms: tuple[tuple[float, ...], ...]
    throughput_per_s: tuple[float, ...]
    session_ms: tuple[float, ...]
    peak_memory_mb: tuple[float, ...]
    size_bytes: int
    operators: Mapping[str, Any] | None = None
    assignment: Mapping[str, int] | None = None
    energy: Mapping[str, Any] | None = None
    warmup: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] | None = None

    @staticmethod
    def of(answer: Mapping[str, Any], size_bytes: int, memory_mb: tuple[float, ...] = ()) -> Samples:
        """From the probe's answer for one model; what was not asked for is empty."""
        return Samples(
            latency_ms=tuple(tuple(block) for block in answer.get("latency_ms", ())),
            throughput_per_s=tuple(answer.get("throughput_per_s", ())),
            session_ms=tuple(answer.get("session_ms", ())),
            peak_memory_mb=memory_mb or tuple(answer.get("peak_memory_mb", ())),
            size_bytes=size_bytes,
            **{key: answer.get(key) for key in ("operators", "assignment", "energy", "warmup", "inputs")},
        )

    def more(self, answer: Mapping[str, Any]) -> Samples:
        """With the latencies of a further round."""
        inputs = self.inputs and answer.get("inputs")
        if self.inputs and inputs:
            inputs = {**inputs, "first": [*self.inputs["first"], *inputs["first"]]}
        latency_ms = (*self.latency_ms, *(tuple(block) for block in answer["latency_ms"]))
        return replace(self, latency_ms=latency_ms, inputs=inputs)

    @property
    def input_of(self) -> list[NDArray[np.integer]] | None:
        """Which input each latency was taken on, in the blocks of `latency_ms`; None where that is not known."""
        if not self.inputs or len(self.inputs["first"]) != len(self.latency_ms):
            return None
        starts = zip(self.inputs["first"], self.latency_ms, strict=True)
        return [(first + np.arange(len(block))) % self.inputs["count"] for first, block in starts]


@dataclass(frozen=True)
class Measured:
    """Raw samples of several models that were measured together, and where."""

    environment: dict[str, Any]
    models: Mapping[str, Samples]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"environment": self.environment, "models": {name: asdict(s) for name, s in self.models.items()}}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`, also after a turn through JSON text."""
        models = {name: Samples.of(s, s["size_bytes"]) for name, s in values["models"].items()}
        return Measured(dict(values["environment"]), models)


def measurements(
    measured: Measured, name: str, baseline: str | None = None, confidence: float = 0.95
) -> dict[str, Measurement]:
    """Numbers with intervals for one model.

    Gives the percentiles of latency (each only where there are samples enough for its interval), `latency_mean_ms`,
    `throughput_per_s`, `session_ms`, `size_mb`, `peak_memory_mb`, and with a baseline `speedup_p50` and `speedup_mean`:
    how many times lower the median and the mean latency are. The intervals of memory and session time are the range
    that was seen.

    Args:
        baseline: the name of another model that was measured in the same turns.
    """
    got, runtime = measured.models[name], f"onnxruntime {measured.environment.get('onnxruntime', '')}, wall clock"
    found: dict[str, Measurement] = {}

    def add(metric: str, interval: Interval | None, samples: int, instrument: str) -> None:
        if interval is not None:
            found[metric] = Measurement(metric, *interval, samples, instrument)

    latencies = [ms for block in got.latency_ms for ms in block]
    for metric, q in PERCENTILES.items():
        add(metric, quantile_interval(latencies, q, confidence), len(latencies), runtime)
    mean = mean_of_blocks(got.latency_ms, confidence, got.input_of)
    add("latency_mean_ms", mean, len(latencies), f"{runtime}; interval over blocks and inputs")
    rates = got.throughput_per_s
    add("throughput_per_s", geometric_mean(rates, confidence), len(rates), runtime)
    add("session_ms", _range(got.session_ms), len(got.session_ms), runtime)
    add("size_mb", Interval(*(3 * [got.size_bytes / 1e6])), 1, "file size")
    memory = got.peak_memory_mb
    add("peak_memory_mb", _range(memory), len(memory), "peak resident memory of a process that serves one model")
    if baseline is not None and got.latency_ms:
        other = measured.models[baseline]
        theirs = other.latency_ms
        add("speedup_p50", paired_ratio(theirs, got.latency_ms, confidence), len(theirs), runtime)
        ratio = ratio_of_means(theirs, got.latency_ms, confidence, got.input_of) if other.inputs == got.inputs else None
        add("speedup_mean", ratio, len(theirs), f"{runtime}; interval over blocks and inputs")
    return found


def _range(values: tuple[float, ...]) -> Interval | None:
    return Interval(float(np.median(values)), min(values), max(values)) if values else None


def notes(measured: Measured) -> list[str]:
    """What a reader should know before believing the numbers: a busy machine, drift, outliers, no steady state."""
    return [*_busy(measured.environment), *(note for name in measured.models for note in _uneasy(name, measured))]


def _busy(environment: Mapping[str, Any]) -> Iterator[str]:
    load = environment.get("after", {}).get("load_average_1min", 0.0)
    cores = environment.get("cpu", {}).get("cores", 1)
    if load > cores + 0.5:
        yield (
            f"the machine was busy (load {load:g} on {cores} cores): absolute times are too high; ratios of models "
            "measured in turns suffer less, but the faster one is interrupted less often"
        )


def _uneasy(name: str, measured: Measured) -> Iterator[str]:
    got = measured.models[name]
    if (change := drift(got.latency_ms)) is not None and abs(change) > _DRIFT:
        yield f"{name}: latency {'rose' if change > 0 else 'fell'} by {abs(change):.0%} while it was measured"
    latencies = np.concatenate([np.asarray(block) for block in got.latency_ms]) if got.latency_ms else np.empty(0)
    if latencies.size and (far := latencies / np.median(latencies)).max() > _FAR and (far > _FAR).mean() > _MANY:
        yield (
            f"{name}: {(far > _FAR).mean():.1%} of the latencies are over {_FAR:g} times the median, the largest "
            f"{far.max():.0f} times; they are kept, and the percentiles hold them"
        )
    if got.warmup is not None and not got.warmup.get("stable", True):
        yield f"{name}: times had not settled after {got.warmup['seconds']:.1f} s of warming up"
