"""Narrower networks inside a network: the most important channels of each layer, with their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

from torch import Tensor, nn

from stages.base import Surgery
from stages.network import macs, matching
from stages.structure.surgery import operate
from stages.structure.trial import Cut, fault, merged
from stages.vendors.torch_pruning import Group, Importance, groups
from targets.errors import StageError

__all__ = ["Narrowing", "narrowing"]

GRID = 1024  # shares of channels are searched in steps of 1/1024


@dataclass(frozen=True)
class Narrowing:
    """What could leave a network, channel by channel.

    Attributes:
        module: the uncut network, in eval mode.
        inputs: (batch, ...), real inputs that every cut is tried on.
        found: groups of channels that may be cut.
        whole: by group name, the number of channels that shares refer to.
        multiple: channel counts are rounded up to a multiple of it.
        notes: what must stay whole, and why.
    """

    module: nn.Module
    inputs: Tensor
    found: tuple[Group, ...]
    whole: Mapping[str, int]
    multiple: int
    notes: tuple[str, ...]

    def cut(self, keep: float) -> Cut:
        """Keeps this share of each group's channels, rounded up; a group that fails its trial stays whole."""
        surgery, faults = self._tried(self._chosen(keep))
        return Cut(operate(deepcopy(self.module), surgery), surgery, (*self.notes, *_told(faults)))

    def tested(self) -> Narrowing:
        """Without the groups that fail when all but one channel (or one multiple) leaves; the notes say why."""
        _, faults = self._tried(self._chosen(1 / GRID))
        usable = tuple(group for group in self.found if group.name not in faults)
        return replace(self, found=usable, notes=(*self.notes, *_told(faults)))

    def share_for(self, speedup: float) -> float:
        """The largest share of channels that leaves at most 1/speedup of the multiply-accumulates, by bisection. Ask a
        `tested` one: here nothing is tried.

        Raises:
            StageError: the smallest share would not be enough.
        """
        shape = tuple(self.inputs.shape[1:])
        before = macs(self.module, shape)

        def reached(step: int) -> float:
            surgery = merged(self._chosen(step / GRID).values())
            return before / macs(operate(deepcopy(self.module), surgery), shape)

        if (most := reached(1)) < speedup:
            whole = "; ".join(self.notes)
            raise StageError(f"{speedup:.4g} times fewer MACs cannot be reached, at most {most:.4g}. {whole}".strip())
        enough, beyond = 1, GRID + 1
        while beyond - enough > 1:
            middle = (enough + beyond) // 2
            enough, beyond = (middle, beyond) if reached(middle) >= speedup else (enough, middle)
        return enough / GRID

    def _chosen(self, keep: float) -> dict[str, tuple[Surgery, ...]]:
        """By group name, the cuts that remove its least important channels."""
        chosen = {}
        for group in self.found:
            have = len(group.scores)
            wanted = math.ceil(self.whole.get(group.name, have) * keep - 1e-9)
            stay = max(1, math.ceil(wanted / self.multiple)) * self.multiple
            worst_first = sorted(range(have), key=lambda channel: (group.scores[channel], -channel))
            if gone := sorted(worst_first[: max(0, have - stay)]):
                chosen[group.name] = group.cuts(tuple(gone))
        return chosen

    def _tried(
        self, chosen: Mapping[str, tuple[Surgery, ...]], good: tuple[Surgery, ...] = ()
    ) -> tuple[tuple[Surgery, ...], dict[str, str]]:
        """(the cuts that hold together, on top of `good` ones; by group name why others do not). What fails together
        is tried in halves: few groups fail, and most of the others pass at once."""
        together = merged([good, *chosen.values()])
        why = fault(self.module, together, self.inputs) if chosen else ""
        if not why:
            return together, {}
        names = list(chosen)
        if len(names) == 1:
            return good, {names[0]: why}
        half = len(names) // 2
        good, first = self._tried({name: chosen[name] for name in names[:half]}, good)
        good, second = self._tried({name: chosen[name] for name in names[half:]}, good)
        return good, first | second


def _told(faults: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name} stays whole: {why}" for name, why in faults.items())


def narrowing(
    module: nn.Module,
    inputs: Tensor,
    importance: Importance = "l2",
    multiple: int = 1,
    exclude: Sequence[str] = (),
    whole: Mapping[str, int] | None = None,
) -> Narrowing:
    """Looks for channels that may leave. The network's outputs are none of them.

    Args:
        module: in eval mode, with gradients if `importance` is "taylor".
        exclude: patterns of modules that stay whole, with all that is inside of them.
        whole: see `Narrowing`; None: the channels that are there now.

    Raises:
        InputError: a pattern matches nothing.
        StageError: the network cannot be traced.
    """
    excluded = matching(module, exclude)
    found, notes = [], []
    for group in groups(module, inputs, importance):
        layers = [member.module for member in group.members]
        if any(layer == top or layer.startswith(f"{top}.") for layer in layers for top in excluded):
            continue
        if group.unfit:
            notes.append(f"{group.name} stays whole: {group.unfit}")
        elif group.consumed:
            found.append(group)
    sizes = {group.name: len(group.scores) for group in found} if whole is None else whole
    return Narrowing(module, inputs, tuple(found), sizes, multiple, tuple(notes))
