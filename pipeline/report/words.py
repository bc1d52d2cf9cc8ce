"""How names, numbers and verdicts are written: the one place for the terminal, Markdown and HTML alike.

A metric's name ends with its unit (`latency_p95_ms`); people see "latency p95" and the unit beside the number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from targets.budget import METRICS, Verdict

__all__ = [
    "SYMBOLS",
    "amount",
    "clean",
    "column",
    "duration",
    "energy",
    "flat",
    "label",
    "limit",
    "number",
    "places",
    "plural",
    "prose",
    "quantity",
    "rounded",
    "rows",
    "sense_of",
    "share",
    "span",
    "spread",
    "unit",
    "visible",
]

SYMBOLS: Mapping[Verdict, str] = {"met": "✓", "missed": "✗", "inconclusive": "?", "failed": "!"}

_UNITS = {
    "_per_s": "/s",
    "_points": "points",
    "_percent": "%",
    "_bytes": "bytes",
    "_ms": "ms",
    "_mb": "MB",
    "_mj": "mJ",
    "_db": "dB",
    "_s": "s",
}
_LABELS = {
    "agreement": "agreement with float",
    "float_int8_nodes": "int8 nodes in float",
    "macs": "MACs",
    "macs_before": "MACs before",
    "session_ms": "session start",
    "speedup_mean": "speedup of the mean",
    "speedup_p50": "speedup",
}
_SHARES = (
    "validation_accuracy",
    "agreement",
    "channels_kept",
    "large_share",
)  # steps give these as 0..1, measurements in percent
_NAMES = re.compile(r"\b(" + "|".join(sorted([*METRICS, "speedup_mean"], key=len, reverse=True)) + r")\b")


def unit(metric: str) -> str:
    """The unit that the name ends with: "ms", "MB", "points", "%" for accuracies, "×" for speedups, else ""."""
    if metric.endswith("accuracy"):
        return "%"
    if metric.startswith("speedup"):
        return "×"
    return next((shown for suffix, shown in _UNITS.items() if metric.endswith(suffix)), "")


def label(metric: str) -> str:
    """latency_p95_ms -> "latency p95"."""
    if metric in _LABELS:
        return _LABELS[metric]
    suffix = next((suffix for suffix in _UNITS if metric.endswith(suffix)), "")
    return metric.removesuffix(suffix).replace("_", " ")


def number(value: float, decimals: int | None = None) -> str:
    """A number for people: three significant digits unless `decimals` says how many follow the point."""
    if decimals is None:
        if value and abs(value) < 5e-4:
            return re.sub(r"e([+-])0*", lambda m: "e-" if m[1] == "-" else "e", f"{value:.1e}")
        decimals = _significant(value)
    shown = f"{value:,.{decimals}f}"
    return shown.removeprefix("-") if not re.search("[1-9]", shown) else shown


def places(value: float, low: float, high: float, limit: float | None = None) -> int:
    """Digits after the point for a measured number and its interval, shown with one precision.

    Three significant digits, four where the interval is narrow, and as many as it takes
    to see on which side of the limit each of the three lies.
    """
    decimals = _significant(max(abs(value), abs(low), abs(high)))
    if high > low:
        decimals = max(decimals, min(_significant(high - low, 2), _significant(value or high, 4)))
    if limit is not None:
        while decimals < 6 and any(x != limit and round(x, decimals) == round(limit, 6) for x in (value, low, high)):
            decimals += 1
    return decimals


def column(values: Iterable[float]) -> int:
    """Digits after the point for numbers that stand below each other: two significant ones for the smallest, three
    for the largest, and no more than six for the largest."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return 0
    return min(max(_significant(min(sizes), 2), _significant(max(sizes))), _significant(max(sizes), 6))


def _significant(value: float, digits: int = 3) -> int:
    """Digits after the point that give `value` this many significant ones."""
    return 0 if value == 0 else max(0, min(9, digits - 1 - math.floor(math.log10(abs(value)))))


def amount(text: str, unit: str) -> str:
    """A written number with its unit, spaced as is usual: "0.31 ms", "2.4×", "900/s"."""
    if unit == "points" and text in ("1", "-1"):
        unit = "point"
    return text + unit if unit in ("×", "/s") else f"{text} {unit}".rstrip()


def quantity(metric: str, value: float, decimals: int | None = None) -> str:
    """A value with its unit: ("latency_p95_ms", 0.3121) -> "0.312 ms"; counts are whole, or in millions."""
    if metric.endswith(_SHARES):
        return amount(number(100 * value, 1), "%")
    name = unit(metric)
    if not name and decimals is None and value == round(value):
        return f"{value:,.0f}" if abs(value) < 1e6 else amount(number(value / 1e6), "M")
    return amount(number(value, decimals), name)


def limit(metric: str, value: float, sense: bool = False) -> str:
    """A limit as it was given: "0.4 ms"; with `sense` "at most 0.4 ms"."""
    shown = amount(f"{value:,.6f}".rstrip("0").rstrip("."), unit(metric))
    return f"{sense_of(metric)} {shown}" if sense else shown


def sense_of(metric: str) -> str:
    """ "at most" or "at least": on which side of its limit a metric must lie."""
    return METRICS.get(metric, "at most")


def span(low: float, high: float, decimals: int) -> str:
    """An interval without its unit, "0.301 to 0.320"; empty where the number is exact."""
    return f"{number(low, decimals)} to {number(high, decimals)}" if high > low else ""


def spread(metric: str, got: Mapping[str, Any]) -> str:
    """A measured number with its interval: "98.3 % (97.1 to 99.2)"."""
    value, low, high = float(got["value"]), float(got["low"]), float(got["high"])
    decimals = places(value, low, high)
    interval = span(low, high, decimals)
    return quantity(metric, value, decimals) + (f" ({interval})" if interval else "")


def duration(seconds: float) -> str:
    """0.04 -> "0.04 s", 84 -> "84 s", 725 -> "12 min 05 s"."""
    if seconds < 99.5:
        return f"{number(seconds, 0 if seconds >= 9.95 else 1 if seconds >= 0.1 else 2)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def energy(joules: float) -> str:
    """0.31 -> "0.31 J", 84200 -> "84.2 kJ", 7.2e6 -> "2 kWh"."""
    if joules >= 3.6e6:
        return f"{number(joules / 3.6e6)} kWh"
    return f"{number(joules / 1e3)} kJ" if joules >= 1e3 else f"{number(joules)} J"


def rounded(count: float) -> str:
    """A count of which only the size is known: 671234.5 -> "671,000", 3.2e6 -> "3.2 million", 4e12 -> "4e12"."""
    if count >= 1e12:
        return f"{count:.0e}".replace("e+", "e")
    if count >= 1e6:
        return f"{number(count / 1e6)} million" if count < 1e9 else f"{number(count / 1e9)} billion"
    digits = max(0, math.floor(math.log10(max(count, 1))) - 2)
    return f"{round(count, -digits):,.0f}"


def share(part: float) -> str:
    """0.0123 -> "1.2 %"."""
    return "under 0.1 %" if 0 < part < 1e-3 else f"{number(100 * part, 1)} %"


def plural(count: int, noun: str) -> str:
    """(1, "step") -> "1 step", (3, "step") -> "3 steps"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def prose(text: str) -> str:
    """A sentence with the names of metrics in it spelled for people."""
    return _NAMES.sub(lambda found: label(found[1]), text)


def clean(text: str) -> str:
    """One line of printable characters: nothing that moves a cursor or turns the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def visible(text: str) -> str:
    """Text of several lines in which what cannot be seen, or would turn the direction of writing, shows as "�"."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def flat(value: Any) -> str:
    """Any plain value on one line: lists by commas (long ones cut, with their length), mappings as "key value"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flat(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(flat(item) for item in value[:20])
        return shown if len(value) <= 20 else f"{shown}, ... ({len(value):,} in all)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mapping as (name, value) pairs to be shown, in its own order; mappings within it are spread out."""
    shown: list[tuple[str, str]] = []
    for key, value in values.items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            shown += [(f"{name}: {inner}", text) for inner, text in rows(value)]
        else:
            shown.append((name, flat(value)))
    return shown
