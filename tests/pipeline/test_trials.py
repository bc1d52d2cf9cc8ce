"""What a trial spent decides the next one's aim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.trials import LEAST, Trial, next_aim, spent
from targets.budget import Check

USUAL = 0.85


def _check(metric, limit, value, verdict, spread=0.0):
    return Check(metric, limit, value, value - spread, value + spread, verdict)


def _trial(aim, share, accurate=True, whole=False):
    latency = _check("latency_p95_ms", 2.0, 2.0 * share, "met" if share <= 1 else "missed")
    drop = _check("accuracy_drop_points", 1.0, 0.5 if accurate else 1.5, "met" if accurate else "missed")
    return Trial(aim, (drop, latency), whole)


def test_the_unfavourable_bound_of_the_most_spent_limit_counts():
    latency = _check("latency_p95_ms", 2.0, 1.0, "met", spread=0.2)
    speedup = _check("speedup_p50", 3.0, 4.0, "met", spread=0.5)
    drop = _check("accuracy_drop_points", 1.0, 5.0, "missed")
    unknown = Check("energy_mj", 1.0, None, None, None, "inconclusive")
    assert spent([latency, speedup, drop, unknown]) == pytest.approx(3.0 / 3.5)
    assert spent([drop, unknown]) is None


@pytest.mark.parametrize("share", [LEAST, 0.85, 1.0])
def test_what_is_held_and_spent_ends_it(share):
    assert next_aim([_trial(0.85, share)], USUAL) == (None, "")


@pytest.mark.parametrize(
    ("trial", "lower", "why"),
    [
        (_trial(0.85, 1.25), True, "125% of the budget spent: more has to go"),
        (_trial(0.85, 0.5), False, "only 50% of the budget spent: structure can be given back"),
        (
            _trial(0.85, 0.6, accurate=False),
            False,
            "accuracy is missed with 60% of the budget spent: structure can be given",
        ),
    ],
)
def test_the_next_aim_goes_the_other_way(trial, lower, why):
    aim, told = next_aim([trial], USUAL)
    assert (aim < trial.aim) == lower
    assert told.startswith(why)


@pytest.mark.parametrize(
    ("trial", "why"),
    [
        (_trial(0.85, 0.95, accurate=False), "nothing is left to give back"),
        (_trial(0.85, 0.4, accurate=False, whole=True), "nothing was removed that could be given back"),
    ],
)
def test_where_nothing_can_be_done_it_says_so(trial, why):
    aim, told = next_aim([trial], USUAL)
    assert aim is None
    assert why in told


def test_the_whole_network_need_not_spend_more():
    assert next_aim([_trial(0.85, 0.2, whole=True)], USUAL) == (None, "")


def test_an_estimate_that_fits_is_given_structure_back_not_less():
    estimate = _check("latency_p95_ms", 2.0, 1.0, "inconclusive")  # an estimate meets no limit
    unknown = Check("energy_mj", 1.0, None, None, None, "inconclusive")
    aim, why = next_aim([Trial(0.85, (estimate, unknown))], USUAL)
    assert aim > 0.85
    assert why == "only 50% of the budget spent: structure can be given back"
    drop = _check("accuracy_drop_points", 1.0, 0.5, "inconclusive")
    latency = _check("latency_p95_ms", 2.0, 1.7, "inconclusive")
    assert next_aim([Trial(0.85, (latency, drop))], USUAL) == (None, "")


def test_what_structure_does_not_change_wins_no_trial():
    latency = _check("latency_p95_ms", 2.0, 1.7, "met")
    fallback = Check("fallback_nodes", 0, None, None, None, "inconclusive")
    assert next_aim([Trial(0.85, (latency, fallback))], USUAL) == (None, "")


@given(st.lists(st.tuples(st.floats(0.1, 3), st.booleans()), min_size=1, max_size=6), st.floats(0.3, 1))
def test_trials_end_and_never_try_an_aim_twice(shares, usual):
    trials = []
    aim = usual
    for share, accurate in shares:
        trials.append(_trial(aim, share, accurate))
        aim, _ = next_aim(trials, usual)
        if aim is None:
            return
        assert all(max(aim, trial.aim) / min(aim, trial.aim) >= 1.03 for trial in trials)
        too_much = [trial.aim for trial in trials if not trial.affordable]
        assert not too_much or aim < max(too_much)
