"""An artifact judged again, in a terminal: each limit with what was found when it was made and now."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding

from pipeline.report import words
from pipeline.report.console import bare_table, heading, state, text
from pipeline.report.model import Number
from pipeline.revalidate import Revalidation

__all__ = ["render"]


def render(found: Revalidation) -> RenderableType:
    """Fits 80 columns; the verdict comes first."""
    turned = "as when it was made" if found.verdict == found.verdict_then else f"it was {found.verdict_then} when made"
    parts: list[RenderableType] = [
        "",
        heading(found.verdict, found.target, f"{found.candidate}: {turned}"),
        "",
        _limits(found),
        "",
        *(text(f"finding: {told}", "yellow") for told in found.findings),
        *(text(f"note: {note}", "yellow") for note in found.environment.get("notes", ())),
        *(text(f"changed: {change}") for change in found.changed),
        text(f"accuracy on {found.examples}"),
    ]
    return Padding(Group(*parts), (0, 1), expand=False)


def _limits(found: Revalidation) -> RenderableType:
    """One line for each limit, and for what has none."""
    rows = bare_table()
    rows.add_column("metric", no_wrap=True)
    for title in ("limit", "when made", "now", "interval"):
        rows.add_column(title, justify="right", overflow="fold")
    rows.add_column("verdict", no_wrap=True)
    limits = {check.metric: check for check in found.checks}
    shown = [*limits, *(m for m in ("latency_p50_ms", "accuracy", "parity_percent", "energy_mj") if m not in limits)]
    for metric in shown:
        now, check = found.measured.get(metric), limits.get(metric)
        if now is None and check is None:
            continue
        sign = {"at most": "≤", "at least": "≥"}[words.sense_of(metric)]
        digits = words.places(now.value, now.low, now.high, check.limit if check else None) if now else None
        rows.add_row(
            text(f"{words.label(metric)}, {words.unit(metric)}".rstrip(", ")),
            text(f"{sign} {check.limit:g}" if check else ""),
            text(_value(found.before.get(metric), digits)),
            text(_value(now, digits)),
            text(words.span(now.low, now.high, digits or 0) if now else ""),
            state(check.verdict) if check else text(""),
        )
    return rows


def _value(got: Number | None, digits: int | None) -> str:
    return "-" if got is None else words.number(got.value, digits)
