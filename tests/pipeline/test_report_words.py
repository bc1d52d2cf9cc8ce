"""How numbers and verdicts are worded, in all forms of the report."""

import pytest
from sample_reports import check, num, report, sample, target

from pipeline.report import story, words


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("latency_p95_ms", 0.31214, "0.312 ms"),
        ("latency_p50_ms", 1234.5, "1,234 ms"),
        ("accuracy_drop_points", 1, "1.00 points"),
        ("accuracy_drop_points", -0.0001, "-1.0e-4 points"),
        ("accuracy", 98.333, "98.3 %"),
        ("throughput_per_s", 12345.6, "12,346/s"),
        ("size_mb", 0.0877, "0.0877 MB"),
        ("energy_mj", 0, "0 mJ"),
        ("speedup_p50", 2.412, "2.41×"),
        ("validation_accuracy", 0.98333, "98.3 %"),
        ("teacher_validation_accuracy", 1, "100.0 %"),
        ("parameters", 577482, "577,482"),
        ("macs", 10_190_848, "10.2 M"),
        ("parity_max_difference", 3.34e-6, "3.3e-6"),
        ("signal_to_noise_db", 31.42, "31.4 dB"),
    ],
)
def test_quantity(metric, value, shown):
    assert words.quantity(metric, value) == shown


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("latency_p95_ms", "latency p95"),
        ("throughput_per_s", "throughput"),
        ("accuracy_drop_points", "accuracy drop"),
        ("speedup_p50", "speedup"),
        ("macs", "MACs"),
        ("nodes_int8", "nodes int8"),
    ],
)
def test_label(metric, shown):
    assert words.label(metric) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "limit", "shown"),
    [
        (98.9, 97.3, 100.0, None, ("98.9", "97.3 to 100.0")),
        (0.0853, 0.08478, 0.08591, None, ("0.0853", "0.0848 to 0.0859")),
        (0.278, -0.833, 1.389, 1.0, ("0.28", "-0.83 to 1.39")),
        (0.40004, 0.39, 0.41, 0.4, ("0.40004", "0.39000 to 0.41000")),
        (16999.2, 16647.1, 17198.4, 2000, ("16,999", "16,647 to 17,198")),
        (0.0, 0.0, 0.0, 0.0, ("0", "")),
    ],
)
def test_a_number_its_interval_and_its_limit_share_a_precision(value, low, high, limit, shown):
    decimals = words.places(value, low, high, limit)
    assert (words.number(value, decimals), words.span(low, high, decimals)) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.00 s"), (0.042, "0.04 s"), (3.14, "3.1 s"), (84.2, "84 s"), (99.7, "1 min 40 s"), (7325, "2 h 02 min")],
)
def test_duration(seconds, shown):
    assert words.duration(seconds) == shown


def test_a_column_keeps_its_smallest_number_readable():
    assert words.column([1.062, 0.301, 0.0853]) == 3
    assert words.column([12.4, 3.5]) == 1
    assert words.column([0.0, 0.0]) == 0


def test_text_that_would_move_the_cursor_is_tamed():
    assert words.clean("a\x1b[31m\nb\u202ec") == "a [31m b c"
    assert words.visible("a\x1b\nb\u202e") == "a\ufffd\nb\ufffd"


def test_long_lists_are_cut_and_counted():
    assert words.flat(list(range(1000))).endswith("18, 19, ... (1,000 in all)")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            check("latency_p95_ms", 0.4, 0.52, 0.51, 0.53, "missed"),
            "latency p95 0.520 ms, 0.120 ms (30 %) over the limit of 0.4 ms",
        ),
        (
            check("throughput_per_s", 2000, 1900, 1880, 1920, "missed"),
            "throughput 1,900/s, 100/s (5.0 %) under the limit of 2,000/s",
        ),
        (
            check("accuracy_drop_points", 0, 1.5, 0.4, 2.6, "missed"),
            "accuracy drop 1.50 points, 1.50 points over the limit of 0 points",
        ),
        (
            check("accuracy_drop_points", 1, 0.28, -0.83, 1.39, "inconclusive", "the interval straddles the limit"),
            "accuracy drop 0.28 points (-0.83 to 1.39) against a limit of 1 point: the interval straddles the limit",
        ),
        (
            check("energy_mj", 2, None, None, None, "inconclusive", "not measured on this target"),
            "energy: not measured on this target; the limit is 2 mJ",
        ),
    ],
)
def test_how_far_a_limit_is(row, told):
    assert story.shortfall(row) == told


def test_the_nearest_miss_is_named():
    missed = sample("missed")
    assert story.verdict(missed, missed.targets[0]) == "Nothing is shipped. The nearest miss is keep 0.25."
    assert len(story.shortfalls(missed.targets[0])) == 2


def test_a_choice_that_falls_short_only_on_test_says_so():
    row, rows = target()
    late = row.model_copy(update={"verdict": "missed", "artifact": ""})
    assert "keep 0.25, which met the budget on the validation split" in story.verdict(report((late, rows)), late)


def test_merging_is_set_against_the_chosen_one():
    met = sample("met")
    told = story.merging(met, met.targets[0])
    assert told.startswith("Merging (mean of the outputs of keep 1, keep 0.5 and keep 0.25) would reach 98.9 %")
    assert told.endswith("+1.4 points against keep 0.25, for 6.19× its latency and 10.3× its size.")
    one = sample("one candidate")
    assert story.merging(one, one.targets[0]) == ""


def test_what_was_not_measured_is_told_and_what_was_is_not():
    met = sample("met")
    told = "\n".join(story.gaps(met, met.targets[0]))
    assert "Energy was not measured." in told
    assert "Latency p99 is not given" in told
    assert "Latency p95" not in told
    row, rows = target()
    for candidate in rows:
        candidate.measured["energy_mj"] = num(1.2, instrument="estimate: 2.1 W of the data sheet")
    told = "\n".join(story.gaps(report((row, rows)), row))
    assert "Energy is not measured but estimated (estimate: 2.1 W of the data sheet)." in told


def test_the_cost_of_a_run_is_told():
    met = sample("met")
    told = "14 steps: 12 computed, 2 stored; 84 s in all, 0.4 % of it attar's own overhead"
    assert story.steps(met) == told
    stored = [step.model_copy(update={"stored": True}) for step in met.steps]
    again = met.model_copy(update={"steps": tuple(stored), "seconds": 1.24, "frame_seconds": 1.24})
    assert story.steps(again) == "14 steps: 0 computed, 14 stored; 1.2 s in all"
