"""What stays float by rule, each node with its reason; and what a target's int8 rules mean. No torch here.

A classifier's head (the last Gemm or MatMul) is not excluded: its logits are compared with each other, and one scale
serves them all. What comes after a detector's last convolution is: coordinates of hundreds of pixels need more than 8
bits, and joined with scores of 0 to 1 they would leave these a single step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from onnx import ModelProto, NodeProto

from stages.int8.shapes import MULTIPLIES, constant_shapes
from targets.target import Int8Rules

__all__ = ["after_folding", "follows", "kept_float"]

NORMS = frozenset(
    {
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    }
)
SOFTMAX = frozenset({"LogSoftmax", "Softmax"})
PICKS = frozenset({"ArgMax", "ArgMin", "MaxRoiAlign", "NonMaxSuppression", "RoiAlign", "TopK"})
WIDE = frozenset({"Exp", "Log", "Pow", "Reciprocal", "Sqrt"})
# What belongs to the layers before a tail, with which runtimes fuse it or whose 8 bits it keeps.
ACTIVATIONS = frozenset(
    {
        *(
            "BatchNormalization",
            "Clip",
            "Elu",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Mish",
            "PRelu",
            "Relu",
        ),
        *("Selu", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize"),
    }
)
LAYOUT = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})

NORM = "mean and variance of a row need more than 8 bits, and onnxruntime has no int8 kernel for it"
INNER_SOFTMAX = "the probabilities of a row sum to 1, and in steps of 1/255 most of a long row becomes 0"
SCORES = "scores at the end of the network: in steps of 1/255, close ones become equal"
EXPECTATION = "the expected value of a softmax (a box's edge), whose fractions 8 bits do not hold"


def after_folding(folded: ModelProto, excluded: Collection[str]) -> list[str]:
    """Nodes that stand for the excluded ones: a fusion keeps a name or puts its own behind it, "fc/MatMulAddFusion"."""
    gone = set(filter(None, excluded))
    return [node.name for node in folded.graph.node if node.name in gone or node.name.rpartition("/")[0] in gone]


def kept_float(model: ModelProto, op_types: Collection[str]) -> dict[str, str]:
    """Nodes that stay float by rule, and why.

    - Normalizations of rows, and every softmax.
    - Softmax and sigmoid after the last convolution or matrix product, and all that follows. A sigmoid that only
      scales (x * sigmoid(x), the gate of squeeze-and-excitation) is an activation, and no end.
    - What decodes boxes: all between the last layers and an operator that picks (NonMaxSuppression, TopK, RoiAlign,
      ArgMax) or, after the last layers, one of wide range (Exp, Pow, ...), and all that follows after the last layers.
    - The convolution that takes the expected value of a softmax (distribution focal loss, Li et al. 2020).

    Args:
        model: a float graph in topological order. A node without a name cannot be excluded by it, and is left out.
        op_types: operators that would be quantized. Others are float anyway and left out, unless a rule names them.
    """
    named = NORMS | SOFTMAX | PICKS
    reasons = _Walk(model).reasons()
    return {
        node.name: reasons[i]
        for i, node in enumerate(model.graph.node)
        if i in reasons and node.name and (node.op_type in op_types or node.op_type in named)
    }


class _Walk:
    """Ways through a graph, by places of nodes in it."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = constant_shapes(model)
        makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.before = [sorted({makers[name] for name in node.input if name in makers}) for node in self.nodes]
        self.after: list[list[int]] = [[] for _ in self.nodes]
        for i, sources in enumerate(self.before):
            for source in sources:
                self.after[source].append(i)
        self.expectations = {i for i in range(len(self.nodes)) if self._is_expectation(i)}
        self.tail = self._tail()

    def reasons(self) -> dict[int, str]:
        """By place; a rule for the node itself goes before one for its neighbour."""
        ruled = [(i, place, why) for i in range(len(self.nodes)) for place, why in self._rule(i)]
        found = {place: why for i, place, why in ruled if i == place}
        for _, place, why in ruled:
            found.setdefault(place, why)
        return found

    def _rule(self, i: int) -> Iterator[tuple[int, str]]:
        node, tail = self.nodes[i], i in self.tail
        kind = node.op_type
        if kind in NORMS:
            yield i, NORM
        elif i in self.expectations:
            yield i, EXPECTATION
        elif kind in SOFTMAX and not tail:
            yield i, INNER_SOFTMAX
        elif kind in SOFTMAX or (kind == "Sigmoid" and tail and not self._scales(i)):
            yield i, SCORES
            yield from ((place, f"follows {_shown(node)}: {SCORES}") for place in self._rest(i))
        elif kind in PICKS or (kind in WIDE and tail):
            what = "equal scores would be picked at random" if kind in PICKS else "its range is too wide for 8 bits"
            yield i, f"{what}, and decoded coordinates need more than 8 bits"
            for place in sorted(self._decoding(i) | self._rest(i)):
                yield place, f"decodes for or after {_shown(node)}: coordinates need more than 8 bits"

    def _is_layer(self, i: int) -> bool:
        return self.nodes[i].op_type in MULTIPLIES and i not in self.expectations

    def _is_expectation(self, i: int) -> bool:
        """A product of a softmax with one constant vector, reached from it through nothing but layout."""
        node = self.nodes[i]
        if node.op_type not in MULTIPLIES or len(node.input) < 2 or node.input[1] not in self.constants:
            return False
        shape = self.constants[node.input[1]]
        outputs = shape[0] if node.op_type == "Conv" else shape[-1]
        place = i
        while outputs == 1 and self.before[place]:
            place = self.before[place][0]
            if self.nodes[place].op_type not in LAYOUT:
                return self.nodes[place].op_type in SOFTMAX
        return False

    def _tail(self) -> set[int]:
        """Nodes that no layer follows."""
        leads = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            leads[i] = any(self._is_layer(j) or leads[j] for j in self.after[i])
        return {i for i in range(len(self.nodes)) if not (leads[i] or self._is_layer(i))}

    def _scales(self, i: int) -> bool:
        """Is it one factor of a product with another value that the network computes, its own input perhaps?"""
        products = [j for j in self.after[i] if self.nodes[j].op_type == "Mul"]
        return len(products) == len(self.after[i]) > 0 and all(len(self.before[j]) > 1 for j in products)

    def _rest(self, i: int) -> set[int]:
        """All after a node that no layer follows."""
        return self._reached(i, self.after, lambda j: j in self.tail)

    def _decoding(self, i: int) -> set[int]:
        """All between the layers before a node, with their activations, and it."""
        ends = ACTIVATIONS | NORMS
        return self._reached(i, self.before, lambda j: not (self._is_layer(j) or self.nodes[j].op_type in ends))

    @staticmethod
    def _reached(start: int, way: list[list[int]], wanted: Callable[[int], bool]) -> set[int]:
        found: set[int] = set()
        ahead = [j for j in way[start] if wanted(j)]
        while ahead:
            place = ahead.pop()
            if place not in found:
                found.add(place)
                ahead += [j for j in way[place] if wanted(j)]
        return found


def _shown(node: NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def follows(rules: Int8Rules) -> tuple[str, ...]:
    """What a target's int8 rules make of a graph, a sentence for each."""
    return tuple(_sentences(rules))


def _sentences(rules: Int8Rules) -> Iterator[str]:
    if rules.activations == "int8":
        yield "activations and weights are signed (s8s8): what ARM's kernels and TensorRT want"
    elif rules.reduce_range:
        yield (
            "activations are unsigned and weights have 7 bits, -64 to 64 (u8s8 without VNNI): VPMADDUBSW adds two "
            "products in 16 bits, and 2 * 255 * 64 = 32640 fits where 2 * 255 * 127 = 64770 would saturate at 32767"
        )
    else:
        yield "activations are unsigned and weights have all 8 bits (u8s8): VNNI adds their products in 32 bits"
    if rules.activations == "int8" and rules.reduce_range:
        yield "weights have 7 bits, which signed activations do not ask for: int8.reduce_range: false is more exact"
    if rules.symmetric_activations:
        middle = "0" if rules.activations == "int8" else "128"
        yield f"activations are symmetric, zero point {middle}: values that are never negative lose one bit"
    yield (
        "weights have one scale per output channel" if rules.per_channel else "weights have one scale per tensor"
    ) + ", are symmetric, and are int8 in the file"
    yield "QuantizeLinear and DequantizeLinear stand around each operator (QDQ form), which every provider can fuse"
    if rules.op_types:
        yield f"nothing but {', '.join(rules.op_types)} is quantized"
