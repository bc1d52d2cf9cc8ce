"""What candidates are worth on a target: measured beside the float teacher, in turns, in the target's own runtime.

Choices use the validation split (`on_validation`); the verdict is taken once, on test, for the chosen one (`on_test`).
Both return plain JSON values, which the store keeps and `read` turns back into measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data import Split
from targets.budget import Measurement
from targets.measure import accuracy, accuracy_drop, measure, measurements, outputs
from targets.probe import cpu
from targets.target import Target, unlike

__all__ = ["BASELINE", "on_test", "on_validation", "read", "strange"]

BASELINE = "float teacher"
_SAMPLES = 64  # inputs that latency is measured on: enough to vary, small enough to stay in cache like a live stream


def on_validation(
    target: Target, models: Mapping[str, Path], split: Split, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures all models in turns, and their accuracy on the validation split.

    Args:
        models: ONNX files by candidate name; `BASELINE` must be among them.

    Returns:
        {"raw": samples and environment, "models": {name: {metric: measurement}}, "merge": the mean of all candidates'
        probabilities, or None for a single candidate}.
    """
    confidence = target.meter.confidence
    measured = measure(target, models, split.inputs(slice(0, _SAMPLES)), say)
    answers = {name: _answers(target, path, split) for name, path in models.items()}
    found: dict[str, dict[str, Measurement]] = {}
    for name in models:
        baseline = None if name == BASELINE else BASELINE
        found[name] = dict(measurements(measured, name, baseline, confidence))
        found[name]["accuracy"] = accuracy(answers[name], split.labels, confidence)
        if baseline:
            found[name]["accuracy_drop_points"] = accuracy_drop(
                answers[BASELINE], answers[name], split.labels, confidence
            )
    other = strange(target)
    if other:
        say(f"{other}: what depends on the hardware is an estimate here, and meets no limit")
    return {
        "raw": measured.to_json(),
        "models": {name: _dumped(got, other) for name, got in found.items()},
        "merge": _merge(answers, found, split.labels, confidence),
    }


def on_test(target: Target, baseline: Path, artifact: Path, split: Split) -> dict[str, Any]:
    """Accuracy of the float teacher and of the chosen artifact on the test split, and what was lost between them."""
    confidence = target.meter.confidence
    theirs, ours = _answers(target, baseline, split), _answers(target, artifact, split)
    found = {
        "baseline_accuracy": accuracy(theirs, split.labels, confidence),
        "accuracy": accuracy(ours, split.labels, confidence),
        "accuracy_drop_points": accuracy_drop(theirs, ours, split.labels, confidence),
    }
    return _dumped(found, strange(target))


def read(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Measurement]:
    """Measurements from stored JSON values."""
    return {name: Measurement(**value) for name, value in values.items()}


def strange(target: Target) -> str:
    """Why this machine cannot speak for the target; empty if it can."""
    here = cpu()
    return unlike(target, here["machine"], here["flags"])


def _dumped(found: Mapping[str, Measurement], other: str) -> dict[str, Any]:
    """Plain values. Taken on other hardware, all but a file's size is an estimate: int8 answers differ too."""
    return {
        name: asdict(replace(m, instrument=f"estimate: {other}") if other and name != "size_mb" else m)
        for name, m in found.items()
    }


def _answers(target: Target, model: Path, split: Split) -> NDArray[np.float32]:
    """The model's outputs on a whole split, (n, classes)."""
    return outputs(target, model, (x for x, _ in split.batches(64)))


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
