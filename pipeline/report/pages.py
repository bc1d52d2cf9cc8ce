"""How every HTML page is rendered: from the templates in this folder, each text in it escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import words

__all__ = ["page"]


def page(template: str, used: dict[str, Any], **values: Any) -> str:
    """A page from a template.

    Args:
        used: modules that the template and all that it includes may call; `words` is always among them.
        values: what the template shows.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.globals.update(words=words, **used)
    return pages.get_template(template).render(values)


def _visible(value: object) -> object:
    """What is put into the page; markup of the templates' own passes as it is."""
    return words.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
