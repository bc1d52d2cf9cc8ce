"""An endpoint that was asked, in a terminal: whether it answers as the artifact does, and what it adds."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from pipeline.report import words
from pipeline.report.console import bare_table, text
from pipeline.report.endpoint_model import Answers, Probed
from pipeline.report.model import Number

__all__ = ["render"]

_SIGNS = {"equal": ("✓", "green"), "close": ("✓", "green"), "differs": ("✗", "red")}
_TOLD = {
    "equal": "the server answers as the artifact does",
    "close": "the server answers as the artifact does on another processor",
    "differs": "the server does not answer as the artifact does",
}


def render(found: Probed) -> RenderableType:
    """Fits 80 columns; the verdict comes first."""
    sign, colour = _SIGNS[found.verdict]
    version = f", version {', '.join(found.versions)}" if found.versions else ""
    head = Text(f"{sign} {found.verdict.upper()}", style=f"bold {colour}").append(
        f"  {_TOLD[found.verdict]}", style="default not bold"
    )
    parts: list[RenderableType] = [
        "",
        head,
        text(f"{found.url} ({found.serves}{version}; {found.how})", "dim"),
        "",
        *_answers(found),
        "",
        _times(found),
        "",
        *(text(sentence) for sentence in _sentences(found)),
        *(text(f"note: {note}", "yellow") for note in found.notes),
    ]
    return Padding(Group(*parts), (0, 1), expand=False)


def _answers(found: Probed) -> list[RenderableType]:
    many = f"with {words.plural(found.clients, 'client')} at once: "
    rows: list[tuple[str, str, Answers | None]] = [
        ("the bare runtime here", "", found.bare),
        ("stored with the artifact", "", found.stored),
        ("its own, asked alone", many, found.loaded),
    ]
    table = bare_table()
    table.add_column("its answers beside", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, when, answers in rows:
        if answers is not None:
            colour = _SIGNS[answers.verdict][1] if answers.verdict != "close" else "yellow"
            if answers is found.loaded and answers.verdict == "equal":
                colour = ""  # wrong answers are no better for being the same each time
            table.add_row(text(name), text(when + answers.told, colour))
    return [table]


def _times(found: Probed) -> RenderableType:
    table = bare_table()
    table.add_column("", no_wrap=True)
    for title in ("server", "interval", "bare", "interval"):
        table.add_column(title, justify="right", overflow="fold")
    for metric, number in found.server.items():
        name = words.label(metric) if metric != "throughput_per_s" else f"{found.clients} at once"
        table.add_row(
            text(f"{name}, {words.unit(metric)}"),
            *(cell for got in (number, found.measured_bare.get(metric)) for cell in _cells(got)),
        )
    return table


def _cells(got: Number | None) -> tuple[Text, Text]:
    if got is None:
        return text("-"), text("")
    digits = words.places(got.value, got.low, got.high)
    return text(words.number(got.value, digits)), text(words.span(got.low, got.high, digits))


def _sentences(found: Probed) -> list[str]:
    told = []
    answers = (found.bare, found.stored, found.loaded)
    steps = [one.difference / one.steps for one in answers if one and one.difference and one.steps]
    if steps:
        step = words.number(steps[0])
        told.append(f"one output step of this int8 model is {step}; in brackets stands the difference itself")
    if (adds := found.adds.get("latency_p50_ms")) and (times := found.adds.get("latency_p50_times")):
        told.append(
            f"the server adds {_with_interval(adds)} ms to a request at p50: "
            f"{_with_interval(times)} times the bare runtime"
        )
    if rate := found.adds.get("throughput_times"):
        told.append(f"its throughput is {_with_interval(rate)} times that of the bare runtime with as many callers")
    told.append(f"the clients themselves took {found.client_cores:.2f} cores while they were counted")
    return told


def _with_interval(got: Number) -> str:
    digits = words.places(got.value, got.low, got.high)
    return f"{words.number(got.value, digits)} ({words.span(got.low, got.high, digits)})"
