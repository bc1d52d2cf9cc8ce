"""What each operator of a model takes, and which provider took it: from onnxruntime's own profiler.

The profiler slows every node by a few microseconds, so it runs in sessions of its own, never in one that is timed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from targets.probe.errors import ProbeError
from targets.probe.session import Model, create, told

__all__ = ["operators", "source_name", "summary"]

RUNS, LEAST_RUNS, MOST_SECONDS = 100, 5, 2.0
# onnxruntime drops what comes after 1,000,000 events; an event takes about a kilobyte of memory until it is written.
MOST_EVENTS = 100_000
# Nodes that run others: what these take is within their own time.
HOLDERS = {"If", "Loop", "Scan", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"}
# What onnxruntime's passes append to a node's name, and then to make it unique; see `source_name`.
_APPENDED = re.compile(r"(/MatMulAddFusion|/duplicated|_nchwc)*(_token_\d+)?$")
_SUFFIX = "_kernel_time"


def operators(
    model: Model, runtime: Mapping[str, Any], meter: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, int] | None]:
    """(what `summary` finds, number of nodes by provider before fusion or None where onnxruntime does not tell).

    Takes up to 100 runs: as many as fit into two seconds or a tenth of the model's time, and into `MOST_EVENTS`, five
    all the same unless memory forbids it.

    Raises:
        ProbeError: a run failed, or one run alone makes more events than the profiler holds.
    """
    try:
        with told(model.name, model.free_mb, "could not profile"):
            assignment, trace = _trace(model, runtime, 2, folder)
            look = list(_runs(trace))
            if len(look) < 2:
                raise ProbeError("two runs make more events than onnxruntime's profiler holds")
            events, run_s = len(look[-1].events) + 2, max(look[-1].us, 1) / 1e6
            seconds = min(MOST_SECONDS, meter["max_seconds"] / 10)
            fit = MOST_EVENTS // events
            runs = max(1, min(RUNS, max(LEAST_RUNS, int(seconds / run_s)), fit * 5 // 6))
            warmup = max(1, runs // 5)
            trace.unlink()
            _, trace = _trace(model, runtime, warmup + runs, folder)
            return summary(list(_runs(trace))[warmup:]), assignment
    finally:
        for left in folder.glob("trace_*.json"):
            left.unlink()


def _trace(model: Model, runtime: Mapping[str, Any], runs: int, folder: Path) -> tuple[dict[str, int] | None, Path]:
    """Runs a model under the profiler; (assignment, the profiler's file)."""
    config = {"session.record_ep_graph_assignment_info": "1"}
    session, _ = create(model.path, runtime, model.axes, config, trace=folder / "trace")
    assignment: dict[str, int] | None = None
    if hasattr(session, "get_provider_graph_assignment_info"):
        assignment = {}
        for part in session.get_provider_graph_assignment_info():
            assignment[part.ep_name] = assignment.get(part.ep_name, 0) + len(part.get_nodes())
    feeds = model.feeds.cycle(1)
    for _ in range(runs):
        session.run(None, next(feeds))
    return assignment, Path(session.end_profiling())


class Event(NamedTuple):
    """One node's kernel in one run."""

    start: int
    us: int
    name: str
    op_type: str
    provider: str
    number: str
    inputs: list[list[Any]]
    outputs: list[list[Any]]
    within: list[Event]


class Run(NamedTuple):
    """One run: its wall time, and its nodes in the order in which they ended."""

    us: int
    events: list[Event]


def _runs(trace: Path) -> Iterator[Run]:
    """The complete runs in a file of the profiler: a run is written after its nodes, and a node after those within."""
    events: list[Event] = []
    with trace.open(encoding="utf-8", errors="replace") as file:
        for line in file:  # one event a line: the whole would take ten times the file's size
            text = line.strip().rstrip(",")
            if not text.startswith("{"):
                continue
            record = json.loads(text)
            name, args = record.get("name", ""), record.get("args", {})
            if record.get("cat") == "Session" and name == "model_run":
                yield Run(record["dur"], events)
                events = []
            elif record.get("cat") == "Node" and name.endswith(_SUFFIX):
                events.append(
                    Event(
                        record["ts"],
                        record["dur"],
                        name[: -len(_SUFFIX)],
                        args.get("op_name", ""),
                        args.get("provider", ""),
                        args.get("node_index", ""),
                        _types(args.get("input_type_shape")),
                        _types(args.get("output_type_shape")),
                        [],
                    )
                )


def _types(found: Iterable[Mapping[str, Any]] | None) -> list[list[Any]]:
    """[{"float": [1, 3]}] -> [["float", [1, 3]]]."""
    return [[dtype, shape] for one in found or () for dtype, shape in one.items()]


def summary(runs: Iterable[Run]) -> dict[str, Any]:
    """Durations of each node over the runs; see `targets.probe` for the form.

    A node that ran several times within one run (in a loop) counts once, with the sum; one that did not run (in a
    branch) with 0. The time of nodes within another one is not counted twice: it is taken off the outer one.
    """
    nodes: dict[tuple[str, ...], dict[str, Any]] = {}
    run_us: list[int] = []
    for run in runs:
        for key, event in _flat(_nested(run.events), ()):
            node = nodes.get(key)
            if node is None:
                node = {"name": source_name(event.name), "op_type": event.op_type, "provider": event.provider}
                node = nodes[key] = {**node, "inputs": event.inputs, "outputs": event.outputs, "us": [], "ran": 0}
            took = node["us"]
            node["ran"] += len(took) <= len(run_us)
            took += [0] * (len(run_us) + 1 - len(took))
            took[-1] += _own_us(event)
        run_us.append(run.us)
    for node in nodes.values():
        node["us"] += [0] * (len(run_us) - len(node["us"]))
    return {"runs": len(run_us), "run_us": run_us, "nodes": list(nodes.values())}


def _own_us(event: Event) -> int:
    """What a node takes itself. Of one that runs others: before the first and after the last. The gaps in between are
    the runtime's and the profiler's, which in the main graph are nobody's either."""
    if not event.within:
        return event.us
    first, last = event.within[0], event.within[-1]
    return max(0, first.start - event.start) + max(0, event.start + event.us - last.start - last.us)


def _nested(events: Iterable[Event]) -> list[Event]:
    """Events in order of their end -> those of the main graph, each with what ran within it."""
    outer: list[Event] = []
    for event in events:
        if event.op_type in HOLDERS:
            first = len(outer)
            while first and outer[first - 1].start >= event.start:
                first -= 1
            event = event._replace(within=outer[first:])
            del outer[first:]
        outer.append(event)
    return outer


def _flat(events: Iterable[Event], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Event]]:
    """Each event with what tells its node from others; an outer node before those within it."""
    for event in events:
        key = (*above, event.name, event.op_type, event.number)
        yield key, event
        yield from _flat(event.within, key)


def source_name(name: str) -> str:
    """A node's name without what onnxruntime's passes appended: "conv1_nchwc_token_12" -> "conv1".

    What is left is the name that the node has in the file; or, of a convolution in a blocked layout, the name of the
    value that it makes; or, of a node without a name, its type and number ("MatMul_3").
    """
    return _APPENDED.sub("", name, count=1)
