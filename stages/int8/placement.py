"""What an int8 graph in QDQ form computes, read back from it: where it rounds, and how. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from targets.errors import StageError

__all__ = ["Grid", "Layer", "Placement", "constants_of", "layers_of", "read"]

WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Grid:
    """The numbers that an activation can be: (q - zero) * step, for whole q from `low` to `high`."""

    step: float
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Layer:
    """A node with weights in the float graph.

    Attributes:
        made: name of the value that it makes.
        weight, bias: names of its constants; no bias: "".
        transposed: weights lie as (in, out), where torch has (out, in).
    """

    node: str
    made: str
    weight: str
    bias: str
    transposed: bool


@dataclass(frozen=True)
class Placement:
    """Where and how a graph rounds.

    Attributes:
        grids: by name. Values that are the same numbers in another order or shape share one.
        values: rounded value -> name of its grid.
        layers: nodes whose weights are int8 -> (name of the input's grid, whether the bias is int32, number of scales
            of the weights).
    """

    grids: Mapping[str, Grid]
    values: Mapping[str, str]
    layers: Mapping[str, tuple[str, bool, int]]


def read(int8: ModelProto) -> Placement:
    """Takes a graph of `ort_quantizer.place` apart.

    Raises:
        StageError: it holds an int8 constant that is neither weight nor bias.
    """
    constants = constants_of(int8)
    makers = {name: node for node in int8.graph.node for name in node.output}
    grids, values = {}, {}
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            name = node.input[1].removesuffix("_scale")
            zero = constants[node.input[2]]
            kind = np.iinfo(zero.dtype)
            grids[name] = Grid(float(constants[node.input[1]]), int(zero), kind.min, kind.max)
            values[node.input[0].removesuffix("_QuantizeLinear_Input")] = name

    def stored(name: str) -> NodeProto | None:
        """The DequantizeLinear of a constant that a value comes from."""
        maker = makers.get(name)
        return maker if maker and maker.op_type == "DequantizeLinear" and maker.input[0] in constants else None

    layers, rest = {}, {name for name in makers if stored(name)}
    for node in int8.graph.node:
        if node.op_type in WITH_WEIGHTS and (weight := stored(node.input[1])):
            bias = node.input[2] if len(node.input) > 2 else ""
            grid = makers[node.input[0]].input[1].removesuffix("_scale")
            layers[node.name] = grid, stored(bias) is not None, constants[weight.input[1]].size
            rest -= {node.input[1], bias}
    if rest:
        reader = next(node for node in int8.graph.node if rest.intersection(node.input))
        raise StageError(
            f"torch cannot be made to round as node {reader.name!r} ({reader.op_type}) does: it takes a constant that "
            "became int8 and is no weight of a layer, as the bias of a linear layer on tokens does"
        )
    return Placement(grids, values, layers)


def layers_of(folded: ModelProto) -> list[Layer]:
    """The nodes of a float graph whose weights are constants."""
    constants = {tensor.name for tensor in folded.graph.initializer}
    found = []
    for node in folded.graph.node:
        if node.op_type in WITH_WEIGHTS and node.input[1] in constants:
            bias = node.input[2] if len(node.input) > 2 else ""
            straight = any(a.name == "transB" and a.i for a in node.attribute)
            transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not straight)
            found.append(Layer(node.name, node.output[0], node.input[1], bias, transposed))
    return found


def constants_of(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Its constants, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
