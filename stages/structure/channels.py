"""Narrower networks inside a network: the most important channels of each layer, with their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

from torch import Tensor, nn

from stages.base import Surgery
from stages.network import macs
from stages.structure.anatomy import Strand
from stages.structure.strands import candidates, least, tried
from stages.structure.surgery import operate
from stages.structure.trial import Cut, merged
from stages.vendors.torch_pruning import Importance
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
        multiple: channel counts are rounded up to a multiple of it, and to whole heads.
        notes: what must stay whole, and why.
    """

    module: nn.Module
    inputs: Tensor
    found: tuple[Strand, ...]
    whole: Mapping[str, int]
    multiple: int
    notes: tuple[str, ...]

    def cut(self, keep: float) -> Cut:
        """Keeps this share of each group's channels, rounded up; a group that fails its trial stays whole."""
        surgery, faults = tried(self.module, self.inputs, self._chosen(keep))
        return Cut(operate(deepcopy(self.module), surgery), surgery, (*self.notes, *_told(faults)))

    def tested(self) -> Narrowing:
        """Without the groups that fail when all but one channel (or one multiple) leaves; the notes say why."""
        _, faults = tried(self.module, self.inputs, self._chosen(1 / GRID))
        usable = tuple(strand for strand in self.found if strand.name not in faults)
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
        for strand in self.found:
            wanted = math.ceil(self.whole.get(strand.name, strand.channels) * keep - 1e-9)
            step = math.lcm(self.multiple, strand.unit)
            if gone := least(strand, max(1, math.ceil(wanted / step)) * step):
                chosen[strand.name] = strand.group.cuts(gone)
        return chosen


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
    found, refused = candidates(module, inputs, importance, exclude)
    sizes = {strand.name: strand.channels for strand in found} if whole is None else whole
    return Narrowing(module, inputs, found, sizes, multiple, _told(refused))
