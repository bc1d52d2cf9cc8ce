"""Single layers in float; and which network is saved by what."""

from dataclasses import replace

import pytest

from stages import graph
from stages.int8.correction import bias_correction, corrected
from stages.int8.equalize import cross_layer, smooth_quant
from stages.int8.fallback import float_fallback, ranked, units
from targets.target import Int8Rules

STREAM = {"stem", "one", "two", "add", "rest.0.0"}  # layers that write or read the block's sum


@pytest.fixture
def start(bench):
    def make(name, rules=None, method="minmax", **more):
        b = bench(name, rules)
        return b, b.attempt(method, replace(b.setup("onnxruntime", method), **more))

    return make


def accuracies(bench, best, climbed):
    """Best accuracy of each rung, and of each calibration."""
    rungs = (bias_correction, cross_layer, smooth_quant, float_fallback)
    found = {
        method: bench.attempt(method, bench.setup("onnxruntime", method)).score.accuracy
        for method in ("minmax", "percentile", "entropy")
    }
    for rung in rungs:
        found[rung.__name__] = max((a.score.accuracy for a in climbed(bench, rung, best).values()), default=0.0)
    return found


@pytest.mark.parametrize(
    ("name", "per_channel", "saved_by"),
    [
        ("heavy_tailed", True, {"percentile", "cross_layer", "smooth_quant", "float_fallback"}),
        ("unbalanced", False, {"cross_layer", "smooth_quant"}),
        ("lopsided", True, {"float_fallback"}),
        ("outlier_features", True, {"smooth_quant", "float_fallback"}),
    ],
)
def test_each_network_is_saved_by_something(start, climbed, name, per_channel, saved_by):
    """Saved: within two points of float, where min-max loses thirty or more."""
    b, best = start(name, Int8Rules(per_channel=per_channel))
    full = b.float_score.accuracy
    assert full >= 0.9
    assert full - best.score.accuracy > 0.3
    found = accuracies(b, best, climbed)
    assert {how for how, accuracy in found.items() if full - accuracy <= 0.02} == saved_by, found


def test_it_finds_the_layers_that_matter_and_no_more(start, climbed):
    b, best = start("lopsided")
    found = climbed(b, float_fallback, best)
    assert [title.rpartition(" (")[2] for title in found] == ["1 of 9)", "2 of 9)", "4 of 9)", "5 of 9)"]
    assert all(title.startswith("float: ") for title in found)
    last = list(found.values())[-1]
    assert last.setup.exclude == STREAM
    assert last.score.drop_points == b.float_score.drop_points
    assert last.setup.notes[0].startswith("float again: ")
    assert graph.tally(last.int8).int8 > 0


def test_it_backs_off_to_as_few_as_are_enough(start, climbed):
    b, best = start("outlier_features")
    found = list(climbed(b, float_fallback, best).values())
    assert len(found) == 3
    assert {attempt.setup.exclude for attempt in found} == {frozenset({"val_9"})}
    assert {attempt.setup.notes for attempt in found} == {("float again: val_9 (1 of 7)",)}


def test_units_are_what_computes_on_int8(start):
    b, best = start("heavy_tailed")
    assert units(b, best) == ["0", "4", "9"]
    b, best = start("heavy_tailed", exclude=frozenset({"4"}))
    assert units(b, best) == ["0", "9"]


def test_what_was_float_stays_so(start, climbed):
    b, best = start("lopsided", exclude=frozenset({"head", "rest.3.0"}))
    for attempt in climbed(b, float_fallback, best).values():
        assert attempt.setup.exclude > {"head", "rest.3.0"}


def test_corrected_biases_are_corrected_anew(start, climbed):
    b, best = start("lopsided")
    both = b.attempt("corrected", corrected(b, best.setup))
    last = list(climbed(b, float_fallback, both).values())[-1]
    assert last.score.accuracy == b.float_score.accuracy
    assert last.setup.exclude == STREAM
    assert last.setup.notes[-1].startswith("bias correction: 4 of 4")


def test_ranking_stops_early_with_what_it_has(start):
    b, best = start("lopsided")
    names = units(b, best)
    assert set(ranked(b, best.setup, names)[:5]) == STREAM
    left = iter([100.0, 90.0, 60.0, 49.0])
    b.seconds_left = lambda: next(left)
    assert set(ranked(b, best.setup, names)) == {names[0], names[-1], names[1]}


def test_it_repeats(start):
    b, best = start("lopsided")
    titles = [[step.title for step in float_fallback(b, best)] for _ in range(2)]
    assert titles[0] == titles[1]


def test_a_single_layer_is_not_given_up(bench, made):
    import numpy as np

    random = np.random.default_rng(0)
    b = bench(
        made(
            [("Flatten", "input", "flat", {}), ("Gemm", "flat w", "logits", {})],
            w=random.normal(0, 1, (64, 4)).astype(np.float32),
        )
    )
    best = b.attempt("min-max", b.setup("onnxruntime", "minmax"))
    assert units(b, best) == ["logits"]
    assert list(float_fallback(b, best)) == []
