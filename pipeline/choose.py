"""Which of several measured candidates is the one to ship. Pure: the same rows give the same choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from targets.budget import METRICS, Budget, Check, Measurement, Verdict, judge, worst

__all__ = ["Choice", "Ranked", "choose"]

Measured = Mapping[str, Measurement]


@dataclass(frozen=True)
class Ranked:
    """One candidate set against the budget. `reason` says why it was or was not chosen."""

    name: str
    checks: tuple[Check, ...]
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Choice:
    """The chosen name (the nearest miss when none is `met`) and all candidates, best first."""

    chosen: str
    ranked: tuple[Ranked, ...]


def choose(candidates: Mapping[str, Measured], budget: Budget) -> Choice:
    """Of those that meet the budget, the fastest; of those as fast as it (intervals overlap), the smallest file.

    Fast is by the median latency; by the mean where the budget limits that.

    Where none does: the one whose unfavourable bounds exceed the limits least, undecided ones before missed ones.

    Args:
        candidates: measurements by name; accuracy must come from the validation split, so that the test split is left
            for the verdict.
    """
    checks = {name: judge(budget, measured) for name, measured in candidates.items()}
    verdicts = {name: worst(check.verdict for check in found) for name, found in checks.items()}
    met = [name for name in candidates if verdicts[name] == "met"]
    metric = "latency_p50_ms" if budget.latency_mean_ms is None else "latency_mean_ms"
    order = _fastest_first(met, candidates, metric) + sorted(
        (name for name in candidates if name not in met),
        key=lambda name: (verdicts[name] == "missed", _excess(checks[name]), name),
    )
    chosen = order[0]
    ranked = tuple(
        Ranked(name, checks[name], verdicts[name], _reason(name, chosen, checks, verdicts, candidates, metric))
        for name in order
    )
    return Choice(chosen, ranked)


def _fastest_first(names: Sequence[str], candidates: Mapping[str, Measured], metric: str) -> list[str]:
    """Fastest first; within what is as fast as the fastest left, the smallest, then the most accurate."""
    left, order = list(names), []
    while left:
        lead = min(left, key=lambda n: _latency(candidates[n], metric).value)
        bound = _latency(candidates[lead], metric).high
        tied = [n for n in left if _latency(candidates[n], metric).low <= bound]
        best = min(tied, key=lambda n: (candidates[n]["size_mb"].value, candidates[n]["accuracy_drop_points"].value, n))
        order.append(best)
        left.remove(best)
    return order


def _latency(measured: Measured, metric: str) -> Measurement:
    """What counts as fast; infinite where too few samples were taken to say."""
    return measured.get(metric, Measurement(metric, math.inf, math.inf, math.inf, 0, ""))


def _excess(checks: Sequence[Check]) -> float:
    """How far the unfavourable bounds lie beyond the limits, as shares of the limits, summed."""
    total = 0.0
    for check in checks:
        bound = check.high if METRICS[check.metric] == "at most" else check.low
        if bound is None:
            continue
        beyond = bound - check.limit if METRICS[check.metric] == "at most" else check.limit - bound
        total += max(0.0, beyond) / max(check.limit, 1e-9)
    return total


def _reason(
    name: str,
    chosen: str,
    checks: Mapping[str, tuple[Check, ...]],
    verdicts: Mapping[str, Verdict],
    candidates: Mapping[str, Measured],
    metric: str,
) -> str:
    if verdicts[name] != "met":
        open_checks = [check for check in checks[name] if check.verdict != "met"]
        told = ", ".join(f"{c.metric} {c.verdict}" for c in open_checks)
        return f"nearest to the budget: {told}" if name == chosen else told
    if name == chosen:
        ratio = candidates[name].get("speedup_p50")
        slower = ratio is not None and ratio.high < 1
        return "fastest that meets the budget" + (", yet slower than the float teacher" if slower else "")
    mine, best = candidates[name], candidates[chosen]
    ours, theirs = _latency(mine, metric), _latency(best, metric)
    if ours.low > theirs.high:
        return f"meets the budget, but {ours.value / theirs.value:.2f}x as slow"
    if mine["size_mb"].value > best["size_mb"].value:
        return f"meets the budget and is as fast, but {mine['size_mb'].value / best['size_mb'].value:.2f}x as large"
    return "meets the budget, and is neither faster nor smaller"
