"""Silence for named chatter of libraries, inside a block only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(loggers: Sequence[str] = (), messages: Sequence[str] = ()) -> Iterator[None]:
    """Silences these loggers, and warnings whose text starts like one of these regular expressions. All else is heard.

    Not for threads: Python's warning filters are the whole process's.
    """
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            for message in messages:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
