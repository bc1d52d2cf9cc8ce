"""Intervals for what is measured: quantiles, proportions, paired differences and ratios. Pure numpy.

Every interval is two-sided and holds with at least (quantiles) or about (the rest) the `confidence` asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Interval",
    "drift",
    "geometric_mean",
    "mean_interval",
    "mean_of_blocks",
    "paired_drop",
    "paired_ratio",
    "quantile_interval",
    "ratio_of_means",
    "samples_needed",
    "wilson",
]


class Interval(NamedTuple):
    """A point estimate and its confidence interval, in the unit of the samples."""

    value: float
    low: float
    high: float


def samples_needed(q: float, confidence: float) -> int:
    """Fewest samples that can bound the q-quantile from above: 44, 90 and 459 for p90, p95 and p99 at 99 %.

    With fewer, even the largest sample lies below the quantile with probability q^n > 1 - confidence.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q))


def quantile_interval(samples: ArrayLike, q: float, confidence: float) -> Interval | None:
    """The q-quantile and an interval for it from order statistics; None where there are too few samples.

    The number of samples below the quantile is binomial whatever the distribution, so two of the sorted samples bound
    it (David & Nagaraja, Order Statistics, 2003, section 7.1). The tails are equal where the samples allow it; else
    the largest sample is the upper bound, and the lower one takes what confidence is left.

    The samples are taken as independent. Latencies that follow each other are not quite: what slows one slows the
    next, and the true coverage is below `confidence`. Blocks taken in turns spread that over time, but do not undo it.
    """
    x = np.sort(np.asarray(samples, np.float64).ravel())
    n, alpha = len(x), 1 - confidence
    if n == 0:
        return None
    below = np.cumsum(_binomial(n, q))  # below[k]: at most k samples lie below the quantile
    # The sample of rank r (from 1) is below the quantile with probability P(B >= r) = 1 - below[r - 1].
    above = np.maximum(1 - below[:-1], 0)
    fits = np.flatnonzero(above <= alpha / 2)
    if fits.size:
        upper, spent = int(fits[0]) + 1, alpha / 2
    elif q**n <= alpha:
        upper, spent = n, q**n
    else:
        return None
    lower = int(np.count_nonzero(below <= alpha - spent))  # the greatest rank with P(B < rank) within what is left
    if lower == 0:
        return None
    value = float(x[min(max(math.ceil(n * q), lower), upper) - 1])
    return Interval(value, float(x[lower - 1]), float(x[upper - 1]))


def _binomial(n: int, p: float) -> NDArray[np.float64]:
    """P(B = k) for k = 0..n."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log = log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    probability: NDArray[np.float64] = np.exp(log)
    return probability


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """A proportion (0..1) and its score interval (Wilson 1927)."""
    z, share = _z(confidence), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def paired_drop(
    baseline_correct: NDArray[np.bool_], candidate_correct: NDArray[np.bool_], confidence: float
) -> Interval:
    """Accuracy lost from baseline to candidate on the same examples, in percentage points; negative: gained.

    Only examples that one of them gets right and the other wrong carry information, so the interval is much narrower
    than that of two separate accuracies. Adjusted Wald interval: half an example is added to each cell of the 2x2
    table (Agresti & Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 24, 2005).

    Args:
        baseline_correct, candidate_correct: (n,), whether each example was right.
    """
    n = len(baseline_correct)
    lost = int(np.count_nonzero(baseline_correct & ~candidate_correct))
    gained = int(np.count_nonzero(~baseline_correct & candidate_correct))
    middle = (lost - gained) / (n + 2)
    half = _z(confidence) * math.sqrt(lost + gained + 1 - (lost - gained) ** 2 / (n + 2)) / (n + 2)
    value = 100 * (lost - gained) / n
    low, high = 100 * max(-1.0, middle - half), 100 * min(1.0, middle + half)
    return Interval(value, min(low, value), max(high, value))


def paired_ratio(
    baseline_blocks: Sequence[ArrayLike], candidate_blocks: Sequence[ArrayLike], confidence: float
) -> Interval | None:
    """How many times faster: baseline / candidate of block medians, paired by turn; None below two pairs.

    The mean of the log ratios with Student's t interval, turned back: blocks, not single latencies, are the
    independent observations (Georges, Buytaert & Eeckhout, "Statistically rigorous Java performance evaluation",
    OOPSLA 2007; Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). A drift of the machine's
    speed is in both blocks of a pair, and cancels.

    Args:
        baseline_blocks, candidate_blocks: block i of both was taken in the same round.
    """
    ratios = [
        float(np.median(np.asarray(b))) / float(np.median(np.asarray(c)))
        for b, c in zip(baseline_blocks, candidate_blocks, strict=True)
    ]
    return geometric_mean(ratios, confidence)


def mean_of_blocks(
    blocks: Sequence[ArrayLike], confidence: float, inputs: Sequence[ArrayLike] | None = None
) -> Interval | None:
    """The mean of samples that came in blocks, with Student's t interval; None below two blocks.

    Samples of one block resemble each other, and so do those on one input, where what a model computes depends on it.
    So the variance is that of block sums, plus that of input sums, less what is in both (two-way cluster-robust:
    Cameron, Gelbach & Miller, "Robust inference with multiway clustering", Journal of Business & Economic Statistics
    29, 2011), and the degrees of freedom are those of the fewer. The interval holds for further inputs of the kind.

    Args:
        blocks: samples, by turn.
        inputs: which input each sample was taken on; None: one and the same.
    """
    if len(blocks) < 2:
        return None
    x = np.concatenate([np.asarray(block, np.float64) for block in blocks])
    half = _half_width(x - x.mean(), blocks, inputs, confidence)
    return Interval(float(x.mean()), max(0.0, float(x.mean()) - half), float(x.mean()) + half)


def ratio_of_means(
    baseline_blocks: Sequence[ArrayLike],
    candidate_blocks: Sequence[ArrayLike],
    confidence: float,
    inputs: Sequence[ArrayLike] | None = None,
) -> Interval | None:
    """How many times lower the candidate's mean is, paired by turn and by input; None below two blocks.

    The logarithm's interval by the delta method, with the variance of `mean_of_blocks`, turned back.

    Args:
        baseline_blocks, candidate_blocks: sample j of block i of both was taken in the same round, on the same input.
        inputs: as for `mean_of_blocks`.
    """
    if len(baseline_blocks) < 2:
        return None
    b, c = (np.concatenate([np.asarray(x, np.float64) for x in many]) for many in (baseline_blocks, candidate_blocks))
    half = _half_width(b / b.mean() - c / c.mean(), candidate_blocks, inputs, confidence)
    ratio = float(b.mean() / c.mean())
    return Interval(ratio, ratio * math.exp(-half), ratio * math.exp(half))


def _half_width(
    residuals: NDArray[np.float64], blocks: Sequence[ArrayLike], inputs: Sequence[ArrayLike] | None, confidence: float
) -> float:
    """Half the interval of the mean of numbers whose mean is 0, clustered by block and by input."""
    block = np.repeat(np.arange(len(blocks)), [np.size(one) for one in blocks])
    variance, groups = _clustered(residuals, block), len(blocks)
    if inputs is not None:
        found, place = np.unique(np.concatenate([np.asarray(one) for one in inputs]), return_inverse=True)
        if (many := len(found)) > 1:
            alone = _clustered(residuals, place)
            both = _clustered(residuals, block * many + place)
            variance, groups = max(variance + alone - both, variance, alone), min(groups, many)
    return _t(confidence, groups - 1) * math.sqrt(variance) / len(residuals)


def _clustered(residuals: NDArray[np.float64], group: NDArray[np.integer]) -> float:
    """Variance of the sum, where members of a group may go together."""
    _, place = np.unique(group, return_inverse=True)
    sums = np.bincount(place, residuals)
    return float(np.sum(sums**2)) * len(sums) / max(1, len(sums) - 1)


def drift(blocks: Sequence[ArrayLike]) -> float | None:
    """How far the block medians moved from the first block to the last, as a share (0.08: 8 % higher at the end).

    None where no trend shows: the Mann-Kendall test for one is at 1 % (Kendall, Rank Correlation Methods, 1975); the
    size is the Theil-Sen slope of the logarithms (Sen, JASA 63, 1968), which a few outlying blocks do not turn.
    """
    logs = np.log([float(np.median(np.asarray(block))) for block in blocks])
    n = len(logs)
    if n < 8:
        return None
    i, j = np.triu_indices(n, 1)
    score = float(np.sign(logs[j] - logs[i]).sum())
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    if abs(score) - 1 < _z(0.99) * spread:
        return None
    return math.expm1(float(np.median((logs[j] - logs[i]) / (j - i))) * (n - 1))


def mean_interval(values: ArrayLike, confidence: float) -> Interval | None:
    """Mean and Student's t interval of independent values; None below two."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return None
    mean = float(x.mean())
    half = _t(confidence, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def geometric_mean(values: ArrayLike, confidence: float) -> Interval | None:
    """Geometric mean of positive values, which are independent; None below two.

    Student's t interval of the logarithms, turned back: it is never below 0, however far the values lie apart.
    """
    found = mean_interval(np.log(np.asarray(values, np.float64)), confidence)
    return None if found is None else Interval(*map(math.exp, found))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _t(confidence: float, degrees: int) -> float:
    """Two-sided quantile of Student's t. With t = sqrt(degrees) tan(a) its density becomes cos(a)^(degrees - 1)."""
    angle = np.linspace(0, np.pi / 2, 100_001)
    density: NDArray[Any] = np.cos(angle) ** (degrees - 1)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(float(np.interp(confidence, share / share[-1], angle)))
