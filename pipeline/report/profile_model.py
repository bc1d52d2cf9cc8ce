"""A profile as data. Everything that is shown of it (terminal, JSON, CSV, HTML) is made from this alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.report.model import Number
from targets.documents import Frozen

__all__ = ["FindingRow", "HintRow", "ModelRow", "OperatorRow", "Profile", "ProfilerRow", "SweepRow"]


class OperatorRow(Frozen):
    """One executed operator; see `targets.operator_rows.Operator`. `node` is the file's own name, where it is known."""

    name: str
    node: str
    op_type: str
    provider: str
    precision: str
    us: float
    us_low: float
    us_high: float
    profiled_us: float
    share: float
    macs: int | None
    bytes: int
    gmacs_per_s: float | None
    macs_per_byte: float | None


class ProfilerRow(Frozen):
    """The runs under the runtime's profiler: how many, how long (median), what it added to each operator."""

    runs: int
    run_us: float
    added_us: float


class FindingRow(Frozen):
    """See `targets.operators.Finding`."""

    kind: str
    what: str
    nodes: tuple[str, ...] = ()


class HintRow(Frozen):
    """See `targets.hints.Hint`."""

    kind: str
    what: str
    do: str
    share: float
    nodes: tuple[str, ...] = ()


class ModelRow(Frozen):
    """One model.

    Attributes:
        inputs: shape of what it was fed with, by input.
        numbers: by metric.
        missing: why a number is not there, by metric.
        ratio: how many times as long its median latency is as the first model's, from paired blocks.
        placement: executed operators by provider. assignment: nodes of the file by provider, before they were fused.
        fallback_nodes, float_int8_nodes: what a budget can limit; None: it cannot be told.
        raw: samples as they came: blocks of latencies, session times, energy windows.
    """

    name: str
    file: str
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: dict[str, tuple[int, ...]]
    numbers: dict[str, Number]
    missing: dict[str, str]
    ratio: Number | None = None
    operators: tuple[OperatorRow, ...] = ()
    profiler: ProfilerRow | None = None
    placement: dict[str, int] = Field(default_factory=dict)
    assignment: dict[str, int] | None = None
    fallback_nodes: int | None = None
    float_int8_nodes: int | None = None
    findings: tuple[FindingRow, ...] = ()
    hints: tuple[HintRow, ...] = ()
    raw: dict[str, Any] = Field(default_factory=dict)


class SweepRow(Frozen):
    """One setting: the median latency of a run and inferences a second, by model; None where samples are too few."""

    batch: int
    threads: int
    latency_p50_ms: dict[str, Number | None]
    throughput_per_s: dict[str, Number | None]
    raw: dict[str, tuple[tuple[float, ...], ...]] = Field(default_factory=dict)


class Profile(Frozen):
    """One or more models on one target, measured in turns. Ratios are to the first."""

    version: Literal[1] = 1
    attar: str
    target: str
    summary: str
    device: str
    provider: str
    confidence: float
    batch: int
    threads: int
    models: tuple[ModelRow, ...]
    sweeps: tuple[SweepRow, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    settings: dict[str, Any]
    seconds: float
