"""What candidates are worth on a target: measured beside the float teacher, in turns, in the target's own runtime.

Choices use the validation split (`on_validation`); the verdict is taken once, on test, for the chosen one (`on_test`).
Both return plain JSON values, which the store keeps and `read` turns back into measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.reference import Reference
from stages.data import Split
from targets.accuracy import accuracy, accuracy_drop, agreement
from targets.artifact import load
from targets.budget import Check, Measurement, judge
from targets.devices import Device
from targets.energy import energy_measurement
from targets.measure import measure, outputs
from targets.operators import findings, node_counts
from targets.samples import Measured, Samples, measurements
from targets.target import Target, unlike

__all__ = [
    "BASELINE",
    "as_estimates",
    "inputs_wanted",
    "look",
    "measured_rows",
    "on_test",
    "on_validation",
    "read",
    "strange",
    "strictly",
    "turns_with_time",
]

BASELINE = "float teacher"
_SAMPLES = 64  # inputs that latency is measured on: enough to vary, small enough to stay in cache like a live stream
_BRANCHING_SAMPLES = 256  # where a model takes longer for some: their share is 2.5 points off then, and 5 with 64
_HOME = Target(name="this-machine")
_LOOKS = 4

Rows = dict[str, dict[str, Measurement]]


def on_validation(
    target: Target, models: Mapping[str, Path], split: Split, say: Callable[[str], None], device: Device
) -> dict[str, Any]:
    """Measures all models in turns, and their accuracy on the validation split.

    Args:
        models: ONNX files by candidate name; `BASELINE` must be among them.

    Returns:
        {"raw": samples and environment, "models": {name: {metric: measurement}}, "findings": {name: [sentence]},
        "merge": the mean of all candidates' probabilities, or None for a single candidate}.
    """
    confidence = target.meter.confidence
    other = strange(target, device)
    if other:
        say(f"{other}: what depends on the hardware is an estimate here, and meets no limit")
    answers = outputs(target, models, (x for x, _ in split.batches(64)), device, say)
    known: Rows = {name: {"accuracy": accuracy(answers[name], split.labels, confidence)} for name in models}
    for name in models:
        if name != BASELINE:
            drop = accuracy_drop(answers[BASELINE], answers[name], split.labels, confidence)
            known[name]["accuracy_drop_points"] = drop

    def undecided(measured: Measured) -> bool:
        rows = measured_rows(measured, target, strictly(confidence))
        return not other and _open(target, {n: rows[n] | known[n] for n in models if n != BASELINE})

    sample = split.inputs(slice(0, inputs_wanted(models.values())))
    measured = measure(target, models, sample, say, device, undecided)
    found = {name: row | known[name] for name, row in measured_rows(measured, target, confidence).items()}
    told: dict[str, list[str]] = {}
    for name, path in models.items():
        counts, told[name] = look(path, target, measured.models[name], found[name])
        found[name] |= counts
    return {
        "raw": measured.to_json(),
        "models": {name: _dumped(got, other) for name, got in found.items()},
        "findings": told,
        "merge": _merge(answers, found, split.labels, confidence),
    }


def inputs_wanted(models: Iterable[Path]) -> int:
    """How many inputs latency is measured on, for all models of a race alike.

    Raises:
        InputError: a file is no sound model.
    """
    return _BRANCHING_SAMPLES if any(load(path).branches for path in models) else _SAMPLES


def measured_rows(measured: Measured, target: Target, confidence: float) -> Rows:
    """What the samples of each model say at a confidence; compared with `BASELINE` where it was measured too."""
    rows: Rows = {}
    for name, samples in measured.models.items():
        baseline = BASELINE if BASELINE in measured.models and name != BASELINE else None
        rows[name] = measurements(measured, name, baseline, confidence)
        if samples.energy is not None:
            energy = energy_measurement(samples.energy, target.energy.power_w, confidence)
            rows[name] |= {} if energy is None else {"energy_mj": energy}
    return rows


def _open(target: Target, candidates: Rows) -> bool:
    """Whether more latencies could still turn the choice: no candidate meets the budget, and at least one lacks nothing
    but a decision on its times."""
    open_ones = 0
    for row in candidates.values():
        left = [check for check in judge(target.budget, row) if check.verdict != "met"]
        if not left:
            return False
        open_ones += all(map(turns_with_time, left))
    return open_ones > 0


def turns_with_time(check: Check) -> bool:
    """Whether more latencies could still decide a check."""
    measured = check.metric.startswith("latency_") or (check.metric == "speedup_p50" and check.value is not None)
    return measured and check.verdict == "inconclusive"


def strictly(confidence: float) -> float:
    """The confidence at which sampling ends early: on evidence several times as strong, as each look could be wrong."""
    return 1 - (1 - confidence) / _LOOKS


def look(
    model: Path, target: Target, samples: Samples, row: Mapping[str, Measurement]
) -> tuple[dict[str, Measurement], list[str]]:
    """What a model's file does not say: `fallback_nodes` and `float_int8_nodes` where they are known, and a sentence
    for each thing found, also that it is slower than the float teacher."""
    provider, ratio = target.runtime.provider, row.get("speedup_p50")
    found = findings(model, provider, samples.operators, samples.assignment)
    told = [finding.what for finding in found]
    if ratio is not None and ratio.high < 1:
        told.append(f"slower than the {BASELINE}: its p50 is {1 / ratio.value:.2f} times as long")
    counts = node_counts(model, provider, samples.operators, samples.assignment)
    exact = {n: Measurement(n, c, c, c, 1, "onnxruntime's profiler") for n, c in counts.items() if c is not None}
    return exact, told


def on_test(
    target: Target, baseline: Path, artifact: Path, split: Split, device: Device, keep: int = 0
) -> tuple[dict[str, Any], Reference]:
    """Accuracy of the float teacher and of the chosen artifact on the test split, and what was lost between them.

    Where the target is not this machine's CPU, on which the artifact was made and proven, also `parity_percent`: the
    share of examples to which both give the same class.

    Args:
        keep: examples to keep as the artifact's reference.

    Returns:
        {metric: measurement}, and the reference.
    """
    confidence = target.meter.confidence
    models = {"baseline": baseline, "artifact": artifact}
    answers = outputs(target, models, (x for x, _ in split.batches(64)), device)
    theirs, ours = answers["baseline"], answers["artifact"]
    found = {
        "baseline_accuracy": accuracy(theirs, split.labels, confidence),
        "accuracy": accuracy(ours, split.labels, confidence),
        "accuracy_drop_points": accuracy_drop(theirs, ours, split.labels, confidence),
    }
    here = ours
    if (target.device, target.runtime.provider, target.connection.python) != ("local", _HOME.runtime.provider, ""):
        here = outputs(_HOME, {"artifact": artifact}, (x for x, _ in split.batches(64)))["artifact"]
        found["parity_percent"] = agreement(here, ours, confidence)
    kept = slice(0, keep)
    right = theirs.argmax(axis=1) == split.labels
    reference = Reference(split.inputs(kept), split.labels[kept], here[kept], right)
    return _dumped(found, strange(target, device)), reference


def read(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Measurement]:
    """Measurements from stored JSON values."""
    return {name: Measurement(**value) for name, value in values.items()}


def strange(target: Target, device: Device) -> str:
    """Why a device cannot speak for the target; empty if it can."""
    found = device.identity()
    return unlike(target, found["machine"], found["flags"])


def _dumped(found: Mapping[str, Measurement], other: str) -> dict[str, Any]:
    """Plain values; estimates if they were taken on other hardware."""
    return {name: asdict(m) for name, m in (as_estimates(found, other) if other else found).items()}


def as_estimates(found: Mapping[str, Measurement], why: str) -> dict[str, Measurement]:
    """What was taken on other hardware: all but a file's size is an estimate; int8 answers differ too."""
    return {n: m if n == "size_mb" else replace(m, instrument=f"estimate: {why}") for n, m in found.items()}


def _merge(
    answers: Mapping[str, NDArray[np.float32]],
    found: Mapping[str, Mapping[str, Measurement]],
    labels: NDArray[np.int64],
    confidence: float,
) -> dict[str, Any] | None:
    """What running all candidates and averaging their probabilities would give: accuracy, and the sum of latencies."""
    names = [name for name in answers if name != BASELINE]
    if len(names) < 2 or any("latency_p50_ms" not in found[name] for name in names):
        return None
    mean = np.stack([_probabilities(answers[name]) for name in names]).mean(0)
    return {
        "of": names,
        "accuracy": asdict(accuracy(mean, labels, confidence)),
        "latency_p50_ms": sum(found[name]["latency_p50_ms"].value for name in names),
        "size_mb": sum(found[name]["size_mb"].value for name in names),
    }


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)
