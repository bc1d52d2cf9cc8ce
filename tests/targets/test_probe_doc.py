"""The numbers that docs/measuring.md gives for attar's percentiles and for MLPerf LoadGen's early stopping."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from targets.statistics import quantile_interval, samples_needed

PAGE = (Path(__file__).parents[2] / "docs/measuring.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| p(\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)


def at_most(t, n, p):
    """P(Binomial(n, p) <= t)."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(t + 1))


def loadgen(n, q, c=0.99):
    """t of LoadGen's early stopping for n queries, 0 where n are too few: `find_min_passing` turned round."""
    t = 0
    while at_most(t + 1, n, 1 - q) <= 1 - c:
        t += 1
    return t


def test_the_page_has_its_table():
    assert [int(row[0]) for row in ROWS] == [50, 90, 95, 99]


@pytest.mark.parametrize(("percent", "ours", "theirs"), [tuple(map(int, row)) for row in ROWS])
def test_fewest_samples(percent, ours, theirs):
    q = percent / 100
    assert samples_needed(q, 0.99) == ours
    assert (loadgen(theirs - 1, q), loadgen(theirs, q)) == (0, 1)


def test_fewest_samples_for_p99():
    assert re.search(r"p99 needs (\d+) samples at 95 %, (\d+) at 99 %", PAGE).groups() == ("299", "459")
    assert (samples_needed(0.99, 0.95), samples_needed(0.99, 0.99)) == (299, 459)


@pytest.mark.parametrize(("q", "n"), [(0.9, 100), (0.9, 2048), (0.5, 600), (0.99, 1000)])
def test_loadgen_is_one_rank_more_cautious(q, n):
    """attar's two-sided 98 % has 1 % in its upper tail, as LoadGen's one-sided 99 %."""
    ours = quantile_interval(np.arange(1, n + 1), q, 0.98).high
    assert n - loadgen(n, q) + 1 == ours + 1
