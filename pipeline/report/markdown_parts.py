"""Tables, lists and text in Markdown, in which nothing that was typed or measured becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.report import words

__all__ = ["bullets", "code", "fenced", "pairs", "table", "text"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table; `right` are the columns of numbers."""
    rule = ["---:" if i in set(right) else "---" for i in range(len(head))]
    lines = [map(text, head), rule, *(map(text, row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values; empty where there are none."""
    return table(("what", "value"), rows) if rows else ""


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {text(item)}" for item in items)


def text(text: str) -> str:
    """One line that Markdown shows as it is: nothing in it becomes markup, HTML or a link."""
    text = re.sub(r"([\\`*<>\[\]|&~])", r"\\\1", words.clean(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word, as in latency_p50, it is plain already
    text = re.sub(r"^([#+]|[-=](?!\d)|\d+[.)](?=\s|$))", lambda m: m[1][:-1] + "\\" + m[1][-1], text)
    return re.sub(r"(?i)\b(https?|ftp)://|\bwww\.", lambda m: m[0].replace(":", "&#58;").replace(".", "&#46;"), text)


def code(text: str) -> str:
    """A code span; the same care for backticks as in `fenced`."""
    fence = "`" * (_backticks(text) + 1)
    return f"{fence} {words.clean(text)} {fence}" if "`" in text else f"`{words.clean(text)}`"


def _backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, _backticks(text) + 1)
    return f"{fence}{language}\n{words.visible(text).rstrip()}\n{fence}"
