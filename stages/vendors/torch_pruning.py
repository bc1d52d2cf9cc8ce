"""torch-pruning: which channels hang together, and which matter least. Nothing else of it is used.

Its dependency graph (Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900) and its importance classes are asked; its
pruners, which keep settings in dicts that all of them share, and its saver, which pickles, are left alone. What comes
back is data: `Group`s, from which the cuts of any subset of channels follow without the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Member:
    """One side of one layer in a group.

    Attributes:
        module: dotted name.
        kind: as in `Surgery`.
        at: for each channel of the group, where it is in this layer; several places behind a flatten.
    """

    module: str
    kind: Literal["out", "in", "norm"]
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
            found = [_group(group, names, score) for group in graph.get_all_groups()]
    except Exception as error:  # the library raises whatever its walk through a strange graph runs into
        raise StageError(f"torch-pruning cannot follow the network: {type(error).__name__}: {error}") from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not found and any(isinstance(layer, (nn.Linear, *CONVOLUTIONS)) for layer in names):
        raise StageError("torch-pruning cannot follow the network: autograd sees no layer behind its outputs")
    order = {name: i for i, name in enumerate(names.values())}
    return tuple(sorted(found, key=lambda group: order[group.name]))


def _group(group: Any, names: Mapping[nn.Module, str], score: Any) -> Group:
    channels = len(group[0].idxs)
    members, unfit = [], ""
    for item in group:
        layer = item.dep.target.module
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
        at: list[list[int]] = [[] for _ in range(channels)]
        for place, root in pairs:
            at[root].append(place)
        members.append(Member(names[layer], kind, tuple(map(tuple, at))))
    scores = score(group) if not unfit else None
    known = [0.0] * channels if scores is None else torch.nan_to_num(scores).tolist()
    return Group(names[group[0].dep.target.module], tuple(known), tuple(members), unfit)


def _kind(layer: nn.Module, dep: Any) -> Literal["out", "in", "norm"] | None:
    """Which side of the layer a dependency cuts; None where a single channel cannot go."""
    if isinstance(layer, NORMS):
        return None if isinstance(layer, nn.PReLU) and layer.num_parameters == 1 else "norm"
    if depthwise(layer):
        return "out"
    if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and getattr(layer, "groups", 1) == 1:
        cuts_out = dep.handler.__name__ == "prune_out_channels"
        return "out" if cuts_out else "in"
    return None


def _describe(layer: nn.Module) -> str:
    grouped = isinstance(layer, CONVOLUTIONS) and layer.groups > 1
    return f"grouped {type(layer).__name__}" if grouped else type(layer).__name__
