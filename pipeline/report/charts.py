"""Where things lie in the page's drawings. Pure geometry: the templates draw it, so that no text is ever put together
with markup here. All lengths are in the drawing's own units, y pointing down. `labels` finds room for texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.report import words
from pipeline.report.labels import Box, Limit, Noted, Point, labelled, level, upright
from pipeline.report.model import CheckRow, Number

__all__ = ["Mark", "Model", "Scatter", "mark", "scatter"]

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
class Model:
    """A model to be placed: accuracy over what it costs. `kind` is teacher, candidate, beaten, chosen or merged; a
    chosen one has a verdict."""

    name: str
    kind: str
    cost: Number
    accuracy: Number
    verdict: str = ""


@dataclass(frozen=True)
class Scatter:
    """Accuracy over a cost, such as p50 latency. Ticks are (place, text); `line` joins the frontier, corner by corner;
    `fits` is the part of the plot within all limits, where both axes have one."""

    metric: str
    width: float
    height: float
    plot: Box
    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    logarithmic: bool
    x_limits: tuple[Limit, ...]
    y_limits: tuple[Limit, ...]
    line: tuple[tuple[float, float], ...]
    fits: Box | None


def scatter(
    models: Sequence[Model],
    metric: str,
    ceilings: Noted = (),
    floors: Noted = (),
    edge: Sequence[str] = (),
    width: float = 720,
    height: float = 400,
) -> Scatter | None:
    """Places models; None where there are fewer than two.

    Args:
        metric: what they cost, such as "latency_p50_ms".
        ceilings: limits on it, each with what to write there.
        floors: limits on accuracy, likewise.
        edge: names of the models that the frontier's line joins, cheapest first.
    """
    if len(models) < 2:
        return None
    ceilings = [(limit, text) for limit, text in ceilings if _within_sight(limit, [m.cost for m in models])]
    plot = Box(46, 26, width - 14, height - 46)
    across, x_ticks, logarithmic = _across([m.cost for m in models], [limit for limit, _ in ceilings], plot)
    x_limits = upright([(across(limit), text) for limit, text in ceilings], width)
    plot = replace(plot, top=max([26, *(limit.y + 7 for limit in x_limits)]))
    up, y_ticks = _up([m.accuracy for m in models], [floor for floor, _ in floors], plot)
    y_limits = level([(up(floor), text) for floor, text in floors], plot)
    points = [
        Point(
            m.name,
            m.kind,
            m.verdict,
            across(m.cost.value),
            up(m.accuracy.value),
            *(across(m.cost.low), across(m.cost.high)),
            *(up(m.accuracy.low), up(m.accuracy.high)),
            told=f"{m.name}: accuracy {words.spread('accuracy', vars(m.accuracy))}, "
            f"{words.label(metric)} {words.spread(metric, vars(m.cost))}",
        )
        for m in models
    ]
    corners = [next((p.x, p.y) for p in points if p.name == name) for name in edge]
    fits = None
    if len(x_limits) == len(y_limits) == 1:
        fits = Box(plot.left, plot.top, x_limits[0].at, y_limits[0].at)
    return Scatter(
        metric,
        width,
        height,
        plot,
        tuple(labelled(points, plot, y_limits)),
        tuple(x_ticks),
        tuple(y_ticks),
        logarithmic,
        x_limits,
        y_limits,
        tuple(_stairs(corners)),
        fits,
    )


def _stairs(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The frontier between its models: until more is paid, accuracy stays what the cheaper one reaches."""
    line: list[tuple[float, float]] = []
    for x, y in corners:
        line += [(x, line[-1][1]), (x, y)] if line else [(x, y)]
    return line


def _within_sight(limit: float, values: Sequence[Number]) -> bool:
    """Not so far from all models that drawing it would press them together."""
    return min(v.low for v in values) / 3 <= limit <= 3 * max(v.high for v in values)


Scale = Callable[[float], float]
Ticks = list[tuple[float, str]]


def _across(values: Sequence[Number], limits: Sequence[float], plot: Box) -> tuple[Scale, Ticks, bool]:
    """The axis of the cost: logarithmic where the dearest takes more than four times as much as the cheapest."""
    low, high = min([*(v.low for v in values), *limits]), max([*(v.high for v in values), *limits])
    logarithmic = low > 0 and high / low > 4
    if logarithmic:
        pad = 0.08 * math.log(high / low)
        start, end = math.log(low) - pad, math.log(high) + pad
    else:
        pad = 0.1 * (high - low) or 0.1 * (high or 1)
        start, end = max(0.0, low - pad) if low >= 0 else low - pad, high + pad

    def at(x: float) -> float:
        shown = math.log(max(x, 1e-12)) if logarithmic else x
        return round(plot.left + (shown - start) / (end - start) * (plot.right - plot.left), 2)

    about = max(3, int((plot.right - plot.left) // 90))
    steps = _log_steps(math.exp(start), math.exp(end)) if logarithmic else _steps(start, end, about)
    return at, [(at(x), f"{x:g}") for x in steps], logarithmic


def _up(values: Sequence[Number], limits: Sequence[float], plot: Box) -> tuple[Scale, Ticks]:
    """The accuracy axis, percent; never drawn beyond 0 and 100 by more than a margin."""
    low, high = min([*(v.low for v in values), *limits]), max([*(v.high for v in values), *limits])
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
