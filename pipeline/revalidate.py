"""Judges the artifact in a folder again, on its own target or another, and sets what is found beside its manifest.

"Is it still inside its budget after the runtime update?" The folder is one that `attar run` left; it is not changed.
The budget is the manifest's. Accuracy is taken on the examples that lie with the artifact, or on the whole test split
where the recipe is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline import evidence, reference
from pipeline.manifest import Manifest, of
from pipeline.report.model import CheckRow, Number, numbers
from pipeline.validate import (
    BASELINE,
    as_estimates,
    inputs_wanted,
    look,
    measured_rows,
    strange,
    strictly,
    turns_with_time,
)
from targets.accuracy import accuracy, accuracy_drop, agreement
from targets.artifact import load as load_model
from targets.budget import Measurement, Verdict, judge, worst
from targets.devices import Device
from targets.documents import Frozen
from targets.errors import Fault, InputError
from targets.measure import connect, measure, outputs
from targets.samples import Measured
from targets.target import Target, moved

__all__ = ["Revalidation", "revalidate"]


class Revalidation(Frozen):
    """An artifact judged again.

    Attributes:
        checks: against the manifest's budget, now. then: the checks of the manifest.
        measured, before: every number now, and in the manifest.
        changed: what differs in the environment, "onnxruntime: 1.30.0 -> 1.32.0".
        examples: what accuracy was taken on, in words.
    """

    version: Literal[1] = 1
    verdict: Verdict
    verdict_then: Verdict
    candidate: str
    target: str
    sha256: str
    checks: tuple[CheckRow, ...]
    then: tuple[CheckRow, ...]
    measured: dict[str, Number]
    before: dict[str, Number]
    findings: tuple[str, ...]
    changed: tuple[str, ...]
    examples: str
    confidence: float
    environment: dict[str, Any]
    raw: dict[str, Any] = Field(description="samples, as measurements.json has them")


def revalidate(
    folder: Path,
    target: Target | None = None,
    *,
    recipe: Path | None = None,
    against: Path | None = None,
    at: str = "",
    device: Device | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Revalidation:
    """Measures and judges an artifact again.

    Args:
        folder: holds model.onnx, manifest.json and reference.npz, as `attar run` leaves them for each target.
        target: where to judge it; None: the manifest's own target. Its budget is not used.
        recipe: the artifact's recipe: then accuracy is taken on the whole test split.
        at: the device's address, instead of the target's: "ssh://pi@board".
        against: the float model, to be measured in turns with the artifact; a limit on `speedup_p50` needs it.

    Raises:
        InputError: the folder is no artifact's, or was changed; the recipe's data are not those of the manifest.
        DeviceError: the device did not answer, or refused the model.
    """
    artifact = evidence.taken(folder)
    manifest = of(artifact)
    ours = (target or manifest.target).model_copy(update={"budget": manifest.target.budget})
    ours = moved(ours, at) if at else ours
    device = connect(ours) if device is None else device
    model = folder / evidence.MODEL
    kept = reference.parse(artifact.paper(reference.NAME), folder / reference.NAME)
    kept.fits(load_model(model), folder / reference.NAME)
    examples, found = _accuracy(ours, manifest, model, kept, recipe, device, say)
    models = {"artifact": model} | ({BASELINE: against} if against else {})
    confidence = ours.meter.confidence

    def undecided(measured: Measured) -> bool:
        now = measured_rows(measured, ours, strictly(confidence))["artifact"]
        return not other and any(map(turns_with_time, judge(ours.budget, now)))

    other = strange(ours, device)
    measured = measure(ours, models, kept.inputs[: inputs_wanted(models.values())], say, device, undecided)
    found = measured_rows(measured, ours, confidence)["artifact"] | found
    counts, told = look(model, ours, measured.models["artifact"], found)
    found |= counts
    if "speedup_p50" not in found and ours.budget.speedup_p50 is not None:
        told = [*told, "the speedup is taken beside the float model, in turns: give that with --against"]
    if other:
        say(f"{other}: what depends on the hardware is an estimate here, and meets no limit")
        found = as_estimates(found, other)
    checks = judge(ours.budget, found)
    return Revalidation(
        verdict=worst(check.verdict for check in checks),
        verdict_then=manifest.verdict,
        candidate=manifest.candidate,
        target=ours.name,
        sha256=manifest.model.sha256,
        checks=tuple(CheckRow(**asdict(check)) for check in checks),
        then=manifest.checks,
        measured=numbers(found),
        before={**manifest.measured, **manifest.test},
        findings=tuple(told),
        changed=_changed(manifest.environment, measured.environment),
        examples=examples,
        confidence=confidence,
        environment=measured.environment,
        raw=measured.to_json(),
    )


def _accuracy(
    target: Target,
    manifest: Manifest,
    model: Path,
    kept: reference.Reference,
    recipe: Path | None,
    device: Device,
    say: Callable[[str], None],
) -> tuple[str, dict[str, Measurement]]:
    """What accuracy was taken on, and accuracy, its loss, and agreement with the answers given when it was made."""
    confidence = target.meter.confidence
    k, n = len(kept.labels), len(kept.baseline_right)
    if recipe is None and k == 0:
        what = "holds no examples (data.reference was 0)"
        raise InputError(Fault(what, file=str(model.parent / reference.NAME), help="give the recipe with --recipe"))
    if recipe is None:
        examples = f"the {k:,} reference examples that lie with the artifact, of {n:,} test examples"
        ours, labels = outputs(target, {"artifact": model}, kept.inputs, device, say)["artifact"], kept.labels
    else:
        from pipeline.recipe import load
        from pipeline.splits import load_data

        loaded, document = load(recipe)
        data = load_data(loaded.data, document.folder, loaded.seed)
        if data.digest != manifest.data.digest:
            what = "its data are not those that the artifact was judged on (another digest)"
            raise InputError(Fault(what, "data", str(recipe), help="leave --recipe out to use the reference examples"))
        examples, labels = f"the whole test split, {n:,} examples", data.test.labels
        ours = outputs(target, {"artifact": model}, (x for x, _ in data.test.batches(64)), device, say)["artifact"]
    right, found = kept.baseline_right[: len(labels)], accuracy(ours, labels, confidence)
    theirs = np.zeros_like(ours)  # the float teacher's answers, as far as they were kept: right, or another class
    theirs[np.arange(len(labels)), np.where(right, labels, (labels + 1) % ours.shape[1])] = 1
    return examples, {
        "accuracy": found,
        "accuracy_drop_points": accuracy_drop(theirs, ours, labels, confidence),
        "parity_percent": agreement(kept.outputs, ours[:k], confidence),
    }


_COMPARED = ("onnxruntime", "numpy", "python", "platform", "providers", "cpu.model", "cpu.cores", "cpu.flags")


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between two environments, of what should not."""
    return tuple(
        f"{name}: {a} -> {b}" for name in _COMPARED if (a := _at(then, name)) != (b := _at(now, name)) and a is not None
    )


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
