"""Latency and throughput of several models, in turns."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from targets.probe.errors import still_wanted
from targets.probe.session import Model

__all__ = ["Warmth", "in_turns", "latency", "throughput", "warm"]

T = TypeVar("T")
SETTLED = 0.02  # two medians this close, relatively, count as equal
PATIENCE = 10  # times the least warm-up


class Warmth(NamedTuple):
    """How a warm-up went: the typical time of one run then, the time spent, whether times had settled."""

    typical_s: float
    seconds: float
    stable: bool


def in_turns(models: Sequence[T], turn: int) -> list[T]:
    """The order of one round: each model opens a round as often as any other."""
    turn %= len(models)
    return [*models[turn:], *models[:turn]]


def warm(model: Model, feeds: Iterator[Mapping[str, Any]], seconds: float, patience: float = PATIENCE) -> Warmth:
    """Runs a model until the median time of a window (a third of `seconds`) is that of the window before.

    For `seconds` at least, for `patience` times that at most; one window in any case.
    """
    started = time.perf_counter()
    typical, stable = max(model.times(feeds, 1)[0] / 1e3, 1e-6), False
    while True:
        count = max(3 if typical < 0.05 else 1, min(int(seconds / 3 / typical), 100_000))
        window = sorted(model.times(feeds, count))
        median = max(window[len(window) // 2] / 1e3, 1e-6)
        stable, typical = abs(median - typical) <= SETTLED * typical, median
        spent = time.perf_counter() - started
        if (stable and spent >= seconds) or spent >= patience * seconds:
            return Warmth(typical, round(spent, 3), stable)


def latency(
    models: Sequence[Model], meter: Mapping[str, Any]
) -> tuple[dict[str, list[list[float]]], dict[str, Any], dict[str, Any]]:
    """(blocks of latencies of each model in milliseconds, at batch 1 or what else it is fixed to; its warm-up; which
    inputs it was fed with: their number, and the place of each block's first one)."""
    feeds = {m.name: m.feeds.made(1) for m in models}
    warmth = {m.name: warm(m, itertools.cycle(feeds[m.name]), meter["warmup_s"]) for m in models}
    limit = meter["max_seconds"] * len(models)
    affordable = int(limit / (meter["blocks"] * sum(w.typical_s for w in warmth.values())))
    count = max(1, min(math.ceil(meter["samples"] / meter["blocks"]), affordable))
    found: dict[str, list[list[float]]] = {m.name: [] for m in models}
    started = time.perf_counter()
    for turn in itertools.count():
        still_wanted()
        for model in in_turns(models, turn):
            before = 3 if warmth[model.name].typical_s < 0.05 else 1
            stream = _from(feeds[model.name], turn * count - before)
            model.times(stream, before)
            found[model.name].append([round(ms, 6) for ms in model.times(stream, count)])
        enough = turn + 1 >= meter["blocks"] and (turn + 1) * count >= meter["samples"]
        if enough or time.perf_counter() - started > limit:
            break
    turns = range(len(next(iter(found.values()), ())))
    inputs = {
        name: {"count": len(made), "first": [turn * count % len(made) for turn in turns]}
        for name, made in feeds.items()
    }
    return found, {name: {"seconds": w.seconds, "stable": w.stable} for name, w in warmth.items()}, inputs


def _from(feeds: Sequence[T], start: int) -> Iterator[T]:
    """The feeds in a circle, from one on."""
    start %= len(feeds)
    return itertools.chain(feeds[start:], itertools.cycle(feeds))


def throughput(models: Sequence[Model], meter: Mapping[str, Any]) -> dict[str, list[float]]:
    """Inferences a second of each model, one number per block of about a tenth of a second."""
    batch = meter["throughput_batch"]
    feeds = {m.name: m.feeds.cycle(batch) for m in models}
    block_s = min(0.1, meter["max_seconds"] / meter["blocks"])
    runs = {}
    for model in models:
        typical_s = warm(model, feeds[model.name], meter["warmup_s"] / 3, patience=1).typical_s
        runs[model.name] = max(1, math.ceil(block_s / typical_s))
    found: dict[str, list[float]] = {m.name: [] for m in models}
    started = time.perf_counter()
    for turn in range(meter["blocks"]):
        still_wanted()
        for model in in_turns(models, turn):
            model.times(feeds[model.name], 1)
            spent_ms = sum(model.times(feeds[model.name], runs[model.name]))
            done = runs[model.name] * model.feeds.size(batch)
            found[model.name].append(round(done / spent_ms * 1e3, 3))
        if time.perf_counter() - started > meter["max_seconds"] * len(models):
            break
    return found
