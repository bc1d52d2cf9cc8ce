"""Groups of channels that may be narrowed: found, tried, and told apart by kind.

groups      which channels hang together, layer by layer (`vendors.torch_pruning`)
heads       those of attention, whole heads at a time (`heads`)
trial       half of each group leaves; what fails together is tried in halves
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.base import Surgery
from stages.network import matching
from stages.structure.anatomy import Strand, inside
from stages.structure.calls import watched
from stages.structure.heads import heads
from stages.structure.trial import fault, merged
from stages.vendors.torch_pruning import Group, Importance, Member, groups

__all__ = ["candidates", "least", "stirred", "strands", "tried"]


def strands(
    module: nn.Module, inputs: Tensor, multiple: int = 1, exclude: Sequence[str] = ()
) -> tuple[tuple[Strand, ...], dict[str, str]]:
    """All groups of channels that may be narrowed, and by name why others stay whole. The network's own outputs are
    none. Each was tried at about half of its channels. Weights may be fresh: the trial is made on stirred ones.

    Args:
        module: in eval mode; stays as it is.
        inputs: (batch, ...), real inputs; token numbers may be int64.
        multiple: channels stay in multiples of it.
        exclude: patterns of modules that stay whole, with all that is inside of them; not told as refused.

    Raises:
        InputError: a pattern matches nothing.
        StageError: the network cannot be traced.
    """
    found, refused = candidates(module, inputs, exclude=exclude)
    chosen = {}
    for strand in found:
        step = math.lcm(strand.unit, multiple)
        if strand.channels <= step:
            wanted = f"heads of {strand.unit}" if strand.unit > 1 else f"multiples of {multiple}"
            refused[strand.name] = f"its {strand.channels} channels can only leave in {wanted}, and some must stay"
        else:
            chosen[strand.name] = strand.group.cuts(least(strand, strand.channels // 2 // step * step or step))
    _, faults = tried(stirred(module, inputs), inputs, chosen)
    return tuple(s for s in found if s.name in chosen and s.name not in faults), refused | faults


def candidates(
    module: nn.Module, inputs: Tensor, importance: Importance = "l2", exclude: Sequence[str] = ()
) -> tuple[tuple[Strand, ...], dict[str, str]]:
    """(groups that look as if they could be narrowed, none of them tried; by name why others cannot).

    Args:
        module: in eval mode, with gradients if `importance` is "taylor".
        exclude: see `strands`.

    Raises:
        InputError: a pattern matches nothing.
        StageError: the network cannot be traced.
    """
    excluded = matching(module, exclude)
    headed = heads(stirred(module, inputs), inputs, module, importance)
    split = {member.module for found in headed for member in found.group.members if member.kind == "out"}
    whole = [
        (group, 1)
        for group in groups(module, inputs, importance)
        if not any(member.kind == "out" and member.module in split for member in group.members)
    ]
    order = {name: i for i, (name, _) in enumerate(module.named_modules())}
    every = sorted([*whole, *((found.group, found.unit) for found in headed)], key=lambda pair: order[pair[0].name])
    shapes = {name: [call.after for call in calls] for name, calls in watched(module, inputs).items()}
    strands, refused = [], {}
    for group, unit in every:
        if any(inside(member.module, top) for member in group.members for top in excluded):
            continue
        if group.unfit:
            refused[group.name] = group.unfit
        elif group.consumed:
            strands.append(Strand(group, _kind(module, group, shapes, unit), unit))
    for name, inner in module.named_modules():
        if isinstance(inner, nn.MultiheadAttention) and not any(inside(name, top) for top in excluded):
            refused[name] = "heads cannot leave: nn.MultiheadAttention keeps q, k, v in one parameter"
    return tuple(strands), refused


def least(strand: Strand, stay: int) -> tuple[int, ...]:
    """The least important channels, whole units of them, that leave when `stay` channels stay; sorted."""
    scores = strand.group.scores
    units = [range(start, start + strand.unit) for start in range(0, strand.channels, strand.unit)]
    worst_first = sorted(units, key=lambda unit: (sum(scores[channel] for channel in unit), -unit.start))
    leave = max(0, strand.channels - stay) // strand.unit
    return tuple(sorted(channel for unit in worst_first[:leave] for channel in unit))


def tried(
    module: nn.Module, inputs: Tensor, chosen: Mapping[str, tuple[Surgery, ...]], good: tuple[Surgery, ...] = ()
) -> tuple[tuple[Surgery, ...], dict[str, str]]:
    """(the cuts that hold together, on top of `good` ones; by name why others do not). What fails together is tried in
    halves: few groups fail, and most of the others pass at once."""
    together = merged([good, *chosen.values()])
    why = fault(module, together, inputs) if chosen else ""
    if not why:
        return together, {}
    names = list(chosen)
    if len(names) == 1:
        return good, {names[0]: why}
    half = len(names) // 2
    good, first = tried(module, inputs, {name: chosen[name] for name in names[:half]}, good)
    good, second = tried(module, inputs, {name: chosen[name] for name in names[half:]}, good)
    return good, first | second


def stirred(module: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy in which no fresh weights hide what is wrong: constant parameters (a scale of zero) are so no more, and
    batch norms without statistics have those of the inputs, so that signals reach the outputs."""
    copy = deepcopy(module)
    random = torch.Generator().manual_seed(0)
    norms = [m for m in copy.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    fresh = [norm for norm in norms if norm.running_var is not None and _constant(norm.running_var)]
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.is_floating_point() and _constant(parameter):
                parameter.add_(torch.rand(parameter.shape, generator=random).to(parameter) - 0.5)
        for norm in fresh:
            norm.train()
            norm.momentum = 1.0
        with suppress(ValueError):  # a single example of a single place has no statistics
            copy(inputs)
    return copy.eval().requires_grad_(True)


def _constant(values: Tensor) -> bool:
    return values.flatten()[:-1].equal(values.flatten()[1:])


def _kind(module: nn.Module, group: Group, shapes: Mapping[str, list[tuple[int, ...]]], unit: int) -> str:
    """Of what the group goes through, whatever its layers are called."""

    def told(member: Member) -> str:
        if member.kind == "count":
            return f"count {sum(map(len, member.at))}"
        layer = module.get_submodule(member.module)
        return f"{type(layer).__name__}({layer.extra_repr()}) {member.kind} {shapes.get(member.module)}"

    members = [f"units of {unit}", *sorted(told(member) for member in group.members)]
    return hashlib.sha256("\n".join(members).encode()).hexdigest()[:12]
