"""What outputs say: right or wrong per example, accuracy lost against a baseline, the same on two machines. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from targets.budget import Measurement
from targets.errors import DeviceError, InputError
from targets.statistics import paired_drop, wilson

__all__ = ["accuracy", "accuracy_drop", "agreement"]


def accuracy(outputs: NDArray[np.float32], labels: NDArray[np.int64], confidence: float) -> Measurement:
    """Share of examples whose largest output is at their label, percent, with Wilson's interval.

    Args:
        outputs: (n, classes). labels: (n,).

    Raises:
        InputError: outputs and labels do not fit each other.
        DeviceError: an output is NaN or infinite.
    """
    right = _right(outputs, labels)
    value, low, high = wilson(int(right.sum()), len(right), confidence)
    return Measurement("accuracy", 100 * value, 100 * low, 100 * high, len(right), "argmax of the outputs")


def accuracy_drop(
    baseline_outputs: NDArray[np.float32], outputs: NDArray[np.float32], labels: NDArray[np.int64], confidence: float
) -> Measurement:
    """Accuracy lost against the baseline on the same examples, percentage points; see `statistics.paired_drop`."""
    found = paired_drop(_right(baseline_outputs, labels), _right(outputs, labels), confidence)
    return Measurement("accuracy_drop_points", *found, len(labels), "argmax of both outputs, paired")


def agreement(reference: NDArray[np.float32], outputs: NDArray[np.float32], confidence: float) -> Measurement:
    """Share of examples to which two runs of one model give the same class, percent, with Wilson's interval.

    Int8 answers of one file differ between processors by a step or so, and the class with them where two are close.
    """
    same = reference.argmax(axis=1) == outputs.argmax(axis=1)
    value, low, high = wilson(int(same.sum()), len(same), confidence)
    return Measurement("parity_percent", 100 * value, 100 * low, 100 * high, len(same), "argmax of both outputs")


def _right(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    if len(outputs) != len(labels) or len(labels) == 0:
        raise InputError(f"{len(outputs)} outputs and {len(labels)} labels: one of each is needed per example")
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise InputError(
            f"labels from {labels.min()} to {labels.max()} do not fit a model of {outputs.shape[1]} classes",
            help="labels count from 0; the model must give one output per class",
        )
    broken = int(np.count_nonzero(~np.isfinite(outputs).all(axis=1)))
    if broken:
        raise DeviceError(f"the model gave NaN or infinite outputs for {broken} of {len(outputs)} examples")
    found: NDArray[np.bool_] = outputs.argmax(axis=1) == labels
    return found
