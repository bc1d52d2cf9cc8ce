"""What every rung of the ladder works with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from stages import graph
from stages.base import Candidate, Context
from stages.graph import Floats
from stages.int8.calibration import check_ranges
from stages.int8.engines import by_neural_compressor
from stages.settings import QuantizeConfig
from stages.vendors import ort_quantizer
from stages.vendors.ort_quantizer import Method, Ranges
from targets.errors import StageError
from targets.statistics import paired_drop
from targets.target import Int8Rules

__all__ = ["Attempt", "Bench", "Engine", "Score", "Setup", "Try"]

Engine = Literal["onnxruntime", "neural_compressor"]

_NOTHING, _LITTLE = 0.1, 0.5  # points lost against the float candidate: worth no further rung; the same without a limit


@dataclass(frozen=True)
class Setup:
    """All that an int8 graph follows from.

    Attributes:
        model: the float graph as `ort_quantizer.fold` gives it, perhaps with other weights than the candidate's.
        ranges: for every float value of it.
        exclude: names of its nodes that stay float.
        notes: for the report.
        weights: of the torch twin, where they are no longer the candidate's.
        method: that found the ranges, and finds them anew where weights change.
        uncorrected: `model` as it was before its biases were corrected, if they were: they make good what other layers
            and ranges do, and have to be found anew where those change (`correction.redone`).
    """

    model: ModelProto
    ranges: Ranges
    exclude: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    weights: Path | None = None
    method: Method = "minmax"
    uncorrected: ModelProto | None = None


@dataclass(frozen=True)
class Score:
    """Accuracy on the validation split.

    Attributes:
        accuracy: share of right answers (0..1).
        drop_points: lost against the float teacher, percentage points; negative: gained. `drop_high`: the upper end of
            its interval.
        signal_to_noise_db: of the logits against the float candidate's.
        agreement: share of examples (0..1) with the same largest logit as the float candidate.
    """

    accuracy: float
    drop_points: float
    drop_high: float
    signal_to_noise_db: float
    agreement: float


@dataclass(frozen=True)
class Attempt:
    """One int8 graph that was made and scored. `seconds`: what making and scoring it took."""

    title: str
    setup: Setup
    int8: ModelProto
    score: Score
    seconds: float


@dataclass(frozen=True)
class Try:
    """Something to try. `title` is unique in the ladder; `make` does the work, and is not called for what a killed run
    had finished."""

    title: str
    make: Callable[[], Setup]


@dataclass
class Bench:
    """The float graph, and everything that is the same for all attempts.

    Attributes:
        folded: the candidate's graph as `ort_quantizer.fold` gives it.
        exclude: names of its nodes that stay float, by the recipe and by rule.
        batch_size: of calibration, within the memory cap; 0: the settings'.
        extremes: smallest and largest number of every value of `folded`, if they are known.
        seconds_left: how long the ladder may still take.
    """

    candidate: Candidate
    config: QuantizeConfig
    context: Context
    rules: Int8Rules
    folded: ModelProto
    op_types: tuple[str, ...]
    exclude: frozenset[str] = frozenset()
    batch_size: int = 0
    extremes: Ranges = field(default_factory=dict)
    seconds_left: Callable[[], float] = lambda: math.inf

    def batches(self) -> Iterator[Floats]:
        """Calibration inputs, (batch, *input shape) each; the same every time."""
        size = self.batch_size or self.config.batch_size
        for inputs, _ in self.context.data.train.batches(size, self.config.samples):
            yield inputs

    def setup(self, engine: Engine, method: Method) -> Setup:
        """The float graph as it is, with ranges by an engine and a calibration method.

        Raises:
            StageError: the engine cannot work on the network, or a value is not finite.
        """
        if engine == "onnxruntime":
            return Setup(self.folded, self.calibrated(self.folded, method), self.exclude, method=method)
        ranges, notes = by_neural_compressor(self.folded, self.candidate, self.batches, method, self.extremes)
        return Setup(self.folded, ranges, self.exclude, notes, method=method)

    def calibrated(self, model: ModelProto, method: Method = "minmax") -> Ranges:
        """Ranges of a float graph by onnxruntime."""
        return ort_quantizer.calibrate(model, self.batches, method, self.config.percentile)

    def _minmax(self) -> Ranges:
        self.extremes = self.extremes or self.calibrated(self.folded)
        return self.extremes

    def place(self, setup: Setup) -> ModelProto:
        """The int8 graph of a setup, by the target's rules.

        Raises:
            StageError: a range is not finite, or the quantizer failed.
        """
        check_ranges(setup.ranges)
        return ort_quantizer.place(setup.model, setup.ranges, self.rules, self.op_types, setup.exclude)

    def attempt(self, title: str, setup: Setup) -> Attempt:
        """Places and scores a setup."""
        started = time.monotonic()
        int8 = self.place(setup)
        return Attempt(title, setup, int8, self.score(int8), time.monotonic() - started)

    def score(self, model: ModelProto) -> Score:
        """Accuracy of a graph on the validation split.

        Raises:
            StageError: outputs are not finite.
        """
        ours = self.logits(model)
        if not np.isfinite(ours).all():
            raise StageError("the network gives NaN or infinite outputs on validation examples")
        right, before = ours.argmax(1) == self.labels, self.float_logits
        noise = float(np.square(before - ours, dtype=np.float64).sum())
        signal = float(np.square(before, dtype=np.float64).sum())
        ratio = 10 * math.log10(signal / noise) if signal and noise else 200.0  # 200 dB: no difference in 32 bits
        drop = paired_drop(self.teacher_right, right, self.confidence)
        agreement = float((ours.argmax(1) == before.argmax(1)).mean())
        return Score(float(right.mean()), drop.value, drop.high, round(ratio, 2), agreement)

    def enough(self, score: Score) -> bool:
        """Whether there is nothing left to gain: the limit holds with its whole interval, or next to nothing was lost
        against the float candidate (whose own loss no int8 graph can be asked to make good)."""
        limit = self.context.target.budget.accuracy_drop_points if self.context.target is not None else None
        lost = score.drop_points - self.float_score.drop_points
        return lost <= _NOTHING or (lost <= _LITTLE if limit is None else score.drop_high <= limit)

    def logits(self, model: ModelProto) -> Floats:
        """What a graph gives for the validation split, (n, classes), in onnxruntime on this machine's CPU."""
        runner = graph.session(model)
        batches = self.context.data.validation.batches(64)
        found = [graph.predict(runner, inputs) for inputs, _ in batches]
        if not found:
            raise StageError("the int8 network is compared with float on validation examples, and there are none")
        return np.concatenate(found)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Of the validation split, (n,)."""
        return self.context.data.validation.labels

    @cached_property
    def float_logits(self) -> Floats:
        """Of the float candidate, (n, classes)."""
        return self.logits(self.folded)

    @cached_property
    def float_score(self) -> Score:
        """Of the float candidate."""
        return self.score(self.folded)

    @cached_property
    def teacher_right(self) -> NDArray[np.bool_]:
        """Whether the float teacher is right, (n,); the float candidate where there is no teacher."""
        teacher = self.context.teacher
        if teacher is None:
            answers = self.float_logits
        elif teacher.onnx is not None:
            answers = self.logits(graph.read(teacher.onnx))
        else:
            from stages.network import build
            from stages.training import predict

            answers = predict(build(teacher), self.context.data.validation).numpy()
        right: NDArray[np.bool_] = answers.argmax(1) == self.labels
        return right

    @property
    def confidence(self) -> float:
        """Of intervals."""
        return self.context.target.meter.confidence if self.context.target is not None else 0.95
