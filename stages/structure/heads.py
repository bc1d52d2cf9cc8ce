"""Attention heads: channels of linear layers that only leave by the head. Found by gradients, not by names.

for each linear layer: who makes what it reads, up to the linear layers before, if nobody else reads those
the gradient of one column by the makers' outputs: more than its own channel? then a head, or a gate, lies between
the smallest width whose columns share no maker's output: the size of a head; its rows: where its gradient is not zero
half of the heads leave in a trial of the smallest module around them, with integers that count them made smaller
    the fewest of them that make the trial pass are part of the cut
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from stages.structure.calls import removed
from stages.structure.trial import fault
from stages.vendors.torch_pruning import Group, Importance, Member

__all__ = ["Headed", "heads"]

ATTRIBUTES = 6  # integers that may count heads, at most: all sets of them are tried


@dataclass(frozen=True)
class Headed:
    """The heads that one layer reads.

    Attributes:
        group: its channels are the reader's columns; those of one head leave together. It says if they cannot.
        unit: columns of one head.
    """

    group: Group
    unit: int


@dataclass(frozen=True)
class _Core:
    """What lies between a linear layer and those that make what it reads. Tensors hold autograd's graph.

    Attributes:
        read: what the reader got (batch, ..., columns).
        made: by maker, its output (batch, ..., rows).
    """

    reader: str
    read: Tensor
    made: Mapping[str, Tensor]

    @property
    def columns(self) -> int:
        return self.read.shape[-1]

    def rows(self, columns: Iterable[int]) -> dict[str, frozenset[int]]:
        """By maker, the outputs that reach any of these columns."""
        weights = torch.zeros_like(self.read)
        at = list(columns)
        random = torch.Generator().manual_seed(0)
        weights[..., at] = torch.randn(weights[..., at].shape, generator=random)
        found = torch.autograd.grad(self.read, list(self.made.values()), weights, retain_graph=True, allow_unused=True)
        reached = [set() if g is None else set((g != 0).flatten(0, -2).any(0).nonzero()[:, 0].tolist()) for g in found]
        return {name: frozenset(rows) for name, rows in zip(self.made, reached, strict=True)}

    def unit(self) -> int:
        """The smallest width of which a second piece shares no rows with the first; all columns if there is none."""
        first = self.rows([0])
        for width in (n for n in range(1, self.columns) if self.columns % n == 0):
            other = self.rows([width])
            if not any(first[maker] & other[maker] for maker in first):
                return width
        return self.columns

    def plain(self) -> bool:
        """Does every column read its own channel only, as behind an activation? Asked for two columns."""
        return all(
            rows <= {column} and made.shape[-1] == self.columns
            for column in (0, self.columns - 1)
            for rows, made in zip(self.rows([column]).values(), self.made.values(), strict=True)
        )


def heads(module: nn.Module, inputs: Tensor, scored: nn.Module, importance: Importance = "l2") -> tuple[Headed, ...]:
    """All linear layers that read heads (or gated units, heads of one column), with the layers that make them.

    Args:
        module: in eval mode, without parameters that are zero or all alike.
        inputs: (batch, ...), real inputs; attention over a single token shows no heads.
        scored: the same network with the weights (and gradients) that importance is taken from.
    """
    calls = _calls(module, inputs)
    cores = [core for core in _cores(module, inputs, calls) if not core.plain()]
    return tuple(_headed(module, core, calls, scored, importance) for core in cores)


def _headed(
    module: nn.Module, core: _Core, calls: Mapping[str, Any], scored: nn.Module, importance: Importance
) -> Headed:
    unit, name = core.unit(), min(core.made, key=list(calls).index)
    empty = Group(name, (), tuple(Member(maker, "out", ()) for maker in core.made))
    count = core.columns // unit
    if count == 1:
        return Headed(replace(empty, unfit="it has one head, or mixes all of its channels"), unit)
    parts = [core.rows(range(head * unit, (head + 1) * unit)) for head in range(count)]
    members = [Member(core.reader, "in", tuple((column,) for column in range(core.columns)))]
    for maker, made in core.made.items():
        rows = [sorted(part[maker]) for part in parts]
        if sorted(row for of_head in rows for row in of_head) != list(range(made.shape[-1])):
            return Headed(replace(empty, unfit=f"its heads cannot be told apart in {maker}"), unit)
        # The columns of a head take turns at its rows: whole heads take them all.
        at = tuple(tuple(rows[column // unit][column % unit :: unit]) for column in range(core.columns))
        members.append(Member(maker, "out", at))
    group = Group(name, (), tuple(members))
    counts, why = _counted(module, core, group, unit, calls)
    group = replace(group, members=(*members, *counts), scores=_scores(scored, members, importance))
    return Headed(replace(group, unfit=f"heads cannot leave: {why}") if why else group, unit)


def _cores(module: nn.Module, inputs: Tensor, calls: Mapping[str, Any]) -> list[_Core]:
    """All pairs of makers and their only reader."""
    read: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    nodes: dict[Any, str] = {}

    def keep(name: str, args: tuple[Any, ...], output: Tensor) -> None:
        read[name], made[name] = args[0], output
        nodes[output.grad_fn] = name

    linear = {name: module.get_submodule(name) for name in calls if isinstance(module.get_submodule(name), nn.Linear)}
    hooks = [
        layer.register_forward_hook(lambda _, args, output, name=name: keep(name, args, output))
        for name, layer in linear.items()
    ]
    with removed(hooks), torch.enable_grad():
        module(inputs)
    makers = {name: sorted(_before(x.grad_fn, nodes)) for name, x in read.items()}
    read_by = Counter(name for names in makers.values() for name in names)
    return [
        _Core(reader, read[reader], {name: made[name] for name in names})
        for reader, names in makers.items()
        if names and all(read_by[name] == 1 for name in names)
    ]


def _calls(module: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """By module that is called once: its arguments."""
    calls: dict[str, list[Any]] = {name: [] for name, _ in module.named_modules()}
    hooks = [
        inner.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: calls[name].append((args, kwargs)), with_kwargs=True
        )
        for name, inner in module.named_modules()
    ]
    with removed(hooks), torch.no_grad():
        module(inputs)
    return {name: of[0] for name, of in calls.items() if len(of) == 1}


def _before(node: Any, nodes: Mapping[Any, str]) -> Iterator[str]:
    """Linear layers whose outputs reach a node of autograd's graph with no linear layer between."""
    stack, seen = [node], {None}
    while stack:
        if (node := stack.pop()) in seen:
            continue
        seen.add(node)
        if node in nodes:
            yield nodes[node]
        else:
            stack += [before for before, _ in node.next_functions]


class _Alone(nn.Module):
    """One module of a network, called as the network called it. (inputs) -> its first tensor."""

    def __init__(self, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.part, self.args, self.kwargs = part, args, kwargs

    def forward(self, _: Tensor) -> Tensor:
        found = self.part(*self.args, **self.kwargs)
        while not isinstance(found, Tensor):
            found = next(iter(found.values())) if isinstance(found, Mapping) else found[0]
        return found


def _counted(
    module: nn.Module, core: _Core, group: Group, unit: int, calls: Mapping[str, Any]
) -> tuple[tuple[Member, ...], str]:
    """(integers that must shrink with the heads; why heads cannot leave whatever shrinks, or nothing)."""
    columns = len(group.members[0].at)
    count = columns // unit
    around = _around([member.module for member in group.members])
    while around not in calls:
        around = around.rpartition(".")[0]
    part = deepcopy(module.get_submodule(around))
    with torch.no_grad():
        for maker, made in core.made.items():  # fresh weights make all scores alike, whichever heads they are of
            weight = part.get_submodule(maker.removeprefix(around).lstrip(".")).weight
            assert isinstance(weight, Tensor)
            weight.div_(made.flatten(0, -2).std(0).mean().clamp_min(1e-6))
    alone = _Alone(part, *calls[around])
    gone = tuple(column for column in range(columns) if column // unit % 2)
    why = ""
    numbers = [
        (value != count, value != columns, ".".join(filter(None, (around, path, name))), value)
        for path, inner in part.named_modules()
        if next(inner.children(), None) is not None
        for name, value in vars(inner).items()
        if type(value) is int and value % count == 0 and value > 1
    ]
    numbers = sorted(numbers)[:ATTRIBUTES]
    for size in range(len(numbers) + 1):
        for chosen in combinations(numbers, size):
            members = tuple(Member(name, "count", _shares(value, count, unit)) for _, _, name, value in chosen)
            cuts = replace(group, members=(*group.members, *members)).cuts(gone)
            inside = tuple(replace(cut, module=f"part.{cut.module.removeprefix(around).lstrip('.')}") for cut in cuts)
            told = fault(alone, inside, torch.empty(0))
            if not told:
                return members, ""
            why = why or told
    return (), why


def _shares(value: int, count: int, unit: int) -> tuple[tuple[int, ...], ...]:
    """For each column, what goes from an integer with it: the columns of a head take turns at its share."""
    each = value // count
    return tuple(
        tuple(range(head * each, (head + 1) * each))[column::unit] for head in range(count) for column in range(unit)
    )


def _around(names: Iterable[str]) -> str:
    """The innermost module that holds all of these."""
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _scores(module: nn.Module, members: Iterable[Member], importance: Importance) -> tuple[float, ...]:
    """As torch-pruning's group importance: of each column, the mean over layers of the squared weight (or of |weight x
    gradient|) at its places, relative to the mean column."""
    total = torch.zeros(0)
    for member in members:
        weight = module.get_submodule(member.module).weight
        assert isinstance(weight, Tensor)
        gradient = weight.grad if importance == "taylor" else weight
        assert gradient is not None
        worth = (weight * gradient).detach().abs().sum(0 if member.kind == "in" else 1)
        of_column = torch.stack([worth[list(places)].sum() for places in member.at])
        total = of_column if not len(total) else total + of_column
    return tuple((total / total.mean()).tolist())
