"""The rows of a profile, made from what was observed. Pure arithmetic, but that the files are read once more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.report.model import Number
from pipeline.report.profile_model import FindingRow, HintRow, ModelRow, OperatorRow, ProfilerRow, SweepRow
from targets import source_graph
from targets.budget import Measurement
from targets.energy import energy_measurement
from targets.hints import hints
from targets.operator_rows import Operator, operators, profiler_us
from targets.operators import Finding, gates
from targets.profiling import Profiled, Sweep
from targets.samples import PERCENTILES, Samples, measurements, notes
from targets.statistics import quantile_interval, samples_needed
from targets.target import Target

__all__ = ["model_rows", "sweep_row"]


def model_rows(seen: Profiled, target: Target) -> tuple[ModelRow, ...]:
    """One row per model, the first compared with all others."""
    confidence, measured = target.meter.confidence, seen.measured
    first = next(iter(measured.models))
    ran: dict[str, tuple[Operator, ...]] = {}
    sources, latency_us = {}, {}
    for name, samples in measured.models.items():
        sources[name] = source_graph.read(seen.artifacts[name].path)
        latency_us[name] = 1e3 * float(np.median(np.concatenate([np.asarray(b) for b in samples.latency_ms])))
        answer = samples.operators or {"nodes": []}
        ran[name] = operators(sources[name], answer, confidence, latency_us[name])
    # Operators and whole runs are timed one after the other: what disturbed one of the two would pass for a difference.
    steady = not notes(measured)
    rows = []
    for name, samples in measured.models.items():
        artifact = seen.artifacts[name]
        ratio = None
        if name != first:
            ratio = measurements(measured, first, name, confidence).get("speedup_p50")
        others = {other: rows_ for other, rows_ in ran.items() if other != name}
        gate = gates(sources[name], ran[name], target.runtime.provider, samples.assignment)
        slower = _slower(seen, ran, confidence) if name == first else ()
        multiple = target.channel_multiple
        whole_us = latency_us[name] if steady else None
        ideas = hints(ran[name], latency_us=whole_us, channel_multiple=multiple, against=others)
        numbers = _numbers(seen, name, target)
        rows.append(
            ModelRow(
                name=name,
                file=str(artifact.path),
                sha256=artifact.sha256,
                size_bytes=artifact.size_bytes,
                opset=artifact.opset,
                ir_version=artifact.ir_version,
                inputs={value: tuple(shape) for value, shape in seen.shapes[name].items()},
                numbers={metric: _number(got) for metric, got in numbers.items()},
                missing=_missing(samples, numbers, confidence),
                ratio=None if ratio is None else _number(ratio),
                operators=tuple(map(_operator_row, ran[name])),
                profiler=_profiler_row(samples, latency_us[name]),
                placement=_placement(ran[name]),
                assignment=None if samples.assignment is None else dict(samples.assignment),
                fallback_nodes=gate.fallback_nodes,
                float_int8_nodes=gate.float_int8_nodes,
                findings=tuple(FindingRow(**asdict(finding)) for finding in (*gate.findings, *slower)),
                hints=tuple(HintRow(**asdict(hint)) for hint in ideas),
                raw={key: value for key, value in asdict(samples).items() if key not in ("operators", "assignment")},
            )
        )
    return tuple(rows)


def _numbers(seen: Profiled, name: str, target: Target) -> dict[str, Measurement]:
    """The usual numbers, of one run of `batch` inferences; and inferences a second, from the median latency."""
    found = dict(measurements(seen.measured, name, None, target.meter.confidence))
    if p50 := found.get("latency_p50_ms"):
        found["throughput_per_s"] = _rate(p50, seen.batch)
    energy = seen.measured.models[name].energy
    if energy is not None:
        per_inference = energy_measurement(energy, target.energy.power_w, target.meter.confidence)
        if per_inference is not None:
            found["energy_mj"] = _divided(per_inference, seen.batch)
    return found


def _rate(p50: Measurement, batch: int) -> Measurement:
    value, low, high = (1e3 * batch / ms for ms in (p50.value, p50.high, p50.low))
    return Measurement("throughput_per_s", value, low, high, p50.samples, f"{p50.instrument}; from the median latency")


def _divided(energy: Measurement, batch: int) -> Measurement:
    """The probe counts a run of whole arrays as one inference."""
    value, low, high = (mj / batch for mj in (energy.value, energy.low, energy.high))
    return replace(energy, value=value, low=low, high=high)


def _missing(samples: Samples, numbers: Mapping[str, Any], confidence: float) -> dict[str, str]:
    count = sum(map(len, samples.latency_ms))
    told = {
        metric: f"too few samples ({count}; {metric.split('_')[1]} takes {samples_needed(q, confidence)})"
        for metric, q in PERCENTILES.items()
        if metric not in numbers
    }
    if "energy_mj" not in numbers:
        remark = str((samples.energy or {}).get("remark", ""))
        told["energy_mj"] = remark or "nothing counts it here, and the target states no power to estimate it by"
    return told


def _slower(seen: Profiled, ran: Mapping[str, Sequence[Operator]], confidence: float) -> tuple[Finding, ...]:
    """An int8 model that is slower than a float one beside it."""
    first, *others = seen.measured.models
    if not any(op.precision == "int8" and op.macs for op in ran[first]):
        return ()
    found = []
    for other in others:
        ratio = measurements(seen.measured, first, other, confidence).get("speedup_p50")
        is_float = not any(op.precision == "int8" for op in ran[other])
        if is_float and ratio is not None and ratio.high < 1:
            what = f"int8, and yet its p50 is {1 / ratio.value:.2f} times as long as that of {other}, which is float"
            found.append(Finding("slower", what))
    return tuple(found)


def _number(got: Measurement) -> Number:
    return Number(value=got.value, low=got.low, high=got.high, samples=got.samples, instrument=got.instrument)


def _operator_row(op: Operator) -> OperatorRow:
    return OperatorRow(
        name=op.name,
        node=op.source.name if op.source else "",
        op_type=op.op_type,
        provider=op.provider,
        precision=op.precision,
        us=round(op.us, 3),
        us_low=round(op.us_low, 3),
        us_high=round(op.us_high, 3),
        profiled_us=op.profiled_us,
        share=op.share,
        macs=op.macs,
        bytes=op.bytes,
        gmacs_per_s=op.gmacs_per_s,
        macs_per_byte=op.intensity,
    )


def _profiler_row(samples: Samples, latency_us: float) -> ProfilerRow | None:
    answer = samples.operators
    if not answer or not answer["run_us"]:
        return None
    run_us = float(np.median(answer["run_us"]))
    return ProfilerRow(runs=answer["runs"], run_us=run_us, added_us=profiler_us(answer, latency_us))


def _placement(ran: Iterable[Operator]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for op in ran:
        name = op.provider or "not told"
        counts[name] = counts.get(name, 0) + 1
    return counts


def sweep_row(sweep: Sweep, confidence: float) -> SweepRow:
    """One setting of a sweep."""
    latency: dict[str, Number | None] = {}
    rate: dict[str, Number | None] = {}
    for name, blocks in sweep.latency_ms.items():
        samples = [ms for block in blocks for ms in block]
        found = quantile_interval(samples, 0.5, confidence)
        p50 = Measurement("latency_p50_ms", *found, len(samples), "wall clock") if found else None
        latency[name] = _number(p50) if p50 else None
        rate[name] = _number(_rate(p50, sweep.batch)) if p50 else None
    raw = {name: tuple(tuple(block) for block in blocks) for name, blocks in sweep.latency_ms.items()}
    return SweepRow(batch=sweep.batch, threads=sweep.threads, latency_p50_ms=latency, throughput_per_s=rate, raw=raw)
