"""The frontier: never empty, never without a reason, and blind to noise."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.frontier import beats, edge, frontier
from targets.budget import Measurement

COST, GAIN = "latency_p50_ms", "accuracy"


def number(metric, value, below=0.0, above=0.0):
    return Measurement(metric, value, value - below, value + above, 100, "a test")


def model(cost, gain, width=0.0):
    return {COST: number(COST, cost, width, width), GAIN: number(GAIN, gain, width, width)}


_values = st.integers(0, 8).map(float)
_widths = st.sampled_from([0.0, 0.4, 1.5, 4.0])
_models = st.lists(st.tuples(_values, _values, _widths), min_size=1, max_size=12).map(
    lambda rows: {i: model(*row) for i, row in enumerate(rows)}
)


@given(_models)
def test_whoever_is_left_out_is_beaten_and_whoever_stays_is_not(models):
    kept = frontier(models, (COST, GAIN))
    assert kept
    for name, row in models.items():
        rivals = [other for rival, other in models.items() if rival != name]
        assert (name not in kept) == any(beats(other, row, (COST, GAIN)) for other in rivals)


@given(_models)
def test_nobody_beats_in_a_circle(models):
    """Each beaten model leads, by any of those that beat it, to one that nobody beats."""
    kept = frontier(models, (COST, GAIN))
    for name in models:
        for _ in models:
            if name in kept:
                break
            name = next(n for n, row in models.items() if beats(row, models[name], (COST, GAIN)))
        assert name in kept


@given(_models)
def test_the_line_climbs_and_joins_only_what_lies_on_the_frontier(models):
    joined = edge(models, COST, GAIN)
    assert joined
    assert set(joined) <= set(frontier(models, (COST, GAIN)))
    steps = [(models[name][COST].value, models[name][GAIN].value) for name in joined]
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert all(a[1] < b[1] for a, b in itertools.pairwise(steps))


@given(_models)
def test_exact_numbers_give_the_usual_frontier(models):
    exact = {name: model(row[COST].value, row[GAIN].value) for name, row in models.items()}
    best = {
        name
        for name, row in exact.items()
        if not any(
            other[COST].value <= row[COST].value
            and other[GAIN].value >= row[GAIN].value
            and (other[COST].value < row[COST].value or other[GAIN].value > row[GAIN].value)
            for other in exact.values()
        )
    }
    assert set(frontier(exact, (COST, GAIN))) == best


@given(_models, st.permutations(range(12)))
def test_the_order_does_not_matter(models, order):
    shuffled = {name: models[name] for name in order if name in models}
    assert set(frontier(shuffled, (COST, GAIN))) == set(frontier(models, (COST, GAIN)))


def test_what_cannot_be_told_apart_stays():
    models = {"a": model(1.0, 90.0, 0.3), "b": model(1.1, 89.9, 0.3), "c": model(2.0, 89.9, 0.3)}
    assert frontier(models, (COST, GAIN)) == ("a", "b")
    assert edge(models, COST, GAIN) == ("a",)


def test_who_was_not_measured_takes_no_part():
    models = {"a": model(1.0, 90.0), "b": {GAIN: number(GAIN, 99.0)}}
    assert frontier(models, (COST, GAIN)) == ("a",)
    assert frontier(models, (GAIN,)) == ("b",)
