"""What a search found, in Markdown (CommonMark with tables)."""

from __future__ import annotations

from pipeline.report import search_story as story
from pipeline.report import words
from pipeline.report.markdown_parts import bullets, fenced, pairs, table, text
from pipeline.report.search_model import Search, SearchTarget

__all__ = ["render"]


def render(made: Search) -> str:
    """Every trial, the frontier, the picks and the commands that make them."""
    blocks = [f"# Search of {text(made.name)}", f"{text(story.trials(made))}. {text(story.ended(made))}"]
    for target in made.targets:
        blocks += _target(made, target)
    blocks += ["## Space", pairs(story.space(made))]
    blocks += ["## Libraries", pairs(words.rows(made.libraries))]
    blocks += ["## Recipe", fenced(str(made.recipe.get("text", "")), "yaml")]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _target(made: Search, target: SearchTarget) -> list[str]:
    pick, rows = made.pick(target.target), story.lines(made, target)
    metrics = story.columns(rows, target)
    head = [
        "trial",
        "settings",
        *(f"{words.label(m)}{f' ({words.unit(m)})' if words.unit(m) else ''}" for m in metrics),
        "why, or why not",
    ]
    digits = {m: words.column(line.measured[m].value for line in rows if m in line.measured) for m in metrics}
    cells = [
        [
            line.name,
            ", ".join(line.settings),
            *(words.number(line.measured[m].value, digits[m]) if m in line.measured else "" for m in metrics),
            f"{words.SYMBOLS[line.verdict]} {line.reason}",
        ]
        for line in rows
    ]
    return [
        f"## {text(target.target)}: {pick.verdict if pick else 'failed'}",
        text(target.summary),
        f"**{text(story.verdict(made, target))}**",
        bullets(story.shortfalls(pick)),
        fenced(pick.command) if pick else "",
        f"### Trials on {text(target.target)}",
        table(head, cells, right=range(2, 2 + len(metrics))),
        "Accuracy here is on the validation split, which choices are made on.",
        text(story.frontier(made, target)),
    ]
