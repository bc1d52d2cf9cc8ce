"""The report in its three forms: nothing cut, nothing unescaped, every candidate with its reason."""

import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from sample_reports import EVIL, KINDS, report, sample, target

from pipeline.report import console as console_parts
from pipeline.report import html, markdown, story, terminal, words
from pipeline.steps import Goal, Plan
from targets.target import Target


def printed(report, width, out=None):
    console = plain_console(width)
    terminal.print_report(report, console, out)
    return console.file.getvalue()


def plain_console(width):
    return Console(width=width, file=io.StringIO(), color_system=None, highlight=False)


def unwrapped(text):
    """Text without the white space and rules that a layout puts in."""
    return re.sub(r"[\s─]+", "", text)


# -- terminal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [60, 80, 132])
def test_terminal_fits_and_cuts_nothing(kind, width):
    shown = sample(kind)
    text = printed(shown, width, Path("runs/digits"))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    flat = unwrapped(text)
    assert shown.verdict.upper() in flat
    for row in shown.targets:
        assert f"{row.verdict.upper()}" in flat
        for line in story.lines(shown, row):
            told = [*line.name.split(), *(line.reason.split() if line.verdict else ())]
            assert all(words.clean(word) in text for word in told if len(word) < 24)
            if width > 60 and kind != "hostile":  # else names and reasons wrap side by side
                assert unwrapped(line.name) in flat
                assert line.verdict is None or unwrapped(line.reason) in flat
        if width >= 80:  # narrower than that a number may be folded
            for checked in row.checks:
                value, interval = story.measured(checked)
                limit = words.limit(checked.metric, checked.limit)
                assert re.search(rf"{limit} .*{re.escape(value)} +{re.escape(interval)} .*{checked.verdict}", text)


def test_the_float_teacher_comes_first():
    lines = printed(sample("met"), 80).splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["name", "accuracy"])
    assert lines[head + 2].split() == ["float", "teacher", "98.9", "%", "1.062", "1.147", "2.310", "-"]


def test_a_percentile_that_was_not_measured_has_no_column():
    row, rows = target(limits={})
    for found in (row.baseline, *(r.measured for r in rows)):
        del found["latency_p95_ms"]
    assert "p95" not in printed(report((row, rows)), 80)


def test_what_a_prune_predicted_stands_beside_what_was_measured():
    row, rows = target()
    told = {
        "predicted": {"latency_p50_ms": 0.0896, "size_mb": 0.0877},
        "trials": ("keep 0.25: latency_p50_ms is over",),
    }
    row = row.model_copy(update=told)
    assert story.fitting(report((row, rows)), row) == (
        "Predicted before it was trained, of keep 0.25: latency p50 0.0896 ms (0.0853 ms measured: 5.0 % above), "
        "size 0.0877 MB (as measured). keep 0.25: latency p50 is over."
    )


def test_terminal_names_the_files():
    text = printed(sample("two targets"), 80, Path("runs/digits"))
    assert "runs/digits/report.html" in text
    assert "runs/digits/local/model.onnx" in text
    assert re.search(r"not shipped +runs/digits/raspberry-pi-5/not-shipped/model.onnx", text)


def test_a_busy_machine_is_mentioned_in_every_form():
    met = sample("met")
    assert all("the machine was busy" in text for text in (printed(met, 80), markdown.render(met), html.render(met)))


def test_colour_is_only_an_addition():
    plain, coloured = Console(width=80, no_color=True), Console(width=80, force_terminal=True, color_system="truecolor")
    with plain.capture() as first:
        plain.print(terminal.render(sample("missed")))
    with coloured.capture() as second:
        coloured.print(terminal.render(sample("missed")))
    assert re.sub(r"\x1b\[[\d;]*m", "", second.get()) == re.sub(r"\x1b\[[\d;]*m", "", first.get())
    assert "\x1b[1;31m✗ MISSED" in second.get()


def test_tables_take_text_as_it_is():
    console = plain_console(60)
    console_parts.print_table(("what", "found"), [("[red]torch", "2.13 [/] of \x1b[2J all")], console)
    assert re.search(r"\[red\]torch +2\.13 \[/\] of \[2J all", console.file.getvalue())


def test_a_plan_is_printed_with_what_is_stored():
    goal = Goal(Target(name="local"), "a" * 64, {"keep 0.5": "b" * 64})
    console = plain_console(80)
    steps = [("teacher", "a" * 64, True), ("distill keep 0.5", "b" * 64, False)]
    terminal.print_plan(steps, Plan((), (goal,), "d" * 64), console)
    text = console.file.getvalue()
    assert re.search("teacher +aaaaaaaaaaaa +stored", text)
    assert re.search("distill keep 0.5 +bbbbbbbbbbbb +will run", text)
    assert "then measure, choose and judge on local: keep 0.5" in text
    assert "2 steps: 1 stored, 1 will run" in text


# -- Markdown -------------------------------------------------------------------------------------------------------


def rendered(text):
    """What a reader of the Markdown sees: (HTML, visible text)."""
    page = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(text)
    seen = Page()
    seen.feed(page)
    return page, seen


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_has_verdict_candidates_and_reasons(kind):
    shown = sample(kind)
    page, seen = rendered(markdown.render(shown))
    assert seen.text.count("\n") > 5
    assert shown.verdict in seen.text
    if shown.error:
        assert shown.error.splitlines()[0] in seen.text
    for row in shown.targets:
        for line in story.lines(shown, row):
            assert [words.clean(line.name), words.clean(line.reason)] in [
                [cells[0], cells[-1].lstrip("✓✗?! ")] for cells in seen.rows
            ]
        for checked in row.checks:
            limit = words.limit(checked.metric, checked.limit, sense=True)
            cells = next(cells for cells in seen.rows if cells[:2] == [words.label(checked.metric), limit])
            assert cells[4].startswith(checked.verdict)
    assert "Energy was not measured." in seen.text or not shown.targets
    assert "<script" not in page


def test_markdown_gives_the_accuracy_on_test_with_its_interval():
    told = "Accuracy on the test split: 97.2 % (94.9 to 98.5); float teacher: 98.0 % (96.0 to 99.1); 95 % intervals."
    assert told in markdown.render(sample("met"))


def test_markdown_keeps_code_in_its_fence():
    _, seen = rendered(markdown.render(sample("hostile")))
    assert f"```\n{EVIL}\n```" in seen.text


@pytest.mark.parametrize(
    "text",
    [
        "# no heading",
        "- no list",
        "1. no list",
        "a | b",
        "*a* _b_ `c` ~~d~~",
        "[a](b)",
        "<b>",
        "&lt;",
        "a\\b",
        "---",
        "latency_p50_ms",
    ],
)
def test_markdown_shows_text_as_it_is(text):
    row, rows = target()
    rows = [rows[0].model_copy(update={"name": text}), *rows[1:]]
    _, seen = rendered(markdown.render(report((row.model_copy(update={"chosen": text}), rows))))
    assert any(cells[0] == text for cells in seen.rows)
    assert f"{text} is shipped: all 5 limits hold." in seen.text


# -- HTML -----------------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "br", "hr", "img", "input"}
DRAWN = {"rect", "line", "circle"}


class Page(HTMLParser):
    """Reads a page, checks that its elements nest, and keeps what is seen."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.ids = [], [], [], []
        self.text, self.rows = "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} does not nest"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def read(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_one_sound_page_that_loads_nothing(kind):
    text = html.render(sample(kind))
    page = read(text)
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "img", "base", "form", "use", "image"}
    assert not [a for a in page.attributes if a[1].startswith("on")]
    references = [
        value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "srcset")
    ]
    assert all(value.startswith("#") or value == "data:," for value in references)
    assert {value[1:] for value in references if value.startswith("#")} <= set(page.ids)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.ids) == len(set(page.ids))
    named = {i for _, name, value in page.attributes if name == "aria-labelledby" for i in value.split()}
    assert named <= set(page.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_html_has_verdict_candidates_and_reasons(kind):
    shown = sample(kind)
    page = read(html.render(shown))
    seen = " ".join(page.text.split())
    assert f"{words.SYMBOLS[shown.verdict]} {shown.verdict}" in seen
    assert shown.error.splitlines()[0] in seen if shown.error else "Budget" in seen
    for row in shown.targets:
        for line in story.lines(shown, row):
            told = " ".join(f"{words.visible(line.name)}{words.SYMBOLS.get(line.verdict, '')} {line.reason}".split())
            assert any(unwrapped(told) in unwrapped(cells[0]) for cells in page.rows if cells)
        for told in story.shortfalls(row):
            assert told in seen
        for name, value in words.rows(row.environment):
            assert any(cells == [words.visible(name), words.visible(value)] for cells in page.rows)
    for step in shown.steps:
        cells = next(cells for cells in page.rows if cells and cells[0] == words.visible(step.title))
        assert cells[3] == ("stored" if step.stored else "computed")
        assert ("changed nothing" in cells[4]) is not step.changed
        assert all(note in cells[4] for note in step.notes)
    assert shown.recipe["text"] in page.text


def test_html_escapes_what_it_is_given():
    text = html.render(sample("hostile"))
    assert EVIL not in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 30
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "https://example.org" in html.render(sample("met")).replace("&#34;", '"')  # text stays text


def test_html_tables_and_drawings_are_named():
    page = read(html.render(sample("two targets")))
    scopes = [tag for tag, name, _ in page.attributes if name == "scope"]
    assert len(scopes) == page.tags.count("th")
    assert page.tags.count("caption") == page.tags.count("table")
    images = [value for tag, name, value in page.attributes if tag == "svg" and name == "role"]
    hidden = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-hidden"]
    assert len(images) + len(hidden) == page.tags.count("svg")
    assert page.tags.count("h1") == 1
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_html_is_the_same_every_time():
    assert html.render(sample("two targets")) == html.render(sample("two targets"))
