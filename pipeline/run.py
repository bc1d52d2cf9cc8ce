"""One run, whole: from a recipe to the folder with the report and the artifacts. For `attar run` and for notebooks.

from pipeline.run import run
report = run("recipes/digits.yaml", out="runs/digits")
report.verdict                                                    # met, missed, inconclusive, failed
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from os import environ
from pathlib import Path

from pipeline import output
from pipeline.code import importable
from pipeline.events import Event, Events, log_to
from pipeline.plan import plan
from pipeline.preflight import preflight
from pipeline.recipe import load
from pipeline.report.model import Report
from pipeline.runner import Runner
from pipeline.store import Store
from targets.devices import Device
from targets.errors import AttarError, InputError
from targets.measure import connect

__all__ = ["default_store", "run"]


def default_store() -> Path:
    """`ATTAR_STORE`, or `.attar/store` in the current folder."""
    return Path(environ.get("ATTAR_STORE") or Path(".attar") / "store")


def run(
    path: Path | str,
    out: Path | str | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    store: Path | str | None = None,
    fresh: bool = False,
    listener: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Runs a recipe and judges what comes out.

    Args:
        path: the recipe file.
        out: the folder to leave everything in; default: runs/<recipe name>.
        overrides: dotted key -> value as YAML: {"stages.0.distill.epochs": "2"}.
        store: where finished steps are kept; default: see `default_store`.
        fresh: compute every step again, whatever is stored.
        listener: is told every event; see `pipeline.events`.

    Returns:
        The report. When a step broke, its verdict is `failed`, it stands in `<out>.partial`, and `out` is as it was.

    Raises:
        InputError: the recipe, its data or its model are unusable; nothing was written.
    """
    started = time.monotonic()
    recipe, document = load(path, overrides)
    base = document.folder
    laid = plan(recipe, base)
    kept = Store(Path(store or default_store()))
    looking = time.monotonic()
    devices: dict[str, Device] = {}
    if fresh or not all(kept.has(step.key) for step in laid.steps):
        preflight(recipe, document, lambda target: devices.setdefault(target.name, connect(target)))
    looked_seconds = time.monotonic() - looking
    out = Path(out or Path("runs") / recipe.name)
    folder = hashlib.sha256(str(out.absolute()).encode()).hexdigest()
    with kept.lock(f"out-{folder}", lambda: listener(Event("waiting", str(out)))), output.prepared(out) as partial:
        events = Events(listener, log_to(partial / "events.jsonl"))
        kept.on_spoiled = lambda key: events("spoiled", laid.title(key))
        runner = Runner(recipe, base, laid, kept, events, fresh, document, devices=devices)
        runner.other_seconds = looked_seconds
        try:
            with importable(base):
                outcomes = runner.run()
            report = output.report_of(runner, outcomes, document.text, time.monotonic() - started)
            output.write(partial, report, runner, outcomes)
            output.swap_in(partial, out)
        except InputError:
            raise
        except AttarError as error:
            report = output.failed(runner, str(error), document.text, time.monotonic() - started)
            output.write_report(partial, report)
        finally:
            kept.close()
    return report
