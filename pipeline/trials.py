"""The loop behind `prune: {to: budget}`: a trained structure was measured, what should the next one spend? Pure.

    a limit on a cost is not held        take more structure away
    all held, accuracy is not            give structure back, if there is anything left to spend
    all held, much left to spend         give structure back
    else                                 done

What a structure spends grows about in proportion with the aim that it was pruned to, so the next aim follows from the
last by proportion, kept between the aims that were already seen to be too high and too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from targets.budget import COSTS, METRICS, Check

__all__ = ["Trial", "next_aim", "spent"]

LEAST = 0.7  # of a limit: a structure that spends less gets some back
MOST = 0.93  # a structure that misses accuracy gets no more back than up to here
_APART = 1.04  # between two aims that are worth a training each


@dataclass(frozen=True)
class Trial:
    """One structure, trained and measured.

    Attributes:
        aim: share of the limits that it was pruned to.
        checks: its limits, on validation.
        whole: nothing was removed.
    """

    aim: float
    checks: tuple[Check, ...]
    whole: bool = False

    @property
    def affordable(self) -> bool:
        """Whether all limits on costs are held, as far as they were measured or estimated: taking more away makes no
        number known that was not."""
        share = spent(self.checks)
        return share is None or share <= 1

    @property
    def accurate(self) -> bool:
        """Whether the limit on accuracy is held, in an estimate too; what else there is, structure does not change."""
        drops = [check for check in self.checks if check.metric == "accuracy_drop_points"]
        return all(check.high is not None and check.high <= check.limit for check in drops)


def spent(checks: Sequence[Check]) -> float | None:
    """The largest share of a limit on a cost that is spent, by the unfavourable bound; None if nothing was measured."""
    shares = []
    for check in checks:
        if check.metric not in COSTS or check.low is None or check.high is None:
            continue
        if METRICS[check.metric] == "at most":
            shares.append(check.high / check.limit)
        elif check.low > 0:
            shares.append(check.limit / check.low)
    return max(shares, default=None)


def next_aim(trials: Sequence[Trial], usual: float) -> tuple[float | None, str]:
    """The aim of one more trial, or None; and why.

    Args:
        trials: those so far, at least one.
        usual: the share of a limit to spend if nothing speaks against it.
    """
    last = trials[-1]
    share = spent(last.checks)
    if share is None:
        return None, ""
    told = f"{share:.0%} of the budget spent"
    if last.affordable and last.accurate and (share >= LEAST or last.whole):
        return None, ""
    if not last.affordable:
        aim, why = last.aim * usual / share, f"{told}: more has to go"
    elif last.whole:
        return None, "accuracy is missed, and nothing was removed that could be given back"
    elif last.accurate:
        aim, why = last.aim * usual / share, f"only {told}: structure can be given back"
    elif share >= MOST:
        return None, f"accuracy is missed with {told}: nothing is left to give back"
    else:
        aim, why = last.aim * MOST / share, f"accuracy is missed with {told}: structure can be given back"
    return _between(aim, trials, why)


def _between(aim: float, trials: Sequence[Trial], why: str) -> tuple[float | None, str]:
    """The aim, kept off those that were seen to spend too much, and those that left too little."""
    high = min((trial.aim for trial in trials if not trial.affordable), default=float("inf"))
    low = max((trial.aim for trial in trials if trial.affordable), default=0.0)
    if low > 0 and high < float("inf"):
        if high / low < _APART**2:
            return None, f"{why}, but nothing lies between the structures that were tried"
        aim = min(max(aim, low * _APART), high / _APART)
    if any(max(aim, trial.aim) / min(aim, trial.aim) < _APART for trial in trials):
        return None, f"{why}, but hardly"
    return aim, why
