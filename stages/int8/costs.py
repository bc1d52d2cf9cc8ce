"""What a graph's nodes cost in int8 and in float, and what it would save to turn some of them float. Pure arithmetic.

    saving of nodes that turn float
        = what they take in int8 - what they take in float
        + roundings and copies that are no longer needed - those that the new borders need

A runtime fuses, so what is compared are groups: the least ones that are executed by themselves in both graphs (say, a
convolution with the addition and the activation behind it). What a new border costs is taken from the cheapest rounding
or copy that ran, by the numbers that it moves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, shape_inference

__all__ = ["Costs", "Ran", "dearest"]

_LEAST = 0.005  # share of the int8 graph's time that nodes must save to be named
_LONGEST = 64  # groups in a run


@dataclass(frozen=True)
class Ran:
    """An executed operator.

    Attributes:
        node: the file's own node; empty where it cannot be told.
        us: microseconds in a run.
        size: how many numbers it gives.
        moves: it computes nothing: it rounds, or copies into another layout.
        int8: it computes on int8.
    """

    node: str
    us: float
    size: int
    moves: bool
    int8: bool


@dataclass
class _Group:
    """Nodes that are executed together.

    Attributes:
        names: of those that are meant to be int8; none: the group is float already.
        gain: microseconds that it takes in int8 beyond those in float.
        values: float values that it reads from other groups, or gives them.
    """

    names: set[str] = field(default_factory=set)
    gain: float = 0.0
    values: set[str] = field(default_factory=set)


@dataclass
class _Value:
    """A float value that passes from one group to others.

    Attributes:
        ends: the groups that make and read it; None stands for the caller, who gives and takes floats.
        moved: microseconds that its roundings and copies take now.
        border: those that they would take if some of its ends were float and others int8.
    """

    ends: set[int | None]
    moved: float = 0.0
    border: float = 0.0


class Costs:
    """The graph in groups, in the file's order, with what they and the values between them cost.

    Args:
        floats, int8: what ran of each graph, in order.
        meant: names of the nodes that the int8 graph means to be int8, whatever became of them.
    """

    def __init__(
        self, float_model: ModelProto, int8_model: ModelProto, floats: list[Ran], int8: list[Ran], meant: set[str]
    ) -> None:
        self.least = _LEAST * sum(row.us for row in int8)
        self.of = _grouped(float_model, [{row.node for row in ran} for ran in (floats, int8)])
        self.groups = {number: _Group() for number in sorted(set(self.of.values()))}
        for name in self.of.keys() & (meant | {row.node for row in int8 if row.int8 and not row.moves}):
            self.groups[self.of[name]].names.add(name)
        self.values: dict[str, _Value] = {}
        sizes = self._connect(shape_inference.infer_shapes(float_model).graph)
        self._spend(floats, -1.0, {})
        self._spend(int8, 1.0, _rounds(int8_model))
        # Small ones mostly show what it costs to call them. Too low a price costs a trial; too high a one, the gain.
        rate = min((row.us / row.size for row in (*floats, *int8) if row.moves and row.size), default=0.0)
        mixed = {name for name, value in self.values.items() if len({self.is_float(end) for end in value.ends}) > 1}
        for name, value in self.values.items():
            value.border = value.moved if name in mixed else max(value.moved, rate * sizes[name])

    def _connect(self, graph: GraphProto) -> dict[str, int]:
        """Finds the values between groups; gives how many numbers each holds for one example."""
        infos = {info.name: info.type.tensor_type for info in (*graph.input, *graph.value_info, *graph.output)}
        floats = {name for name, info in infos.items() if info.elem_type == TensorProto.FLOAT}
        for tensor in graph.initializer:
            floats.discard(tensor.name)
        caller = {value.name for value in (*graph.input, *graph.output)}
        ends: dict[str, set[int | None]] = {name: {None} if name in caller else set() for name in floats}
        for index, node in enumerate(graph.node):
            for name in floats.intersection((*node.input, *node.output)):
                ends[name].add(self.of[_key(index, node)])
        for name, groups in ends.items():
            if len(groups) > 1:
                self.values[name] = _Value(groups)
                for number in groups - {None}:
                    self.groups[number].values.add(name)  # type: ignore[index]  # None is taken out
        return {name: math.prod(dim.dim_value or 1 for dim in infos[name].shape.dim) for name in self.values}

    def _spend(self, ran: Sequence[Ran], sign: float, rounds: Mapping[str, str]) -> None:
        """Hands out the times. Movers of as many numbers that follow each other serve one value: that which one of them
        is known to round. Where none is known, they serve the group that is executed next.

        Args:
            rounds: as `_rounds` gives it.
        """
        waiting = 0.0
        for (moves, _), rows in groupby(ran, lambda row: (row.moves, row.size if row.moves else row.node)):
            part = list(rows)
            us = sum(row.us for row in part)
            owners = [row.node for row in part] if not moves else [rounds.get(row.node, "") for row in part]
            owner = next((name for name in owners if name in self.values or name in self.of), "")
            if moves and owner in self.values:
                self.values[owner].moved += us
            elif owner in self.of:
                self.groups[self.of[owner]].gain += sign * (us + (0.0 if moves else waiting))
                waiting = waiting if moves else 0.0
            elif moves:
                waiting += us

    def is_float(self, end: int | None, chosen: Collection[int] = ()) -> bool:
        """Whether a group computes on floats, when the chosen ones do."""
        return end is None or end in chosen or not self.groups[end].names

    def border(self, name: str, chosen: Collection[int]) -> float:
        """What moving a value costs when the chosen groups are float, microseconds."""
        value = self.values[name]
        kinds = {self.is_float(end, chosen) for end in value.ends}
        return value.border if len(kinds) > 1 else 0.0 if kinds == {True} else value.moved


def _key(index: int, node: NodeProto) -> str:
    return node.name or f"#{index}"


def _grouped(model: ModelProto, executed: Sequence[set[str]]) -> dict[str, int]:
    """Node -> number of its group. A node that was not executed by itself was joined with the last one before it."""
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while parent.get(index, index) != index:
            index = parent[index]
        return index

    makers: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        before = [makers[name] for name in node.input if name in makers]
        if before and not all(node.name in names for names in executed):
            first, second = sorted((root(index), root(max(before))))
            parent[second] = first
        makers |= dict.fromkeys(node.output, index)
    return {_key(index, node): root(index) for index, node in enumerate(model.graph.node)}


def _rounds(int8_model: ModelProto) -> dict[str, str]:
    """What each QuantizeLinear and DequantizeLinear is there for, by name: the float value; or, for that of a constant,
    the node that reads it."""
    makers = {name: node for node in int8_model.graph.node for name in node.output}
    readers = {name: node.name for node in int8_model.graph.node for name in node.input}
    found = {}
    for node in int8_model.graph.node:
        if node.op_type == "QuantizeLinear":
            found[node.name] = node.input[0]
        elif node.op_type == "DequantizeLinear":
            maker = makers.get(node.input[0])
            found[node.name] = maker.input[0] if maker is not None else readers.get(node.output[0], "")
    return found


def dearest(costs: Costs) -> list[tuple[frozenset[str], float]]:
    """Runs of groups, in the file's order, that are slower in int8: (names of their int8 nodes, microseconds that a run
    of the graph saves when they turn float), the most first; no two overlap."""
    order = list(costs.groups)
    found: list[tuple[float, int, int]] = []
    for start, first in enumerate(order):
        if not costs.groups[first].names:
            continue
        chosen: set[int] = set()
        paid: dict[str, float] = {}
        gain, most = 0.0, costs.least
        for end in range(start, min(start + _LONGEST, len(order))):
            group = costs.groups[order[end]]
            if not group.names:
                continue
            chosen.add(order[end])
            gain += group.gain
            paid |= {name: costs.border(name, chosen) - costs.border(name, ()) for name in group.values}
            if (saving := gain - sum(paid.values())) > most:
                most = saving
                found.append((saving, start, end))
    taken: set[int] = set()
    best = []
    for saving, start, end in sorted(found, key=lambda run: (-run[0], run[2] - run[1], run[1])):
        if taken.isdisjoint(range(start, end + 1)):
            taken.update(range(start, end + 1))
            names = (costs.groups[order[at]].names for at in range(start, end + 1))
            best.append((frozenset().union(*names), round(saving, 3)))
    return best
