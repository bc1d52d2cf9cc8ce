"""Explores a recipe's `search.space`. For `attar search` and for notebooks.

    while trials and minutes last:
        ask         Optuna for settings that were not tried yet
        run         the recipe with them, through the store: equal steps of any two trials are one step
        measure     and choose, on validation
        tell        the drop in accuracy, the latency, the size where it is limited
    for each target:
        pick        by the budget, among what the trials chose
        verdict     accuracy of the pick on test, once
    report

Everything that came of a trial lies in a journal beside the store, so that a killed search goes on where it stopped.
Latencies of two trials were taken at different times: Optuna is told how they stand to the float teacher's, which was
measured in turns with each.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pipeline import digests, output, search_report, space
from pipeline.code import importable
from pipeline.events import Event, Events, log_to
from pipeline.faults import check
from pipeline.judging import Judging, Outcome
from pipeline.optimizer import Asked, Study, require
from pipeline.plan import plan
from pipeline.preflight import preflight
from pipeline.recipe import Recipe, load
from pipeline.report.search_model import FoundRow, PickRow, Search, TrialRow
from pipeline.run import default_store
from pipeline.runner import Runner
from pipeline.store import Store
from targets.budget import Budget, worst
from targets.devices import Device
from targets.documents import Document
from targets.errors import AttarError, DeviceError, InputError
from targets.measure import connect
from targets.target import Target

__all__ = ["search"]

_LIBRARIES = ("attar", "numpy", "onnx", "onnxruntime", "optuna", "torch", "torch-pruning", "neural-compressor")


def search(
    path: Path | str,
    out: Path | str | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    store: Path | str | None = None,
    listener: Callable[[Event], None] = lambda event: None,
) -> Search:
    """Tries settings of a recipe's search space, and picks the best for each target.

    Args:
        path: the recipe file.
        out: the folder for the report; default: runs/<recipe name>-search.
        overrides: dotted key -> value as YAML, for all trials.
        trials, minutes: in place of the recipe's. Trials of earlier calls count, their minutes do not.
        store: where finished steps and the journal are kept; default: see `pipeline.run.default_store`.
        listener: is told every event; see `pipeline.events`.

    Returns:
        The report. Trials that broke are in it, with the reason.

    Raises:
        InputError: the recipe is unusable or has no search part, or Optuna is not installed; nothing was written.
        DeviceError: a device is gone.
    """
    started = time.monotonic()
    recipe, document = load(path, overrides)
    if recipe.search is None:
        raise InputError(f"{path} has no search part", help="state what to explore: `search: {space: ...}`")
    require()
    changed = {key: value for key, value in (("trials", trials), ("minutes", minutes)) if value is not None}
    spec = recipe.search.model_copy(update=changed)
    devices: dict[str, Device] = {}
    preflight(recipe, document, lambda target: devices.setdefault(target.name, connect(target)))
    kept, out = Store(Path(store or default_store())), Path(out or Path("runs") / f"{recipe.name}-search")
    folder = hashlib.sha256(str(out.absolute()).encode()).hexdigest()
    searcher = _Searcher(recipe, space.without_search(document), kept, devices, overrides or {})
    key = searcher.key(spec)
    try:
        with (
            kept.lock(f"out-{folder}", lambda: listener(Event("waiting", str(out)))),
            kept.lock(f"search-{key}", lambda: listener(Event("waiting", "search"))),
            output.prepared(out, search_report.MARK) as partial,
            importable(document.folder),
        ):
            searcher.events = Events(listener, log_to(partial / "events.jsonl"))
            study = Study(kept.root / "searches" / f"{key}.jsonl", searcher.objectives, spec, recipe.seed)
            made = searcher.search(study)
            made = made.model_copy(update={"seconds": time.monotonic() - started})
            search_report.write(partial, made, key)
            output.swap_in(partial, out)
    finally:
        kept.close()
    return made


@dataclass
class _Searcher:
    """The loop. `document` is the recipe without its search part."""

    recipe: Recipe
    document: Document
    store: Store
    devices: dict[str, Device]
    overrides: Mapping[str, str]
    events: Events = Events()  # noqa: RUF009  nobody listens before the folder is there

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.recipe.resolved_targets(self.document.folder)

    @property
    def objectives(self) -> int:
        """How many numbers a trial gives: the size counts where a target limits it."""
        return 3 if any(target.budget.size_mb is not None for target in self.targets) else 2

    def key(self, spec: space.SearchSpec) -> str:
        """What makes two searches one: the space, and all that an outcome depends on beside the settings."""
        return digests.of_json(
            {
                "recipe": self.recipe.model_dump(mode="json", exclude={"search"}),
                "steps": [step.key for step in plan(self.recipe, self.document.folder).steps],
                "targets": [target.model_dump(mode="json") for target in self.targets],
                "machines": [self.devices[target.name].identity() for target in self.targets],
                "space": spec.model_dump(mode="json")["space"],
                "code": [digests.of_code(f"pipeline.{name}") for name in ("validate", "choose", "trials")],
                "libraries": digests.of_libraries(("numpy", "onnxruntime")),
            }
        )

    def search(self, study: Study) -> Search:
        """Trials until one of the bounds is reached, then the picks."""
        started, spec = time.monotonic(), study.spec
        trials = [TrialRow.model_validate(told) for told in study.told()]
        earlier = len(trials)
        while True:
            if len(trials) >= spec.trials:
                ended = f"all {spec.trials} trials are done"
                break
            if time.monotonic() - started > 60 * spec.minutes:
                ended = f"{spec.minutes:g} minutes were over"
                break
            asked = study.ask()
            if asked is None:
                ended = "nothing in the space is left to try"
                break
            trial, numbers = self._try(asked)
            study.tell(asked, numbers, trial.model_dump(mode="json"))
            trials.append(trial)
            self.events("note", trial.name, text=_told(trial))
        trials, best = search_report.ranked(trials, self.targets)
        picks = self._picks(trials, best)
        settings = self.recipe.model_dump(mode="json")
        return Search(
            attar=version("attar"),
            name=self.recipe.name,
            verdict=worst(pick.verdict for pick in picks) if len(picks) == len(self.targets) else "failed",
            recipe={"name": self.recipe.name, "text": self.document.text, "settings": settings},
            space=spec.model_dump(mode="json")["space"],
            sampler=study.sampler,
            ended=ended,
            earlier=earlier,
            targets=tuple(search_report.target_row(target, trials) for target in self.targets),
            trials=tuple(trials),
            picks=picks,
            seconds=0.0,
            libraries=digests.of_libraries(_LIBRARIES),
        )

    def _try(self, asked: Asked) -> tuple[TrialRow, list[float] | None]:
        """One trial. What keeps it from giving numbers is its reason."""
        started = time.monotonic()
        trial = TrialRow(number=asked.number, settings=dict(asked.settings), verdict="failed")
        self.events("note", trial.name, text=", ".join(f"{k}={v}" for k, v in space.as_sets(asked.settings).items()))
        runner: Runner | None = None
        found: tuple[FoundRow, ...] = ()
        reason = ""
        try:
            runner = self._runner(asked.settings)
            found = self._found(runner)
        except InputError as error:
            reason = "; ".join(": ".join(filter(None, (fault.key, fault.what))) for fault in error.faults)
        except AttarError as error:
            if isinstance(error, DeviceError):
                self._still_there(error)
            reason = str(error)
        done = runner.done if runner is not None else []
        stored = sum(step.stored for step in done)
        trial = trial.model_copy(
            update={
                "reason": reason,
                "found": found,
                "verdict": "failed" if reason else worst(row.verdict for row in found),
                "seconds": time.monotonic() - started,
                "stored": stored,
                "computed": len(done) - stored,
            }
        )
        return trial, self._numbers(found) if found else None

    def _runner(self, settings: Mapping[str, JsonValue]) -> Runner:
        document = self.document.override(space.as_sets(settings))
        recipe = check(document)
        laid = plan(recipe, document.folder)
        if not all(self.store.has(step.key) for step in laid.steps):
            preflight(recipe, document, lambda target: self.devices.setdefault(target.name, connect(target)))
        self.store.on_spoiled = lambda key: self.events("spoiled", laid.title(key))
        return Runner(recipe, document.folder, laid, self.store, self.events, document=document, devices=self.devices)

    def _found(self, runner: Runner) -> tuple[FoundRow, ...]:
        """Runs the recipe so far as measuring and choosing go: test is not looked at."""
        for step in runner.plan.steps:
            runner.step(step)
        judging = Judging(runner)
        return tuple(search_report.found(target, *judging.chosen(target.name)) for target in self.targets)

    def _still_there(self, error: DeviceError) -> None:
        """A model that a device refuses fails its trial; a device that is gone would fail all that follow."""
        for target in self.targets:
            try:
                connect(target).identity()
            except DeviceError:
                raise error from None

    def _numbers(self, found: Sequence[FoundRow]) -> list[float] | None:
        """What Optuna minimizes: the largest drop, the mean latency in those of the float teacher, the largest size."""
        budgets = {target.name: target.budget for target in self.targets}
        ratios = []
        for row in found:
            metric = _latency(budgets[row.target])
            if metric not in row.measured or metric not in row.baseline:
                return None
            ratios.append(row.measured[metric].value / row.baseline[metric].value)
        drop = max(row.measured["accuracy_drop_points"].value for row in found)
        numbers = [drop, math.prod(ratios) ** (1 / len(ratios)), max(row.measured["size_mb"].value for row in found)]
        return numbers[: self.objectives]

    def _picks(self, trials: Sequence[TrialRow], best: Mapping[str, int]) -> tuple[PickRow, ...]:
        """The best trial for each target, looked at on the test split once."""
        outcomes: dict[str, Outcome] = {}
        chosen = {name: next(trial for trial in trials if trial.number == number) for name, number in best.items()}
        for number in sorted(set(best.values())):
            names = [name for name in chosen if best[name] == number]
            runner = self._runner(chosen[names[0]].settings)
            for step in runner.plan.steps:
                runner.step(step)
            judging = Judging(runner)
            outcomes |= {name: judging.judge(name) for name in names}
        return tuple(
            search_report.pick(target, trial, outcomes[target.name], self._command(trial))
            for target in self.targets
            if (trial := chosen.get(target.name)) is not None
        )

    def _command(self, trial: TrialRow) -> str:
        return search_report.command(self.document.file, self.overrides, trial.settings)


def _latency(budget: Budget) -> str:
    """The mean where it is limited, else the median."""
    return "latency_mean_ms" if budget.latency_mean_ms is not None else "latency_p50_ms"


def _told(trial: TrialRow) -> str:
    """One line about a trial that ended."""
    if trial.reason:
        return f"failed: {trial.reason}"
    told: list[Any] = []
    for row in trial.found:
        p50 = row.measured.get("latency_p50_ms")
        shown = f"p50 {p50.value:.4g} ms" if p50 else "p50 unknown"
        told.append(f"{row.verdict} on {row.target}: {row.measured['accuracy_drop_points'].value:.2f} points, {shown}")
    return "; ".join(told)
