"""Choosing among candidates: pure, and every one that is not chosen gets a reason."""

from pipeline.choose import choose
from targets.budget import Budget, Measurement


def _m(metric, value, spread=0.0):
    return Measurement(metric, value, value - spread, value + spread, 100, "test")


def _candidate(drop=0.0, p50=1.0, size=1.0, spread=0.01, drop_spread=0.1):
    return {
        "accuracy_drop_points": _m("accuracy_drop_points", drop, drop_spread),
        "latency_p50_ms": _m("latency_p50_ms", p50, spread),
        "size_mb": _m("size_mb", size),
    }


BUDGET = Budget(accuracy_drop_points=1.0, latency_p50_ms=2.0)


def test_the_fastest_of_those_that_meet_the_budget_is_chosen():
    choice = choose(
        {"big": _candidate(p50=1.5), "small": _candidate(p50=0.5), "bad": _candidate(drop=5, p50=0.1)}, BUDGET
    )
    assert choice.chosen == "small"
    assert [(r.name, r.verdict) for r in choice.ranked] == [("small", "met"), ("big", "met"), ("bad", "missed")]
    reasons = {r.name: r.reason for r in choice.ranked}
    assert reasons["small"] == "fastest that meets the budget"
    assert reasons["big"] == "meets the budget, but 3.00x as slow"
    assert reasons["bad"] == "accuracy_drop_points missed"


def test_of_equally_fast_ones_the_smaller_file_wins():
    choice = choose({"large": _candidate(p50=1.0, size=2.0), "small": _candidate(p50=1.005, size=1.0)}, BUDGET)
    assert choice.chosen == "small"
    assert choice.ranked[1].reason == "meets the budget and is as fast, but 2.00x as large"


def test_undecided_comes_before_missed_and_nearest_before_far():
    choice = choose(
        {
            "far": _candidate(drop=9.0),
            "near": _candidate(drop=1.5),
            "open": _candidate(drop=1.0, drop_spread=0.5),
        },
        BUDGET,
    )
    assert [r.name for r in choice.ranked] == ["open", "near", "far"]
    assert choice.ranked[0].verdict == "inconclusive"
    assert choice.ranked[0].reason == "nearest to the budget: accuracy_drop_points inconclusive"


def test_throughput_is_a_lower_limit_for_the_nearest_miss():
    slow, slower = _candidate(), _candidate()
    slow["throughput_per_s"] = _m("throughput_per_s", 90)
    slower["throughput_per_s"] = _m("throughput_per_s", 10)
    choice = choose({"slower": slower, "slow": slow}, Budget(throughput_per_s=100))
    assert choice.chosen == "slow"


def test_the_order_of_candidates_does_not_matter():
    rows = {name: _candidate(p50=p, size=s) for name, p, s in [("a", 1, 2), ("b", 1.001, 1), ("c", 0.5, 3)]}
    forward = choose(rows, BUDGET)
    backward = choose(dict(reversed(rows.items())), BUDGET)
    assert [r.name for r in forward.ranked] == [r.name for r in backward.ranked]


def test_without_limits_the_fastest_is_chosen_and_met():
    choice = choose({"a": _candidate(p50=2), "b": _candidate(p50=1)}, Budget())
    assert choice.chosen == "b"
    assert choice.ranked[0].verdict == "met"
