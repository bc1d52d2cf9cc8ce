"""Shapes and multiply-accumulates of a graph for one example, without running it. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from targets.errors import InputError

__all__ = ["MULTIPLIES", "constant_shapes", "element_types", "macs", "shapes", "weight_bytes"]

Shape = tuple[int, ...]

MULTIPLIES = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply and accumulate."""

SMALL = 4096  # bytes: constants up to this size may be shapes, which inference reads


def shapes(model: ModelProto, input_shape: Shape) -> dict[str, Shape]:
    """Shapes of values for a batch of one; without those that onnx's shape inference cannot tell.

    Args:
        input_shape: of one input, without the batch axis.

    Raises:
        InputError: the graph takes inputs of another shape.
    """
    return {
        info.name: tuple(axis.dim_value for axis in info.type.tensor_type.shape.dim)
        for info in _infos(_inferred(model, input_shape))
        if info.type.tensor_type.HasField("shape")
        and all(axis.HasField("dim_value") for axis in info.type.tensor_type.shape.dim)
    }


def element_types(model: ModelProto) -> dict[str, int]:
    """Element type (TensorProto.FLOAT, ...) of every value that a node makes or that comes in."""
    return {info.name: info.type.tensor_type.elem_type for info in _infos(_inferred(model, None))}


def constant_shapes(model: ModelProto) -> dict[str, Shape]:
    """Shapes of the graph's constants."""
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = next((tuple(part.t.dims) for part in node.attribute if part.name == "value"), (1,))
    return found


def weight_bytes(model: ModelProto) -> int:
    """Bytes of the graph's constants."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def macs(model: ModelProto, input_shape: Shape) -> Iterator[tuple[NodeProto, int]]:
    """Multiply-accumulates for one example of each node that has any and whose shapes are known."""
    constants = constant_shapes(model)
    known = shapes(model, input_shape) | constants
    for node in model.graph.node:
        if node.op_type not in MULTIPLIES:
            continue
        first, second, out = (known.get(name) for name in (node.input[0], node.input[1], node.output[0]))
        if first is None or second is None or out is None:
            continue
        if node.op_type == "Conv":  # weight: (out channels, in channels of the group, *kernel)
            yield node, math.prod(out) * math.prod(second[1:])
        elif node.op_type == "ConvTranspose":  # weight: (in channels, out channels of the group, *kernel)
            yield node, math.prod(first) * math.prod(second[1:])
        else:
            inner = first[-1]
            if node.op_type == "Gemm" and any(part.name == "transA" and part.i for part in node.attribute):
                inner = first[0]
            yield node, math.prod(out) * inner


def _infos(model: ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*model.graph.input, *model.graph.value_info, *model.graph.output)


def _inferred(model: ModelProto, input_shape: Shape | None) -> ModelProto:
    """The graph after shape inference, without its large constants: they would be copied several times."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            hollow = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            light.graph.initializer.append(hollow)
    if input_shape is not None:
        _bind(light, (1, *input_shape))
    return onnx.shape_inference.infer_shapes(light, data_prop=True)


def _bind(model: ModelProto, shape: Shape) -> None:
    """Fixes the input's axes, in place, and forgets what the graph says of its outputs' shapes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    given = next(value for value in model.graph.input if value.name not in constants)
    axes = given.type.tensor_type.shape.dim
    told = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)
    if len(told) != len(shape) or any(
        old is not None and old != new for old, new in zip(told[1:], shape[1:], strict=True)
    ):
        shown = "(" + ", ".join("?" if axis is None else str(axis) for axis in told[1:]) + ")"
        raise InputError(
            f"calibration data has inputs of shape {shape[1:]} and the graph's {given.name!r} takes {shown}",
            help="set data.image_size and data.channels to what the network takes",
        )
    for axis, size in zip(axes, shape, strict=True):
        axis.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
