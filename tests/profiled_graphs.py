"""Small ONNX files whose operators are known, for tests of profiles."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write(path, nodes, constants, inputs, outputs):
    """inputs, outputs: {name: (type, shape)}."""
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", *values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def node(op_type, inputs, output, name="", **attributes):
    return helper.make_node(op_type, inputs.split(), [output], name=name, **attributes)


def weights(*shape, dtype=np.float32):
    random = np.random.default_rng(0)
    if dtype is np.float32:
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 100, shape).astype(dtype)


def convolutions(path, size=14):
    """float: conv (16 -> 16, 3x3) - relu - add the input - mean over the plane - matrix product to 10."""
    nodes = [
        node("Conv", "x w", "c", "conv", pads=[1] * 4),
        node("Relu", "c", "r", "relu"),
        node("Add", "r x", "a", "add"),
        node("ReduceMean", "a axes", "m", "mean", keepdims=0),
        node("MatMul", "m w2", "y", "head"),
    ]
    constants = {"w": weights(16, 16, 3, 3), "w2": weights(16, 10), "axes": np.array([2, 3])}
    image = {"x": (TensorProto.FLOAT, ["batch", 16, size, size])}
    return write(path, nodes, constants, image, {"y": (TensorProto.FLOAT, ["batch", 10])})


def quantized(path, weight=np.int8, activation=np.uint8, size=14):
    """The same in QDQ form, the mean left in float between int8 ones. onnxruntime's CPU provider has int8 kernels for
    uint8 activations with int8 weights, and none for int8 activations with uint8 weights: these run in float."""

    def qdq(value, name):
        return [
            node("QuantizeLinear", f"{value} s z", f"{name}_q", f"{name}_q"),
            node("DequantizeLinear", f"{name}_q s z", f"{name}_d", f"{name}_d"),
        ]

    nodes = [
        *qdq("x", "x"),
        node("DequantizeLinear", "w sw zw", "w_d", "w_d"),
        node("Conv", "x_d w_d", "c", "conv", pads=[1] * 4),
        node("Relu", "c", "r", "relu"),
        *qdq("r", "r"),
        node("Add", "r_d x_d", "a", "add"),
        *qdq("a", "a"),
        node("ReduceMean", "a_d axes", "m", "mean", keepdims=0),
        *qdq("m", "m"),
        node("DequantizeLinear", "w2 sw zw", "w2_d", "w2_d"),
        node("MatMul", "m_d w2_d", "y", "head"),
    ]
    constants = {"s": np.float32(0.05), "z": np.zeros((), activation), "sw": np.float32(0.01)}
    constants |= {"zw": np.zeros((), weight), "axes": np.array([2, 3])}
    constants |= {"w": weights(16, 16, 3, 3, dtype=weight), "w2": weights(16, 10, dtype=weight)}
    image = {"x": (TensorProto.FLOAT, ["batch", 16, size, size])}
    return write(path, nodes, constants, image, {"y": (TensorProto.FLOAT, ["batch", 10])})


def two_inputs(path):
    """Token numbers (batch, length) look up a table, a mask (batch, length) weighs: (batch, length, 8)."""
    nodes = [
        node("Gather", "table ids", "e", "look-up"),
        node("Unsqueeze", "mask last", "u", "unsqueeze"),
        node("Mul", "e u", "y", "weigh"),
    ]
    constants = {"table": weights(100, 8), "last": np.array([-1])}
    inputs = {
        "ids": (TensorProto.INT64, ["batch", "length"]),
        "mask": (TensorProto.FLOAT, ["batch", "length"]),
    }
    return write(path, nodes, constants, inputs, {"y": (TensorProto.FLOAT, ["batch", "length", 8])})


def executed(name, op_type, inputs, outputs, us=(10.0,) * 20, provider="CPUExecutionProvider"):
    """One node of the probe's answer. A tensor is written as "float 1 16 14 14"."""

    def tensors(texts):
        return [[text.split()[0], [int(size) for size in text.split()[1:]]] for text in texts]

    return {
        "name": name,
        "op_type": op_type,
        "provider": provider,
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
        "us": list(us),
    }


def answer(*nodes):
    """The probe's answer about operators."""
    return {"runs": 20, "run_us": [100.0] * 20, "nodes": list(nodes)}
