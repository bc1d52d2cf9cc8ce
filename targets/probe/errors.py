"""What ends a probe early, in words that the caller can act on without a traceback."""

from __future__ import annotations

import os

__all__ = ["ProbeError", "short", "still_wanted"]


class ProbeError(Exception):
    """What the caller can understand; its text becomes the answer."""


def short(error: BaseException) -> str:
    """An error's text on one line of at most 500 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


_PARENT = os.getppid() if hasattr(os, "getppid") else 0


def still_wanted() -> None:
    """Ends a probe whose caller died: it would disturb the next measurement.

    Raises:
        ProbeError: the process that started this one is gone.
    """
    if _PARENT and os.getppid() != _PARENT:
        raise ProbeError("the process that started the probe is gone")
