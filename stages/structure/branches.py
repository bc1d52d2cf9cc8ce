"""Residual branches inside a forward pass: `x = x + attn(norm(x))`, `x = norm(x + f(x))`.

Found in the graph (`stages.structure.wiring`): a sum, one of whose operands comes from a value by a way that holds no
layer with weights, and the other from the same value through layers. Without its branch the sum is the way alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from stages.structure.wiring import Wiring, bits

__all__ = ["Branch", "branches", "outermost", "projections"]

aten = torch.ops.aten
SUMS = {aten.add.Tensor, aten.add_.Tensor}
KEEP_ZEROS = {
    *(aten.dropout.default, aten.feature_dropout.default, aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar),
    *(aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.alias.default),
    *(aten.to.dtype, aten._to_copy.default, aten.neg.default, aten.movedim.int),
}
"""What may stand between the last module of a branch and the sum: zeros stay zeros."""


@dataclass(frozen=True)
class Branch:
    """A branch that could be left out.

    Attributes:
        module: the last module of it: zeros from there leave the sum with the way alone.
        idle: modules that nobody would listen to then, those inside of others too.
        nodes: what would leave the graph.
    """

    module: str
    idle: tuple[str, ...]
    nodes: int


def branches(wiring: Wiring, calls: Mapping[str, int]) -> tuple[list[Branch], dict[str, str]]:
    """Every branch, in the order of execution; and why others stay, by the name of the module that holds the sum.

    Args:
        calls: how often each module is called.
    """
    found: list[Branch] = []
    refused: dict[str, str] = {}
    for i, way, branch in _sums(wiring):
        source = _source(wiring, way, branch)
        if source is None:
            continue
        nodes = sum(1 << n for n in bits(wiring.before[branch]) if n > source and wiring.before[n] >> source & 1)
        if not wiring.has_weights(nodes):
            continue
        last = _last(wiring, calls, i, branch, nodes)
        if last is None:
            first = next(n for n in bits(nodes) if wiring.weighted(n))
            name = (wiring.paths[i] or wiring.paths[first] or ("the network",))[-1]
            refused[name] = "its residual branch does not end in one module that is called once"
            continue
        gone = wiring.idle_without(wiring.within[last])
        silent = [
            name
            for name, mask in wiring.within.items()
            if not mask & ~gone and not mask & wiring.within[last] and calls.get(name) == 1
        ]
        found.append(Branch(last, tuple(silent), gone & ~wiring.idle_without(0)))
    return found, refused


def projections(wiring: Wiring) -> list[str]:
    """Modules that hold a sum both of whose operands come through layers with weights from one value inside."""
    found: dict[str, None] = {}
    for i, left, right in _sums(wiring):
        if not wiring.paths[i]:
            continue
        # What both come from; the latest is nearest. It must be no input of the network: embeddings are no shortcut.
        both = wiring.before[left] & wiring.before[right]
        common = [n for n in bits(both) if wiring.live(n) and n not in wiring.inputs]
        if not common or any(_source(wiring, *pair) is not None for pair in ((left, right), (right, left))):
            continue
        between = [sum(1 << n for n in bits(wiring.before[end]) if n > common[-1]) for end in (left, right)]
        if all(wiring.has_weights(nodes & ~both) for nodes in between):
            found[wiring.paths[i][-1]] = None
    return list(found)


def outermost(names: Iterable[str]) -> list[str]:
    """Those that lie in none of the others."""
    names = list(names)
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _sums(wiring: Wiring) -> list[tuple[int, int, int]]:
    """(a sum, one operand, the other), each sum both ways round."""
    found = []
    for i, node in enumerate(wiring.nodes):
        if node.target in SUMS and all(isinstance(arg, Node) for arg in node.args[:2]) and not node.kwargs:
            a, b = (wiring.place[arg] for arg in node.args[:2] if isinstance(arg, Node))
            if wiring.live(a) and wiring.live(b):
                found += [(i, a, b), (i, b, a)]
    return found


def _source(wiring: Wiring, way: int, branch: int) -> int | None:
    """The last value that both come from, one of them without layers with weights; None if there is none."""
    both = wiring.around(way) & wiring.before[branch]
    for n in reversed(list(bits(both))):
        value = wiring.nodes[n].meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            return n if n != branch else None
    return None


def _last(wiring: Wiring, calls: Mapping[str, int], total: int, node: int, branch: int) -> str | None:
    """The outermost module that gives the branch's values, and has nothing to do with what is outside of the branch.

    Args:
        total: the sum. node: its operand. branch: all nodes between the source and that operand.
    """
    while True:
        for name in wiring.paths[node]:
            mask = wiring.within[name]
            live = sum(1 << n for n in bits(mask) if wiring.live(n))
            if name in wiring.paths[total] or calls.get(name) != 1 or live & ~branch:
                continue
            read = {n for n in bits(mask) for user in wiring.nodes[n].users if not mask >> wiring.place[user] & 1}
            if read == {node}:
                return name
        parents = wiring.parents(node)
        if wiring.nodes[node].target not in KEEP_ZEROS or len(parents) != 1 or not branch >> parents[0] & 1:
            return None
        node = parents[0]
