"""What a search found, as one self-contained HTML page in the look of a run's report: no scripts, light and dark."""

from __future__ import annotations

from pipeline.report import pictures, search_story, words
from pipeline.report.pages import page
from pipeline.report.search_model import Search, SearchTarget

__all__ = ["render"]


def render(made: Search) -> str:
    """The page. The same search gives the same bytes; every text in it is escaped."""
    targets = [_Target(made, target, i) for i, target in enumerate(made.targets, 1)]
    return page("search.html.j2", {"story": search_story}, made=made, targets=targets)


class _Target:
    """What the page shows of one target."""

    def __init__(self, made: Search, row: SearchTarget, index: int) -> None:
        self.row, self.index, self.pick = row, index, made.pick(row.target)
        self.verdict = self.pick.verdict if self.pick is not None else "failed"
        self.lines = search_story.lines(made, row)
        self.columns = search_story.columns(self.lines, row)
        self.digits = {
            metric: words.column(line.measured[metric].value for line in self.lines if metric in line.measured)
            for metric in self.columns
        }
        costs = pictures.costs((line.measured for line in self.lines), row.limits)
        self.wide = pictures.of_search(made, row, costs[0], 860, 420) if costs else None
        self.narrow = pictures.of_search(made, row, costs[0], 360, 330) if costs else None
        small = [pictures.of_search(made, row, metric, 410, 300) for metric in costs[1:]]
        self.small = [drawn for drawn in small if drawn is not None]

    def cell(self, line: search_story.Line, metric: str) -> str:
        """A number of the table of trials; its unit stands in the column's head."""
        got = line.measured.get(metric)
        return "–" if got is None else words.number(got.value, self.digits[metric])
