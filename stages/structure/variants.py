"""The losses of many variants of one network, each with a few cuts more or less. What runs before the first layer that
differs is computed once for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base import Surgery
from stages.structure.calls import removed
from stages.structure.surgery import operate

__all__ = ["Batches", "Cuts", "losses"]

Batches = Callable[[], Iterable[tuple[Tensor, Tensor | None]]]
"""Gives the same examples each time: inputs (batch, ...), and labels (batch,) or None where there are none."""

Cuts = tuple[Surgery, ...]

_KEPT = 512_000_000  # bytes of outputs that are kept of all batches


def losses(
    module: nn.Module,
    base: Cuts,
    others: Sequence[Cuts],
    blocks: Sequence[str],
    batches: Batches,
    targets: Sequence[Tensor],
) -> tuple[float, list[float]]:
    """Mean cross-entropy per example: (of the network with the cuts of `base`, with those of each of `others`).

    Args:
        module: the uncut network, in eval mode; stays as it is.
        blocks: parts whose outputs may be kept, so that they need not run again.
        targets: for each batch, classes (batch,) or probabilities (batch, classes).
    """
    begun, kept = operate(deepcopy(module), base), _Memory()
    with torch.no_grad():
        seen = [_Seen.of(begun, blocks, x, kept) for x, _ in batches()]

        def loss(logits: Iterable[Tensor]) -> float:
            sums = [F.cross_entropy(y, t, reduction="sum").item() for y, t in zip(logits, targets, strict=True)]
            return math.fsum(sums) / sum(map(len, targets))

        def answers(cuts: Cuts) -> Iterator[Tensor]:
            variant, changed = operate(deepcopy(module), cuts), {cut.module for cut in {*base} ^ {*cuts}}
            for one in seen:
                with one.reused(variant, changed):
                    yield variant(one.x)

        return loss(one.logits for one in seen), [loss(answers(cuts)) for cuts in others]


@dataclass
class _Memory:
    """Bytes of outputs that may still be kept."""

    left: int = _KEPT


@dataclass
class _Seen:
    """What was seen in one forward pass.

    Attributes:
        entered: by module, how many calls had begun before its first.
        kept: by block, how many calls had begun when it ended, and its output.
    """

    x: Tensor
    logits: Tensor
    entered: dict[str, int] = field(default_factory=dict)
    kept: dict[str, tuple[int, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(module: nn.Module, blocks: Sequence[str], x: Tensor, memory: _Memory) -> _Seen:
        seen = _Seen(x, x)
        calls = 0

        def enter(name: str) -> None:
            nonlocal calls
            seen.entered.setdefault(name, calls)
            calls += 1

        def leave(name: str, output: object) -> None:
            if isinstance(output, Tensor) and name not in seen.kept and output.nbytes <= memory.left:
                memory.left -= output.nbytes
                seen.kept[name] = calls, output.clone()  # the next layer may work in place

        hooks = [
            inner.register_forward_pre_hook(lambda _m, _x, name=name: enter(name))
            for name, inner in module.named_modules(remove_duplicate=False)
        ]
        hooks += [
            module.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: leave(name, y))
            for name in blocks
        ]
        with removed(hooks):
            seen.logits = module(x)
        return seen

    @contextmanager
    def reused(self, variant: nn.Module, changed: Iterable[str]) -> Iterator[None]:
        """Blocks that had ended before anything that changed began give what they gave."""
        begins = min((self.entered.get(name, 0) for name in changed), default=0)
        ready = {variant.get_submodule(name): y for name, (calls, y) in self.kept.items() if calls <= begins}
        for block, output in ready.items():
            block.forward = lambda *_, output=output, **__: output.clone()
        try:
            yield
        finally:
            for block in ready:
                del block.forward
