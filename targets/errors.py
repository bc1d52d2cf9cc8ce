"""What can go wrong, as one small tree.

    AttarError            exit 3   a step broke
      InputError          exit 2   unusable input: holds every fault found, not just the first
      StageError          exit 3   a stage could not do its work
      DeviceError         exit 3   a device did not answer, or its runtime failed

Nothing else is raised across a room's border on purpose; a builtin error that reaches the command line is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

__all__ = ["AttarError", "DeviceError", "Fault", "InputError", "StageError", "nearest"]


@dataclass(frozen=True)
class Fault:
    """One thing wrong with what the user gave, told so that it can be put right without looking anything up.

    Attributes:
        what: the value got and the values allowed, as the end of a sentence: "1.3 must be above 0 and at most 1".
        key: path of keys in the file: "stages[1].prune.keep".
        file: the file as the user named it; empty when there is none.
        line: its line, from 1; 0 when unknown.
        text: that line of the file.
        help: what to do next, often a command.
    """

    what: str
    key: str = ""
    file: str = ""
    line: int = 0
    text: str = ""
    help: str = ""

    def __str__(self) -> str:
        file = self.file.replace("\n", "\ufffd")  # a name may hold anything
        place = f"{file}:{self.line}" if self.line else file
        lines = [": ".join(part for part in (place, self.key, self.what) if part)]
        if self.text:
            lines.append(f"{self.line:>5} | {self.text}")
        if self.help:
            lines.append(f"   help: {self.help}")
        return "\n".join(lines)


class AttarError(Exception):
    """Root of attar's errors."""

    exit_code = 3


class InputError(AttarError):
    """Unusable input. Carries all faults found."""

    exit_code = 2

    def __init__(self, faults: Fault | str | Iterable[Fault], *, help: str = "") -> None:
        if isinstance(faults, str):
            faults = Fault(faults, help=help)
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class StageError(AttarError):
    """A stage could not do its work; the message says which, why, and what to do."""


class DeviceError(AttarError):
    """A device could not be reached, or its runtime refused the model."""


def nearest(word: str, known: Iterable[str], *, command: str = "") -> str:
    """A help text that names the closest known words: "did you mean 'prune'?"."""
    known = sorted(known)
    close: Sequence[str] = get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        hint = "did you mean " + " or ".join(repr(c) for c in close) + "?"
    elif len(known) <= 12:
        hint = f"known: {', '.join(known)}." if known else "none is known."
    else:
        hint = f"{len(known)} are known: {', '.join(known[:8])}, ..."
    return f"{hint} See `{command}`" if command else hint
