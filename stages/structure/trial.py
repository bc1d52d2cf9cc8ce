"""No cut is believed before it has been seen to work.

The cut network is run on real inputs and must answer like the uncut one in which the same channels (or blocks) were
silenced by zeros: that is what "removed" means.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.base import Surgery
from stages.data import Splits
from stages.structure.stand_ins import first
from stages.structure.surgery import operate

__all__ = ["Cut", "examples", "fault", "merged", "silence"]

TOLERANCE = 1e-4  # of the largest output; float32 sums in another order differ by far less


@dataclass(frozen=True)
class Cut:
    """A smaller network and how to get it.

    Attributes:
        module: the network after the cuts, in eval mode.
        surgery: to be replayed on the network before the cuts.
        notes: what stayed whole, and why.
    """

    module: nn.Module
    surgery: tuple[Surgery, ...]
    notes: tuple[str, ...] = ()


def examples(data: Splits, count: int = 4) -> Tensor:
    """Inputs (count, ...) spread over the train split."""
    return torch.from_numpy(data.train.inputs(np.linspace(0, len(data.train) - 1, count).astype(np.int64)))


def merged(parts: Iterable[Iterable[Surgery]]) -> tuple[Surgery, ...]:
    """One cut per layer and side. All parts are numbered as in the uncut network, so their indexes unite."""
    united: dict[tuple[str, str], Surgery] = {}
    for cut in (cut for part in parts for cut in part):
        before = united.get((cut.module, cut.kind), cut)
        both = tuple(sorted({*before.indexes, *cut.indexes}))
        united[cut.module, cut.kind] = replace(cut, indexes=both)
    return tuple(united.values())


def fault(module: nn.Module, surgery: tuple[Surgery, ...], inputs: Tensor) -> str:
    """Why the cut network is not the uncut one with the channels silenced; empty if it is.

    Args:
        module: the uncut network, in eval mode; stays as it is.
        surgery: at most one cut per layer and side.
        inputs: (batch, ...).
    """
    masked = deepcopy(module)
    with torch.no_grad():
        for cut in surgery:
            if cut.kind in ("identity", "zero"):
                _bypass(masked.get_submodule(cut.module), cut)
                for name in cut.idle if cut.kind == "identity" else ():
                    _bypass(masked.get_submodule(name), Surgery(name, "identity"))
            elif cut.kind == "in":
                # Silenced where channels are read, not where they are made: a shift in between would wake them again.
                layer = masked.get_submodule(cut.module)
                weight = layer.weight
                assert isinstance(weight, Tensor)
                weight.index_fill_(0 if getattr(layer, "transposed", False) else 1, torch.tensor(cut.indexes), 0.0)
        expected = masked(inputs)
        try:
            found = operate(deepcopy(module), surgery)(inputs)
        except Exception as error:  # whatever a user's network raises when its shapes no longer fit
            return f"the cut network fails ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    if found.shape != expected.shape:
        return f"the cut network gives outputs of shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    apart = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return (
        "" if apart <= TOLERANCE else f"the cut network answers otherwise than with silenced channels, by {apart:.1%}"
    )


def _bypass(block: nn.Module, cut: Surgery) -> None:
    """The block goes on working, and its answer is thrown away for its input, or for zeros."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = first(args, kwargs)
        if isinstance(given, Tensor):
            kept.append(given.clone())  # it may be written over
        return args, kwargs

    def answer(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        place, length = cut.indexes or (0, 1)
        found = list(output) if cut.indexes else [output]
        found[place] = kept.pop() if cut.kind == "identity" else torch.zeros_like(found[place])
        return tuple(found[:length]) if cut.indexes else found[0]

    kept: list[Tensor] = []
    if cut.kind == "identity":
        block.register_forward_pre_hook(keep, with_kwargs=True)
    block.register_forward_hook(answer)


def silence(module: nn.Module) -> nn.Module:
    """Sets all parameters to zero, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
