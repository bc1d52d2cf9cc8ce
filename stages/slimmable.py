"""Subsets of one network as one module: a weight exists once, whoever uses it.

What a member keeps of a weight is not worked out layer by layer: the elements of the uncut network's weights are
numbered, the member's surgery is replayed on the numbers, and what is left says which elements it picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stages.base import Surgery
from stages.network import parameters
from stages.structure.surgery import NORMS, operate

__all__ = ["Member", "Slimmable", "places"]

# What one width normalizes by is wrong for another, so each member has its own (arXiv:1812.08928).
OWN = (*(kind for kind in NORMS if kind is not nn.PReLU), nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
DRAWN = 2  # members beside the largest and the smallest in each step (n = 4 in arXiv:1903.05134)


@dataclass(frozen=True)
class Pick:
    """Which elements of a shared weight a member uses.

    Attributes:
        key: of the weight.
        shape: of what is made of them.
        index: where they lie in the flat weight, int64; None: all of them, in order.
    """

    key: str
    shape: torch.Size
    index: Tensor | None

    def of(self, shared: nn.ParameterDict) -> Tensor:
        """The weight as the member sees it; gradients go back to the picked elements."""
        flat = shared[self.key]
        assert isinstance(flat, Tensor)
        return (flat if self.index is None else flat.index_select(0, self.index)).view(self.shape)


class Member(nn.Module):
    """One subset. It has norms and buffers of its own, and picks all other weights from the shared ones at each call.

    Args:
        net: without the shared weights.
        picks: by parameter name.
    """

    def __init__(self, net: nn.Module, picks: Mapping[str, Pick], shared: nn.ParameterDict) -> None:
        super().__init__()
        self.net = net
        self._picks = picks
        self._shared = (shared,)  # in a tuple it is no submodule: the family holds it

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) -> logits (batch, classes)."""
        return functional_call(self.net, self._picked(), (x,), tie_weights=False)  # type: ignore[no-any-return]

    def state(self) -> dict[str, Tensor]:
        """The state dict of the subset as a network of its own."""
        return self.net.state_dict() | {name: weight.detach() for name, weight in self._picked().items()}

    def _picked(self) -> dict[str, Tensor]:
        return {name: pick.of(self._shared[0]) for name, pick in self._picks.items()}


class Slimmable(nn.Module):
    """A family of subsets. Shared weights start as the largest member has them; what it lacks, as the next one has it.

    Args:
        whole: the uncut network; only looked at.
        subsets: networks, each with what was cut from `whole`; they are taken over, and emptied of what is shared.
    """

    def __init__(self, whole: nn.Module, subsets: Sequence[tuple[nn.Module, Iterable[Surgery]]]) -> None:
        super().__init__()
        nets = [net for net, _ in subsets]
        sizes = [parameters(net) for net in nets]
        self._order = sorted(range(len(nets)), key=lambda i: -sizes[i])
        keys = _keys(whole)
        shared = {keys[name]: torch.zeros_like(weight).flatten() for name, weight in whole.named_parameters()}
        used = set()
        picks = [_picks(whole, net, surgery) for net, surgery in subsets]
        for i in reversed(self._order):  # the largest last: its numbers stand
            for name, pick in picks[i].items():
                numbers = nets[i].get_parameter(name).detach().flatten()
                index = slice(None) if pick.index is None else pick.index
                shared[pick.key][index] = numbers
                used.add(pick.key)
        self.shared = nn.ParameterDict(
            {
                key: nn.Parameter(shared[key], weight.requires_grad)
                for name, weight in whole.named_parameters()
                if (key := keys[name]) in used
            }
        )
        for net, taken in zip(nets, picks, strict=True):
            for name in taken:
                module, _, leaf = name.rpartition(".")
                setattr(net.get_submodule(module), leaf, None)
        self.members = nn.ModuleList(Member(net, taken, self.shared) for net, taken in zip(nets, picks, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """The largest member's logits (batch, classes)."""
        return self.members[self._order[0]](x)  # type: ignore[no-any-return]

    def drawn(self) -> list[Member]:
        """The members of one step: the largest, the smallest, and up to two others by torch's random numbers."""
        first, *between = self._order
        last = [between.pop()] if between else []
        if len(between) > DRAWN:
            between = [between[i] for i in torch.randperm(len(between))[:DRAWN].tolist()]
        return [self.member(i) for i in (first, *last, *between)]

    def member(self, i: int) -> Member:
        """The subset at this place in the list."""
        found = self.members[i]
        assert isinstance(found, Member)
        return found


def places(whole: nn.Module, surgery: Iterable[Surgery]) -> dict[str, Tensor]:
    """For each parameter that is left after the cuts: where its elements lie in the flattened one of `whole`, int64."""
    twin = deepcopy(whole)
    for module in twin.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            numbers = torch.arange(weight.numel()).view(weight.shape)
            setattr(module, name, nn.Parameter(numbers, requires_grad=False))
    return {name: at.detach() for name, at in operate(twin, surgery).named_parameters(remove_duplicate=False)}


def _picks(whole: nn.Module, net: nn.Module, surgery: Iterable[Surgery]) -> dict[str, Pick]:
    """By parameter name, for all that are shared."""
    at, keys = places(whole, surgery), _keys(whole)
    sizes = {name: weight.numel() for name, weight in whole.named_parameters(remove_duplicate=False)}
    own = {
        f"{name}.{leaf}" if name else leaf
        for name, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, OWN)
        for leaf, _ in module.named_parameters(recurse=False)
    }
    picks = {}
    for name, _ in net.named_parameters(remove_duplicate=False):
        if name in keys and name not in own:
            index = at[name].flatten()
            all_of_it = torch.equal(index, torch.arange(sizes[name]))
            picks[name] = Pick(keys[name], at[name].shape, None if all_of_it else index)
    return picks


def _keys(whole: nn.Module) -> dict[str, str]:
    """By parameter name, the key of the shared weight; parameters that are one in `whole` share one."""
    first: dict[nn.Parameter, str] = {}
    return {
        name: first.setdefault(weight, name.replace(".", "/"))
        for name, weight in whole.named_parameters(remove_duplicate=False)
    }
