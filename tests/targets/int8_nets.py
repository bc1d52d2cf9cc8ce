"""A small convolutional network, quantized by onnxruntime, for comparing its answers on different hardware."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from profiled_graphs import node, write

from targets.measure import outputs
from targets.target import Target

SIGNS = {"u8s8": QuantType.QUInt8, "s8s8": QuantType.QInt8}


@dataclass
class Nets:
    """Files of one network, and what this machine's CPU answers.

    Attributes:
        models: "float", "u8s8", "s8s8" -> file.
        step: of the int8 models' outputs: the scale of the last pair of Q and DQ.
        inputs: those examples, of many, on which the float network is surest.
        here: the answers.
    """

    models: dict[str, Path]
    step: dict[str, float]
    inputs: np.ndarray
    here: dict[str, np.ndarray]

    def int8(self):
        return {name: self.models[name] for name in SIGNS}

    def check(self, answers, steps=2.5):
        """The same classes, and int8 answers within some steps of the output: another kernel may round otherwise."""
        for name, got in answers.items():
            np.testing.assert_array_equal(got.argmax(1), self.here[name].argmax(1))
            tolerance = steps * self.step.get(name, 1e-3)
            np.testing.assert_allclose(got, self.here[name], rtol=0, atol=tolerance, err_msg=name)


def make(folder):
    """The network in float and both int8 forms."""
    smooth = np.random.default_rng(7).standard_normal((256, 3, 4, 4)).repeat(4, 2).repeat(4, 3).astype(np.float32)
    float_file = _network(folder / "float.onnx", np.zeros(10, np.float32))
    logits = InferenceSession(float_file, providers=["CPUExecutionProvider"]).run(None, {"x": smooth})[0]
    _network(float_file, -logits.mean(0))  # else one class would win everywhere
    models, step = {"float": float_file}, {}
    for name, activation in SIGNS.items():
        models[name] = folder / f"{name}.onnx"
        quantize_static(
            float_file,
            models[name],
            _Examples(smooth[:32]),
            quant_format=QuantFormat.QDQ,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        step[name] = _output_scale(models[name])
    here = outputs(Target(name="here"), models, smooth)
    top = np.sort(here["float"], 1)
    sure = np.argsort(top[:, -2] - top[:, -1])[:24]  # the largest margins first
    assert len(set(here["float"][sure].argmax(1))) > 2
    return Nets(models, step, smooth[sure], {name: got[sure] for name, got in here.items()})


def _network(path, bias):
    """conv - relu - conv of stride 2 - relu - conv - add - relu - mean over the plane - matrix product."""
    random = np.random.default_rng(3)

    def weights(*shape):
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        node("Conv", "x w1 b1", "c1", "conv1", pads=[1] * 4),
        node("Relu", "c1", "r1", "relu1"),
        node("Conv", "r1 w2 b2", "c2", "conv2", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "c2", "r2", "relu2"),
        node("Conv", "r2 w3 b3", "c3", "conv3", pads=[1] * 4),
        node("Add", "c3 r2", "a", "add"),
        node("Relu", "a", "r3", "relu3"),
        node("GlobalAveragePool", "r3", "p", "pool"),
        node("Flatten", "p", "f", "flatten"),
        node("Gemm", "f w4 b4", "y", "head", transB=1),
    ]
    constants = {"w1": weights(16, 3, 3, 3), "w2": weights(32, 16, 3, 3), "w3": weights(32, 32, 3, 3)}
    constants |= {f"b{i}": 0.1 * weights(len(constants[f"w{i}"]), 1)[:, 0] for i in (1, 2, 3)}
    constants |= {"w4": 4 * weights(10, 32), "b4": bias}
    image = {"x": (TensorProto.FLOAT, ["batch", 3, 16, 16])}
    return write(path, nodes, constants, image, {"y": (TensorProto.FLOAT, ["batch", 10])})


class _Examples(CalibrationDataReader):
    def __init__(self, inputs):
        self._feeds = iter([{"x": one[None]} for one in inputs])

    def get_next(self):
        return next(self._feeds, None)


def _output_scale(path):
    graph = onnx.load(path).graph
    (last,) = (node for node in graph.node if node.output[0] == graph.output[0].name)
    assert last.op_type == "DequantizeLinear"
    (scale,) = (numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == last.input[1])
    return float(scale)
