"""What the operators of a model cost where it ran: the probe's answer joined with the file's own nodes.

Pure arithmetic. The times were taken under the runtime's profiler, which adds one to three microseconds of its own to
each operator: as much as many a tiny one takes. What it adds at least is known from runs without it, and is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.source_graph import Node, Source, family
from targets.statistics import Interval, mean_interval, quantile_interval

__all__ = ["COPIES", "FLOATS", "ROUNDING", "Operator", "operators", "profiler_us"]

ROUNDING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
COPIES = {"Transpose", "ReorderInput", "ReorderOutput", "MemcpyToHost", "MemcpyFromHost"}
FLOATS = {"float32", "float16", "bfloat16", "float64"}

_INT8 = {"int8", "uint8", "int4", "uint4"}
_DTYPES = {"float": "float32", "double": "float64"}  # as onnxruntime's profiler writes them
_BITS = {"float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "int4": 4, "uint4": 4}
_BITS |= {"float16": 16, "bfloat16": 16, "int16": 16, "uint16": 16}  # all others: 8

Shape = tuple[int, ...]
Tensor = tuple[str, Shape]


@dataclass(frozen=True)
class Operator:
    """One operator as it was executed, once per run.

    Attributes:
        name, op_type, provider: of the graph that ran; `source` is the file's own node, where that can be told.
        precision: what it computes with: "int8", "float32", ...; "mixed" where it turns one into the other.
        us, us_low, us_high: median time in a run and its interval, microseconds, without the profiler's own; of what
            did not run every time (in a branch), the mean.
        profiled_us: the same as the profiler gave it.
        share: of the time in all operators, 0..1.
        macs: multiply-accumulates of one run; None where they are not counted (all but convolutions and matrix
            products) or cannot be.
        bytes: moved in and out of it, by shapes: inputs, weights, outputs.
        channels: (in, out) of a convolution or matrix product; None elsewhere.
    """

    name: str
    op_type: str
    provider: str
    precision: str
    us: float
    us_low: float
    us_high: float
    profiled_us: float
    share: float
    macs: int | None
    bytes: int
    channels: tuple[int, int] | None
    source: Node | None

    @property
    def gmacs_per_s(self) -> float | None:
        """Billion multiply-accumulates a second."""
        return self.macs / self.us / 1e3 if self.macs and self.us else None

    @property
    def intensity(self) -> float | None:
        """Multiply-accumulates for each byte moved; low: the memory sets the pace."""
        return self.macs / self.bytes if self.macs and self.bytes else None

    @property
    def depthwise(self) -> bool:
        """A convolution that looks at each channel by itself."""
        return bool(self.channels and self.source and self.source.group == self.channels[0] > 1)


def profiler_us(answer: Mapping[str, Any], latency_us: float | None) -> float:
    """What the profiler added to each operator, microseconds: all together cannot take longer than a run without it.

    That counts the time between operators as theirs, so the true figure is a little higher. It is never above the
    shortest operator: a machine that was busier under the profiler would show here too. 0 where what ran differed from
    run to run: medians of parts and of the whole then do not belong together."""
    if any(map(_at_times, answer["nodes"])):
        return 0.0
    medians = [float(np.median(row["us"])) for row in answer["nodes"]]
    if not medians or latency_us is None:
        return 0.0
    return max(0.0, min((sum(medians) - latency_us) / len(medians), *medians))


def operators(
    source: Source, answer: Mapping[str, Any], confidence: float, latency_us: float | None = None
) -> tuple[Operator, ...]:
    """The executed operators, in execution order.

    Args:
        answer: "operators" of the probe's answer for the model (see `targets.probe`).
        confidence: of the intervals.
        latency_us: median of a run without the profiler; without it, times are the profiler's.
    """
    added = profiler_us(answer, latency_us)
    raw = [_timed(row, confidence) for row in answer["nodes"]]
    net = [Interval(*(max(0.0, us - added) for us in time)) for time in raw]
    total = sum(time.value for time in net) or 1.0
    rows = zip(answer["nodes"], raw, net, strict=True)
    return tuple(_operator(source, row, before.value, time, total) for row, before, time in rows)


def _at_times(row: Mapping[str, Any]) -> bool:
    """It lies in a branch that some runs did not take."""
    return bool(row.get("ran", len(row["us"])) < len(row["us"]))


def _timed(row: Mapping[str, Any], confidence: float) -> Interval:
    us: Sequence[float] = row["us"]
    found = mean_interval(us, confidence) if _at_times(row) else quantile_interval(us, 0.5, confidence)
    return found or Interval(float(np.median(us)), float(min(us)), float(max(us)))


def _operator(source: Source, row: Mapping[str, Any], profiled_us: float, time: Interval, total: float) -> Operator:
    node = source.trace(row["name"], row["op_type"])
    inputs, outputs = _tensors(row["inputs"]), _tensors(row["outputs"])
    precision = _precision(row["op_type"], inputs, outputs)
    weight = node.weight if node else ()
    hidden = 0
    if weight and not any(_size(shape) >= _size(weight) for _, shape in inputs[1:]):
        hidden = _size(weight) * _BITS.get(precision, 8) // 8  # packed once, when the session was made
    return Operator(
        name=row["name"],
        op_type=row["op_type"],
        provider=row["provider"],
        precision=precision,
        us=time.value,
        us_low=time.low,
        us_high=time.high,
        profiled_us=profiled_us,
        share=time.value / total,
        macs=_macs(row["op_type"], inputs, outputs, weight),
        bytes=hidden + sum(_size(shape) * _BITS.get(dtype, 8) // 8 for dtype, shape in [*inputs, *outputs]),
        channels=_channels(row["op_type"], node),
        source=node,
    )


def _tensors(rows: Iterable[Sequence[Any]]) -> list[Tensor]:
    return [(_DTYPES.get(dtype, dtype), tuple(shape)) for dtype, shape in rows]


def _size(shape: Shape) -> int:
    return math.prod(shape)


def _precision(op_type: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """By the types of the data. Integer operators carry float scales; indices and conditions are no data."""
    if op_type.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantizeMatMul")) or "Integer" in op_type:
        return "int8"
    data = [dtype for dtype, shape in inputs if shape][:1] or [dtype for dtype, _ in inputs][:1]
    kinds = {"int8" if dtype in _INT8 else dtype for dtype in [*data, *(dtype for dtype, _ in outputs)]}
    computed = kinds & (FLOATS | {"int8"}) or kinds
    return next(iter(computed)) if len(computed) == 1 else "mixed"


def _macs(op_type: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], weight: Shape) -> int | None:
    """From shapes alone; a layout with channels last has the same sizes in another order."""
    if not inputs or not outputs:
        return None
    kind, made = family(op_type), _size(outputs[0][1])
    data = [shape for _, shape in inputs if shape]
    if kind in ("Conv", "ConvTranspose"):
        seen = [shape for shape in data[1:] if len(shape) == len(outputs[0][1]) and shape != outputs[0][1]]
        weight = weight or (seen[0] if seen and op_type.endswith("Conv") else ())
        steps = made if kind == "Conv" else _size(data[0]) if data else 0
        if kind == "Conv" and weight and weight[0] not in outputs[0][1][1:]:  # a blocked layout fills channels up
            steps = steps // max(outputs[0][1][1], 1) * weight[0]
        return steps * _size(weight[1:]) if weight and data else None
    if kind != "MatMul" or not data:
        return None
    if weight and len(weight) == 2:
        width = outputs[0][1][-1:] or (1,)
        return made * _size(weight) // width[0] if width[0] else 0
    factors = [shape for shape in data if len(shape) >= 2]
    if len(factors) >= 2 and len(outputs[0][1]) >= 2 and not op_type.endswith("Gemm"):
        # (M, K) times (K, N) gives (M, N), whichever of them are turned: K^2 is what the sizes leave over.
        square = _size(factors[0][-2:]) * _size(factors[1][-2:]) / max(_size(outputs[0][1][-2:]), 1)
        depth = math.isqrt(round(square))
        return made * depth if depth * depth == square else None
    return made * data[0][-1]


def _channels(op_type: str, node: Node | None) -> tuple[int, int] | None:
    if node is None or len(node.weight) < 2:
        return None
    first, second = node.weight[:2]
    if family(op_type) == "Conv":
        return second * node.group, first
    if family(op_type) == "ConvTranspose":
        return first, second * node.group
    return None
