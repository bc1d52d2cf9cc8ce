"""Texts beside points and lines of a drawing, so that none lies over another. Pure geometry, as in `charts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Box", "Limit", "Noted", "Point", "labelled", "level", "text_box", "upright"]

Noted = Sequence[tuple[float, str]]

_TEXT = 6.9  # mean width of a letter at the drawing's 13 px
_LONGEST = 22
_PLACES = (
    *((12, -6, "start"), (-12, -6, "end"), (12, 15, "start"), (-12, 15, "end")),
    *((0, -13, "middle"), (0, 23, "middle")),
    *((-7, -13, "start"), (7, -13, "end"), (-7, 23, "start"), (7, 23, "end")),
)
_FIRST = ("chosen", "teacher", "merged", "candidate", "beaten")


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
    """A model in the plane of its cost and its accuracy. `text` is the name as the drawing writes it, at (tx, ty);
    empty where there was no room. `told` says the same in words."""

    name: str
    kind: str
    verdict: str
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
class Limit:
    """A limit, drawn across the plot at `at`, with its note at (x, y)."""

    at: float
    text: str
    x: float
    y: float
    anchor: str


def upright(limits: Noted, width: float) -> tuple[Limit, ...]:
    """Limits on the cost; their notes stand above the plot, in as many rows as it takes for them to be apart."""
    taken = [Box(0, 0, 90, 20)]  # the name of the other axis stands there
    placed: list[Limit] = []
    for x, text in sorted(limits):
        half = len(text) * _TEXT / 2
        anchor = "end" if x + half > width else "start" if x - half < 0 else "middle"
        row = 0
        while any(text_box(x, 19 + 15 * row, text, anchor).meets(box) for box in taken):
            row += 1
        placed.append(Limit(x, text, x, 19 + 15 * row, anchor))
        taken.append(text_box(x, 19 + 15 * row, text, anchor))
    return tuple(placed)


def level(floors: Noted, plot: Box) -> tuple[Limit, ...]:
    """Limits on accuracy; their notes stand at the right end, below the line or above it."""
    placed: list[Limit] = []
    for y, text in sorted(floors):
        at = y - 5 if placed and y + 14 - placed[-1].y < 15 else y + 14
        placed.append(Limit(y, text, plot.right, at, "end"))
    return tuple(placed)


def labelled(points: Sequence[Point], plot: Box, y_limits: Sequence[Limit]) -> list[Point]:
    """Writes names beside points, where they meet neither each other nor a marker and cross as few bars as can be."""
    taken = [Box(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points]
    taken += [text_box(limit.x, limit.y, limit.text, limit.anchor) for limit in y_limits]
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
