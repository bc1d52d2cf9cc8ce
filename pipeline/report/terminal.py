"""The report in a terminal: fits 80 columns, says everything without colour too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.report import pictures, story, words
from pipeline.report.console import STYLES, bare_table, heading, state, text
from pipeline.report.model import Report, TargetRow

if TYPE_CHECKING:
    from pipeline.steps import Plan

__all__ = ["print_outlook", "print_plan", "print_report", "render"]

_HEADS = {
    "accuracy": "accuracy",
    "latency_p50_ms": "p50 ms",
    "latency_p95_ms": "p95 ms",
    "size_mb": "size MB",
    "speedup_p50": "speedup",
}
_WIDE = 108  # columns from which the reasons fit into the table


def print_report(report: Report, console: Console, out: Path | None = None) -> None:
    """Prints the report; `out` is the folder that it was written to."""
    console.print(render(report, out))


def print_plan(steps: Sequence[tuple[str, str, bool]], plan: Plan, console: Console) -> None:
    """Prints the steps of a plan, (title, key, stored) each, and what will be measured on which target."""
    table = bare_table()
    for title in ("step", "key", ""):
        table.add_column(title, overflow="fold")
    for title, key, stored in steps:
        found = Text("stored", style="cyan") if stored else Text("will run")
        table.add_row(text(title), Text(key[:12], style="dim"), found)
    console.print(table)
    for goal in plan.goals:
        names = ", ".join(goal.candidates)
        console.print(text(f"then measure, choose and judge on {goal.target.name}: {names}"))
    done = sum(step[2] for step in steps)
    console.print(text(f"{words.plural(len(steps), 'step')}: {done} stored, {len(steps) - done} will run"))


def print_outlook(told: str, reasons: Sequence[str], console: Console) -> None:
    """Prints what may go from a network, and why the rest stays."""
    console.print(text(f"\n{told}"))
    for reason in reasons:
        console.print(Padding(text(reason, "dim"), (0, 0, 0, 2)))


def render(report: Report, out: Path | None = None) -> RenderableType:
    """The report as something that a rich console prints.

    Args:
        out: folder of the report's files; without it their names are shown relative to the report.
    """
    parts: list[RenderableType] = ["", _heading(report), ""]
    if report.error:
        parts += [heading("failed", "", report.error), ""]
    for target in report.targets:
        told = "\n".join([story.verdict(report, target), *story.shortfalls(target)])
        notes = [text(f"finding: {told}", "yellow") for told in story.findings(report, target)]
        notes += [text(f"note: {note}", "yellow") for note in story.warnings(target)]
        parts += [heading(target.verdict, target.target, told), *notes, ""]
    for target in report.targets:
        parts += [_title(f"budget on {target.target}", target.summary), _checks(target), ""]
        parts += [_title(f"candidates on {target.target}", "accuracy on the validation split")]
        parts += [_Candidates(report, target), ""]
        if unbeaten := pictures.told(report, target):
            parts += [text(unbeaten), ""]
        if merge := story.merging(report, target):
            parts += [text(merge), ""]
        if told := story.fitting(report, target):
            parts += [text(told), ""]
        if told := story.payback(target):
            parts += [text(told), ""]
    parts += [text(story.steps(report)), _files(report, out)]
    return Padding(Group(*parts), (0, 1), expand=False)


def _heading(report: Report) -> Text:
    head = Text.assemble((words.clean(report.name), "bold"), ("  attar " + words.clean(report.attar), "dim"))
    if len(report.targets) > 1:
        head.append("  ").append_text(state(report.verdict)).append(f" over {len(report.targets)} targets")
    return head


def _title(title: str, more: str) -> Text:
    return Text.assemble((words.clean(title), "bold"), (f"  {words.clean(more)}" if more else "", "dim"))


def _checks(target: TargetRow) -> RenderableType:
    if not target.checks:
        return text("no limits are set")
    table = bare_table()
    table.add_column("metric", no_wrap=True)
    for title in ("limit", "measured", story.interval_name(target)):
        table.add_column(title, justify="right", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for check in target.checks:
        sign = {"at most": "≤", "at least": "≥"}[words.sense_of(check.metric)]
        limit = f"{sign} {words.limit(check.metric, check.limit)}"
        measured = map(text, story.measured(check))
        table.add_row(text(words.label(check.metric)), text(limit), *measured, state(check.verdict))
    return table


@dataclass(frozen=True)
class _Candidates:
    """The table of candidates; why each was chosen or not stands in it, or below it where the lines are short."""

    report: Report
    target: TargetRow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = story.lines(self.report, self.target)
        wide = options.max_width >= _WIDE
        metrics = [metric for metric in story.columns(lines) if metric in _HEADS]
        table, below = bare_table(), Table.grid(padding=(0, 2, 0, 0))
        table.add_column("name", overflow="fold", max_width=None if wide else 24)
        for metric in metrics:
            table.add_column(_HEADS[metric], justify="right", overflow="fold")
        if wide:
            table.add_column("why, or why not", overflow="fold")
        below.add_column(overflow="fold", max_width=24)
        below.add_column(overflow="fold")
        digits = {
            metric: words.column(line.measured[metric].value for line in lines if metric in line.measured)
            for metric in metrics
        }
        for line in lines:
            style = "bold" if line.chosen else ""
            cells = [text(line.name), *(_cell(metric, line, digits[metric]) for metric in metrics)]
            table.add_row(*cells, *([_reason(line)] if wide else []), style=style)
            if line.verdict:
                below.add_row(text(line.name), _reason(line), style=style)
        yield table
        if not wide:
            yield ""
            yield below


def _reason(line: story.Line) -> Text:
    if line.verdict is None:
        return text(line.reason, "dim")
    return Text.assemble((words.SYMBOLS[line.verdict], STYLES[line.verdict]), " ", words.clean(line.reason))


def _cell(metric: str, line: story.Line, digits: int) -> Text:
    got = line.measured.get(metric)
    if got is None:
        return Text("-", style="dim")
    shown = words.number(got.value, digits)
    return Text(
        shown if metric in ("latency_p50_ms", "latency_p95_ms", "size_mb") else words.amount(shown, words.unit(metric))
    )


def _files(report: Report, out: Path | None) -> RenderableType:
    """Where the files are. Paths may be long and are not cut."""
    root = f"{out}/" if out else ""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    paths = [("report", "report.html")]
    paths += [("model" if t.artifact else "not shipped", story.model_file(t)) for t in report.targets if t.chosen]
    for what, path in paths:
        table.add_row(what, Text("".join(c if c.isprintable() else "?" for c in root + path), overflow="fold"))
    return table
