"""The nodes of an ONNX file, as far as a profile needs them: shapes of weights, and what the file means to be int8.

A runtime renames, fuses and replaces nodes before it runs them. `Source.trace` finds the node that an executed operator
came from, by the names that onnxruntime gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["Node", "Source", "family", "read"]

Shape = tuple[int, ...]

# Which input holds the weight; the others are at 1.
_WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
_MULTIPLIES = {"Conv", "ConvTranspose", "MatMul"}
# Operators without weights that onnxruntime has int8 kernels for when they stand between DequantizeLinear and
# QuantizeLinear: onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc
_INT8_KERNELS = {"Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax", "Concat", "Where"}
_SAME_SHAPE = {"DequantizeLinear", "QuantizeLinear", "Identity", "Cast"}


@dataclass(frozen=True)
class Node:
    """One node of the file.

    Attributes:
        index: its place in the file, from 0: what tells nodes without names apart.
        weight: shape of the constant that it multiplies with; () where there is none.
        group: of a convolution.
        quantized: the file says that it should run in int8.
        reads_input: it takes an input of the model, at most quantized on the way.
        branch: the If (or Loop, Scan) that it lies in and the way there, "answer/then_branch"; "" in the main graph.
    """

    index: int
    name: str
    op_type: str
    weight: Shape = ()
    group: int = 1
    quantized: bool = False
    reads_input: bool = False
    branch: str = ""


@dataclass(frozen=True)
class Source:
    """The nodes of a file, and how to find one again."""

    nodes: tuple[Node, ...]
    by_name: Mapping[str, Node]
    by_index: tuple[Node, ...]
    by_output: Mapping[str, tuple[Node, ...]]

    @property
    def quantized(self) -> tuple[Node, ...]:
        """Nodes that the file says should run in int8."""
        return tuple(node for node in self.nodes if node.quantized)

    def trace(self, name: str, op_type: str) -> Node | None:
        """The node that an executed operator came from; None where its name does not tell.

        onnxruntime keeps a node's name when it replaces the node by an int8 one, writes "fused " before it or
        "/MatMulAddFusion" and the like behind it when it joins others, calls convolutions in its blocked layout by
        the value that they compute ("relu_1_nchwc"), and calls nodes without a name by type and number.
        """
        wanted = family(op_type)
        bare = re.sub(r"_token_\d+$", "", name).removeprefix("fused ").rstrip("/")
        while bare:
            node = self.by_name.get(bare)
            if node is not None and family(node.op_type) == wanted:
                return node
            bare = bare.rpartition("/")[0]
        made = self.by_output.get(name.removesuffix("_nchwc"), ())
        if (node := next((node for node in made if family(node.op_type) == wanted), None)) is not None:
            return node
        number = re.fullmatch(re.escape(op_type) + r"_(\d+)", name)
        if number and int(number[1]) < len(self.by_index):
            node = self.by_index[int(number[1])]
            return node if not node.name and node.op_type == op_type else None
        return None


def family(op_type: str) -> str:
    """One word for an operator in all its forms: QLinearConv, FusedConv, ConvInteger -> Conv; Gemm -> MatMul."""
    bare = re.sub(r"^(Nhwc)?(QLinear|Fused|DynamicQuantize|Q(?=Gemm))?", "", op_type)
    bare = re.sub(r"Integer(ToFloat)?$", "", bare)
    return "MatMul" if bare == "Gemm" else bare


def read(path: Path) -> Source:
    """The nodes of a file that `targets.artifact.load` found sound; weights outside the file are not looked for."""
    import onnx

    return _source(onnx.load(path, load_external_data=False).graph)


def _source(graph: GraphProto) -> Source:
    facts = _Facts(graph)
    pairs = [(proto, facts.node(i, proto)) for i, proto in enumerate(facts.protos) if proto.op_type != "Constant"]
    made = {id(proto): node for proto, node in pairs}
    by_output = {}
    for proto, _ in pairs:
        for output in proto.output:
            chain = facts.chain(output)
            by_output[output] = tuple(made[id(above)] for above in chain if id(above) in made)
    return Source(
        nodes=tuple(made.values()),
        by_name={node.name: node for node in made.values() if node.name},
        # onnxruntime turns Constant nodes into initializers before it counts.
        by_index=tuple(made[id(proto)] for proto in graph.node if id(proto) in made),
        by_output=by_output,
    )


class _Facts:
    """What the protobufs say, by value name; subgraphs see the values of the graph around them."""

    def __init__(self, graph: GraphProto) -> None:
        self.protos: list[NodeProto] = []
        self.constants: dict[str, Shape] = {}
        self.producers: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self.branches: list[str] = []
        self._walk(graph, "")
        self.inputs = {value.name for value in graph.input} - self.constants.keys()

    def _walk(self, graph: GraphProto, branch: str) -> None:
        self.constants |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for proto in graph.node:
            self.protos.append(proto)
            self.branches.append(branch)
            called = "/".join(filter(None, (branch, proto.name or proto.op_type)))
            if proto.op_type == "Constant":
                shapes = [tuple(a.t.dims) for a in proto.attribute if a.name == "value"]
                self.constants[proto.output[0]] = shapes[0] if shapes else ()
            self.producers |= dict.fromkeys(proto.output, proto)
            for value in proto.input:
                self.readers.setdefault(value, []).append(proto)
            for attribute in proto.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    self._walk(inner, f"{called}/{attribute.name}")

    def node(self, index: int, proto: NodeProto) -> Node:
        at = _WEIGHT_AT.get(proto.op_type, 1)
        multiplies = family(proto.op_type) in _MULTIPLIES
        weight = self.constant(proto.input[at]) if multiplies and len(proto.input) > at else None
        group = next((a.i for a in proto.attribute if a.name == "group"), 1)
        first = self.origin(proto.input[0], _SAME_SHAPE) if proto.input else ""
        quantized, reads_input = self.quantized(proto), first in self.inputs
        branch = self.branches[index]
        return Node(index, proto.name, proto.op_type, weight or (), group, quantized, reads_input, branch)

    def origin(self, value: str, through: Iterable[str]) -> str:
        """The value that another one is made from, by nodes of these types alone."""
        while (proto := self.producers.get(value)) is not None and proto.op_type in through and proto.input:
            value = proto.input[0]
        return value

    def constant(self, value: str) -> Shape | None:
        """The shape of a constant, also when it is quantized, or turned (then its axes may be in another order)."""
        return self.constants.get(self.origin(value, {*_SAME_SHAPE, "Transpose"}))

    def quantized(self, proto: NodeProto) -> bool:
        """Is it in QDQ form? Operators with weights by their two factors; others only between int8 values, and only
        those that int8 kernels exist for: a float operator that was left between int8 ones looks just the same."""
        if proto.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            return len(proto.input) > 1 and all(map(self._dequantized, proto.input[:2]))
        if proto.op_type not in _INT8_KERNELS:
            return False
        data = proto.input[1:] if proto.op_type == "Where" else proto.input
        return all(map(self._dequantized, data)) and all(map(self._quantized_next, proto.output))

    def _quantized_next(self, value: str) -> bool:
        """Every reader quantizes it, at most behind an activation that the rounding makes superfluous."""
        readers = self.readers.get(value, ())
        if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
            return self._quantized_next(readers[0].output[0])
        return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)

    def _dequantized(self, value: str) -> bool:
        proto = self.producers.get(value)
        if proto is not None and proto.op_type == "Transpose":  # exporters turn weights behind their DequantizeLinear
            proto = self.producers.get(proto.input[0])
        return proto is not None and proto.op_type == "DequantizeLinear"

    def chain(self, value: str) -> Iterator[NodeProto]:
        """The producer of a value, and those before it as long as each takes just one value that is no constant."""
        for _ in range(5):  # convolution, batch norm, activation, and room for two more
            proto = self.producers.get(value)
            if proto is None:
                return
            yield proto
            changing = [name for name in proto.input if name and self.constant(name) is None]
            if len(changing) != 1:
                return
            value = changing[0]
