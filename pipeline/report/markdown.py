"""The report as a model card in Markdown (CommonMark with tables)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.report import story, words
from pipeline.report.model import Report, TargetRow

__all__ = ["render"]


def render(report: Report) -> str:
    """The model card: what the model is, the verdict, how it was made, and what is not known about it."""
    blocks = [f"# {_text(report.name)}", _what_it_is(report)]
    if report.error:
        blocks += ["**Verdict: failed.** A step broke; what was finished before it is stored.", _fenced(report.error)]
    for target in report.targets:
        blocks += _target(report, target)
    blocks += ["## How it was made", f"{_text(story.steps(report))}.", *_steps(report)]
    blocks += [
        "## Data and preprocessing",
        f"{story.SPLITS}.",
        _pairs(words.rows(report.data)) or "Not known: the run ended before the data were loaded.",
    ]
    for target in report.targets:
        blocks += [f"## Environment of the measurement on {_text(target.target)}"]
        blocks += [_pairs(words.rows(target.environment))]
    for target in report.targets:
        blocks += [f"## Limitations on {_text(target.target)}", _bullets(story.gaps(report, target))]
    blocks += ["## Libraries", _pairs(words.rows(report.libraries))]
    blocks += ["## Recipe", _fenced(str(report.recipe.get("text", "")), "yaml")]
    if digest := report.recipe.get("digest"):
        blocks += [f"sha256 {_code(str(digest))}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _what_it_is(report: Report) -> str:
    shipped = [target for target in report.targets if target.artifact]
    source = report.data.get("source")
    data = f", with data from {_text(words.flat(source))}" if source else ""
    if not shipped:
        return f"The outcome of a run of attar {_text(report.attar)}{data}. No model is shipped."
    names = " and ".join(f"{_code(story.model_file(target))} for {_text(target.target)}" for target in shipped)
    return f"A network compressed by attar {_text(report.attar)}{data}: {names}."


def _target(report: Report, target: TargetRow) -> list[str]:
    blocks = [
        f"## Verdict on {_text(target.target)}: {target.verdict}",
        _text(target.summary),
        f"**{_text(story.verdict(report, target))}**",
        _bullets(story.shortfalls(target)),
        *(f"Finding: {_text(told)}." for told in story.findings(report, target)),
        *(f"Note: {_text(note)}." for note in story.warnings(target)),
    ]
    if target.checks:
        head = ("metric", "limit", "measured", story.interval_name(target), "verdict")
        rows = [
            (
                words.label(check.metric),
                words.limit(check.metric, check.limit, sense=True),
                *story.measured(check),
                check.verdict + (f" ({words.prose(check.note)})" if check.note else ""),
            )
            for check in target.checks
        ]
        blocks += [_table(head, rows, right=(1, 2, 3))]
    if "accuracy" in target.test:
        told = f"Accuracy on the test split: {words.spread('accuracy', vars(target.test['accuracy']))}"
        if "baseline_accuracy" in target.test:
            told += f"; {story.TEACHER}: {words.spread('accuracy', vars(target.test['baseline_accuracy']))}"
        if target.confidence:
            told += f"; {story.interval_name(target)}s"
        blocks += [_text(told + ".")]
    row = story.chosen(report, target)
    if row is not None:
        path = " → ".join(_text(title) for title in row.lineage)
        blocks += [f"{_text(row.name)}: {path}." if path else "", f"Model file: sha256 {_code(row.sha256)}."]
    return [*blocks, f"### Candidates on {_text(target.target)}", *_candidates(report, target)]


def _candidates(report: Report, target: TargetRow) -> list[str]:
    lines = story.lines(report, target)
    metrics = story.columns(lines)
    head = [
        "name",
        *(f"{words.label(m)}{f' ({words.unit(m)})' if words.unit(m) else ''}" for m in metrics),
        "why, or why not",
    ]
    digits = {m: words.column(line.measured[m].value for line in lines if m in line.measured) for m in metrics}
    rows = [
        [
            line.name,
            *(words.number(line.measured[m].value, digits[m]) if m in line.measured else "" for m in metrics),
            f"{words.SYMBOLS[line.verdict]} {line.reason}" if line.verdict else line.reason,
        ]
        for line in lines
    ]
    note = "Accuracy here is on the validation split, which choices are made on."
    return [
        _table(head, rows, right=range(1, 1 + len(metrics))),
        note,
        _text(story.merging(report, target)),
        _text(story.payback(target)),
    ]


def _steps(report: Report) -> list[str]:
    rows, notes = [], []
    for step in report.steps:
        gave = ", ".join(f"{words.label(name)} {words.quantity(name, value)}" for name, value in step.metrics.items())
        unchanged = "" if step.changed else "changed nothing"
        told = "; ".join(part for part in (unchanged, gave) if part)
        rows.append((step.title, words.duration(step.seconds), "stored" if step.stored else "computed", told))
        notes += [f"{step.title}: {words.prose(note)}" for note in step.notes]
    table = _table(("step", "took", "this run", "gave"), rows, right=(1,)) if rows else ""
    return [table, "Notes:" if notes else "", _bullets(notes)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    rule = ["---:" if i in set(right) else "---" for i in range(len(head))]
    lines = [map(_text, head), rule, *(map(_text, row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return _table(("what", "value"), rows) if rows else ""


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {_text(item)}" for item in items)


def _text(text: str) -> str:
    """One line that Markdown shows as it is: nothing in it becomes markup, HTML or a link."""
    text = re.sub(r"([\\`*<>\[\]|&~])", r"\\\1", words.clean(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word, as in latency_p50, it is plain already
    text = re.sub(r"^([#+]|[-=](?!\d)|\d+[.)](?=\s|$))", lambda m: m[1][:-1] + "\\" + m[1][-1], text)
    return re.sub(r"(?i)\b(https?|ftp)://|\bwww\.", lambda m: m[0].replace(":", "&#58;").replace(".", "&#46;"), text)


def _code(text: str) -> str:
    """A code span; the same care for backticks as in `_fenced`."""
    fence = "`" * (_backticks(text) + 1)
    return f"{fence} {words.clean(text)} {fence}" if "`" in text else f"`{words.clean(text)}`"


def _backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, _backticks(text) + 1)
    return f"{fence}{language}\n{words.visible(text).rstrip()}\n{fence}"
