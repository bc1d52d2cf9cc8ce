"""Shorter networks inside a network: some of its residual blocks, with their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from stages.base import Surgery
from stages.structure.surgery import CONVOLUTIONS, operate
from stages.structure.trial import Cut, fault, silence
from targets.errors import StageError

__all__ = ["removable", "shorten"]


def shorten(module: nn.Module, inputs: Tensor, keep: float) -> Cut:
    """Keeps a share of the blocks, evenly spread over each run of blocks; the others become identities.

    A run is the blocks of one kind inside one parent, those that cannot go among them; at least one of a run stays.

    Args:
        module: in eval mode; stays as it is.
        inputs: (batch, ...), real inputs.
        keep: share of each run's blocks, rounded to the nearest number.

    Raises:
        StageError: there is no block that could go.
    """
    if keep == 1:
        return Cut(deepcopy(module), ())
    free = removable(module, inputs)
    if not free:
        raise StageError(
            "no block can be removed: none hands its input on when its weights are zero, as a residual block does; "
            "use `by: channels`, or a student with a `source` of its own"
        )
    gone: list[str] = []
    for run in _runs(module, free):
        loose = [name for name in run if name in free]
        stay = max(0, max(1, math.floor(len(run) * keep + 0.5)) - (len(run) - len(loose)))
        spread = {math.floor((i + 0.5) * len(loose) / stay) for i in range(stay)}
        gone += [name for i, name in enumerate(loose) if i not in spread]
    if not gone:
        return Cut(deepcopy(module), (), (f"keep {keep:g} removes no block: the runs of blocks are too short",))
    surgery = tuple(Surgery(name, "identity") for name in gone)
    if why := fault(module, surgery, inputs):
        raise StageError(f"{', '.join(gone)} cannot be removed: {why}")
    return Cut(operate(deepcopy(module), surgery), surgery, (f"removed blocks: {', '.join(gone)}",))


def removable(module: nn.Module, inputs: Tensor) -> list[str]:
    """Modules that can become identities: with their weights at zero they hand on exactly what they got, so only the
    way around their layers is left. Of nested ones the innermost, in the network's order.

    Args:
        module: in eval mode.
        inputs: (batch, ...), real inputs.
    """
    layers = (nn.Linear, *CONVOLUTIONS)
    names = [
        name
        for name, inner in module.named_modules()
        # A layer alone gives zeros.
        if name and not isinstance(inner, layers) and any(isinstance(layer, layers) for layer in inner.modules())
    ]
    calls: dict[str, list[Tensor | None]] = {name: [] for name in names}

    def record(name: str, args: tuple[object, ...]) -> None:
        calls[name].append(args[0].clone() if len(args) == 1 and isinstance(args[0], Tensor) else None)

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: record(name, args))
        for name in names
    ]
    try:
        with torch.no_grad():
            module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    passing = [name for name in names if len(calls[name]) == 1 and _passes(module.get_submodule(name), calls[name][0])]
    return [name for name in passing if not any(other.startswith(f"{name}.") for other in passing)]


def _passes(block: nn.Module, x: Tensor | None) -> bool:
    if x is None or not x.any():
        return False
    with torch.no_grad():
        try:
            y = silence(deepcopy(block))(x.clone())
        except Exception:  # what cannot run alone is no block that could go
            return False
    return isinstance(y, Tensor) and y.shape == x.shape and torch.equal(x, y)


def _runs(module: nn.Module, free: Sequence[str]) -> list[list[str]]:
    """For each kind of removable block in each parent: all siblings of that kind, in order."""
    found: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name in free:
        parent, kind = name.rpartition(".")[0], type(module.get_submodule(name))
        siblings = module.get_submodule(parent).named_children()
        found[parent, kind] = [f"{parent}.{n}" if parent else n for n, child in siblings if type(child) is kind]
    return list(found.values())
