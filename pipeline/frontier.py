"""Which of several measured models are worth looking at: those that no other one beats. Pure, intervals respected.

A model is beaten when another one is no worse in any metric (by value) and better beyond doubt in at least one: there
the two intervals do not overlap. So noise alone never throws a model out, and two that cannot be told apart both stay.
The relation has no cycles, so that the frontier of any models is never empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from targets.budget import METRICS

__all__ = ["Interval", "beats", "edge", "frontier", "higher_is_better"]


class Interval(Protocol):
    """A measured value with its interval: a `Measurement`, or a `Number` of a report."""

    @property
    def value(self) -> float:
        """The point estimate."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


Name = TypeVar("Name")


def higher_is_better(metric: str) -> bool:
    """Is more of it better: accuracy, throughput, speedup."""
    return metric.endswith("accuracy") or METRICS.get(metric) == "at least"


def beats(a: Mapping[str, Interval], b: Mapping[str, Interval], metrics: Iterable[str]) -> bool:
    """Is `a` no worse than `b` in all metrics, and better beyond both intervals in one?"""
    beyond = False
    for metric in metrics:
        sign = -1 if higher_is_better(metric) else 1
        mine, other = a[metric], b[metric]
        if sign * mine.value > sign * other.value:
            return False
        beyond |= mine.low > other.high if sign < 0 else mine.high < other.low
    return beyond


def frontier(models: Mapping[Name, Mapping[str, Interval]], metrics: Sequence[str]) -> tuple[Name, ...]:
    """The models that no other one beats, in the given order (Pareto's frontier).

    Args:
        models: measured values by metric, by name.
        metrics: what they are compared in. A model that lacks one of them takes no part.
    """
    known = {name: row for name, row in models.items() if all(metric in row for metric in metrics)}
    return tuple(
        name
        for name, row in known.items()
        if not any(beats(other, row, metrics) for rival, other in known.items() if rival != name)
    )


def edge(models: Mapping[Name, Mapping[str, Interval]], cost: str, gain: str) -> tuple[Name, ...]:
    """The models that a line through the frontier of two metrics joins: by value each costs more than the one before
    it and gives more. All of them lie on the frontier, where models that tie within their intervals may lie too.

    Args:
        cost: a metric that is better low, such as latency. gain: one that is better high, such as accuracy.
    """
    known = [(row[cost].value, -row[gain].value, name) for name, row in models.items() if {cost, gain} <= row.keys()]
    joined: list[Name] = []
    best = float("-inf")
    for _, minus, name in sorted(known, key=lambda item: item[:2]):
        if -minus > best:
            joined.append(name)
            best = -minus
    return tuple(joined)
