"""A profile in a terminal: fits 80 columns, the answer first."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.report import profile_story as story
from pipeline.report import words
from pipeline.report.console import bare_table, text
from pipeline.report.profile_model import ModelRow, Profile

__all__ = ["render"]


def render(found: Profile, top: int = 10) -> RenderableType:
    """The profile as something that a rich console prints.

    Args:
        top: how many operators of each model to show.
    """
    parts: list[RenderableType] = ["", _place(found), "", _answers(found)]
    parts += [text(told, "bold") for told in story.compared(found)]
    parts += [text(f"note: {note}", "yellow") for note in found.notes]
    for model in found.models:
        parts += [_finding(found, model, finding.what, finding.nodes) for finding in model.findings]
    if found.sweeps:
        parts += ["", _sweeps(found)]
    for model in found.models:
        parts += ["", _title(model.name, story.counted(found)), _numbers(model)]
        if model.operators:
            _, rest = story.top(model, top)
            parts += ["", _operators(model, top), *([text(rest, "dim")] if rest else [])]
            parts += [text(story.placed(model), "dim"), text(story.times(model), "dim")]
        parts += _hints(model)
    return Padding(Group(*parts, ""), (0, 1), expand=False)


def _title(title: str, more: str) -> Text:
    return Text.assemble(
        (words.clean(title), "bold"), (f"  {words.clean(more)}" if more else "", "dim"), overflow="fold"
    )


def _place(found: Profile) -> RenderableType:
    where = found.summary if found.device == "local" else f"{found.device}, {found.summary}"
    return _title(found.target, where.strip(", "))


def _answers(found: Profile) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", max_width=30)
    table.add_column(overflow="fold")
    for model in found.models:
        table.add_row(text(model.name, "bold"), text(story.answer(found, model), "bold"))
    return table


def _finding(found: Profile, model: ModelRow, what: str, nodes: tuple[str, ...]) -> Text:
    whose = f"{model.name}: " if len(found.models) > 1 else ""
    named = f" ({story.named(nodes)})" if nodes else ""
    return text(f"finding: {whose}{what}{named}", "yellow")


def _numbers(model: ModelRow) -> RenderableType:
    table = bare_table()
    table.add_column("", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for metric, value, interval, behind in story.measured(model):
        table.add_row(text(metric), text(value), text(interval), text(behind, "dim"))
    return table


def _operators(model: ModelRow, top: int) -> RenderableType:
    shown, _ = story.top(model, top)
    table = bare_table()
    table.add_column("operator", overflow="fold")
    table.add_column("type", overflow="fold", max_width=20)
    table.add_column("in", no_wrap=True)
    for title in ("µs", "share", "GMAC/s"):
        table.add_column(title, justify="right", no_wrap=True)
    several = len(model.placement) > 1
    if several:
        table.add_column("on", overflow="fold", max_width=12)
    for op in shown:
        cells = [
            text(story.called(op)),
            text(op.op_type),
            text(op.precision),
            text(words.number(op.us, 1)),
            text(words.share(op.share)),
            text("" if op.gmacs_per_s is None else words.number(op.gmacs_per_s)),
        ]
        table.add_row(*cells, *([text(op.provider.removesuffix("ExecutionProvider"))] if several else []))
    return table


def _hints(model: ModelRow) -> list[RenderableType]:
    if not model.hints:
        return []
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for hint in model.hints:
        named = f": {story.named(hint.nodes)}" if hint.nodes else ""
        table.add_row(text("-"), Text.assemble(text(hint.what + named), "\n", text(hint.do, "dim")))
    return ["", text("hints", "bold"), table]


def _sweeps(found: Profile) -> RenderableType:
    table = bare_table()
    for title in ("batch", "threads"):
        table.add_column(title, justify="right", no_wrap=True)
    if len(found.models) > 1:
        table.add_column("model", overflow="fold")
    for title in ("p50 ms", "interval", "inferences/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.sweeps:
        for model in found.models:
            p50, rate = row.latency_p50_ms.get(model.name), row.throughput_per_s.get(model.name)
            digits = words.places(p50.value, p50.low, p50.high) if p50 else 0
            table.add_row(
                text(str(row.batch)),
                text(str(row.threads)),
                *([text(model.name)] if len(found.models) > 1 else []),
                text(words.number(p50.value, digits) if p50 else "-"),
                text(words.span(p50.low, p50.high, digits) if p50 else "too few samples"),
                text(words.number(rate.value) if rate else "-"),
            )
    return table
