"""The drawings of the report: everything at its place and nothing over anything else."""

import itertools
import re

import pytest
from sample_reports import CANDIDATES, check, num, report, sample, target

from pipeline.report import charts, html, labels, markdown, pictures


def test_a_mark_lies_on_the_right_side_of_its_limit():
    low = charts.mark(check("latency_p95_ms", 0.4, 0.31, 0.3, 0.33, "met"))
    assert 0 < low.low < low.value < low.high < low.limit < charts.MARK_WIDTH
    assert low.allowed == (0, low.limit)
    high = charts.mark(check("throughput_per_s", 2000, 1900, 1880, 1920, "missed"))
    assert high.value < high.limit == high.allowed[0]
    below = charts.mark(check("accuracy_drop_points", 1, -0.2, -0.9, 0.4, "met"))
    assert 0 < below.low < below.value < below.zero < below.high < below.limit
    assert charts.mark(check("energy_mj", 2, None, None, None, "inconclusive")).value is None
    assert charts.mark(check("accuracy_drop_points", 0, 0.0, 0.0, 0.0, "met")).limit == 0


@pytest.mark.parametrize("width", [360, 860])
def test_the_scatter_keeps_everything_inside_and_apart(width):
    met = sample("met")
    drawn = pictures.of_targets(met, met.targets, "latency_p50_ms", width)
    assert [p.kind for p in drawn.points] == ["teacher", "chosen", "candidate", "candidate", "merged"]
    assert drawn.logarithmic
    assert [text for _, text in drawn.x_ticks] == ["0.1", "0.2", "0.5", "1"]
    for p in drawn.points:
        assert drawn.plot.left <= p.x_low <= p.x <= p.x_high <= drawn.plot.right
        assert drawn.plot.top <= p.y_high <= p.y <= p.y_low <= drawn.plot.bottom
    assert [p.text for p in drawn.points] == ["float teacher", "keep 0.25", "keep 0.5", "keep 1", "merged"]
    fastest, teacher = drawn.points[1], drawn.points[0]
    assert fastest.x < drawn.x_limits[0].at < teacher.x
    assert teacher.y < fastest.y < drawn.y_limits[0].at  # up is better
    assert drawn.y_limits[0].text == "limit 95.9 %"


def test_a_limit_far_away_does_not_press_the_models_together():
    far = report(target(limits={"latency_p50_ms": 50.0}))
    near = report(target(limits={"latency_p50_ms": 3.0}))
    assert not pictures.of_targets(far, far.targets, "latency_p50_ms").x_limits
    assert pictures.of_targets(near, near.targets, "latency_p50_ms").x_limits[0].text == "limit 3 ms"


def test_many_candidates_at_one_spot_are_drawn_without_overlapping_names():
    values = {f"candidate number {i}": (98.0 + i / 100, 0.5, 0.2 + i / 1000, 0.2) for i in range(30)}
    crowded = report(target(candidates=values), names=values)
    drawn = pictures.of_targets(crowded, crowded.targets, "latency_p50_ms")
    named = [p for p in drawn.points if p.text]
    assert 1 <= len(named) < len(drawn.points)
    assert "chosen" in {p.kind for p in named}
    boxes = [labels.text_box(p.tx, p.ty, p.text, p.anchor) for p in named]
    assert not any(a.meets(b) for a, b in itertools.combinations(boxes, 2))


def test_without_two_models_there_is_no_scatter():
    row, _ = target()
    alone = report((row.model_copy(update={"merge": None}), []))
    assert pictures.of_targets(alone, alone.targets, "latency_p50_ms") is None
    assert "<svg" in html.render(alone)  # the marks of the checks


def test_equal_latencies_and_accuracies_do_not_break_the_axes():
    exact = {"accuracy": num(100), "latency_p50_ms": num(1), "size_mb": num(1)}
    row, rows = target(limits={})
    rows = [r.model_copy(update={"measured": exact}) for r in rows]
    row = row.model_copy(update={"baseline": exact, "merge": None})
    drawn = pictures.of_targets(report((row, rows)), [row], "latency_p50_ms")
    assert not drawn.logarithmic
    assert [text for _, text in drawn.y_ticks][-1] == "100"
    assert "100.0" in html.render(report((row, rows)))


def _with_energy(made):
    row, rows = made
    counted = {"energy_mj": num(0.4, 0.3, 0.5, 12, "counted")}
    rows = [r.model_copy(update={"measured": {**r.measured, **counted}}) for r in rows]
    return row.model_copy(update={"baseline": {**row.baseline, "energy_mj": num(4.2, 4.0, 4.4, 12)}}), rows


def test_there_is_a_picture_for_each_cost_that_was_measured():
    plain, counted = sample("met"), report(_with_energy(target()))
    for made, drawn in ((plain, ["latency p50", "size"]), (counted, ["latency p50", "size", "energy"])):
        page = html.render(made)
        shown = re.findall(r"<title id=.*?>Accuracy and (.*?) of every model on local</title>", page)
        assert list(dict.fromkeys(shown)) == drawn


def test_the_line_joins_the_frontier_and_a_beaten_candidate_is_hollow():
    candidates = {**CANDIDATES, "worse": (96.0, 2.9, 0.2, 0.3)}
    made = report(target(candidates=candidates))
    drawn = pictures.of_targets(made, made.targets, "latency_p50_ms")
    kinds = {p.name: p.kind for p in drawn.points}
    assert kinds["worse"] == "beaten"
    assert kinds["keep 1"] == kinds["keep 0.5"] == "candidate"
    at = {p.name: (p.x, p.y) for p in drawn.points}
    assert [at[name] for name in ("keep 0.25", "keep 0.5", "keep 1")] == [drawn.line[0], drawn.line[2], drawn.line[4]]
    assert drawn.line[1] == (at["keep 0.5"][0], at["keep 0.25"][1])  # a step: nothing lies between two candidates
    told = pictures.told(made, made.targets[0])
    assert told == "On the frontier of accuracy against latency p50 and size: keep 0.25, keep 0.5, keep 1."
    assert told in markdown.render(made)


def test_budgets_of_one_machine_share_a_picture_with_the_pick_of_each():
    limits = {"fast": {"latency_p50_ms": 0.1}, "exact": {"accuracy_drop_points": 1.7, "latency_p50_ms": 0.32}}
    made = report(*(target(name, asked) for name, asked in limits.items()))
    (group,) = pictures.groups(made.model_copy(update={"targets": _alike(made.targets)}))
    drawn = pictures.of_targets(made, group, "latency_p50_ms")
    assert sorted(limit.text for limit in drawn.x_limits) == ["exact: 0.32 ms", "fast: 0.1 ms"]
    picks = [p for p in drawn.points if p.kind == "chosen"]
    assert {name for p in picks for name in p.name.partition(":")[0].split(", ")} == set(limits)
    assert "Frontier on fast and exact" in html.render(made.model_copy(update={"targets": _alike(made.targets)}))
    other = made.targets[1].model_copy(update={"environment": {"device": "ssh://pi", "cpu": {"model": "A76"}}})
    assert pictures.groups(made.model_copy(update={"targets": (made.targets[0], other)})) == []


def _alike(rows):
    return tuple(row.model_copy(update={"environment": rows[0].environment}) for row in rows)


@pytest.mark.parametrize("limits", [[(1.0, "first: 1 ms"), (1.01, "second: 1.01 ms"), (1.02, "third: 1.02 ms")]])
def test_notes_of_near_limits_stand_apart(limits):
    models = [charts.Model(name, "candidate", num(x), num(90 + x)) for name, x in (("a", 0.9), ("b", 1.2))]
    drawn = charts.scatter(models, "latency_p50_ms", limits)
    boxes = [labels.text_box(limit.x, limit.y, limit.text, limit.anchor) for limit in drawn.x_limits]
    assert not any(a.meets(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.bottom < drawn.plot.top + 5 for box in boxes)
