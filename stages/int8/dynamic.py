"""Dynamic quantization, a candidate for transformer-like graphs: weights are int8 in the file, and each activation
gets its scale when the graph runs. No calibration, no fixed range for rows whose size differs from input to input; the
price is a pass over each activation for its extremes, which large convolutions do not earn back (Q8BERT, Zafrir et al.
2019; onnxruntime's documentation recommends it for transformers, and static quantization for convolutions). No torch.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto

from stages import graph
from stages.int8.bench import Bench
from stages.int8.shapes import constant_shapes, macs
from stages.vendors.ort_dynamic import place_dynamic
from targets.errors import StageError
from targets.target import Target

__all__ = ["layers", "make", "suits"]

MATRIX = frozenset({"MatMul", "Gemm"})
DOMINATE = 0.5  # share of all multiply-accumulates that products with constant weights have at least
FEW = 0.1  # share that convolutions have at most: a patch embedding


def suits(model: ModelProto, target: Target | None = None) -> bool:
    """Whether dynamic quantization may pay: products with constant matrices dominate, convolutions are few, and the
    target runs the operators that it takes (only onnxruntime's CPU provider is known to).

    Args:
        model: a float graph whose input has known axes after the batch.
    """
    if target is not None and target.runtime.provider != "CPUExecutionProvider":
        return False
    constants = constant_shapes(model)
    given = next(value for value in model.graph.input if value.name not in constants)
    axes = given.type.tensor_type.shape.dim[1:]
    if not all(axis.HasField("dim_value") for axis in axes):
        return False
    matrix = convolution = total = 0
    for node, count in macs(model, tuple(axis.dim_value for axis in axes)):
        total += count
        if node.op_type in MATRIX:
            matrix += count if node.input[1] in constants else 0
        else:
            convolution += count
    return total > 0 and matrix >= DOMINATE * total and convolution <= FEW * total


def make(bench: Bench) -> ModelProto:
    """The dynamically quantized graph of a bench, checked. Same bench, same bytes.

    Raises:
        StageError: there is nothing to quantize, or the quantizer, onnx's checker or onnxruntime refuse.
    """
    made = place_dynamic(bench.folded, bench.rules, sorted(bench.exclude))
    if not layers(made):
        raise StageError("dynamic quantization found no matrix product with a constant weight that is not excluded")
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"onnx's checker refuses the dynamically quantized graph: {error}") from error
    graph.session(made)
    return made


def layers(model: ModelProto) -> int:
    """How many products a dynamically quantized graph computes on int8; `graph.tally` counts QDQ form alone."""
    return sum(node.op_type == "MatMulInteger" for node in model.graph.node)
