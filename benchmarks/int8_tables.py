"""What `int8.py` found, as Markdown: a table for each network, and a verdict for each goal.

Ratios of p50 in turns hold while most runs are left in peace. On an overloaded machine they do not: a float run that is
longer than a time slice is nearly always interrupted, an int8 one that is shorter seldom, and the ratio grows with the
load (10.6 was seen where CPU time said 2.6). So each is shown beside the ratio of the fastest tenth (p10), which
interruptions hardly reach, and where the two would judge differently a goal is undecided.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from targets.accuracy import accuracy_drop
from targets.measure import measure, outputs
from targets.operator_rows import operators
from targets.operators import node_counts
from targets.samples import Measured, measurements, notes
from targets.source_graph import read
from targets.statistics import Interval, paired_ratio

CONFIDENCE = 0.95
APART = 0.1  # of p50's and p10's ratios, from which on the machine is told to be too busy
RESIDUAL = ("resnet56", "resnet20")
BOTH = ("attar: onnxruntime", "attar: neural_compressor")
FASTER, ALIKE, SLOWER, WORSE = 2.5, 0.05, 0.05, 0.1
"""Goals: times faster than float; both engines' p50 apart; p50 over the best peer's; points below the best peer."""


@dataclass(frozen=True)
class Model:
    """One row. `kind`: float, attar or peer; `seconds`: what making it took."""

    kind: str
    path: Path
    seconds: float = 0.0


@dataclass
class Results:
    """Of one network: its models by name, and why others failed. The rest is filled by `look`."""

    models: dict[str, Model]
    failed: dict[str, str] = field(default_factory=dict)
    measured: Measured = field(default_factory=lambda: Measured({}, {}))
    speedup: dict[str, Interval] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)  # percent
    lost: dict[str, Interval] = field(default_factory=dict)  # points, against float
    ran: dict[str, Counter[str]] = field(default_factory=dict)  # operators by what they computed with
    lies: dict[str, int | None] = field(default_factory=dict)  # int8 nodes of the file that ran in float

    def named(self, kind: str) -> list[str]:
        return [name for name, model in self.models.items() if model.kind == kind]

    def calm(self, over: str, under: str) -> float:
        """One model's p10 over another's: of runs that nothing interrupted."""
        over_ms, under_ms = (np.concatenate(self.measured.models[name].latency_ms) for name in (over, under))
        return float(np.quantile(over_ms, 0.1) / np.quantile(under_ms, 0.1))

    def ratio(self, over: str, under: str) -> Interval:
        """p50 of one model over another's, paired by turns."""
        latencies = (self.measured.models[name].latency_ms for name in (over, under))
        return Interval(*paired_ratio(*latencies, CONFIDENCE))


def look(results: Results, target, test, limit: int | None) -> None:
    """Measures all models in turns, and runs them over the test split."""
    paths = {name: model.path for name, model in results.models.items()}
    results.measured = measured = measure(target, paths, test.inputs(slice(0, 64)))
    answers = outputs(target, paths, (x for x, _ in test.batches(64, limit)))
    labels = test.labels[:limit]
    for name, path in paths.items():
        samples = measured.models[name]
        speed = measurements(measured, name, "float", CONFIDENCE)["speedup_p50"]
        lost = accuracy_drop(answers["float"], answers[name], labels, CONFIDENCE)
        counts = node_counts(path, target.runtime.provider, samples.operators, samples.assignment)
        ran = operators(read(path), samples.operators, CONFIDENCE) if samples.operators else ()
        results.ran[name] = Counter(operator.precision for operator in ran)
        results.speedup[name] = Interval(speed.value, speed.low, speed.high)
        results.lost[name] = Interval(lost.value, lost.low, lost.high)
        results.accuracy[name] = 100 * float(np.mean(answers[name].argmax(1) == labels))
        results.lies[name] = counts["float_int8_nodes"]


def table(net: str, results: Results) -> None:
    """Prints what was found of one network."""
    print(f"\n### {net}\n")
    print(
        "| model | p50: times faster than float | p10 | accuracy % | points lost | kB | ran int8 / float / between | ",
        end="",
    )
    print("int8 nodes that ran in float | made in s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, model in results.models.items():
        ran, lies = results.ran[name], results.lies[name]
        cells = (
            name,
            show(results.speedup[name]),
            f"{results.calm('float', name):.2f}",
            f"{results.accuracy[name]:.2f}",
            show(results.lost[name], "+.2f"),
            f"{model.path.stat().st_size / 1e3:.0f}",
            f"{ran['int8']} / {ran['float32']} / {ran.total() - ran['int8'] - ran['float32']}",
            "unknown" if lies is None else str(lies),
            f"{model.seconds:.0f}",
        )
        print("| " + " | ".join(cells) + " |")
    doubts(results)


def doubts(results: Results) -> None:
    """Prints what speaks against believing the numbers, and what could not be made."""
    far = [n for n in results.models if abs(np.log(results.speedup[n].value / results.calm("float", n))) > APART]
    if far:
        print(f"\n**Do not believe p50 here**: it is over {APART:.0%} off p10 for {', '.join(far)}; too much else ran.")
    for name, why in results.failed.items():
        print(f"\n{name} failed: {why}")
    for note in notes(results.measured):
        about_one = note.startswith(tuple(f"{name}:" for name in results.models))
        print(f"\n{note}", file=sys.stderr if about_one else sys.stdout)


def show(interval: Interval, form: str = ".2f") -> str:
    """A number with its interval."""
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


@dataclass(frozen=True)
class Goal:
    """What was wanted, what it is, and whether that will do; None: undecided. `must`: decides the exit code."""

    what: str
    found: str
    held: bool | None
    must: bool = False


def agreed(by_p50: bool, by_p10: bool) -> bool | None:
    """The verdict that both give."""
    return by_p50 if by_p50 == by_p10 else None


def goals(net: str, results: Results) -> Iterator[Goal]:
    """The goals that a network is held to. Judged by value, p50 and p10 alike; intervals are shown."""
    mine, peers = results.named("attar"), results.named("peer")
    for name, why in results.failed.items():
        if name.startswith("attar"):
            yield Goal(f"{name} gives a model", why, False, must=True)
    if net in RESIDUAL:
        for name in mine:
            speed, calm = results.speedup[name], results.calm("float", name)
            held = agreed(speed.value >= FASTER, calm >= FASTER)
            what = f"{name} at least {FASTER:g} times faster than float"
            yield Goal(what, f"{show(speed)}, p10 {calm:.2f}", held, must=True)
        if set(BOTH) <= set(mine):
            apart, calm = results.ratio(*BOTH), results.calm(*BOTH)
            held = agreed(*(1 / (1 + ALIKE) <= value <= 1 + ALIKE for value in (apart.value, calm)))
            what = f"both engines within {ALIKE:.0%} of each other"
            yield Goal(what, f"{show(apart, '.3f')}, p10 {calm:.3f}", held, must=True)
    if peers:
        fastest = min(peers, key=lambda name: results.calm(name, "float"))
        best = max(peers, key=lambda name: results.accuracy[name])
        for name in mine:
            slower, calm = results.ratio(name, fastest), results.calm(name, fastest)
            what = f"{name} at most {SLOWER:.0%} slower than the fastest peer ({fastest})"
            held = agreed(slower.value <= 1 + SLOWER, calm <= 1 + SLOWER)
            yield Goal(what, f"{show(slower, '.3f')}, p10 {calm:.3f}", held)
            below = results.accuracy[best] - results.accuracy[name]
            what = f"{name} at most {WORSE:g} points below the most accurate peer ({best})"
            yield Goal(what, f"{below:+.2f}", below <= WORSE + 1e-9)


def verdicts(judged: Sequence[tuple[str, Goal]], column: str = "network") -> int:
    """Prints goals, each with what it is about; gives the exit code: 1 if one that must be held is missed, 4 if one is
    undecided."""
    print(f"\n### Goals\n\n| {column} | goal | found | |\n|---|---|---:|---|")
    for about, goal in judged:
        print(f"| {about} | {goal.what} | {goal.found} | {WORDS[goal.held]} |")
    must = {goal.held for _, goal in judged if goal.must}
    return 1 if False in must else 4 if None in must else 0


WORDS = {True: "held", False: "**missed**", None: "undecided: p50 and p10 disagree, the machine was busy"}
