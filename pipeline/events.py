"""What happens during a run, as a stream. Progress bars, the log file and the report's step table all read it.

run_started      steps
step_stored      step: found in the store, not computed
step_started     step
progress         step, share (0..1), what
note             step, text: one sentence for a person
waiting          step: another run is computing it
spoiled          step: its stored bytes were damaged and are computed again
step_done        step, seconds
step_failed      step, error
run_done         verdict, seconds
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Event", "Events", "log_to"]


@dataclass(frozen=True)
class Event:
    """One thing that happened. `at` is seconds since the epoch; `step` is a step's title or empty."""

    kind: str
    step: str = ""
    at: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)


class Events:
    """Hands every event to every listener, in order."""

    def __init__(self, *listeners: Callable[[Event], None]) -> None:
        self._listeners = listeners

    def __call__(self, kind: str, step: str = "", **values: Any) -> None:
        """Something happened; see the top of this file for the kinds."""
        event = Event(kind, step, time.time(), values)
        for listener in self._listeners:
            listener(event)


def log_to(path: Path) -> Callable[[Event], None]:
    """A listener that appends each event (progress left out) to a file, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")

    def write(event: Event) -> None:
        if event.kind != "progress":
            line = {"at": round(event.at, 3), "kind": event.kind, "step": event.step, **event.values}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write
