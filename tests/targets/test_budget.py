import pytest
from pydantic import ValidationError

from targets.budget import METRICS, Budget, Measurement, judge, worst


def _got(metric, low, high, instrument="a clock"):
    return {metric: Measurement(metric, (low + high) / 2, low, high, 100, instrument)}


@pytest.mark.parametrize(
    ("low", "high", "verdict", "note"),
    [
        (0.1, 0.4, "met", ""),
        (0.1, 0.5, "met", ""),
        (0.4, 0.6, "inconclusive", "the interval straddles the limit"),
        (0.5, 0.6, "inconclusive", "the interval straddles the limit"),
        (0.51, 0.6, "missed", ""),
    ],
)
def test_at_most(low, high, verdict, note):
    (check,) = judge(Budget(latency_p95_ms=0.5), _got("latency_p95_ms", low, high))
    assert (check.verdict, check.note) == (verdict, note)
    assert (check.metric, check.limit, check.low, check.high) == ("latency_p95_ms", 0.5, low, high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(200, 300, "met"), (100, 300, "met"), (90, 300, "inconclusive"), (90, 100, "inconclusive"), (50, 99, "missed")],
)
def test_throughput_is_at_least(low, high, verdict):
    (check,) = judge(Budget(throughput_per_s=100), _got("throughput_per_s", low, high))
    assert check.verdict == verdict


def test_every_metric_has_a_sense():
    assert set(METRICS) == set(Budget.model_fields)
    assert [metric for metric, sense in METRICS.items() if sense == "at least"] == ["throughput_per_s", "speedup_p50"]


def test_all_limits_are_checked_in_the_budgets_order():
    budget = Budget(size_mb=1, accuracy_drop_points=1, latency_p50_ms=1)
    checks = judge(budget, _got("size_mb", 2, 2) | _got("latency_p50_ms", 0.5, 0.6))
    assert [(c.metric, c.verdict) for c in checks] == [
        ("accuracy_drop_points", "inconclusive"),
        ("latency_p50_ms", "met"),
        ("size_mb", "missed"),
    ]


def test_what_was_not_measured_is_not_met():
    (check,) = judge(Budget(energy_mj=3), _got("size_mb", 1, 1))
    assert (check.value, check.low, check.high) == (None, None, None)
    assert (check.verdict, check.note) == ("inconclusive", "not measured on this target")


def test_a_percentile_that_the_samples_cannot_support_says_so():
    (check,) = judge(Budget(latency_p99_ms=3), _got("latency_p50_ms", 1, 1))
    assert (check.verdict, check.note) == ("inconclusive", "too few samples for this percentile")


def test_an_estimate_may_miss_but_never_meets():
    budget = Budget(energy_mj=3)
    (met,) = judge(budget, _got("energy_mj", 1, 1, "estimate: MACs"))
    assert (met.verdict, met.note) == ("inconclusive", "estimate: MACs; an estimate cannot meet a limit")
    (missed,) = judge(budget, _got("energy_mj", 4, 4, "estimate: MACs"))
    assert missed.verdict == "missed"


def test_nan_decides_nothing():
    (check,) = judge(Budget(size_mb=1), _got("size_mb", float("nan"), float("nan")))
    assert check.verdict == "inconclusive"


def test_no_limits_no_checks():
    assert judge(Budget(), _got("size_mb", 1, 1)) == ()


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["met", "missed", "failed", "inconclusive"], "failed"),
        (["inconclusive", "met", "missed"], "missed"),
        (["met", "inconclusive"], "inconclusive"),
        (["met", "met"], "met"),
        ([], "met"),
    ],
)
def test_worst(verdicts, whole):
    assert worst(verdicts) == whole


@pytest.mark.parametrize(
    "limits", [{"size_mb": 0}, {"accuracy_drop_points": -1}, {"accuracy_drop_points": 101}, {"latency_ms": 1}]
)
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValidationError):
        Budget(**limits)


def test_no_drop_at_all_may_be_asked_for():
    assert Budget(accuracy_drop_points=0).accuracy_drop_points == 0


# ---- gates: what a runtime does that the file does not say


def test_gates_are_limits_like_others():
    gates = Budget(speedup_p50=1, fallback_nodes=0, float_int8_nodes=0)
    good = {"speedup_p50": (2.0, 1.9, 2.1), "fallback_nodes": (0, 0, 0), "float_int8_nodes": (0, 0, 0)}
    bad = {"speedup_p50": (0.5, 0.4, 0.6), "fallback_nodes": (3, 3, 3), "float_int8_nodes": (1, 1, 1)}
    open_ = {"speedup_p50": (1.0, 0.9, 1.1)}
    for numbers, verdicts in ((good, ["met"] * 3), (bad, ["missed"] * 3), (open_, ["inconclusive"] * 3)):
        measured = {name: Measurement(name, *values, 1, "x") for name, values in numbers.items()}
        assert [check.verdict for check in judge(gates, measured)] == verdicts
    (_, unknown, _) = judge(gates, {"speedup_p50": Measurement("speedup_p50", 1, 1, 1, 1, "x")})
    assert unknown.note == "not measured on this target", "an unknown placement meets no limit"
