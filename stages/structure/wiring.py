"""How values flow through a network: the graph of `torch.export`, whose nodes know the modules that they lie in.

Sets of nodes are bit masks: node i is bit i, in the order of execution.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from targets.errors import StageError

__all__ = ["Wiring", "bits"]


class Wiring:
    """The graph of one network.

    Args:
        module: in eval mode.
        inputs: (batch, ...), real inputs; floats or whole numbers.

    Attributes:
        nodes: all of them, in the order of execution.
        paths: by node, the names of the modules it lies in, the outermost first; the network itself is left out.
        before: by node, what it is computed from, itself among it.

    Raises:
        StageError: the network cannot be traced; the message names the line of its source.
    """

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        program = _traced(module, inputs)
        names = {name for name, _ in module.named_modules() if name}
        given = set(program.graph_signature.user_inputs)
        weights = program.graph_signature.inputs_to_parameters
        self.nodes: list[Node] = list(program.graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.paths: list[tuple[str, ...]] = [
            tuple(path for path, *_ in (node.meta.get("nn_module_stack") or {}).values() if path in names)
            for node in self.nodes
        ]
        self.inputs = [i for i, node in enumerate(self.nodes) if node.op == "placeholder" and node.name in given]
        self.before: list[int] = []
        for i, node in enumerate(self.nodes):
            mask = 1 << i
            # A length read off a tensor says nothing of its values.
            for parent in node.all_input_nodes if _holds_values(node) else ():
                mask |= self.before[self.place[parent]]
            self.before.append(mask)
        self._inputs = sum(1 << i for i in self.inputs)
        self._weights = sum(1 << i for i, node in enumerate(self.nodes) if node.name in weights)

    def live(self, i: int) -> bool:
        """Does a node's value depend on the network's inputs?"""
        return bool(self.before[i] & self._inputs)

    def parents(self, i: int) -> list[int]:
        """Nodes whose values depend on the inputs, and that this one is computed from."""
        return [p for p in map(self.place.__getitem__, self.nodes[i].all_input_nodes) if self.live(p)]

    def weighted(self, i: int) -> bool:
        """Is it a layer with weights: does it read a parameter of two or more axes? Norms and scales do not."""
        return self.live(i) and any(
            self.before[p] & self._weights and not self.live(p) and _axes(self.nodes[p]) >= 2
            for p in map(self.place.__getitem__, self.nodes[i].all_input_nodes)
        )

    def has_weights(self, mask: int) -> bool:
        """Is there a layer with weights among these nodes?"""
        return any(self.weighted(i) for i in bits(mask))

    def around(self, i: int) -> int:
        """What a value comes from without passing through a layer with weights; the values that such layers give are
        the last."""
        seen, queue = 0, [i]
        while queue:
            at = queue.pop()
            if not seen >> at & 1:
                seen |= 1 << at
                queue += [] if self.weighted(at) else self.parents(at)
        return seen

    def idle_without(self, mask: int) -> int:
        """What nobody would read any more if these nodes were not there, they among it."""
        for i in reversed(range(len(self.nodes))):
            node = self.nodes[i]
            writes = "_." in str(node.target)  # in place, as aten.add_.Tensor does: its effect is not its result
            unread = node.op == "call_function" and (node.users or not writes)
            if unread and all(mask >> self.place[user] & 1 for user in node.users):
                mask |= 1 << i
        return mask

    @cached_property
    def within(self) -> dict[str, int]:
        """By module, the nodes that lie in it; lengths are left out, for other modules use them again."""
        found: dict[str, int] = {}
        for i, path in enumerate(self.paths):
            for name in path if _holds_values(self.nodes[i]) else ():
                found[name] = found.get(name, 0) | 1 << i
        return found

    @cached_property
    def last(self) -> int:
        """The layers with weights that give the network's outputs."""
        outputs = [i for i, node in enumerate(self.nodes) if node.op == "output"]
        return sum(1 << i for i in bits(self.around(outputs[0])) if self.weighted(i))

    def digest(self, mask: int) -> str:
        """12 hex digits, equal for parts of the same operators, settings and shapes in the same order, wherever they
        are in the network and whatever it is called."""
        told = []
        for i in bits(mask):
            node = self.nodes[i]
            if not _holds_values(node) or node.op != "call_function" or "dropout" in str(node.target):
                continue
            shapes = map_arg((node.args, dict(node.kwargs)), _Shape)  # type: ignore[arg-type]  # only to be printed
            told.append(f"{node.target} {shapes} -> {_shape(node)}")
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def bits(mask: int) -> Iterator[int]:
    """The numbers of the nodes in a set, in order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Shape:
    """Stands for a node among the arguments of another."""

    def __init__(self, node: Node) -> None:
        self._shape = _shape(node)

    def __repr__(self) -> str:
        return self._shape


def _shape(node: Node) -> str:
    """Its shape in words, the batch as n: "(n, 8, 16, )"."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return f"[{' '.join(_sizes(part) for part in value)}]"
    return _sizes(value)


def _sizes(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "n"
    return "(" + "".join(re.sub(r"\bs\d+\b", "n", str(size)) + ", " for size in value.shape) + ")"


def _axes(node: Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else 0


def _holds_values(node: Node) -> bool:
    """Not so a length that is read off a tensor, and what is computed from it."""
    return node.op != "call_function" or isinstance(node.meta.get("val"), (Tensor, tuple, list))


def _traced(module: nn.Module, inputs: Tensor) -> Any:
    from stages.export import trace  # brings onnx

    example = np.resize(inputs.numpy(), (2, *inputs.shape[1:]))
    try:
        return trace(module, example)
    except StageError as error:
        raise StageError(
            f"{error}. Every recipe exports its float network, so that none can take this one as it is. What "
            "still works: `quantize` of an .onnx file that was exported elsewhere (`model: {source: net.onnx}`)"
        ) from error
