"""Where things lie in the page's drawings. Pure geometry: the templates draw it, so that no text is ever put together
with markup here. All lengths are in the drawing's own units, y pointing down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.report import story, words
from pipeline.report.model import CheckRow, Number, Report, TargetRow

__all__ = ["Box", "Mark", "Point", "Scatter", "mark", "scatter", "text_box"]

MARK_WIDTH = 240.0


@dataclass(frozen=True)
class Mark:
    """One measured interval on a track of `MARK_WIDTH`, with its limit and the part of the track that is allowed.

    `zero` is where 0 lies, if that is inside the track. What was not measured has no `value`.
    """

    allowed: tuple[float, float]
    limit: float
    value: float | None
    low: float
    high: float
    zero: float | None


def mark(check: CheckRow) -> Mark:
    """The drawing of one check: from zero (or what lies below it) to a little beyond the largest number."""
    known = [x for x in (check.value, check.low, check.high) if x is not None]
    top = max([check.limit, *known]) or 1.0
    start = min([0.0, *known])
    end = top + 0.12 * (top - start)
    start -= 0.06 * (top - start) if start < 0 else 0.0

    def at(x: float) -> float:
        return round((x - start) / (end - start) * MARK_WIDTH, 2)

    limit = at(check.limit)
    allowed = (limit, MARK_WIDTH) if words.sense_of(check.metric) == "at least" else (0.0, limit)
    zero = at(0) if start < 0 else None
    if check.value is None or check.low is None or check.high is None:
        return Mark(allowed, limit, None, 0, 0, zero)
    return Mark(allowed, limit, at(check.value), at(check.low), at(check.high), zero)


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Do the two overlap?"""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def grown(self, by: float) -> Box:
        """The same with a margin all around."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def holds(self, other: Box) -> bool:
        """Does `other` lie inside?"""
        inside = self.left <= other.left and other.right <= self.right
        return inside and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Point:
    """A model in the plane of latency and accuracy. `text` is the name as the drawing writes it, at (tx, ty); empty
    where there was no room. `told` says the same in words."""

    name: str
    kind: str
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    told: str
    text: str = ""
    tx: float = 0
    ty: float = 0
    anchor: str = "start"


@dataclass(frozen=True)
class Scatter:
    """Accuracy over p50 latency. Ticks are (place, text); the limits are places on the axes, with a note, or None."""

    width: float
    height: float
    plot: Box
    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    logarithmic: bool
    x_limit: tuple[float, str] | None
    y_limit: tuple[float, str] | None


@dataclass(frozen=True)
class _Model:
    name: str
    kind: str
    x: Number
    y: Number


def scatter(report: Report, target: TargetRow, width: float = 720, height: float = 400) -> Scatter | None:
    """Places all models of one target; None where fewer than two have both an accuracy and a latency."""
    models = _models(report, target)
    if len(models) < 2:
        return None
    plot = Box(46, 26, width - 14, height - 46)
    limits = {check.metric: check.limit for check in target.checks}
    bound = _within_sight(limits.get("latency_p50_ms"), [m.x for m in models])
    across, x_ticks, logarithmic = _across([m.x for m in models], bound, plot)
    floor = None
    if "accuracy_drop_points" in limits and "accuracy" in target.baseline:
        floor = target.baseline["accuracy"].value - limits["accuracy_drop_points"]
    up, y_ticks = _up([m.y for m in models], floor, plot)
    points = [
        Point(
            model.name,
            model.kind,
            across(model.x.value),
            up(model.y.value),
            *(across(model.x.low), across(model.x.high)),
            *(up(model.y.low), up(model.y.high)),
            told=f"{model.name}: accuracy {words.spread('accuracy', vars(model.y))}, "
            f"latency p50 {words.spread('latency_p50_ms', vars(model.x))}",
        )
        for model in models
    ]
    x_limit = None if bound is None else (across(bound), f"limit {words.limit('latency_p50_ms', bound)}")
    y_limit = None if floor is None else (up(floor), f"limit {words.number(floor, 1)} %")
    return Scatter(
        width,
        height,
        plot,
        tuple(_labelled(points, plot, y_limit)),
        tuple(x_ticks),
        tuple(y_ticks),
        logarithmic,
        x_limit,
        y_limit,
    )


def _within_sight(limit: float | None, values: Sequence[Number]) -> float | None:
    """A latency limit, unless it lies so far from all models that drawing it would press them together."""
    if limit is None or limit > 3 * max(v.high for v in values) or limit < min(v.low for v in values) / 3:
        return None
    return limit


def _models(report: Report, target: TargetRow) -> list[_Model]:
    found = []
    for line in story.lines(report, target):
        if {"accuracy", "latency_p50_ms"} <= line.measured.keys():
            kind = "chosen" if line.chosen else "candidate" if line.verdict else "teacher"
            found.append(_Model(line.name, kind, line.measured["latency_p50_ms"], line.measured["accuracy"]))
    if target.merge and found:
        latency: Any = target.merge["latency_p50_ms"]
        x = Number(value=latency, low=latency, high=latency, samples=0, instrument="sum")
        y = Number(**{key: target.merge["accuracy"][key] for key in Number.model_fields})
        found.append(_Model("merged", "merged", x, y))
    return found


Scale = Callable[[float], float]
Ticks = list[tuple[float, str]]


def _across(values: Sequence[Number], limit: float | None, plot: Box) -> tuple[Scale, Ticks, bool]:
    """The latency axis: logarithmic where the slowest takes more than four times as long as the fastest."""
    low, high = min(v.low for v in values), max(v.high for v in values)
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    logarithmic = low > 0 and high / low > 4
    if logarithmic:
        pad = 0.08 * math.log(high / low)
        start, end = math.log(low) - pad, math.log(high) + pad
    else:
        pad = 0.1 * (high - low) or 0.1 * (high or 1)
        start, end = max(0.0, low - pad), high + pad

    def at(x: float) -> float:
        shown = math.log(max(x, 1e-12)) if logarithmic else x
        return round(plot.left + (shown - start) / (end - start) * (plot.right - plot.left), 2)

    steps = _log_steps(math.exp(start), math.exp(end)) if logarithmic else _steps(start, end, 6)
    return at, [(at(x), f"{x:g}") for x in steps], logarithmic


def _up(values: Sequence[Number], limit: float | None, plot: Box) -> tuple[Scale, Ticks]:
    """The accuracy axis, percent; never drawn beyond 0 and 100 by more than a margin."""
    low, high = min(v.low for v in values), max(v.high for v in values)
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    pad = 0.08 * (high - low) or 1.0
    start, end = low - pad, high + pad

    def at(y: float) -> float:
        return round(plot.bottom - (y - start) / (end - start) * (plot.bottom - plot.top), 2)

    return at, [(at(y), f"{y:g}") for y in _steps(start, end, 5) if 0 <= y <= 100]


def _steps(start: float, end: float, about: int) -> list[float]:
    """Round numbers between two ends."""
    rough = (end - start) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(start / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(end / step + 1e-9) + 1)]


def _log_steps(start: float, end: float) -> list[float]:
    """1, 2, 5 in each decade between two ends; only decades where those would be too many."""
    decades = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
    for mantissas in ((1, 2, 5), (1,)):
        found = [m * 10.0**d for d in decades for m in mantissas if start <= m * 10.0**d <= end]
        if len(found) <= 8:
            break
    return [float(f"{x:.6g}") for x in found]


_TEXT = 6.9  # mean width of a letter at the drawing's 13 px
_LONGEST = 22
_PLACES = (
    *((12, -6, "start"), (-12, -6, "end"), (12, 15, "start"), (-12, 15, "end")),
    *((0, -13, "middle"), (0, 23, "middle")),
    *((-7, -13, "start"), (7, -13, "end"), (-7, 23, "start"), (7, 23, "end")),
)
_FIRST = ("chosen", "teacher", "merged", "candidate")


def _labelled(points: Sequence[Point], plot: Box, y_limit: tuple[float, str] | None) -> list[Point]:
    """Writes names beside points, where they meet neither each other nor a marker and cross as few bars as can be."""
    taken = [Box(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points]
    if y_limit is not None:  # its note stands at the right end, below the line
        taken.append(Box(plot.right - len(y_limit[1]) * _TEXT, y_limit[0], plot.right, y_limit[0] + 18))
    bars = [Box(p.x - 1, p.y_high, p.x + 1, p.y_low) for p in points]
    done = list(points)
    for i in sorted(range(len(points)), key=lambda i: _FIRST.index(points[i].kind)):
        p = points[i]
        text = p.name if len(p.name) <= _LONGEST else p.name[: _LONGEST - 1] + "…"
        others = [box for j, box in enumerate(taken) if j != i]
        free = []
        for rank, (dx, dy, anchor) in enumerate(_PLACES):
            box = text_box(p.x + dx, p.y + dy, text, anchor)
            if plot.holds(box) and not any(box.meets(other) for other in taken):
                crossed = sum(box.meets(bar) for j, bar in enumerate(bars) if j != i)
                near = sum(box.grown(8).meets(other) for other in others)
                free.append((crossed + near, rank, box))
        if free:
            _, rank, box = min(free, key=lambda place: place[:2])
            dx, dy, anchor = _PLACES[rank]
            taken.append(box)
            done[i] = replace(p, text=text, tx=round(p.x + dx, 2), ty=round(p.y + dy, 2), anchor=anchor)
    return done


def text_box(x: float, y: float, text: str, anchor: str) -> Box:
    """About the room that a text takes whose anchor is at (x, y)."""
    width = len(text) * _TEXT
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return Box(left, y - 11, left + width, y + 4)
