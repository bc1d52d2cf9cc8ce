"""How far two sets of answers of one model agree. Pure.

Between onnxruntime and onnxruntime behind a server, on one machine with one thread count, they are equal bit for bit.
On another processor or another runtime float sums are rounded in another order, and an int8 network may give another
step: up to three steps of its output were seen between x86-64, ARM64, OpenVINO and NPUs, and the same class throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Agreement", "Grain", "compare", "grain_of", "ulps"]

_STEPS = 4
_FLOAT = 1e-4  # of the answers' range; 2e-7 was seen between float kernels, and 1e-3 is where a GPU uses TF32


@dataclass(frozen=True)
class Grain:
    """How fine a model's answers are.

    Attributes:
        step: difference between neighbouring answers of an int8 model; 0.0 for a float one.
        allowed: largest difference that another processor or runtime may make.
    """

    step: float
    allowed: float


@dataclass(frozen=True)
class Agreement:
    """What was found between answers wanted and answers got.

    Attributes:
        verdict: "equal": bit for bit, or within one unit in the last place of float32; "close": as far as another
            processor may be, and the same class unless two were as close; "differs": anything else.
        ulps: largest distance in units in the last place; -1 where an answer is no finite number.
        difference: largest absolute difference. steps: the same in output steps; None for a float model.
        other_class: examples with another class; `near_ties` of them had two that were as close.
    """

    verdict: Literal["equal", "close", "differs"]
    examples: int
    ulps: int
    difference: float
    steps: float | None
    other_class: int
    near_ties: int

    def __str__(self) -> str:
        n, all_of = self.examples, f"all {self.examples} examples" if self.examples > 1 else "the one example"
        if self.ulps < 0:
            return f"DIFFERS: numbers that are not finite among the answers to {all_of}"
        if self.ulps == 0:
            return f"bit-equal in {all_of}"
        if self.verdict == "equal":
            return f"equal within {self.ulps} ulp in {all_of}"
        far = f"{self.difference:.3g}"
        if self.steps is not None:
            far = f"{self.steps:.3g} output steps ({far})"
        ties = f", {self.near_ties} of them near ties" if self.near_ties else ""
        same = f"another class in {self.other_class} of {n}{ties}" if self.other_class else f"same class in {all_of}"
        return f"{'DIFFERS by up to' if self.verdict == 'differs' else 'close: within'} {far}; {same}"


def grain_of(model: Path, answers: NDArray[np.float32]) -> Grain:
    """How fine the answers of an ONNX model are: the scale of the DequantizeLinear that gives them, if there is one.

    Args:
        answers: (k, classes), answers that it gave: their range stands in where the file does not tell.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(model, load_external_data=False).graph
    spread = float(np.ptp(answers[np.isfinite(answers)])) if np.isfinite(answers).any() else 0.0
    if not any("Quantize" in node.op_type or "Integer" in node.op_type for node in graph.node):
        return Grain(0.0, _FLOAT * spread)
    last = next((node for node in graph.node if graph.output[0].name in node.output), None)
    scale = last.input[1] if last is not None and last.op_type == "DequantizeLinear" else ""
    found = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == scale]
    step = float(found[0].max()) if found and found[0].size else math.nan
    if not math.isfinite(step):
        step = spread / 255
    return Grain(step, _STEPS * step)


def compare(wanted: NDArray[np.float32], got: NDArray[np.float32], grain: Grain) -> Agreement:
    """Sets answers against those wanted.

    Args:
        wanted, got: (k, classes), of one shape.
    """
    k = len(wanted)
    wanted, got = wanted.reshape(k, -1), got.reshape(k, -1)
    if np.array_equal(wanted.view(np.int32), got.view(np.int32)):
        return Agreement("equal", k, 0, 0.0, None if not grain.step else 0.0, 0, 0)
    other = wanted.argmax(1) != got.argmax(1)
    if not (np.isfinite(wanted).all() and np.isfinite(got).all()):
        return Agreement("differs", k, -1, float("inf"), None, int(other.sum()), 0)
    apart = ulps(wanted, got)
    difference = float(np.abs(wanted.astype(np.float64) - got).max())
    best, theirs = wanted.max(1), wanted[np.arange(k), got.argmax(1)]
    ties = other & (best - theirs <= 2 * grain.allowed)  # each of the two may have moved
    close = difference <= grain.allowed * (1 + 1e-6) and bool((ties == other).all())
    steps = difference / grain.step if grain.step else None
    verdict: Literal["equal", "close", "differs"] = "equal" if apart <= 1 else "close" if close else "differs"
    return Agreement(verdict, k, apart, difference, steps, int(other.sum()), int(ties.sum()))


def ulps(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> int:
    """Largest distance in units in the last place: 0 where all bits are the same, at least 1 where they are not (0.0
    and -0.0), -1 where one of two that are not the same is no finite number.

    Args:
        wanted, got: of one shape.
    """
    other = np.ascontiguousarray(wanted).view(np.int32) != np.ascontiguousarray(got).view(np.int32)
    if not other.any():
        return 0
    a, b = wanted[other], got[other]
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1
    return max(1, int(np.abs(_ordered(a) - _ordered(b)).max()))


def _ordered(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers in the order of the floats, neighbours one apart; both zeros are 0."""
    bits = np.ascontiguousarray(x).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
