"""Gates that catch silent lies: nodes that ran elsewhere than asked, and int8 nodes that ran in float. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from targets.operator_rows import FLOATS, Operator, operators
from targets.source_graph import Source, read

__all__ = ["Finding", "Gates", "findings", "gates", "node_counts"]


@dataclass(frozen=True)
class Finding:
    """Something that a reader would not expect from the numbers alone.

    Attributes:
        kind: "fallback": ran on another provider; "float_int8": int8 in the file, float when it ran; "unseen": int8
            in the file, and the runtime does not show what became of it; "slower": than a float model beside it.
        what: a sentence, without the nodes' names.
        nodes: as the file calls them, where that can be told; else as the runtime does.
    """

    kind: Literal["fallback", "float_int8", "unseen", "slower"]
    what: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gates:
    """What the gates saw. The numbers are those that a budget can limit; None: it cannot be told, which is not 0."""

    fallback_nodes: int | None
    float_int8_nodes: int | None
    findings: tuple[Finding, ...]


def gates(source: Source, ran: Sequence[Operator], provider: str, assignment: Mapping[str, int] | None = None) -> Gates:
    """Looks for nodes that ran elsewhere than asked, and for int8 nodes that ran in float.

    Args:
        ran: as `targets.operator_rows.operators` gives it; empty: the model was not run under the profiler.
        provider: the one that the target asks for.
        assignment: how many of the model's nodes each provider took, where the runtime tells. It counts the nodes
            before they were fused; without it, executed operators are counted.
    """
    strays, fallback = _fallback(ran, provider, assignment)
    int8, lies = _in_float(source, ran)
    return Gates(strays, int8, (*fallback, *lies))


def findings(
    model: Path, provider: str, answer: Mapping[str, Any] | None, assignment: Mapping[str, int] | None = None
) -> tuple[Finding, ...]:
    """The findings for an ONNX file; `answer` is "operators" of the probe's answer, None where it was not asked."""
    return _gates_of(model, provider, answer, assignment).findings


def node_counts(
    model: Path, provider: str, answer: Mapping[str, Any] | None, assignment: Mapping[str, int] | None = None
) -> dict[str, int | None]:
    """`fallback_nodes` and `float_int8_nodes`, as a budget limits them; None where it cannot be told."""
    seen = _gates_of(model, provider, answer, assignment)
    return {"fallback_nodes": seen.fallback_nodes, "float_int8_nodes": seen.float_int8_nodes}


def _gates_of(
    model: Path, provider: str, answer: Mapping[str, Any] | None, assignment: Mapping[str, int] | None
) -> Gates:
    source = read(model)
    ran = operators(source, answer, 0.95) if answer else ()
    return gates(source, ran, provider, assignment)


def _fallback(
    ran: Sequence[Operator], provider: str, assignment: Mapping[str, int] | None
) -> tuple[int | None, tuple[Finding, ...]]:
    placed = [op for op in ran if op.provider]
    if not placed and not assignment:
        return None, ()
    strays = [op for op in placed if op.provider != provider]
    by_provider: dict[str, int] = {}
    for op in strays:
        by_provider[op.provider] = by_provider.get(op.provider, 0) + 1
    total = len(placed)
    if assignment:
        by_provider = {name: count for name, count in assignment.items() if name != provider and count}
        total = sum(assignment.values())
    count = sum(by_provider.values())
    if not count:
        return 0, ()
    where = ", ".join(f"{n} on {name}" for name, n in by_provider.items())
    share = sum(op.share for op in strays)
    spent = f", which took {100 * share:.0f} % of the time" if strays else ""
    what = f"{count} of {total} nodes did not run on {provider}: {where}{spent}"
    return count, (Finding("fallback", what, tuple(map(_called, strays))),)


def _in_float(source: Source, ran: Sequence[Operator]) -> tuple[int | None, tuple[Finding, ...]]:
    meant = source.quantized
    if not meant:
        return 0, ()
    if not ran:
        return None, ()
    became = {op.source: op for op in ran if op.source is not None}
    unseen = [node for node in meant if node not in became]
    lies = [op for node in meant if (op := became.get(node)) is not None and op.precision in FLOATS]
    told = []
    if lies:
        share = sum(op.share for op in lies)
        what = f"{len(lies)} of {len(meant)} int8 nodes ran in float: {100 * share:.0f} % of the time"
        told.append(Finding("float_int8", what, tuple(map(_called, lies))))
    taken = {op.source.branch for op in ran if op.source is not None}
    asleep = [node for node in unseen if node.branch and node.branch not in taken]
    if asleep:
        what = (
            f"{len(asleep)} of {len(meant)} int8 nodes lie in a branch that no input took, so whether they run in int8 "
            "is not known"
        )
        told.append(Finding("unseen", what, tuple(node.name or node.op_type for node in asleep)))
    if unseen := [node for node in unseen if node not in asleep]:
        what = (
            f"{len(unseen)} of {len(meant)} int8 nodes cannot be found among what ran, so whether they ran in int8 is "
            "not known: the runtime joined them with others, or they have no names"
        )
        told.append(Finding("unseen", what, tuple(node.name or node.op_type for node in unseen)))
    return None if unseen or asleep else len(lies), tuple(told)


def _called(op: Operator) -> str:
    return (op.source.name if op.source else "") or op.name
