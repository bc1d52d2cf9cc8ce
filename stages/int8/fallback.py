"""Single layers back to float, the most sensitive first.

Each layer is ranked by what it does to the logits when it alone is int8: the noises of layers add up, and
against a float background each can be seen (Wu et al., "Integer Quantization for Deep Learning Inference", 2020, rank
layers so for their partial quantization). The other way round, one layer float among int8 ones hides behind the
others' noise, and shows nothing for a value that a neighbour rounds too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np

from stages import graph
from stages.graph import Floats
from stages.int8.bench import Attempt, Bench, Setup, Try
from stages.int8.correction import redone, uncorrected

__all__ = ["float_fallback", "ranked", "units"]

EXAMPLES = 128  # calibration examples that rank
MOST = 0.5  # share of layers that may go back: beyond it, other rungs cost less speed
FOLLOWERS = {
    *("AveragePool", "Clip", "Flatten", "Gather", "GatherElements", "MaxPool", "Pad", "Relu", "Reshape", "Resize"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators that the placement makes int8 only where what they read is."""


def float_fallback(bench: Bench, best: Attempt) -> Iterator[Try]:
    """Tries 1, 2, 4, ... of the most sensitive layers as float. Where that is enough, the same attempt backs off: what
    can be int8 again without loss of enough becomes so."""
    names = units(bench, best)
    most = min(math.ceil(MOST * len(names)), len(names) - 1)
    if most < 1:
        return
    setup = uncorrected(best.setup)
    order = ranked(bench, setup, names)
    count, tried = 1, 0
    while tried < min(most, len(order)):
        count = min(count, most, len(order))
        chosen = order[:count]
        shown = ", ".join(chosen[:3]) + (", ..." if count > 3 else "")
        title = f"float: {shown} ({count} of {len(names)})"
        change = partial(_fewest, bench, order, tried, count, len(names))
        yield Try(title, partial(redone, bench, best.setup, change))
        tried, count = count, 2 * count


def units(bench: Bench, best: Attempt) -> list[str]:
    """Names of the nodes that compute on int8 and may be float alone, in the graph's order. Activations, pooling and
    reshaping are none: they follow what they read."""
    makers = {name: node.op_type for node in best.int8.graph.node for name in node.output}
    constants = {tensor.name for tensor in best.int8.graph.initializer}
    int8 = {
        node.name
        for node in best.int8.graph.node
        if any(makers.get(name) == "DequantizeLinear" for name in node.input)
        and all(makers.get(name) == "DequantizeLinear" or name in constants or not name for name in node.input)
    }
    return [
        node.name
        for node in best.setup.model.graph.node
        if node.name in int8
        and node.op_type in bench.op_types
        and node.op_type not in FOLLOWERS
        and node.name not in best.setup.exclude
    ]


def ranked(bench: Bench, setup: Setup, names: Sequence[str]) -> list[str]:
    """The names by what they cost alone, the most sensitive first. Where time runs short, those looked at so far.

    Layers are looked at from both ends to the middle: first and last ones are the most sensitive as a rule.
    """
    batches = list(islice(bench.batches(), max(1, EXAMPLES // bench.config.batch_size)))
    before = _logits(graph.session(setup.model), batches)
    share = bench.seconds_left() / 2  # the rest is for trying
    noise: dict[str, float] = {}
    for name in sorted(names, key=lambda name: min(names.index(name), len(names) - 1 - names.index(name))):
        if noise and bench.seconds_left() < share:
            break
        alone = replace(setup, exclude=setup.exclude | (set(names) - {name}))
        after = _logits(graph.session(bench.place(alone)), batches)
        noise[name] = float(np.square(after - before, dtype=np.float64).sum())
    return sorted(noise, key=lambda name: (-noise[name], names.index(name)))


def _logits(runner: object, batches: Sequence[Floats]) -> Floats:
    return np.concatenate([graph.predict(runner, inputs) for inputs in batches])


def _fewest(bench: Bench, order: Sequence[str], low: int, high: int, total: int, setup: Setup) -> Setup:
    """The setup with the first `high` of `order` as float; where that is enough, with as few as are."""
    chosen = list(order[:high])
    if _enough(bench, setup, chosen):
        while high - low > 1:  # `low` was not enough
            middle = (low + high) // 2
            if _enough(bench, setup, order[:middle]):
                high = middle
            else:
                low = middle
        chosen = list(order[:high])
        for name in reversed(order[:high]):
            fewer = [other for other in chosen if other != name]
            if fewer and bench.seconds_left() > 0 and _enough(bench, setup, fewer):
                chosen = fewer
    return _floated(setup, chosen, total)


def _enough(bench: Bench, setup: Setup, chosen: Sequence[str]) -> bool:
    return bench.enough(bench.score(bench.place(_floated(setup, chosen, 0))))


def _floated(setup: Setup, chosen: Sequence[str], total: int) -> Setup:
    note = f"float again: {', '.join(chosen)} ({len(chosen)} of {total})"
    return replace(setup, exclude=setup.exclude | set(chosen), notes=(*setup.notes, note))
