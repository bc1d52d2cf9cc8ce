"""onnxruntime's dynamic quantizer: weights int8 in the file, activations quantized when the graph runs. No torch."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto

from stages import graph
from targets.errors import StageError
from targets.target import Int8Rules

__all__ = ["place_dynamic"]


def place_dynamic(model: ModelProto, rules: Int8Rules, exclude: Collection[str] = ()) -> ModelProto:
    """Turns each MatMul and Gemm with a constant weight into DynamicQuantizeLinear, MatMulInteger and a rescaling.

    Activations are unsigned, as DynamicQuantizeLinear gives nothing else.

    Args:
        model: a float graph, as `fold` gives it; left as it is.
        exclude: names of nodes that stay float.

    Raises:
        StageError: the quantizer failed.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata

    copy = ModelProto()
    copy.CopyFrom(model)
    add_infer_metadata(copy)  # says that shapes are known: else it infers them again by way of files in /tmp
    try:
        quantizer = ONNXQuantizer(
            copy,
            rules.per_channel,
            rules.reduce_range,
            QuantizationMode.IntegerOps,
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            [],
            [*exclude, *(f"{name}_MatMul" for name in exclude)],  # what it calls the product in a Gemm
            ["MatMul"],  # it makes a Gemm one, and an Add
            {"MatMulConstBOnly": True},
        )
        placed: ModelProto = quantizer.quantize_model()
        quantizer.model.topological_sort()
    except Exception as error:  # it raises ValueError, KeyError and others
        raise StageError(f"onnxruntime's dynamic quantizer failed: {type(error).__name__}: {error}") from error
    graph.strip(placed)
    return placed
