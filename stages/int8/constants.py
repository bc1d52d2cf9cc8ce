"""Weights and biases inside an ONNX graph, read and replaced by the place where a node reads them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from stages.graph import Floats

__all__ = ["Constants", "Slot", "attribute"]


class Slot(NamedTuple):
    """Where a constant is read: the node's number in the graph, and the number of its input."""

    node: int
    input: int


class Constants:
    """The float constants of a graph that the caller may change.

    A constant that several nodes read is copied before it changes, so that only the one node sees it.

    Attributes:
        model: a copy of the graph that was given; it holds what `put` was given.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self._tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._uses = Counter(name for node in self.nodes for name in node.input)
        self._uses.update(value.name for value in self.model.graph.output)

    def has(self, slot: Slot) -> bool:
        """Whether a float constant is read there."""
        return self._name(slot) in self._tensors and self._tensors[self._name(slot)].data_type == TensorProto.FLOAT

    def absent(self, slot: Slot) -> bool:
        """Whether nothing at all is read there."""
        return not self._name(slot)

    def get(self, slot: Slot) -> Floats:
        """A copy of what is read there."""
        return np.array(numpy_helper.to_array(self._tensors[self._name(slot)]), np.float32)

    def put(self, slot: Slot, value: NDArray[np.floating]) -> None:
        """Has the node read this instead."""
        node, name = self.nodes[slot.node], self._name(slot)
        if not name or self._uses[name] > 1:
            self._uses[name] -= 1
            name = self._free(f"{node.name or node.output[0]}.{'weight' if slot.input == 1 else 'bias'}")
            node.input.extend([""] * (slot.input + 1 - len(node.input)))
            node.input[slot.input] = name
            self._uses[name] = 1
            self._tensors[name] = self.model.graph.initializer.add()
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))

    def _name(self, slot: Slot) -> str:
        read = self.nodes[slot.node].input
        return read[slot.input] if slot.input < len(read) else ""

    def _free(self, name: str) -> str:
        taken = self._uses.keys() | self._tensors.keys() | {made for node in self.nodes for made in node.output}
        while name in taken:
            name += "_"
        return name


def attribute(node: NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    for found in node.attribute:
        if found.name == name:
            return float(found.f) if found.type == found.FLOAT else float(found.i)
    return default
