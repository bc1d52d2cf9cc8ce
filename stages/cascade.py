"""Cascade: two exported networks become one graph, in which the small one answers where it is sure.

Both run on validation; the threshold follows from their answers; the joined graph is proven equal to them. How sure a
network is shows in the margin between its two largest logits (`stages.joined`). Answering by confidence: Wang et al.,
"IDK Cascades", UAI 2018; when that is enough: Jitkrittum et al., NeurIPS 2023.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import graph, joined
from stages.base import Candidate, Context, Step
from stages.data import Split
from stages.graph import Floats
from stages.settings import CascadeConfig
from targets.errors import StageError

__all__ = ["Cut", "cascade", "cut"]

_BATCH = 64
_TOLERANCE = 1e-4  # of the largest logit, as an export has


@dataclass(frozen=True)
class Cut:
    """Where to ask the large network.

    Attributes:
        threshold: it answers where the small one's margin is below.
        asked: number of examples that it answers, of those that the cut was chosen on.
        right: examples that the two answer rightly together.
    """

    threshold: float
    asked: int
    right: int


def cut(margins: Floats, small_right: NDArray[np.bool_], large_right: NDArray[np.bool_], drop_points: float) -> Cut:
    """The cut down to which the small network may answer, from its surest example on, while at most `drop_points` of
    the large one's accuracy are lost.

    It stops where more is lost for the first time: of the cuts behind that, those that hold do so by luck. It lies
    halfway between two margins that occurred: a number that another batch size rounds in another way
    stays on its side.

    Args:
        margins: (n,), of the small network.
        small_right, large_right: (n,), whether each answers rightly.
        drop_points: percentage points.
    """
    n = len(margins)
    order = np.argsort(-margins, kind="stable")
    sorted_margins = margins[order].astype(np.float64)
    gained = np.concatenate([[0], np.cumsum(small_right[order].astype(int) - large_right[order].astype(int))])
    apart = np.concatenate([[True], sorted_margins[:-1] > sorted_margins[1:], [True]])  # equal ones go together
    lost = np.flatnonzero(apart & (gained < -drop_points / 100 * n - 1e-9))
    held = apart & (np.arange(n + 1) < (lost[0] if len(lost) else n + 1))
    taken = int(np.flatnonzero(held)[-1])
    if taken == n:
        threshold = np.float32(sorted_margins[-1] / 2)
    elif taken == 0:
        threshold = np.float32(2 * sorted_margins[0] + 1)
    else:
        low, high = sorted_margins[taken], sorted_margins[taken - 1]
        threshold = np.float32((low + high) / 2)
        threshold = threshold if low < threshold else np.float32(high)  # neighbours among float32 numbers
    return Cut(float(threshold), n - taken, int(large_right.sum()) + int(gained[taken]))


def cascade(candidate: Candidate, config: CascadeConfig, context: Context) -> Candidate:
    """Writes one `model.onnx`: the small network (`context.others[0]`), and this one where that is not sure.

    The threshold is chosen on the validation split: the small network answers from its surest example on, until more
    than `config.drop_points` of the large one's accuracy there are lost. If it may answer none, the large one's file is
    the result, and the step says that nothing changed. Where the recipe names neither of the two, the smaller file is
    the small network.

    There is no torch network of a cascade: the result has no `weights`, and no further stage takes it.

    Raises:
        StageError: there is no second network, the two do not fit each other, or the joined graph answers otherwise
            than its parts.
    """
    if len(context.others) != 1:
        raise StageError(f"cascade joins two networks, and got {len(context.others)} beside {candidate.name}")
    other, validation = context.others[0], context.data.validation
    if not (config.small or config.large) and _file(candidate).stat().st_size < _file(other).stat().st_size:
        candidate, other = other, candidate
    small_file, large_file = _file(other), _file(candidate)
    _check(other, candidate, len(validation))
    small, large = graph.read(small_file), graph.read(large_file)
    joined.join(small, large, 0.0)  # a misfit is told before both run over the data

    context.progress(0.1, f"running {other.name} and {candidate.name} on validation")
    quick = _answers(small_file, validation)
    sound = _answers(large_file, validation)
    right = quick.argmax(1) == validation.labels, sound.argmax(1) == validation.labels
    margins = joined.margins(quick)
    found = cut(margins, right[0], right[1], config.drop_points)

    n, path = len(validation), context.out / "model.onnx"
    metrics = {
        "threshold": found.threshold,
        "large_share": found.asked / n,
        "small_validation_accuracy": float(right[0].mean()),
        "large_validation_accuracy": float(right[1].mean()),
        "validation_accuracy": found.right / n,
    }
    if found.asked == n:
        note = (
            f"no threshold is worth it: {other.name} errs where it is surest and {candidate.name} does not, by more "
            f"than {config.drop_points:g} points on validation"
        )
        shutil.copyfile(large_file, path)
        step = Step("cascade", changed=False, notes=(note,), metrics=metrics)
        return candidate.then(step, onnx=path, weights=graph.bring_weights(candidate, context.out))

    context.progress(0.7, "joining the graphs")
    graph.write(joined.join(small, large, found.threshold), path)
    expected = np.where(margins[:, None] < np.float32(found.threshold), sound, quick)
    _prove(path, validation, expected)
    metrics["size_mb"] = path.stat().st_size / 1e6
    return candidate.then(
        Step("cascade", notes=tuple(_told(other.name, candidate.name, found, right, config)), metrics=metrics),
        onnx=path,
        weights=None,
    )


def _told(
    small: str, large: str, found: Cut, right: tuple[NDArray[np.bool_], ...], config: CascadeConfig
) -> Iterator[str]:
    n = len(right[0])
    yield (
        f"{small} answers where its largest logit is at least {found.threshold:.6g} above the second; {large} answers "
        f"the rest: {found.asked} of {n} validation examples ({100 * found.asked / n:.1f} %)"
    )
    small_right, large_right = (100 * part.mean() for part in right)
    yield (
        f"accuracy on validation: {small} {small_right:.2f} %, {large} {large_right:.2f} %, together "
        f"{100 * found.right / n:.2f} % (at most {config.drop_points:g} points may be lost)"
    )
    if not found.asked:
        yield f"{small} alone holds the accuracy on validation: a cascade brings nothing but its size"


def _file(candidate: Candidate) -> Path:
    if candidate.onnx is None:
        raise StageError(f"cascade joins exported networks, and {candidate.name} is a torch one: export it first")
    return candidate.onnx


def _check(small: Candidate, large: Candidate, examples: int) -> None:
    if not examples:
        raise StageError("cascade chooses its threshold on validation examples, and there are none")
    ours, theirs = large.signature, small.signature
    for what, one, two in (
        ("inputs", theirs.input_shape, ours.input_shape),
        ("outputs", theirs.outputs, ours.outputs),
    ):
        if one != two:
            raise StageError(
                f"{small.name} and {large.name} cannot be joined: their {what} are {one} and {two}; a cascade takes "
                "two networks for one task and one data set"
            )
    if ours.outputs < 2:
        raise StageError(f"a cascade compares the two largest logits, and {large.name} gives only one")


def _answers(path: Path, split: Split) -> Floats:
    runner = graph.session(path)
    return np.concatenate([graph.predict(runner, inputs) for inputs, _ in split.batches(_BATCH)])


def _prove(path: Path, split: Split, expected: Floats) -> None:
    """The joined graph gives what its parts gave, also where batches mix sure and unsure examples."""
    off, most = np.abs(_answers(path, split) - expected), float(np.abs(expected).max())
    if not off.max() <= _TOLERANCE * most:
        worst = int(off.max(1).argmax())
        raise StageError(
            f"the joined graph differs from its parts by {off.max():.3g} on validation example {worst}; allowed is "
            f"{_TOLERANCE:g} of the largest logit {most:.3g}"
        )
