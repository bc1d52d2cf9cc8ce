"""What blocks and channels are worth to a network: how much its loss grows without them.

    blocks      measured: the mean loss with and without each, one pass over the examples each
    channels    compared by Fisher information, from one backward pass over all of them: a gate of 1 stands where a
                channel is read; the root of E[s^2], s being its derivative on one example, is how far the answers move
                as it closes. What leaves together adds up, the loss grows with the square of the sum, and half of each
                strand is measured, which sets the scale

So blocks and channels are weighed in one unit, the growth of the mean loss. Taylor terms alone (Molchanov et al., CVPR
2019, arXiv:1906.10771) are not in that unit: on a network that has learned its examples they come out 10 to 1000 times
below what is measured, and blocks would always look dearer. The squares (Fisher pruning, Theis et al. 2018,
arXiv:1801.05787) are taken on labels drawn from the network's own answers at distillation's temperature: they are the
curvature of the distillation loss, need no labels, and do not fade as the network grows sure. On small residual
networks their order agreed best with measuring each channel: rank correlation 0.92 to 0.97, first order 0.74 to 0.78.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.network import seeded
from stages.structure.anatomy import Anatomy, Shape, Strand
from stages.structure.surgery import CONVOLUTIONS, operate
from stages.structure.variants import Batches, losses

__all__ = ["Worth", "worth"]

Order = Mapping[str, tuple[int, ...]]

_TEMPERATURE = 4.0  # as `distill` has it: an answer that is sure tells nothing about the classes beside it
_LEAST = 1e-9  # growth that half of a strand counts at least, so that its channels keep their order
_LOST = 1e6


@dataclass(frozen=True)
class Worth:
    """Growth of the mean loss per example when one unit leaves, all in the same unit, so that they can be weighed
    against each other. Never below zero. For what is gone already: the growth that it caused.

    Attributes:
        blocks: by block name.
        channels: by strand name: of each of its channels.
    """

    blocks: Mapping[str, float]
    channels: Mapping[str, tuple[float, ...]]

    def worst(self, strand: Strand) -> tuple[int, ...]:
        """The channels of a strand in the order in which they leave: the least worth first, whole units together."""
        return _worst(self.channels[strand.name], strand.unit)


def worth(
    module: nn.Module,
    anatomy: Anatomy,
    batches: Batches,
    shape: Shape | None = None,
    worst: Order = MappingProxyType({}),
) -> Worth:
    """Appraises every block and channel in a structure.

    Args:
        module: the uncut network, in eval mode; stays as it is.
        batches: the examples. Where labels are missing, the uncut network's own soft answers are what is to be matched.
        shape: what is left of the network; None: all of it.
        worst: by strand, in which order channels leave, so which of them are gone; of others the last ones.
    """
    shape = Shape() if shape is None else shape
    targets = _targets(module, batches)

    drawn = _moved(module, anatomy, batches, shape, worst)
    scored = [(s, moved, _half(s, moved, shape, worst)) for s, moved in zip(anatomy.strands, drawn, strict=True)]
    # A strand that no layer reads any more, or that its blocks hold, cannot be measured narrower.
    tried = [(s, half) for s, moved, half in scored if any(moved) and not anatomy.held(s, shape.gone) and half.between]
    others = [anatomy.surgery(replace(shape, gone=shape.gone ^ {block.name}), worst) for block in anatomy.blocks]
    others += [
        anatomy.surgery(replace(shape, widths={**shape.widths, s.name: half.width}), {**worst, s.name: half.order})
        for s, half in tried
    ]
    names = [block.name for block in anatomy.blocks]
    now, found = losses(module, anatomy.surgery(shape, worst), others, names, batches, targets)
    blocks = {
        name: _growth(now, other) if name not in shape.gone else _growth(other, now)
        for name, other in zip(names, found, strict=False)
    }
    grown = {
        strand.name: _growth(now, other) if half.width < half.stay else _growth(other, now)
        for (strand, half), other in zip(tried, found[len(names) :], strict=True)
    }
    channels = {}
    for strand, moved, half in scored:
        each = _together(moved, strand.unit)
        if (total := math.fsum(each[i] for i in half.between)) and strand.name in grown:
            each = tuple(score * max(grown[strand.name], _LEAST) / total for score in each)
        channels[strand.name] = each
    return Worth(blocks, channels)


@dataclass(frozen=True)
class _Half:
    """What is measured of a strand: narrowed to half, or, where it is narrow already, given back whole.

    Attributes:
        stay: how many channels it has now.
        order: in which its channels leave; those that are gone first.
        between: the channels that make the difference.
    """

    stay: int
    width: int
    order: tuple[int, ...]
    between: tuple[int, ...]


def _half(strand: Strand, moved: Sequence[float], shape: Shape, worst: Order) -> _Half:
    gone = strand.leaving(shape, worst)
    order = (*gone, *(i for i in _worst(moved, strand.unit) if i not in gone))
    whole, stay = strand.channels, strand.channels - len(gone)
    half = math.ceil(whole / 2 / strand.unit) * strand.unit
    width = half if half < stay else whole
    return _Half(stay, width, order, order[whole - max(stay, width) : whole - min(stay, width)])


def _growth(with_it: float, without: float) -> float:
    """A network that answers with NaN has lost all it had."""
    return max(0.0, without - with_it) if math.isfinite(without - with_it) else _LOST


def _worst(scores: Sequence[float], unit: int) -> tuple[int, ...]:
    parts = [range(start, min(start + unit, len(scores))) for start in range(0, len(scores), unit)]
    return tuple(i for part in sorted(parts, key=lambda part: (sum(scores[i] for i in part), -part[0])) for i in part)


def _together(moved: Sequence[float], unit: int) -> tuple[float, ...]:
    """What each channel adds to the squared sum of all that leave before it: what they move adds up, and the loss grows
    with its square."""
    added, total = [0.0] * len(moved), 0.0
    for i in _worst(moved, unit):
        added[i] = (total + moved[i]) ** 2 - total**2
        total += moved[i]
    return tuple(added)


def _targets(module: nn.Module, batches: Batches) -> list[Tensor]:
    """For each batch, what is to be answered: classes (batch,), or probabilities (batch, classes)."""
    with torch.no_grad():
        return [F.softmax(module(x), 1) if labels is None else labels for x, labels in batches()]


def _moved(
    module: nn.Module, anatomy: Anatomy, batches: Batches, shape: Shape, worst: Order
) -> list[tuple[float, ...]]:
    """By strand, how far the answers move as each channel's gate closes (or, of one that is gone, opens)."""
    gone = [block for block in anatomy.blocks if block.name in shape.gone]
    net = operate(deepcopy(module), [block.surgery for block in gone]).requires_grad_(False)
    gates: dict[str, Tensor] = {}
    for strand in anatomy.strands:
        for member in strand.group.members:
            if member.kind == "in" and not any(block.holds(member.module) for block in gone):
                layer = net.get_submodule(member.module)
                layer.register_forward_pre_hook(partial(_read, gates, strand.name, _places(layer, member.at)))
    squares = {strand.name: torch.zeros(strand.channels, dtype=torch.float64) for strand in anatomy.strands}
    examples = 0
    with seeded(0) as generator, torch.enable_grad():
        for x, _ in batches():
            examples += len(x)
            for strand in anatomy.strands:
                gate = torch.ones(len(x), strand.channels)
                if not anatomy.held(strand, shape.gone):
                    gate[:, list(strand.leaving(shape, worst))] = 0
                gates[strand.name] = gate.requires_grad_()
            logits = net(x) / _TEMPERATURE
            if not logits.requires_grad:  # no strand is read by anything that is left
                break
            drawn = torch.multinomial(F.softmax(logits.detach(), 1).nan_to_num(1), 1, generator=generator).squeeze(1)
            F.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
            for name, gate in gates.items():
                if gate.grad is not None:
                    squares[name] += gate.grad.double().square().sum(0)
    return [tuple(torch.nan_to_num(sums / max(examples, 1)).sqrt().tolist()) for sums in squares.values()]


def _places(layer: nn.Module, at: Sequence[Sequence[int]]) -> Tensor:
    """For each input feature of a layer, the channel of the strand that it is; one past the last for all others."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    found = torch.full((weight.shape[0 if getattr(layer, "transposed", False) else 1],), len(at))
    for channel, places in enumerate(at):
        found[list(places)] = channel
    return found


def _read(
    gates: Mapping[str, Tensor], name: str, places: Tensor, layer: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Puts the gates of a strand in front of a layer that reads it."""
    x, gate = args[0], gates[name]  # layers of torch take their input by position
    each = torch.cat([gate, gate.new_ones(len(gate), 1)], 1)[:, places]
    each = each[torch.arange(len(x)) * len(gate) // len(x)]  # windows of an image, say, folded into the first axis
    middle = [1] * (x.ndim - 2)
    size = (len(x), -1, *middle) if isinstance(layer, CONVOLUTIONS) else (len(x), *middle, each.shape[1])
    return (x * each.view(size), *args[1:])
