"""How a run looks while it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.events import Event

__all__ = ["progress"]


@contextmanager
def progress(console: Console) -> Iterator[Callable[[Event], None]]:
    """A listener for events that shows them on `console` until the block ends."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=1.0, what="", visible=False)

    def show(event: Event) -> None:
        values, step = event.values, escape(event.step)
        if event.kind == "step_started":
            bar.reset(task, description=step, total=1.0, what="", visible=True)
            if not console.is_terminal:
                console.print(f"[dim]start[/]  {step}")
        elif event.kind == "progress":
            bar.update(task, completed=values["share"], what=escape(values["what"]))
        elif event.kind == "step_done":
            bar.update(task, visible=False)
            console.print(f"[green]done[/]   {step}  [dim]{values['seconds']:.1f} s[/]")
        elif event.kind == "step_stored":
            console.print(f"[cyan]stored[/] {step}")
        elif event.kind == "note":
            console.print(f"[dim]note[/]   {step}: {escape(values['text'])}")
        elif event.kind == "waiting":
            console.print(f"[yellow]wait[/]   {step}: for another run, which computes the same or measures")
        elif event.kind == "spoiled":
            console.print(f"[yellow]spoilt[/] {step}: stored bytes were damaged; computed again")
        elif event.kind == "step_failed":
            bar.update(task, visible=False)
            console.print(f"[red]failed[/] {step}")

    with bar:
        yield show
