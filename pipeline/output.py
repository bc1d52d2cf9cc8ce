"""What a run leaves behind: the folder that `attar run` writes.

    <out>/report.html  report.json  report.md        the verdict and all that led to it
    <out>/recipe.lock                                every step's key, settings, digests, library versions
    <out>/events.jsonl                               what happened, in order
    <out>/<target>/model.onnx                        the artifact, if the verdict is met
    <out>/<target>/manifest.json                     digests, lineage, budget, verdict, tool versions
    <out>/<target>/measurements.json                 raw samples and the environment they were taken in
    <out>/<target>/reference.npz                     a few test examples and the artifact's answers to them
    <out>/<target>/SHA256SUMS                        digests of these four
    <out>/<target>/not-shipped/...                   the same five for the nearest miss, if it is not met

The folder is built beside (`<out>.partial`) and swapped in whole: report and artifact always belong together, and what
an earlier run left stays until a new one is complete.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import digests, evidence, reference
from pipeline.judging import Outcome
from pipeline.recipe import Recipe
from pipeline.report import html, markdown, model
from pipeline.report.model import CandidateRow, CheckRow, Report, StepRow, TargetRow, numbers
from pipeline.runner import Runner
from pipeline.validate import BASELINE
from targets import artifact
from targets.budget import Measurement, worst
from targets.energy import Spent, payback, together
from targets.errors import InputError
from targets.files import write_atomically

__all__ = ["failed", "prepared", "report_of", "swap_in", "write"]

_LIBRARIES = ("attar", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "torch-pruning", "neural-compressor")
_TOOLS = (*_LIBRARIES, "pillow", "safetensors", "scikit-learn", "torchao", "transformers")


@contextmanager
def prepared(out: Path, mark: str = "recipe.lock") -> Iterator[Path]:
    """The empty folder beside `out` that takes the new files. Unusable input takes it away again; a kill leaves it.

    Args:
        mark: a file by which a folder is known as written by the same command.

    Raises:
        InputError: `out` exists and is not a folder that a run wrote (it will not be replaced), or cannot be written.
    """
    partial = out.parent / f"{out.name}.partial"
    for folder, known in ((out, mark), (partial, "events.jsonl")):
        ours = folder.is_dir() and ((folder / known).is_file() or not any(folder.iterdir()))
        if folder.exists() and not ours:
            raise InputError(f"{folder} exists and was not written by attar", help="give another folder with --out")
    if _old(out).exists() and not out.exists():  # a run was killed in the middle of `swap_in`
        _old(out).rename(out)
    ours = not partial.parent.exists()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}", help="give another folder with --out") from None
    try:
        yield partial
    except InputError:
        shutil.rmtree(partial, ignore_errors=True)
        if ours:
            with suppress(OSError):  # another run writes there too
                partial.parent.rmdir()
        raise


def swap_in(partial: Path, out: Path) -> None:
    """Puts the finished folder in the place of the old one."""
    old = _old(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.attar-old"


def report_of(runner: Runner, outcomes: Iterable[Outcome], recipe_text: str, seconds: float) -> Report:
    """The report of a finished run."""
    targets, candidates = [], []
    for outcome in outcomes:
        targets.append(_target_row(runner, outcome, [step.spent for step in runner.done if step.stage != "teacher"]))
        for ranked in outcome.choice.ranked:
            key = outcome.goal.candidates[ranked.name]
            candidates.append(
                CandidateRow(
                    target=outcome.goal.target.name,
                    name=ranked.name,
                    chosen=ranked.name == outcome.choice.chosen,
                    verdict=ranked.verdict,
                    reason=ranked.reason,
                    measured=numbers(outcome.measured[ranked.name]),
                    findings=outcome.findings[ranked.name],
                    sha256=runner.entry(key).files["model.onnx"],
                    lineage=tuple(step.title for step in runner.plan.lineage(key)),
                )
            )
    data: dict[str, Any] = next((s.entry.values["data"] for s in runner.done if "data" in s.entry.values), {})
    data = {"source": runner.recipe.data.source, **data}
    return Report(
        attar=version("attar"),
        name=runner.recipe.name,
        verdict=worst(row.verdict for row in targets),
        recipe=_recipe(runner.recipe, recipe_text),
        data=data,
        targets=tuple(targets),
        candidates=tuple(candidates),
        steps=_step_rows(runner),
        seconds=seconds,
        frame_seconds=max(0.0, seconds - runner.busy_seconds - runner.other_seconds),
        libraries=digests.of_libraries(_LIBRARIES),
    )


def failed(runner: Runner, error: str, recipe_text: str, seconds: float) -> Report:
    """The report of a run that broke: what was finished, and the error."""
    return report_of(runner, (), recipe_text, seconds).model_copy(update={"verdict": "failed", "error": error})


def write(folder: Path, report: Report, runner: Runner, outcomes: Iterable[Outcome]) -> None:
    """Writes everything but the event log into `folder`."""
    for outcome, row in zip(outcomes, report.targets, strict=True):
        _write_target(folder, report, row, runner, outcome)
    lock = {
        "version": 1,
        "recipe": report.recipe,
        "libraries": report.libraries,
        "steps": [_lock_step(runner, step.key) for step in runner.done],
    }
    write_atomically(folder / "recipe.lock", _json(lock))
    write_report(folder, report)


def write_report(folder: Path, report: Report) -> None:
    """Writes the report in its three forms."""
    write_atomically(folder / "report.html", html.render(report).encode())
    write_atomically(folder / "report.md", markdown.render(report).encode())
    write_atomically(folder / "report.json", _json(report.model_dump(mode="json")))


def _write_target(folder: Path, report: Report, row: TargetRow, runner: Runner, outcome: Outcome) -> None:
    """The artifact with its manifest and measurements, and the digests of all of it last."""
    into = folder / row.folder
    into.mkdir(parents=True)
    key = outcome.goal.candidates[outcome.choice.chosen]
    write_atomically(into / "model.onnx", runner.store.read(runner.entry(key), "model.onnx"))
    measurements = {"models": {n: _dump(m) for n, m in outcome.measured.items()}, "raw": outcome.raw}
    write_atomically(into / "measurements.json", _json(measurements))
    write_atomically(into / reference.NAME, outcome.reference)
    found = artifact.load(into / "model.onnx")
    manifest = {
        "version": 1,
        "attar": report.attar,
        "verdict": row.verdict,
        "shipped": bool(row.artifact),
        "target": outcome.goal.target.model_dump(mode="json"),
        "checks": [check.model_dump(mode="json") for check in row.checks],
        "model": {**asdict(found), "path": "model.onnx"},
        "test": {name: number.model_dump() for name, number in row.test.items()},
        "measured": {name: number.model_dump() for name, number in numbers(outcome.measured[row.chosen]).items()},
        "environment": row.environment,
        "files": {file.name: digests.of_file(file) for file in sorted(into.iterdir())},
        "candidate": outcome.choice.chosen,
        "lineage": [_lock_step(runner, step.key) for step in runner.plan.lineage(key)],
        "teacher": _teacher(runner),
        "baseline": {"name": BASELINE, "sha256": runner.entry(outcome.goal.baseline).files["model.onnx"]},
        "recipe": report.recipe,
        "data": report.data,
        "libraries": digests.of_libraries(_TOOLS),
        "made_on": {"python": platform.python_version(), "platform": platform.platform()},
        "sums": evidence.SUMS,
    }
    write_atomically(into / evidence.MANIFEST, _json(manifest))
    write_atomically(into / evidence.SUMS, evidence.sums(into))


def _teacher(runner: Runner) -> dict[str, Any]:
    """Where the teacher comes from, and digests of what it was when it taught: its weights, or its ONNX file."""
    made, model = next(step for step in runner.done if step.stage == "teacher"), runner.recipe.model
    return {"source": model.source, "weights": model.weights, "files": dict(made.entry.files)}


def _target_row(runner: Runner, outcome: Outcome, spent: Iterable[Spent]) -> TargetRow:
    target = outcome.goal.target
    verdict = worst(check.verdict for check in outcome.checks)
    return TargetRow(
        target=target.name,
        summary=target.summary,
        verdict=verdict,
        chosen=outcome.choice.chosen,
        artifact=target.name if verdict == "met" else "",
        checks=tuple(CheckRow(**asdict(check)) for check in outcome.checks),
        test=numbers(outcome.test),
        baseline=numbers(outcome.measured[BASELINE]),
        merge=dict(outcome.merge) if outcome.merge else None,
        environment=dict(outcome.raw["environment"]),
        confidence=target.meter.confidence,
        payback=_payback(together(spent), outcome.measured[BASELINE], outcome.measured[outcome.choice.chosen]),
        predicted=_predicted(runner, outcome),
        trials=outcome.trials,
    )


def _predicted(runner: Runner, outcome: Outcome) -> dict[str, float]:
    """What a prune to the budget said that the chosen candidate will cost."""
    found = {}
    for step in runner.plan.lineage(outcome.goal.candidates[outcome.choice.chosen]):
        for name, value in runner.entry(step.key).values.get("metrics", {}).items():
            if name.startswith("predicted_"):
                found[name.removeprefix("predicted_")] = value
    return found


def _payback(
    spent: Spent, baseline: Mapping[str, Measurement], chosen: Mapping[str, Measurement]
) -> model.Payback | None:
    if "energy_mj" not in baseline or "energy_mj" not in chosen:
        return None
    found = payback(spent, baseline["energy_mj"], chosen["energy_mj"])
    return None if found is None else model.Payback(spent=model.Spent(**spent.to_json()), **asdict(found))


def _step_rows(runner: Runner) -> tuple[StepRow, ...]:
    return tuple(
        StepRow(
            key=step.key,
            title=step.title,
            stage=step.stage,
            stored=step.stored,
            seconds=step.seconds,
            changed=step.entry.values.get("changed", True),
            notes=tuple(step.entry.values.get("notes", ())),
            metrics=step.entry.values.get("metrics", {}),
            energy=model.Spent(**step.spent.to_json()),
        )
        for step in runner.done
    )


def _recipe(recipe: Recipe, text: str) -> dict[str, Any]:
    """The recipe as it was typed, and the settings that held: defaults and --set included."""
    settings = recipe.model_dump(mode="json")
    return {"name": recipe.name, "digest": digests.of_json(settings), "text": text, "settings": settings}


def _lock_step(runner: Runner, key: str) -> dict[str, Any]:
    done = next(step for step in runner.done if step.key == key)
    planned = next((step for step in runner.plan.steps if step.key == key), None)
    config = planned.config if planned else None
    return {
        "title": done.title,
        "stage": done.stage,
        "key": key,
        "parents": list(planned.parents) if planned else [],
        "config": config.model_dump(mode="json") if config else None,
        "notes": list(done.entry.values.get("notes", ())),
        "files": dict(done.entry.files),
    }


def _dump(measured: Mapping[str, Measurement]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in measured.items()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
