"""The calibration set: what it looks like, and its digest. No torch here.

Post-training quantization is as good as the examples that its ranges come from: a class that is not among them, one
broken image, or too few of them, and ranges are wrong in a way that no later step tells. `examine` says so beforehand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from stages import graph
from stages.data import Split
from stages.graph import Floats
from stages.vendors.ort_quantizer import Ranges
from targets.errors import StageError

__all__ = ["CalibrationReport", "check_ranges", "examine"]

RARE = 0.25  # of an even share: a class with fewer examples is rare
FAR = 2.0  # times what nearly all examples reach: such a range costs all others one bit of eight
NEARLY_ALL = 0.98
SETTLED = 0.25  # share of a range that other examples may add to it
SHOWN = 3  # names in one note


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration set looks like.

    Attributes:
        class_counts: examples of each class.
        notes: sentences for the report, each about something that may spoil ranges; empty: nothing was found.
        digest: SHA-256 of the very inputs, whatever the batch size.
        ranges: smallest and largest number of every watched value, zero included; what min-max calibration gives.
    """

    examples: int
    class_counts: tuple[int, ...]
    notes: tuple[str, ...]
    digest: str
    ranges: Ranges = field(default_factory=dict)


def check_ranges(ranges: Ranges) -> None:
    """Refuses ranges that no scale can be made of, whichever engine they come from.

    Raises:
        StageError: one is NaN, infinite or upside down; the message names the first few.
    """
    wrong = [name for name, (low, high) in ranges.items() if not (math.isfinite(high - low) and low <= high)]
    if wrong:
        shown = ", ".join(f"{name!r} ({ranges[name][0]:g} to {ranges[name][1]:g})" for name in wrong[:SHOWN])
        raise StageError(f"no scale can be made of the ranges of {_some(len(wrong), 'value')}: {shown}")


def examine(
    split: Split, count: int, classes: Sequence[str] = (), model: ModelProto | None = None, size: int = 32
) -> CalibrationReport:
    """Looks at the first `count` examples of a split, which calibrate.

    Args:
        classes: their names; empty: as many as labels show.
        model: watch its values too, not only its input.
        size: examples in one go; see `memory.batch_size`.

    Raises:
        StageError: there are no examples, or one makes a value NaN or infinite; the message names both.
    """
    labels = split.labels[:count]
    if not len(labels):
        raise StageError("there are no training examples to calibrate with")
    names = list(classes) or [str(i) for i in range(int(labels.max()) + 1)]
    counts = tuple(np.bincount(labels, minlength=len(names)).tolist())
    digest = hashlib.sha256()
    values, low, high = _extremes(split, len(labels), model, size, digest)
    outliers, notes = _outliers(values, low, high)
    calm = np.setdiff1d(np.arange(len(labels)), outliers)
    few = (
        [f"{count} calibration examples were asked for and the training split has {len(split)}"]
        if count > len(split)
        else []
    )
    return CalibrationReport(
        len(labels),
        counts,
        (*few, *_balance(counts, names), *notes, *_coverage(values, low[calm], high[calm])),
        digest.hexdigest(),
        {name: (float(low[:, i].min()), float(high[:, i].max())) for i, name in enumerate(values)},
    )


def _extremes(
    split: Split, count: int, model: ModelProto | None, size: int, digest: hashlib._Hash
) -> tuple[list[str], Floats, Floats]:
    """(names of values, smallest number (examples, values), largest number), zero included. Feeds the digest."""
    names: list[str] = []
    rows: list[tuple[Floats, Floats]] = []
    for inputs, values in _watch(split, count, model, size):
        if not names:
            names = list(values)
            digest.update(f"float32 {count} {inputs.shape[1:]}\n".encode())
        digest.update(np.ascontiguousarray(inputs, "<f4").tobytes())
        low = np.stack([_per_example(value, len(inputs)).min(1, initial=0.0) for value in values.values()], 1)
        high = np.stack([_per_example(value, len(inputs)).max(1, initial=0.0) for value in values.values()], 1)
        values.clear()  # before the next batch is computed: half the memory
        bad = ~(np.isfinite(low) & np.isfinite(high))
        if bad.any():
            value = int(bad.any(0).argmax())  # the first in the graph: those after it follow from it
            example = sum(len(row[0]) for row in rows) + int(bad[:, value].argmax())
            raise StageError(
                f"value {names[value]!r} holds NaN or infinite numbers on calibration data (training example "
                f"{example}): no range can be found for it"
            )
        rows.append((low, high))
    return names, np.concatenate([low for low, _ in rows]), np.concatenate([high for _, high in rows])


def _watch(split: Split, count: int, model: ModelProto | None, size: int) -> Iterator[tuple[Floats, dict[str, Floats]]]:
    if model is None:
        for inputs, _ in split.batches(size, count):
            yield inputs, {"input": inputs}
        return
    seen, order = graph.watched(model)
    runner, source = graph.session(seen), seen.graph.input[0].name
    for inputs, _ in split.batches(size, count):
        yield inputs, {source: inputs, **dict(zip(order, runner.run(order, {source: inputs}), strict=True))}


def _per_example(value: Floats, batch: int) -> Floats:
    """(batch, numbers of one example). A value that is not made per example counts in full for each."""
    if value.size and value.ndim and value.shape[0] % batch == 0:
        return value.reshape(batch, -1)
    return np.broadcast_to(value.reshape(1, -1), (batch, value.size))


def _balance(counts: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    total, share = sum(counts), sum(counts) / len(counts)
    if total < len(counts):
        yield f"{total} calibration examples cannot hold all {len(counts)} classes: {counts.count(0)} have none"
        return
    if absent := [names[i] for i, n in enumerate(counts) if not n]:
        yield f"no calibration example is of {_listed('class', absent)}: their ranges are unknown"
    if rare := [f"{names[i]} ({n})" for i, n in enumerate(counts) if 0 < n < RARE * share]:
        yield f"few calibration examples are of {_listed('class', rare)}, where an even share is {share:.0f}"


def _outliers(values: Sequence[str], low: Floats, high: Floats) -> tuple[NDArray[np.intp], list[str]]:
    """Examples that reach far beyond the rest in some value, worst first; and a note on each of the worst."""
    reach = np.maximum(-low, high)
    usual = np.quantile(reach, NEARLY_ALL, axis=0, method="lower")
    times = np.divide(reach, usual, out=np.zeros_like(reach), where=usual > 0)
    worst = times.max(1)
    found = np.argsort(-worst, kind="stable")[: int((worst > FAR).sum())]
    notes = []
    for example in found[:SHOWN]:
        value = int(times[example].argmax())
        notes.append(
            f"calibration example {example} reaches {reach[example, value]:.3g} in value {values[value]!r}, "
            f"{times[example, value]:.1f} times what {NEARLY_ALL:.0%} of the examples reach "
            f"({_some(int((times[example] > FAR).sum()), 'value')} like this): is it a sound one?"
        )
    if len(found) > SHOWN:
        notes.append(f"{len(found)} of {len(reach)} calibration examples reach this far beyond the rest")
    return found, notes


def _coverage(values: Sequence[str], low: Floats, high: Floats) -> Iterator[str]:
    """Do examples of one half (every other one) go beyond the ranges of the other?"""
    if len(low) < 2:
        yield "one calibration example cannot show whether ranges hold for others: set quantize.samples higher"
        return
    least, most = low[::2].min(0), high[::2].max(0)
    beyond = np.maximum(least - low[1::2].min(0), high[1::2].max(0) - most)
    width = most - least
    share = np.divide(beyond, width, out=np.where(beyond > 0, np.inf, 0.0).astype(np.float32), where=width > 0)
    wide = np.argsort(-share, kind="stable")[: int((share > SETTLED).sum())]
    if len(wide):
        shown = ", ".join(
            f"{values[i]!r} by {share[i]:.0%}" if np.isfinite(share[i]) else f"{values[i]!r} from zero"
            for i in wide[:SHOWN]
        )
        yield (
            f"ranges have not settled: half of the {len(low)} calibration examples go beyond the ranges of the other "
            f"half in {len(wide)} of {len(values)} values, most in {shown}; a larger quantize.samples would help"
        )


def _listed(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    plural = {"class": "classes"}.get(kind, f"{kind}s") if len(names) > 1 else kind
    return f"{plural} {', '.join(names[:SHOWN])}{more}"


def _some(count: int, kind: str) -> str:
    return f"{count} {kind}{'' if count == 1 else 's'}"
