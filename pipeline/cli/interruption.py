"""Ctrl-C that is not lost. Raised in the middle of an import, KeyboardInterrupt may be swallowed by the library that is
being woken: so it is remembered, and raised again when the program next says something."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.events import Event

__all__ = ["heed", "heeding", "listen"]

_asked = False


def listen() -> None:
    """From now on the signals that ask for an end interrupt the program, as Ctrl-C does: temporary files go, and what
    was finished is kept. A signal that the caller had ignored stays ignored."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def heeding(listener: Callable[[Event], None]) -> Callable[[Event], None]:
    """The same listener of events, which ends a run that was to end already."""

    def told(event: Event) -> None:
        if _asked and event.kind in ("step_started", "progress", "note"):
            raise KeyboardInterrupt
        listener(event)

    return told


def heed() -> None:
    """Ends a program that was to end already; not while an error is on its way: what it has to tidy up comes first."""
    if _asked and sys.exc_info()[0] is None:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
