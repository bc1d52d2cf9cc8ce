"""The drawings of the report: everything at its place and nothing over anything else."""

import itertools

import pytest
from sample_reports import check, num, report, sample, target

from pipeline.report import charts, html


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
    drawn = charts.scatter(met, met.targets[0], width)
    assert [p.kind for p in drawn.points] == ["teacher", "chosen", "candidate", "candidate", "merged"]
    assert drawn.logarithmic
    assert [text for _, text in drawn.x_ticks] == ["0.1", "0.2", "0.5", "1"]
    for p in drawn.points:
        assert drawn.plot.left <= p.x_low <= p.x <= p.x_high <= drawn.plot.right
        assert drawn.plot.top <= p.y_high <= p.y <= p.y_low <= drawn.plot.bottom
    assert [p.text for p in drawn.points] == ["float teacher", "keep 0.25", "keep 0.5", "keep 1", "merged"]
    fastest, teacher = drawn.points[1], drawn.points[0]
    assert fastest.x < drawn.x_limit[0] < teacher.x
    assert teacher.y < fastest.y < drawn.y_limit[0]  # up is better
    assert drawn.y_limit[1] == "limit 95.9 %"


def test_a_limit_far_away_does_not_press_the_models_together():
    far = report(target(limits={"latency_p50_ms": 50.0}))
    near = report(target(limits={"latency_p50_ms": 3.0}))
    assert charts.scatter(far, far.targets[0]).x_limit is None
    assert charts.scatter(near, near.targets[0]).x_limit[1] == "limit 3 ms"


def test_many_candidates_at_one_spot_are_drawn_without_overlapping_names():
    values = {f"candidate number {i}": (98.0 + i / 100, 0.5, 0.2 + i / 1000, 0.2) for i in range(30)}
    crowded = report(target(candidates=values), names=values)
    drawn = charts.scatter(crowded, crowded.targets[0])
    named = [p for p in drawn.points if p.text]
    assert 1 <= len(named) < len(drawn.points)
    assert "chosen" in {p.kind for p in named}
    boxes = [charts.text_box(p.tx, p.ty, p.text, p.anchor) for p in named]
    assert not any(a.meets(b) for a, b in itertools.combinations(boxes, 2))


def test_without_two_models_there_is_no_scatter():
    row, _ = target()
    alone = report((row.model_copy(update={"merge": None}), []))
    assert charts.scatter(alone, alone.targets[0]) is None
    assert "<svg" in html.render(alone)  # the marks of the checks


def test_equal_latencies_and_accuracies_do_not_break_the_axes():
    exact = {"accuracy": num(100), "latency_p50_ms": num(1), "size_mb": num(1)}
    row, rows = target(limits={})
    rows = [r.model_copy(update={"measured": exact}) for r in rows]
    row = row.model_copy(update={"baseline": exact, "merge": None})
    drawn = charts.scatter(report((row, rows)), row)
    assert not drawn.logarithmic
    assert [text for _, text in drawn.y_ticks][-1] == "100"
    assert "100.0" in html.render(report((row, rows)))
