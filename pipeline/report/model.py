"""The report of one run, as data. Everything that is shown (terminal, JSON, Markdown, HTML) is made from this alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from targets.budget import Measurement, Verdict
from targets.documents import Frozen

__all__ = ["CandidateRow", "CheckRow", "Number", "Payback", "Report", "Spent", "StepRow", "TargetRow", "numbers"]


class Number(Frozen):
    """A measurement as it is written: the value, its interval, and what stands behind it."""

    value: float
    low: float
    high: float
    samples: int
    instrument: str


def numbers(measured: Mapping[str, Measurement]) -> dict[str, Number]:
    """Measurements as they are written, by metric."""
    return {name: Number(**{k: v for k, v in asdict(m).items() if k != "metric"}) for name, m in measured.items()}


class Spent(Frozen):
    """What computing took on the machine that did it; `joules` is None and `instrument` empty where it is not known."""

    joules: float | None = None
    instrument: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Payback(Frozen):
    """After how many inferences a compression has saved the energy that it took (None: never, or without end)."""

    spent: Spent
    inferences: float | None
    low: float | None
    high: float | None
    saved_mj: float
    instrument: str


class CheckRow(Frozen):
    """One limit of the budget and whether it holds."""

    metric: str
    limit: float
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    note: str = ""


class CandidateRow(Frozen):
    """One candidate on one target: chosen or not, and why. Accuracy is on the validation split.

    `findings` are what the target's runtime did that the file does not say: nodes on another provider, int8 in float.
    """

    target: str
    name: str
    chosen: bool
    verdict: Verdict
    reason: str
    measured: dict[str, Number]
    sha256: str
    findings: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()


class TargetRow(Frozen):
    """The verdict on one target. Accuracy in `checks` and in `test` is on the test split.

    `artifact` is the folder of the shipped model, relative to the report; empty when nothing was shipped.
    `confidence` is the level of the intervals (0.95), where known. `payback` sets all steps but the teacher's training
    against what the chosen model saves; None where the energy of either is not known. `predicted`: what a prune to the
    budget said that the chosen one will cost, by metric; `trials`: why it was tried again, or not.
    """

    target: str
    summary: str
    verdict: Verdict
    chosen: str
    artifact: str
    checks: tuple[CheckRow, ...]
    test: dict[str, Number]
    baseline: dict[str, Number]
    merge: dict[str, Any] | None
    environment: dict[str, Any]
    confidence: float | None = None
    payback: Payback | None = None
    predicted: dict[str, float] = Field(default_factory=dict)
    trials: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where the model lies, shipped or not, relative to the report."""
        return self.artifact or f"{self.target}/not-shipped"


class StepRow(Frozen):
    """What one step cost and changed. `seconds` is what it took when it was computed, be it in an earlier run."""

    key: str
    title: str
    stage: str
    stored: bool
    seconds: float
    changed: bool
    notes: tuple[str, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)
    energy: Spent = Spent()


class Report(Frozen):
    """One run, whole. The verdict is the worst of its targets'."""

    version: Literal[1] = 1
    attar: str
    name: str
    verdict: Verdict
    error: str = ""
    recipe: dict[str, Any]
    data: dict[str, Any]
    targets: tuple[TargetRow, ...]
    candidates: tuple[CandidateRow, ...]
    steps: tuple[StepRow, ...]
    seconds: float
    frame_seconds: float
    libraries: dict[str, str]

    @property
    def frame_share(self) -> float:
        """Share of the run that was not training, calibration, export or measuring."""
        return self.frame_seconds / self.seconds if self.seconds else 0.0
