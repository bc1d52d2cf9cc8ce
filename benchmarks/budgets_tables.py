"""What `budgets.py` found, as Markdown: a table for each data set, and a verdict for each goal.

Times are ratios in turns, by p50 and by p10: see `int8_tables.py`. Accuracy is judged by its value; an interval is
shown beside it. Of the chains of peers, the one that attar is compared with is picked here by what it loses on the very
test split that it is then judged on, which favours the peers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from int8_tables import Goal, Results, agreed, doubts, show

__all__ = ["Found", "goals", "table"]

ATTAR, WHOLE, FLOAT = "attar", "attar: whole network, quantized", "float"
LOST, OVER_FLOAT, OVER_CHAIN, SEARCH_S, OFF = 0.5, 8.0, 2.5, 120.0, 0.1
"""Goals: points lost on test at most; times faster than float, and than the chain; seconds of the search for a
structure; predicted latency off the measured one."""


@dataclass
class Found:
    """Of one data set.

    Attributes:
        results: rows of the kinds float, attar, whole and chain.
        made: by row, how it was made.
        predicted: times that the structure was said to be faster than the whole network as it ships.
        predicted_float: the same over float, by the unfavourable bounds that a limit is judged by; None if not told.
        search_s: by step, seconds of the search for the structure that was chosen.
        all_searches_s: of all trials together.
        told: sentences: what was cut, why another trial was made.
    """

    results: Results
    made: Mapping[str, str]
    predicted: float
    predicted_float: float | None
    search_s: Mapping[str, float]
    all_searches_s: float
    whole: str = WHOLE
    told: list[str] = field(default_factory=list)

    def chain(self) -> tuple[str, bool]:
        """The chain to compare with, and whether it loses no more than it may: the fastest of those; else the one that
        loses least."""
        names, lost = self.results.named("chain"), self.results.lost
        if held := [name for name in names if lost[name].value <= LOST]:
            return min(held, key=lambda name: self.results.calm(name, FLOAT)), True
        return min(names, key=lambda name: lost[name].value), False


def table(data: str, found: Found) -> None:
    """Prints what was found on one data set."""
    results = found.results
    print(f"\n### {data}\n")
    print("| model | p50: times faster than float | p10 | accuracy % | points lost | kB | how made | in s |")
    print("|---|---:|---:|---:|---:|---:|---|---:|")
    for name, model in results.models.items():
        cells = (
            name,
            show(results.speedup[name]) if name != FLOAT else "1",
            f"{results.calm(FLOAT, name):.2f}",
            f"{results.accuracy[name]:.2f}",
            show(results.lost[name], "+.2f"),
            f"{model.path.stat().st_size / 1e3:.0f}",
            found.made[name],
            f"{model.seconds:.0f}",
        )
        print("| " + " | ".join(cells) + " |")
    doubts(results)
    print()
    for sentence in found.told:
        print(f"* {sentence}")
    took = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in found.search_s.items())
    print(f"* the search for this structure took {took}; of all trials together {found.all_searches_s:.0f} s")
    if found.predicted_float is not None:
        predicted, speed = found.predicted_float, results.speedup[ATTAR].value
        print(f"* at least {predicted:.2f} times faster than float was predicted, {speed:.2f} measured")


def goals(found: Found) -> Iterator[Goal]:
    """What the comparison is held to, and what came of it."""
    results = found.results
    lost = results.lost[ATTAR]
    yield Goal(f"at most {LOST:g} points lost on test", show(lost, "+.2f"), round(lost.value, 9) <= LOST, must=True)
    yield _faster(results, FLOAT, OVER_FLOAT, "float")
    if results.named("chain"):
        chain, holds = found.chain()
        told = f"loses {results.lost[chain].value:+.2f}" + ("" if holds else ", the least: none keeps the accuracy")
        yield _faster(results, chain, OVER_CHAIN, f"the best chain of peers ({chain}, which {told})")
    else:
        yield Goal(f"at least {OVER_CHAIN:g} times faster than a chain of peers", "none could be made", None, must=True)
    seconds = sum(found.search_s.values())
    yield Goal(f"a structure found in under {SEARCH_S:g} s", f"{seconds:.0f} s", seconds < SEARCH_S, must=True)
    # Both latencies are shares of the whole network's, so that one over the other is as these ratios are.
    speed, calm = results.ratio(found.whole, ATTAR), results.calm(found.whole, ATTAR)
    p50, p10 = speed.value / found.predicted - 1, calm / found.predicted - 1
    told = f"{found.predicted:.2f} times faster than {found.whole} predicted, {show(speed)} measured"
    held = agreed(abs(p50) <= OFF, abs(p10) <= OFF)
    what = f"predicted latency within {OFF:.0%} of measured"
    yield Goal(what, f"{p50:+.1%}, by p10 {p10:+.1%} ({told})", held, must=True)


def _faster(results: Results, over: str, times: float, called: str) -> Goal:
    speed, calm = results.ratio(over, ATTAR), results.calm(over, ATTAR)
    held = agreed(speed.value >= times, calm >= times)
    return Goal(f"at least {times:g} times faster than {called}", f"{show(speed)}, p10 {calm:.2f}", held, must=True)
