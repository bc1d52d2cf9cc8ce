import math

import numpy as np
import pytest

from targets.statistics import (
    drift,
    geometric_mean,
    mean_interval,
    mean_of_blocks,
    paired_drop,
    paired_ratio,
    quantile_interval,
    ratio_of_means,
    samples_needed,
    wilson,
)


@pytest.mark.parametrize(("q", "least"), [(0.90, 44), (0.95, 90), (0.99, 459)])
def test_99_percent_confidence_takes_so_many_samples(q, least):
    assert samples_needed(q, 0.99) == least
    assert quantile_interval(np.arange(least - 1), q, 0.99) is None
    found = quantile_interval(np.arange(least), q, 0.99)
    assert found.high == least - 1, "the largest sample, with no exceedance allowed"


def test_a_quantile_interval_covers_with_the_confidence_asked_for():
    """Exact, by the binomial distribution: P(lower <= number of samples below the quantile < upper)."""
    for n in (6, 13, 60, 100, 300, 459):
        for q in (0.5, 0.9, 0.95, 0.99):
            for confidence in (0.9, 0.95, 0.99):
                found = quantile_interval(np.arange(1, n + 1), q, confidence)
                if found is None:
                    continue
                low, high = int(found.low), int(found.high)
                inside = sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(low, high))
                assert inside >= confidence - 1e-12, (n, q, confidence)
                assert low <= found.value <= high


def test_a_quantile_is_a_sample_and_order_does_not_matter():
    found = quantile_interval(np.random.default_rng(0).permutation(1000), 0.5, 0.95)
    assert found == (499.0, 468.0, 531.0)
    assert found == quantile_interval(np.arange(1000), 0.5, 0.95)


def test_no_samples_no_quantile():
    assert quantile_interval([], 0.5, 0.95) is None
    assert quantile_interval([1.0] * 5, 0.5, 0.95) is None, "5 samples cannot bound a median from both sides at 95 %"
    assert quantile_interval([1.0] * 6, 0.5, 0.95) == (1.0, 1.0, 1.0)


def test_many_samples_are_no_problem():
    found = quantile_interval(np.arange(1_000_000), 0.99, 0.95)
    assert found.value == 989_999
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(1e6 * 0.99 * 0.01), rel=0.01)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, 1998, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, n, low, high):
    found = wilson(successes, n, 0.95)
    assert found.value == successes / n
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_wilson_at_the_top_still_doubts():
    assert wilson(20, 20, 0.95) == pytest.approx((1.0, 1 - 0.1611, 1.0), abs=5e-5)


def _table(both, lost, gained, neither):
    baseline = np.repeat([True, True, False, False], [both, lost, gained, neither])
    candidate = np.repeat([True, False, True, False], [both, lost, gained, neither])
    return baseline, candidate


def test_paired_drop_on_a_published_table():
    """Agresti, Categorical Data Analysis, on approval ratings: 4 points lost, 95 % interval 2.1 to 5.9."""
    found = paired_drop(*_table(794, 150, 86, 570), 0.95)
    assert found.value == pytest.approx(4.0)
    assert (found.low, found.high) == pytest.approx((2.1, 5.9), abs=0.05)


def test_paired_drop_by_the_authors_own_formula():
    """diffpropci of the authors' R code with b = 3, c = 9, n = 100."""
    found = paired_drop(*_table(80, 9, 3, 8), 0.95)
    middle, spread = 6 / 102, 1.959964 * math.sqrt(13 - 36 / 102) / 102
    assert found == pytest.approx((6.0, 100 * (middle - spread), 100 * (middle + spread)), abs=1e-4)


def test_equal_answers_do_not_prove_that_nothing_was_lost():
    found = paired_drop(*_table(350, 0, 0, 10), 0.95)
    assert found.value == 0
    assert found.high == pytest.approx(100 * 1.959964 / 362, rel=1e-5)
    assert found.low == -found.high


def test_a_gain_is_a_negative_drop_and_bounds_stay_possible():
    assert paired_drop(*_table(50, 2, 20, 28), 0.95).high < 0
    assert paired_drop(*_table(0, 5, 0, 0), 0.99).high == 100


def test_mean_interval_with_students_t():
    found = mean_interval([1.0, 2.0, 3.0], 0.95)
    assert found.value == 2
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t of 2 degrees, 97.5 %
    assert mean_interval(np.arange(12.0), 0.99).high == pytest.approx(5.5 + 3.105807 * math.sqrt(13 / 12), rel=1e-6)
    assert mean_interval([1.0], 0.95) is None


def test_a_geometric_mean_of_rates_is_never_below_0():
    wild = [3000.0, 2900.0, 12.0, 3100.0]
    assert mean_interval(wild, 0.99).low < 0
    found = geometric_mean(wild, 0.99)
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(math.prod(wild) ** 0.25)
    assert geometric_mean([2.0], 0.99) is None


def test_a_drift_of_speed_cancels_in_a_paired_ratio():
    speed = np.linspace(1.0, 3.0, 12)[:, None]
    noise = np.random.default_rng(0).lognormal(0, 0.05, (2, 12, 50))
    ratio = paired_ratio(list(3 * speed * noise[0]), list(speed * noise[1]), 0.95)
    assert ratio.low < 3 < ratio.high
    assert ratio.high / ratio.low < 1.03, "each block's speed differs threefold, the ratio does not"
    assert paired_ratio([[2.0]] * 3, [[1.0]] * 3, 0.95) == pytest.approx((2, 2, 2))


def test_one_outlier_in_a_block_is_not_the_block():
    assert paired_ratio([[2.0, 2.0, 90.0]] * 4, [[1.0, 1.0, 1.0]] * 4, 0.95).value == pytest.approx(2)


def test_a_ratio_needs_pairs():
    assert paired_ratio([[1.0]], [[1.0]], 0.95) is None
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([[1.0]] * 3, [[1.0]] * 2, 0.95)


def test_drift_needs_a_trend():
    random = np.random.default_rng(1)
    flat = 1 + 0.05 * random.standard_normal((200, 12))
    found = sum(drift([[x] for x in series]) is not None for series in flat)
    assert found <= 8, "1 % of 200 are expected where there is none"
    rising = flat * np.exp(np.linspace(0, 0.3, 12))
    sizes = [size for series in rising if (size := drift([[x] for x in series])) is not None]
    assert len(sizes) > 150
    assert np.mean(sizes) == pytest.approx(np.exp(0.3) - 1, rel=0.15)


def test_one_outlying_block_is_no_drift():
    assert drift([[1.0 + 0.001 * (i % 3)] for i in range(11)] + [[5.0]]) is None
    assert drift([[1.0], [2.0], [3.0]]) is None, "too few blocks to tell"


def _requests(random, inputs=60, blocks=12, length=40):
    """Latencies in blocks that share a disturbance, on inputs in a circle of which about a fifth takes 5 ms, not 1."""
    slow = random.random(inputs) < 0.2
    place = np.arange(blocks * length) % inputs
    ms = np.where(slow[place], 5.0, 1.0) * (1 + np.repeat(random.normal(0, 0.1, blocks), length))
    return list(ms.reshape(blocks, length)), list(place.reshape(blocks, length))


def test_a_mean_over_inputs_covers_with_about_the_confidence_asked_for():
    random, true = np.random.default_rng(3), 0.2 * 5 + 0.8 * 1
    found = [_requests(random) for _ in range(400)]
    both = [mean_of_blocks(blocks, 0.95, inputs) for blocks, inputs in found]
    blind = [mean_of_blocks(blocks, 0.95) for blocks, _ in found]
    assert np.mean([one.low <= true <= one.high for one in both]) > 0.92
    assert np.mean([one.low <= true <= one.high for one in blind]) < 0.8, "repeating an input is no further input"


def test_a_mean_of_blocks_alone_is_students_t_over_them():
    blocks = [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0], [1.0, 1.0, 1.0]]
    assert mean_of_blocks(blocks, 0.95) == pytest.approx(mean_interval(np.mean(blocks, 1), 0.95))
    assert mean_of_blocks(blocks, 0.95, [[0] * 3] * 4) == mean_of_blocks(blocks, 0.95), "one input is no group"
    assert mean_of_blocks(blocks[:1], 0.95) is None


def test_a_ratio_of_means_is_paired_by_turn_and_input():
    random = np.random.default_rng(0)
    blocks, inputs = _requests(random)
    half = [block / 2 * random.normal(1, 0.01, len(block)) for block in blocks]
    ratio = ratio_of_means(blocks, half, 0.95, inputs)
    assert ratio.low < 2 < ratio.high < 1.02 * ratio.low, "what both share cancels: slow inputs, slow turns"
    constant = ratio_of_means(blocks, [[1.0] * 40] * 12, 0.95, inputs)
    assert constant.high > 1.3 * constant.low, "here the share of slow inputs is all there is"
    assert ratio_of_means(blocks[:1], half[:1], 0.95) is None
