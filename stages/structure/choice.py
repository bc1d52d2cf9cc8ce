"""The most important structure that stays within limits. Pure: what things cost and are worth is given.

    for each round:
        what every unit is worth, in the structure as it is now
        while this round's part of the excess is left:
            remove the block, or narrow the strand, that loses the least worth for the excess that it saves
    give back: the dearest unit that still fits, until none does

Only limits that are still exceeded count, as shares of the limit, and no saving beyond a limit: a large move that would
do more than is asked has no advantage over a small one that does enough. Costs add up and worth is taken anew, since
what a unit is worth depends on what else has gone.

Neighbours: NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230) takes the same kind of steps, judged by the target's
latency, with one layer at a time and fine-tuning in between; HALP (Shen et al., NeurIPS 2022, arXiv:2110.10811) solves
a knapsack of channels for one latency limit; AMC (He et al., ECCV 2018, arXiv:1802.03494) learns a policy instead;
Once-for-all (Cai et al., ICLR 2020, arXiv:1908.09791) searches a space that was trained beforehand; ZipLM (Kurtic et
al., NeurIPS 2023, arXiv:2302.04089) weighs blocks and channels by loss per time saved, as here. A greedy choice takes
several limits at once, where a knapsack wants one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from stages.structure.anatomy import Anatomy, Shape, Strand
from stages.structure.table import Costs
from stages.structure.worth import Worth
from targets.budget import METRICS
from targets.errors import Fault

__all__ = ["choose", "excess", "out_of_reach", "smallest", "unreachable"]

_NOTHING = 1e-9  # share of a limit that is rounding


def choose(
    anatomy: Anatomy,
    costs: Costs,
    limits: Mapping[str, float],
    worth_of: Callable[[Shape], Worth],
    rounds: int = 4,
    start: Shape | None = None,
) -> Shape:
    """The most important structure that stays within all limits, found greedily; where none does, the one that comes
    closest. A unit that saves nothing of what is exceeded stays.

    Args:
        limits: by metric of `Budget`; one that `costs` cannot predict is passed over.
        worth_of: what units are worth in a structure; asked once for each round, and once more before giving back.
        rounds: each saves about an equal part of the excess.
        start: the structure to begin with, from which units leave and to which others are given back; None: the whole.
    """
    return _Choice(anatomy, costs, limits).made(worth_of, rounds, Shape() if start is None else start)


def excess(predicted: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """By metric, how far it lies beyond its limit, as a share of it; 0 within. Without metrics that are not known."""
    return {
        metric: max(0.0, (value / limit if METRICS[metric] == "at most" else limit / value) - 1)
        for metric, limit in limits.items()
        if (value := predicted.get(metric)) is not None
    }


def smallest(anatomy: Anatomy, costs: Costs) -> tuple[Shape, ...]:
    """Everything gone that may go; see `Anatomy.smallest`."""
    narrow = {strand.name: widths[-1] for strand in anatomy.strands if (widths := costs.widths(strand.kind))}
    return tuple(_clean(anatomy, shape.gone, shape.widths) for shape in anatomy.smallest(narrow))


def unreachable(costs: Costs, limits: Mapping[str, float]) -> dict[str, float]:
    """Metrics whose limit even the smallest structure exceeds, with the closest figure that can be reached."""
    found = {}
    for metric in excess(costs.smallest, limits):
        ends = [figures[metric] for figures in (costs.smallest, costs.whole) if metric in figures]
        best = min(ends) if METRICS[metric] == "at most" else max(ends)
        if excess({metric: best}, limits)[metric] > _NOTHING:
            found[metric] = best
    return found


def out_of_reach(costs: Costs, limits: Mapping[str, float], blocks: int, strands: int) -> list[Fault]:
    """The same as a fault for each such limit, its metric the key.

    Args:
        blocks, strands: how many may go.
    """
    closest = unreachable(costs, limits)
    reach = ", ".join(f"{name} {value:.3g}" for name, value in closest.items())
    return [
        Fault(
            f"{limits[name]:g} is out of reach: the smallest structure was measured to "
            f"{'take' if METRICS[name] == 'at most' else 'give'} {value:.3g}",
            name,
            help=f"closest within reach: {reach} (of {blocks} blocks and {strands} groups of channels); "
            "relax the limit, or start from a smaller network",
        )
        for name, value in closest.items()
    ]


def _clean(anatomy: Anatomy, gone: frozenset[str], widths: Mapping[str, int]) -> Shape:
    """A strand that the blocks that are gone hold has no width."""
    free = {strand.name: strand.channels for strand in anatomy.strands if not anatomy.held(strand, gone)}
    return Shape(gone, {name: n for name, n in sorted(widths.items()) if n < free.get(name, 0)})


@dataclass(frozen=True)
class _Move:
    """From one structure to another.

    Attributes:
        worth: what is lost by it, or regained.
        rank: orders moves that are equally good.
    """

    shape: Shape
    worth: float
    rank: tuple[int, int]


@dataclass(frozen=True)
class _Choice:
    anatomy: Anatomy
    costs: Costs
    limits: Mapping[str, float]

    def made(self, worth_of: Callable[[Shape], Worth], rounds: int, shape: Shape) -> Shape:
        begun = self._excess(shape)
        for done in range(1, rounds + 1):
            left = {metric: over * (1 - done / rounds) for metric, over in begun.items()}
            if self._over(shape, left):
                shape = self._taken(shape, left, worth_of(shape))
        if self._over(shape, {}):
            ends = (shape, *smallest(self.anatomy, self.costs))
            shape = min(ends, key=lambda one: self._over(one, {}))
        return shape if self._over(shape, {}) else self._given_back(shape, worth_of)

    def _excess(self, shape: Shape) -> dict[str, float]:
        return excess(self.costs.predict(self.anatomy, shape), self.limits)

    def _over(self, shape: Shape, allowed: Mapping[str, float]) -> float:
        """Excess over all limits together, beyond what is allowed."""
        over = sum(max(0.0, over - allowed.get(metric, 0.0)) for metric, over in self._excess(shape).items())
        return over if over > _NOTHING else 0.0

    def _taken(self, shape: Shape, allowed: Mapping[str, float], worth: Worth) -> Shape:
        """With less and less, until no more than the allowed excess is left or nothing saves any."""
        while over := self._over(shape, allowed):
            found = [
                (move.worth / saved, -saved, move.rank, move.shape)
                for move in self._losses(shape, worth)
                if (saved := over - self._over(move.shape, allowed)) > _NOTHING
            ]
            if not found:
                break
            shape = min(found, key=lambda one: one[:3])[3]
        return shape

    def _given_back(self, shape: Shape, worth_of: Callable[[Shape], Worth]) -> Shape:
        if shape == Shape():
            return shape
        worth = worth_of(shape)
        while fitting := [move for move in self._gains(shape, worth) if not self._over(move.shape, {})]:
            shape = min(fitting, key=lambda move: (-move.worth, move.rank)).shape
        return shape

    def _losses(self, shape: Shape, worth: Worth) -> Iterator[_Move]:
        """Each block that could go, and each level that a strand could be narrowed to."""
        for i, block in enumerate(self.anatomy.blocks):
            if block.name not in shape.gone:
                less = _clean(self.anatomy, shape.gone | {block.name}, shape.widths)
                yield _Move(less, worth.blocks[block.name], (i, 0))
        for i, strand in enumerate(self.anatomy.strands, len(self.anatomy.blocks)):
            stay = shape.widths.get(strand.name, strand.channels)
            if not self.anatomy.held(strand, shape.gone):
                for level in self.costs.widths(strand.kind):
                    if level < stay:
                        narrow = Shape(shape.gone, dict(sorted({**shape.widths, strand.name: level}.items())))
                        yield _Move(narrow, _between(strand, level, stay, worth), (i, level))

    def _gains(self, shape: Shape, worth: Worth) -> Iterator[_Move]:
        """Each block that could come back, and each level that a strand could be widened to."""
        for i, block in enumerate(self.anatomy.blocks):
            if block.name in shape.gone:
                yield _Move(Shape(shape.gone - {block.name}, shape.widths), worth.blocks[block.name], (i, 0))
        for i, strand in enumerate(self.anatomy.strands, len(self.anatomy.blocks)):
            if (stay := shape.widths.get(strand.name, strand.channels)) < strand.channels:
                for level in (strand.channels, *self.costs.widths(strand.kind)):
                    if level > stay:
                        wide = _clean(self.anatomy, shape.gone, {**shape.widths, strand.name: level})
                        yield _Move(wide, _between(strand, stay, level, worth), (i, -level))


def _between(strand: Strand, narrow: int, wide: int, worth: Worth) -> float:
    """What the channels between two widths of a strand are worth."""
    scores = worth.channels[strand.name]
    order = worth.worst(strand)
    return sum(scores[i] for i in order[strand.channels - wide : strand.channels - narrow])
