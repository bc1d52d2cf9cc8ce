"""The report as a model card in Markdown (CommonMark with tables)."""

from __future__ import annotations

from pipeline.report import pictures, story, words
from pipeline.report.markdown_parts import bullets, code, fenced, pairs, table, text
from pipeline.report.model import Report, TargetRow

__all__ = ["render"]


def render(report: Report) -> str:
    """The model card: what the model is, the verdict, how it was made, and what is not known about it."""
    blocks = [f"# {text(report.name)}", _what_it_is(report)]
    if report.error:
        blocks += ["**Verdict: failed.** A step broke; what was finished before it is stored.", fenced(report.error)]
    for target in report.targets:
        blocks += _target(report, target)
    blocks += ["## How it was made", f"{text(story.steps(report))}.", *_steps(report)]
    blocks += [
        "## Data and preprocessing",
        f"{story.SPLITS}.",
        pairs(words.rows(report.data)) or "Not known: the run ended before the data were loaded.",
    ]
    for target in report.targets:
        blocks += [f"## Environment of the measurement on {text(target.target)}"]
        blocks += [pairs(words.rows(target.environment))]
    for target in report.targets:
        blocks += [f"## Limitations on {text(target.target)}", bullets(story.gaps(report, target))]
    blocks += ["## Libraries", pairs(words.rows(report.libraries))]
    blocks += ["## Recipe", fenced(str(report.recipe.get("text", "")), "yaml")]
    if digest := report.recipe.get("digest"):
        blocks += [f"sha256 {code(str(digest))}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _what_it_is(report: Report) -> str:
    shipped = [target for target in report.targets if target.artifact]
    source = report.data.get("source")
    data = f", with data from {text(words.flat(source))}" if source else ""
    if not shipped:
        return f"The outcome of a run of attar {text(report.attar)}{data}. No model is shipped."
    names = " and ".join(f"{code(story.model_file(target))} for {text(target.target)}" for target in shipped)
    return f"A network compressed by attar {text(report.attar)}{data}: {names}."


def _target(report: Report, target: TargetRow) -> list[str]:
    blocks = [
        f"## Verdict on {text(target.target)}: {target.verdict}",
        text(target.summary),
        f"**{text(story.verdict(report, target))}**",
        bullets(story.shortfalls(target)),
        *(f"Finding: {text(told)}." for told in story.findings(report, target)),
        *(f"Note: {text(note)}." for note in story.warnings(target)),
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
        blocks += [table(head, rows, right=(1, 2, 3))]
    if "accuracy" in target.test:
        told = f"Accuracy on the test split: {words.spread('accuracy', vars(target.test['accuracy']))}"
        if "baseline_accuracy" in target.test:
            told += f"; {story.TEACHER}: {words.spread('accuracy', vars(target.test['baseline_accuracy']))}"
        if target.confidence:
            told += f"; {story.interval_name(target)}s"
        blocks += [text(told + ".")]
    row = story.chosen(report, target)
    if row is not None:
        path = " → ".join(text(title) for title in row.lineage)
        blocks += [f"{text(row.name)}: {path}." if path else "", f"Model file: sha256 {code(row.sha256)}."]
    return [*blocks, f"### Candidates on {text(target.target)}", *_candidates(report, target)]


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
        table(head, rows, right=range(1, 1 + len(metrics))),
        note,
        text(pictures.told(report, target)),
        text(story.merging(report, target)),
        text(story.fitting(report, target)),
        text(story.payback(target)),
    ]


def _steps(report: Report) -> list[str]:
    rows, notes = [], []
    for step in report.steps:
        gave = ", ".join(f"{words.label(name)} {words.quantity(name, value)}" for name, value in step.metrics.items())
        unchanged = "" if step.changed else "changed nothing"
        told = "; ".join(part for part in (unchanged, gave) if part)
        rows.append((step.title, words.duration(step.seconds), "stored" if step.stored else "computed", told))
        notes += [f"{step.title}: {words.prose(note)}" for note in step.notes]
    taken = table(("step", "took", "this run", "gave"), rows, right=(1,)) if rows else ""
    return [taken, "Notes:" if notes else "", bullets(notes)]
