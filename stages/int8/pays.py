"""Latency decides too: what int8 does not make faster on the target goes back to float, and an int8 network that is
slower than float is not shipped.

    for each run of operators that seems slower in int8 (`stages.int8.slower`), the dearest first:
        place the graph anew with the run in float, measure it in turns with the best so far
        faster, beyond what noise explains? then it is the best     (accuracy is looked at again)
    measure the best in turns with the float network: slower? then the float network stays

Ratios are taken in turns and judged by their intervals; what is undecided is measured for longer, within a bound. That
int8 is not always faster, and where it is not, is seen only on the hardware: so does NetAdapt judge every cut of a
network (Yang et al., ECCV 2018, arXiv:1804.03230), and HAQ every bit width (Wang et al., CVPR 2019, arXiv:1811.08886).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from stages import graph
from stages.int8.bench import Attempt, Bench
from stages.int8.correction import redone
from stages.int8.slower import slower_nodes, written
from targets.devices import Device
from targets.errors import StageError
from targets.measure import connect, race
from targets.samples import Measured
from targets.statistics import Interval, paired_ratio
from targets.target import Meter, Target, unlike

__all__ = ["fastest", "pays", "slower_nodes"]

_METER = Meter(samples=400, blocks=10, max_seconds=5, warmup_s=0.1, energy_s=0)
_MARGIN = 1.01  # times faster that a trial must be, with its whole interval: less is not worth a change of the graph
_TIE = 1.02  # below, two graphs are as fast as each other
_FINE = 0.01  # width of an interval that need not be narrower
_TRIALS = 6
_EXAMPLES = 8
_SHOWN = 3  # names of nodes in a note


def _silent(_: str) -> None: ...


def pays(bench: Bench, best: Attempt, device: Device | None = None) -> tuple[Attempt | None, list[str]]:
    """Puts operators back to float where the whole graph measures faster, and the whole graph where int8 never pays.

    Trials stop when `bench.seconds_left` would not last for another one; the last comparison is made in any case.

    Args:
        best: the int8 graph to start from.
        device: instead of the target's own.

    Returns:
        The graph to ship, None where the float network is the faster one; and notes for the report.

    Raises:
        DeviceError: the device did not answer, or its runtime refused a graph.
    """
    target, say = bench.context.target, bench.context.say
    if target is None:
        return best, []
    device = connect(target) if device is None else device
    if note := _no_proxy(target, device):
        return best, [note]
    track = _Track(target, next(bench.batches())[:_EXAMPLES], device, say)
    best, notes = _climb(bench, best, track)
    assert bench.candidate.onnx is not None
    unchanged = graph.read(bench.candidate.onnx)
    chosen, told = fastest([best], unchanged, target, track.sample, device, say)
    return (None, told) if chosen is None else (best, [*notes, *told])


def fastest(
    attempts: Sequence[Attempt],
    float_model: ModelProto,
    target: Target,
    sample: NDArray[np.float32],
    device: Device | None = None,
    say: Callable[[str], None] = _silent,
) -> tuple[int | None, list[str]]:
    """Which of several int8 graphs is the fastest on the target, all and the float one measured in turns.

    Args:
        attempts: at least one; of graphs that are as fast as each other, the first is taken.
        sample: (k, *input shape), real inputs.

    Returns:
        Its number, None where all are slower than float; and notes for the report.

    Raises:
        DeviceError: the device did not answer, or its runtime refused a graph.
    """
    device = connect(target) if device is None else device
    if note := _no_proxy(target, device):
        return 0, [note]
    names = [str(number) for number in range(len(attempts))]

    def undecided(found: Measured) -> bool:
        chosen = _chosen(found, names)
        if chosen is None:
            return False
        others = [_ratio(found, chosen, name) for name in names[int(chosen) + 1 :]]
        return _wide(_ratio(found, "float", chosen), 1.0) or any(_wide(r, 1.0) and r.high > _TIE for r in others)

    models = {"float": float_model, **{name: attempts[int(name)].int8 for name in names}}
    found = _Track(target, sample, device, say).race(models, undecided)
    chosen = _chosen(found, names)
    if chosen is None:
        best = max((_ratio(found, "float", name) for name in names), key=lambda ratio: ratio.value)
        told = f"int8 does not pay on this network: {best.value:.2f} times the float's speed {_between(best)}"
        return None, [f"{told}; the float network is kept"]
    notes = [f"int8 is {_times(_ratio(found, 'float', chosen))} than float"]
    if int(chosen):
        ratio = _ratio(found, "0", chosen)
        notes.append(f"{attempts[int(chosen)].title}: {_times(ratio)} than {attempts[0].title}")
    return int(chosen), notes


def _chosen(found: Measured, names: Sequence[str]) -> str | None:
    """The first of those that are not slower than float; a later one only where it is faster by more than a tie."""
    best = None
    for name in names:
        if _ratio(found, "float", name).high >= 1 and (best is None or _beats(_ratio(found, best, name))):
            best = name
    return best


def _wide(ratio: Interval, limit: float) -> bool:
    """It does not tell on which side of a limit it is, and could be narrower."""
    return ratio.low <= limit < ratio.high and ratio.high - ratio.low > _FINE


def _beats(ratio: Interval) -> bool:
    return ratio.low > 1 and ratio.value > _TIE


@dataclass(frozen=True)
class _Track:
    """Where graphs race. The target's own meter is for a verdict; one graph against another takes less."""

    target: Target
    sample: NDArray[np.float32]
    device: Device
    say: Callable[[str], None]

    @property
    def short(self) -> Target:
        """The target with a meter for races."""
        return self.target.model_copy(update={"meter": _METER})

    def race(self, models: Mapping[str, ModelProto], undecided: Callable[[Measured], bool]) -> Measured:
        """Latencies in turns."""
        with written(models) as paths:
            return race(self.short, paths, self.sample, say=self.say, device=self.device, undecided=undecided)

    def faster(self, best: ModelProto, trial: ModelProto) -> Interval:
        """How many times faster a trial is; measured until all of that is above the margin or below, or time is up. A
        gain must show in two processes: where memory happens to lie changes times by some percent too (Mytkowicz et
        al., "Producing wrong data without doing anything obviously wrong!", ASPLOS 2009)."""

        def undecided(found: Measured) -> bool:
            ratio = _ratio(found, "best", "trial")
            once = len(found.models["best"].latency_ms) <= _METER.blocks
            return _wide(ratio, _MARGIN) or (ratio.low > _MARGIN and once)

        return _ratio(self.race({"best": best, "trial": trial}, undecided), "best", "trial")


def _climb(bench: Bench, best: Attempt, track: _Track) -> tuple[Attempt, list[str]]:
    """The best after all trials; and notes for the report."""
    if bench.seconds_left() <= 0:
        return best, ["no time was left to look for operators that do not pay in int8"]
    runs = slower_nodes(best.setup.model, best.int8, track.short, track.sample, track.device, track.say)
    left = [nodes for nodes, _ in runs[:_TRIALS]]
    close: list[frozenset[str]] = []  # each too little to tell, but perhaps not all together
    notes, took = [], 0.0
    while left and bench.seconds_left() > took:
        started, nodes = time.monotonic(), left.pop(0)
        ratio, found = _trial(bench, best, nodes, track)
        took = time.monotonic() - started
        if found is not None:
            notes.append(f"{_named(best, nodes)} float: {_times(ratio)} so")
            best = found
        elif ratio.low <= _MARGIN and ratio.value > 1:
            close.append(nodes)
        if not left and len(close) > 1:
            left, close = [frozenset().union(*close)], []
    if left:
        notes.append(f"{len(left)} more operators, or runs of them, may not pay in int8: no time was left to try them")
    return best, notes


def _trial(bench: Bench, best: Attempt, nodes: frozenset[str], track: _Track) -> tuple[Interval, Attempt | None]:
    """How many times faster the graph is with these nodes in float too; and the attempt, where that is enough and
    accuracy holds."""
    setup = redone(bench, best.setup, lambda setup: replace(setup, exclude=setup.exclude | nodes))
    title = f"{best.title}, {_named(best, nodes)} float"
    nothing = Interval(1.0, 1.0, 1.0)
    try:
        int8 = bench.place(setup)
        if not graph.tally(int8).int8:
            return nothing, None  # it would be the float network, which is compared anyway
        ratio = track.faster(best.int8, int8)
        if ratio.low <= _MARGIN:
            return ratio, None
        found = bench.attempt(title, setup)
    except StageError as error:
        track.say(f"{title}: {error}")
        return nothing, None
    if found.score.accuracy < best.score.accuracy and not bench.enough(found.score):
        track.say(f"{title}: {_times(ratio)}, but accuracy does not hold")
        return ratio, None
    return ratio, found


def _ratio(found: Measured, baseline: str, name: str) -> Interval:
    """How many times faster a model is than another. Without blocks enough to tell, anything is possible."""
    models = found.models
    ratio = paired_ratio(models[baseline].latency_ms, models[name].latency_ms, _METER.confidence)
    return ratio or Interval(1.0, 0.0, float("inf"))


def _no_proxy(target: Target, device: Device) -> str:
    """Why times on the device say nothing about the target; empty where they do."""
    identity = device.identity()
    why = unlike(target, identity["machine"], identity["flags"])
    return f"whether int8 pays was not measured: {why}" if why else ""


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.2f} times faster {_between(ratio)}"


def _between(ratio: Interval) -> str:
    return f"({ratio.low:.2f} to {ratio.high:.2f})"


def _named(best: Attempt, nodes: frozenset[str]) -> str:
    """Nodes in the graph's order, with a verb."""
    names = [node.name for node in best.setup.model.graph.node if node.name in nodes]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more + (" stays" if len(names) == 1 else " stay")
