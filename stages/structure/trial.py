"""No cut is believed before it has been seen to work.

The cut network is run on real inputs and must answer like the uncut one in which the same channels (or blocks) were
silenced by zeros: that is what "removed" means.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stages.base import Surgery
from stages.data import Splits
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
        united[cut.module, cut.kind] = Surgery(cut.module, cut.kind, both)
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
            layer = masked.get_submodule(cut.module)
            if cut.kind == "identity":
                silence(layer)
            elif cut.kind == "in":
                # Silenced where channels are read, not where they are made: a shift in between would wake them again.
                weight = layer.weight
                assert isinstance(weight, Tensor)
                weight.index_fill_(0 if getattr(layer, "transposed", False) else 1, torch.tensor(cut.indexes), 0.0)
        expected = masked(inputs)
        try:
            found = operate(deepcopy(module), surgery)(inputs)
        except Exception as error:  # whatever a user's network raises when its shapes no longer fit
            return f"the cut network fails ({str(error).splitlines()[0]})"
    if found.shape != expected.shape:
        return f"the cut network gives outputs of shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    apart = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return (
        "" if apart <= TOLERANCE else f"the cut network answers otherwise than with silenced channels, by {apart:.1%}"
    )


def silence(module: nn.Module) -> nn.Module:
    """Sets all parameters to zero, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
