"""onnxruntime's quantizer, behind three functions: `fold`, `calibrate`, `place`. Needs no torch."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from stages import graph
from stages.graph import Floats
from targets.errors import Fault, InputError, StageError, nearest
from targets.target import Int8Rules

__all__ = ["Method", "Ranges", "calibrate", "fold", "operators", "place"]

Ranges = dict[str, tuple[float, float]]
"""Value name -> smallest and largest number that int8 must be able to show."""

Method = Literal["minmax", "percentile", "entropy"]

BINS = {"percentile": 2048, "entropy": 512}
"""Counters per value. Entropy tries, in Python, every threshold from LEVELS bins up: more bins cost minutes."""

LEVELS = 128

WITHOUT_KERNEL = {"BatchNormalization", "InstanceNormalization", "LayerNormalization"}
"""The quantizer takes them, and onnxruntime then computes them on floats between two roundings."""


def operators(rules: Int8Rules) -> tuple[str, ...]:
    """Operators to quantize: the target's, or all that the quantizer can and int8 kernels exist for.

    Raises:
        InputError: the target names one that it can not.
    """
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = sorted({*QDQRegistry, *QLinearOpsRegistry})
    faults = [
        Fault(f"{name!r} is no operator that can be quantized", key="int8.op_types", help=nearest(name, known))
        for name in rules.op_types
        if name not in known
    ]
    if faults:
        raise InputError(faults)
    return rules.op_types or tuple(name for name in known if name not in WITHOUT_KERNEL)


def fold(model: ModelProto, scratch: Path) -> ModelProto:
    """The graph after onnxruntime's basic optimizations, which hold on any hardware: batch norms folded into
    convolutions, constants computed, MatMul and Add joined. Shapes are inferred. Names of values stay.

    Args:
        scratch: an existing folder; what is written there is removed again.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        graph.session(model, options=options)
        folded = graph.read(path)
    graph.strip(folded)
    _named(folded)
    _beta_one(folded)
    folded.ir_version = min(folded.ir_version, model.ir_version)
    return onnx.shape_inference.infer_shapes(folded)


def _named(model: ModelProto) -> None:
    """Names the nodes that have none, in place: what has no name cannot be excluded by it."""
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        if not node.name:
            made = next(filter(None, node.output), "")
            names = itertools.chain([made], (f"{made}_{i}" for i in itertools.count(1)))
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)


def _beta_one(model: ModelProto) -> None:
    """Multiplies constant biases of Gemm by its beta, in place: the quantizer drops beta and leaves the bias."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        beta = next((a for a in node.attribute if a.name == "beta"), None)
        if (
            node.op_type != "Gemm"
            or beta is None
            or beta.f == 1
            or len(node.input) < 3
            or node.input[2] not in constants
        ):
            continue
        scaled = (numpy_helper.to_array(constants[node.input[2]]) * np.float32(beta.f)).astype(np.float32)
        name = f"{node.name}_bias_times_beta"
        model.graph.initializer.append(numpy_helper.from_array(scaled, name))
        node.input[2] = name
        beta.f = 1.0


def calibrate(
    model: ModelProto, batches: Callable[[], Iterable[Floats]], method: Method = "minmax", percentile: float = 99.99
) -> Ranges:
    """Watches the float graph on real inputs and returns the range of every float value, the input's too. All ranges
    hold zero.

    Memory is bounded by one batch: its inputs and all values that the graph computes from it. Between batches two
    numbers per value are kept and, for percentile and entropy, a histogram of fixed width: a first pass finds the
    extremes that a second one counts within. (onnxruntime's own calibrators keep every value of every batch until the
    end, and their histograms grow with the ratio of a later batch's extremes to the first one's.)

    Args:
        batches: gives the same inputs (batch, ...) each time it is called.
        percentile: share of the numbers, in percent, that stay inside the range; for `percentile` only.

    Raises:
        StageError: there are no inputs, or a value is NaN or infinite; the message names it.
    """
    seen, order = graph.watched(model)
    runner, source = graph.session(seen), seen.graph.input[0].name

    def values() -> Iterator[dict[str, Floats]]:
        for inputs in batches():
            yield {source: inputs, **dict(zip(order, runner.run(order, {source: inputs}), strict=True))}

    ranges = _extremes(values())
    return ranges if method == "minmax" else _clipped(values(), ranges, method, percentile)


def _extremes(stream: Iterable[dict[str, Floats]]) -> Ranges:
    ranges: Ranges = {}
    for values in stream:
        for name, value in values.items():
            low, high = float(value.min(initial=0.0)), float(value.max(initial=0.0))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise StageError(
                    f"value {name!r} holds NaN or infinite numbers on calibration data: no range can be found for it"
                )
            known = ranges.get(name, (low, high))
            ranges[name] = min(known[0], low), max(known[1], high)
    if not ranges:
        raise StageError("there are no training examples to calibrate with")
    return ranges


def _clipped(stream: Iterable[dict[str, Floats]], extremes: Ranges, method: Method, percentile: float) -> Ranges:
    """Narrower ranges, by onnxruntime's histograms. Seeded with the extremes, they keep their width."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, False, BINS[method], LEVELS, percentile, "same")
    for name, (low, high) in extremes.items():
        reach = np.float32(max(-low, high))
        edges = np.linspace(-reach, reach, BINS[method] + 1, dtype=np.float32)
        counts = np.zeros(BINS[method], np.int64)
        collector.histogram_dict[name] = counts, edges, np.float32(low), np.float32(high), reach
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        for values in stream:
            collector.collect(values)
        if method == "entropy":
            # After ReLU most numbers are 0, which every range shows exactly. Counted in full, they drown the rest, and
            # the smallest threshold always wins. NVIDIA's calibrator discounts them too (pytorch-quantization,
            # calib/histogram.py: bins[0] = bins[1]).
            for counts, *_ in collector.histogram_dict.values():
                middle = len(counts) // 2
                counts[middle] = min(counts[middle], max(counts[middle - 1], counts[middle + 1]))
        found: dict[str, Any] = collector.compute_collection_result()
    return {name: (float(limits[0]), float(limits[1])) for name, limits in found.items()}


def place(
    model: ModelProto, ranges: Ranges, rules: Int8Rules, op_types: Collection[str], exclude: Collection[str] = ()
) -> ModelProto:
    """Puts QuantizeLinear and DequantizeLinear where the target's runtime turns them into int8 kernels.

    Weights become int8 in the graph, biases int32, activations follow the target's rules.

    Args:
        model: a float graph, as `fold` gives it; left as it is.
        ranges: for every float value that may be quantized; zero is added to each.
        exclude: names of nodes that stay float.

    Raises:
        StageError: the quantizer failed.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    copy = ModelProto()
    copy.CopyFrom(model)
    add_infer_metadata(copy)  # says that shapes are known: else it infers them again by way of files in /tmp
    limits = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    try:
        quantizer = QDQQuantizer(
            copy,
            per_channel=rules.per_channel,
            reduce_range=rules.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if rules.activations == "uint8" else QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=[],
            nodes_to_exclude=list(exclude),
            op_types_to_quantize=list(op_types),
            extra_options={"ActivationSymmetric": rules.symmetric_activations},
        )
        placed: ModelProto = quantizer.quantize_model()
        quantizer.model.topological_sort()
    except Exception as error:  # it raises ValueError, KeyError and others
        raise StageError(f"onnxruntime's quantizer failed: {type(error).__name__}: {error}") from error
    graph.strip(placed)
    return placed
