"""torch-pruning: which channels hang together, and which matter least. Nothing else of it is used.

Its dependency graph (Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900) and its importance classes are asked; its
pruners, which keep settings in dicts that all of them share, and its saver, which pickles, are left alone. What comes
back is data: `Group`s, from which the cuts of any subset of channels follow without the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops

from stages.base import Surgery
from stages.structure.surgery import CONVOLUTIONS, NORMS, depthwise
from targets.errors import StageError

__all__ = ["Group", "Importance", "Member", "groups"]

Importance = Literal["l2", "taylor"]
_ROOTS = (ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_EMBED)


@dataclass(frozen=True)
class Member:
    """One side of one layer in a group.

    Attributes:
        module: dotted name; for "count" with the attribute behind it.
        kind: as in `Surgery`.
        at: for each channel of the group, where it is in this layer; several places behind a flatten.
    """

    module: str
    kind: Literal["out", "in", "norm", "count"]
    at: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only leave together, layer by layer.

    Attributes:
        name: the layer it was found from.
        scores: importance of each channel, higher matters more; comparable inside the group only.
        unfit: why it cannot be cut; empty if it can, as far as the graph shows.
    """

    name: str
    scores: tuple[float, ...]
    members: tuple[Member, ...]
    unfit: str = ""

    @property
    def consumed(self) -> bool:
        """Whether any layer reads the channels; if none does, they are the network's outputs."""
        return any(member.kind == "in" for member in self.members)

    def cuts(self, gone: tuple[int, ...]) -> tuple[Surgery, ...]:
        """The surgery that removes the channels `gone` of the group."""
        found = []
        for member in self.members:
            indexes = tuple(sorted({place for channel in gone for place in member.at[channel]}))
            if indexes:
                found.append(Surgery(member.module, member.kind, indexes))
        return tuple(found)


def groups(module: nn.Module, inputs: Tensor, importance: Importance = "l2") -> tuple[Group, ...]:
    """All groups of a network, in its own order of layers.

    Args:
        module: in eval mode; for "taylor" its gradients must be there (from `backward` over some examples).
        inputs: (batch, ...), a few examples to trace the graph with.
        importance: "l2" is the group's mean squared weight (`GroupMagnitudeImportance`); "taylor" is its mean
            |weight x gradient| (Molchanov et al., CVPR 2019, arXiv:1906.10771, `GroupTaylorImportance`).

    Raises:
        StageError: the network cannot be traced.
    """
    names = {m: name for name, m in module.named_modules()}
    score = tp.importance.GroupMagnitudeImportance(p=2) if importance == "l2" else tp.importance.GroupTaylorImportance()
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    try:
        module.requires_grad_(True)  # the graph is read off autograd's
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(module, example_inputs=[inputs], verbose=False)
            walk = _Walk(graph)
            found = []
            for group in graph.get_all_groups(root_module_types=_ROOTS):
                found.append(_group(group, names, score))
                walk.steps = 0
    except Exception as error:  # the library raises whatever its walk through a strange graph runs into
        raise StageError(f"torch-pruning cannot follow the network: {type(error).__name__}: {error}") from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not found and any(isinstance(layer, (nn.Linear, *CONVOLUTIONS)) for layer in names):
        raise StageError("torch-pruning cannot follow the network: autograd sees no layer behind its outputs")
    order = {name: i for i, name in enumerate(names.values())}
    return tuple(sorted(found, key=lambda group: order[group.name]))


class _Walk:
    """Bounds the library's walk through its graph: in some (rotary positions) it goes round in circles for ever."""

    def __init__(self, graph: Any) -> None:
        self.steps = 0
        edges = [edge for node in graph.module2node.values() for edge in node.dependencies]
        self.most = 10 * len(edges)  # each is gone once or twice in a network that it can follow
        for edge in edges:
            edge.is_triggered_by = partial(self._step, edge.is_triggered_by)

    def _step(self, triggered: Callable[[Any], bool], function: Any) -> bool:
        self.steps += 1
        if self.steps > self.most:
            raise RecursionError("its dependency graph has a circle of growing indexes")
        return triggered(function)


def _group(group: Any, names: Mapping[nn.Module, str], score: Any) -> Group:
    channels = len(group[0].idxs)
    members, unfit = [], ""
    for item in group:
        layer = item.dep.target.module
        if _pads(item.dep.target, group[0].dep.target.module):
            unfit = "a shortcut fills it up with channels of zeros, so that they cannot be followed"
        if None in item.root_idxs:
            unfit = unfit or "its channels cannot be followed through the network"
            continue
        # The Taylor importance sorts `idxs` but not `root_idxs`; sorting both first keeps them in step.
        pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
        item.idxs[:], item.root_idxs[:] = [i for i, _ in pairs], [root for _, root in pairs]
        if layer not in names:
            if item.dep.target.type == ops.OPTYPE.PARAMETER:
                unfit = unfit or "it reaches a parameter that belongs to no known layer"
            continue
        kind = _kind(layer, item.dep)
        if kind is None:
            unfit = unfit or f"it reaches {names[layer]}, a {_describe(layer)}, which cannot lose single channels"
            continue
        if pairs[-1][0] >= _size(layer, kind):  # a gate, say, which halves what it gets
            unfit = unfit or "its channels cannot be followed through the network"
            continue
        at: list[list[int]] = [[] for _ in range(channels)]
        for place, root in pairs:
            at[root].append(place)
        members.append(Member(names[layer], kind, tuple(map(tuple, at))))
    scores = score(group) if not unfit else None
    known = [0.0] * channels if scores is None else torch.nan_to_num(scores).tolist()
    return Group(names[group[0].dep.target.module], tuple(known), tuple(members), unfit)


def _pads(node: Any, root: nn.Module) -> bool:
    """Does an operation add channels of zeros? torch-pruning would take it for one that keeps them as they are."""
    if "ConstantPadNd" not in type(node.grad_fn).__name__ or not isinstance(root, CONVOLUTIONS):
        return False
    first = 2 * len(root.kernel_size)  # the innermost axis comes first
    return any(node.grad_fn._saved_pad[first : first + 2])


def _kind(layer: nn.Module, dep: Any) -> Literal["out", "in", "norm"] | None:
    """Which side of the layer a dependency cuts; None where a single channel cannot go."""
    if isinstance(layer, NORMS):
        return None if isinstance(layer, nn.PReLU) and layer.num_parameters == 1 else "norm"
    if depthwise(layer) or isinstance(layer, nn.Embedding):
        return "out"
    if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and getattr(layer, "groups", 1) == 1:
        cuts_out = dep.handler.__name__ == "prune_out_channels"
        return "out" if cuts_out else "in"
    return None


def _size(layer: nn.Module, kind: str) -> int:
    """How many channels a layer has on one side."""
    weight = layer.weight
    if kind == "norm" or not isinstance(weight, Tensor):  # a norm may have no weights
        return int(getattr(layer, "num_parameters", 0) or getattr(layer, "num_features", 0))
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    return int(getattr(layer, f"{kind}_features", 0) or getattr(layer, f"{kind}_channels", 0))


def _describe(layer: nn.Module) -> str:
    grouped = isinstance(layer, CONVOLUTIONS) and layer.groups > 1
    return f"grouped {type(layer).__name__}" if grouped else type(layer).__name__
