"""A profile as one self-contained HTML page, in the look of a run's report: no scripts, light and dark, printable."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report import profile_story, words
from pipeline.report.pages import page
from pipeline.report.profile_model import ModelRow, OperatorRow, Profile

__all__ = ["render"]

_WIDTH = 600.0
_PERCENTILES = ("latency_p90_ms", "latency_p95_ms", "latency_p99_ms")


def render(found: Profile) -> str:
    """The page. The same profile gives the same bytes; every text in it is escaped."""
    return page(
        "profile.html.j2",
        {"story": profile_story},
        found=found,
        models=[_Model(row, i) for i, row in enumerate(found.models, 1)],
        tracks=_tracks(found),
    )


class _Model:
    """What the page shows of one model."""

    def __init__(self, row: ModelRow, index: int) -> None:
        self.row, self.index = row, index
        self.operators = sorted(row.operators, key=lambda op: -op.us)
        self.longest = max((op.share for op in row.operators), default=0.0) or 1.0
        self.providers = len(row.placement) > 1

    def share(self, op: OperatorRow) -> float:
        """Length of the operator's bar: of the longest one's."""
        return op.share / self.longest


@dataclass(frozen=True)
class _Track:
    """A model's latencies on a line from 0 to the largest of all: the median with its interval, and the percentiles
    above it that the samples support, as (place, name)."""

    name: str
    told: str
    value: float
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


def _tracks(found: Profile) -> list[_Track]:
    known = [model.numbers for model in found.models if "latency_p50_ms" in model.numbers]
    if not known:
        return []
    most = max(numbers[m].high for numbers in known for m in ("latency_p50_ms", *_PERCENTILES) if m in numbers)
    # A tail far out would press all medians together: it is cut, and the table has its number.
    most = min(most, 2.5 * max(numbers["latency_p50_ms"].high for numbers in known))

    def at(ms: float) -> float:
        return round(ms / most * _WIDTH, 2)

    tracks = []
    for model in found.models:
        p50 = model.numbers.get("latency_p50_ms")
        if p50 is None:
            continue
        ticks = tuple(
            (at(model.numbers[m].value), words.label(m).removeprefix("latency "))
            for m in _PERCENTILES
            if m in model.numbers and model.numbers[m].value <= most
        )
        told = words.spread("latency_p50_ms", p50.model_dump())
        tracks.append(_Track(model.name, told, at(p50.value), at(p50.low), min(at(p50.high), _WIDTH), ticks))
    return tracks
