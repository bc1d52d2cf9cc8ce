"""The report as one self-contained HTML page: no scripts, nothing loaded from anywhere, light and dark, printable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pipeline.report import charts, pictures, story, words
from pipeline.report.model import CandidateRow, Number, Report, StepRow, TargetRow
from pipeline.report.pages import page

__all__ = ["render"]


def render(report: Report) -> str:
    """The page. The same report gives the same bytes; every text in it is escaped."""
    views = [_Target(report, row, i) for i, row in enumerate(report.targets, 1)]
    longest = max((step.seconds for step in report.steps), default=0.0)
    return page(
        "page.html.j2",
        {"story": story, "charts": charts},
        report=report,
        targets=views,
        frontiers=[_Pictures(report, targets) for targets in pictures.groups(report)],
        steps=[_Step(step, step.seconds / longest if longest else 0.0) for step in report.steps],
        data=words.rows(report.data),
    )


@dataclass(frozen=True)
class _Step:
    """A step and its length as a share of the longest one's."""

    row: StepRow
    share: float

    @property
    def numbers(self) -> list[tuple[str, str]]:
        return [(words.label(name), words.quantity(name, value)) for name, value in self.row.metrics.items()]


def _told(metric: str, got: Number) -> tuple[str, str, str, str, str]:
    digits = words.places(got.value, got.low, got.high)
    interval = words.span(got.low, got.high, digits) or "exact"
    return words.label(metric), words.quantity(metric, got.value, digits), interval, f"{got.samples:,}", got.instrument


class _Pictures:
    """Accuracy against each cost, for one target or for several that are one machine."""

    def __init__(self, report: Report, targets: list[TargetRow]) -> None:
        names = [target.target for target in targets]
        self.targets = targets
        measured = [row.measured for row in report.candidates if row.target in names] + [targets[0].baseline]
        costs = pictures.costs(measured, (check.metric for target in targets for check in target.checks))
        wide = [pictures.of_targets(report, targets, metric, 860, 420) for metric in costs[:1]]
        self.wide = next(iter(wide), None)
        self.narrow = pictures.of_targets(report, targets, costs[0], 360, 330) if costs else None
        small = [pictures.of_targets(report, targets, metric, 410, 300) for metric in costs[1:]]
        self.small = [drawn for drawn in small if drawn is not None]
        self.names = pictures.listed(names)


class _Target:
    """What the page shows of one target."""

    def __init__(self, report: Report, row: TargetRow, index: int) -> None:
        self.report, self.row, self.index = report, row, index
        self.lines = story.lines(report, row)
        self.columns = story.columns(self.lines)
        self.digits = {
            metric: words.column(line.measured[metric].value for line in self.lines if metric in line.measured)
            for metric in self.columns
        }

    @property
    def chosen(self) -> CandidateRow | None:
        return story.chosen(self.report, self.row)

    @cached_property
    def pictures(self) -> _Pictures:
        return _Pictures(self.report, [self.row])

    def cell(self, line: story.Line, metric: str) -> str:
        """A number of the table of candidates; its unit stands in the column's head."""
        got = line.measured.get(metric)
        return "–" if got is None else words.number(got.value, self.digits[metric])

    @property
    def measurements(self) -> list[tuple[str, list[tuple[str, str, str, str, str]]]]:
        """Every measured number, by model: (metric, value, interval, samples, by what)."""
        groups = [(line.name, line.measured) for line in self.lines]
        if self.row.test:
            groups.append((f"{self.row.chosen}, test split", self.row.test))
        return [
            (name, [_told(metric, numbers[metric]) for metric in story.ordered(numbers)])
            for name, numbers in groups
            if numbers
        ]

    @property
    def tiles(self) -> list[tuple[str, str, str]]:
        """The few numbers that most readers look for: (what, value, beside what)."""
        row, chosen, shown = self.row, self.chosen, []
        if "accuracy" in row.test:
            beside = ""
            if "baseline_accuracy" in row.test:
                beside = f"{story.TEACHER} {words.quantity('accuracy', row.test['baseline_accuracy'].value)}"
            shown.append(("accuracy on test", words.quantity("accuracy", row.test["accuracy"].value), beside))
        mean = ("latency_mean_ms",) if any(check.metric == "latency_mean_ms" for check in row.checks) else ()
        for metric in ("latency_p50_ms", *mean, "size_mb", "peak_memory_mb", "energy_mj"):
            if chosen is None or metric not in chosen.measured:
                continue
            beside = ""
            if metric in row.baseline:
                beside = f"{story.TEACHER} {words.quantity(metric, row.baseline[metric].value)}"
            shown.append((words.label(metric), words.quantity(metric, chosen.measured[metric].value), beside))
        if chosen is not None and "speedup_p50" in chosen.measured:
            got = chosen.measured["speedup_p50"]
            interval = words.span(got.low, got.high, words.places(got.value, got.low, got.high))
            shown.append(("speedup", words.quantity("speedup_p50", got.value), interval))
        return shown
