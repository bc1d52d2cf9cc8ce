"""Profiles ONNX files on a target, whole: for notebooks and the command alike.

from pipeline.profile import profile

found = profile("model.onnx", against=["float.onnx"])
found.models[0].numbers["latency_p50_ms"].value
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.profile_rows import model_rows, sweep_row
from pipeline.report.profile_model import OperatorRow, Profile
from targets.devices import Device
from targets.errors import InputError
from targets.inputs import given
from targets.measure import connect
from targets.profiling import DEFAULT_SECONDS
from targets.profiling import profile as observe
from targets.samples import notes
from targets.target import Target, load, moved, unlike

__all__ = ["csv_text", "profile", "target_for"]


def _silent(_: str) -> None: ...


def target_for(use: str, device: str = "") -> Target:
    """A target by name or file, at another address if one is given.

    Raises:
        InputError: there is no such target, or the address is none.
    """
    target = load(use, Path.cwd())
    return moved(target, device) if device else target


def profile(
    model: Path | str,
    target: Target | str = "local",
    *,
    against: Sequence[Path | str] = (),
    inputs: Iterable[str] = (),
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    seconds: float = DEFAULT_SECONDS,
    say: Callable[[str], None] = _silent,
    device: Device | None = None,
) -> Profile:
    """Measures a model, and others beside it in turns, on a target.

    Args:
        model: an ONNX file.
        target: or its name, or the path of its .yaml file.
        against: more ONNX files.
        inputs: "name=1x3x224x224" or "name=file.npy" for inputs whose shapes the files leave open.
        batches, threads: every combination is measured; the first in full.
        seconds: of measuring latencies, over all models.
        say: tells a person one sentence.
        device: instead of the target's own; for tests.

    Raises:
        InputError: unusable input: a file, a shape, a target.
        DeviceError: the device did not answer, or its runtime refused a model.
    """
    started = time.perf_counter()
    target = target_for(target) if isinstance(target, str) else target
    for what, numbers, most in (("batch", batches, 65536), ("threads", threads, 1024)):
        if bad := [n for n in numbers if not 1 <= n <= most]:
            raise InputError(f"--{what} {bad[0]} must be at least 1 and at most {most}")
    if not 0.1 <= seconds <= 86_400:
        raise InputError(f"--seconds {seconds:g} must be at least 0.1 and at most 86400")
    known = given(inputs)
    device = connect(target) if device is None else device
    models = _names([Path(model), *map(Path, against)])
    seen = observe(
        target,
        models,
        known,
        batches=list(dict.fromkeys(batches)),
        threads=list(dict.fromkeys(threads)),
        seconds=seconds,
        say=say,
        device=device,
    )
    here = device.identity()
    other = unlike(target, str(here.get("machine", "")), here.get("flags", ()))
    told = [f"{other}: the numbers are this machine's, not {target.name}'s"] if other else []
    told += notes(seen.measured)
    told += [
        f"{name}: the graph branches (If, Loop); its numbers are those of the way that this one input takes"
        for name, model in seen.artifacts.items()
        if model.branches
    ]
    return Profile(
        attar=version("attar"),
        target=target.name,
        summary=target.summary,
        device=target.device,
        provider=target.runtime.provider,
        confidence=target.meter.confidence,
        batch=seen.batch,
        threads=seen.threads,
        models=model_rows(seen, target),
        sweeps=tuple(sweep_row(sweep, target.meter.confidence) for sweep in seen.sweeps),
        notes=tuple(told),
        environment=seen.measured.environment,
        settings=dict(seen.settings),
        seconds=round(time.perf_counter() - started, 3),
    )


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each file: its own, or its path where two files are called alike; numbered if that is not
    enough (the same file twice shows how well the machine repeats itself)."""
    alike = [path.name for path in paths]
    names: dict[str, Path] = {}
    for path in paths:
        base = path.name if alike.count(path.name) == 1 or paths.count(path) > 1 else str(path)
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base} ({number})"
        names[name] = path
    return names


def csv_text(found: Profile) -> str:
    """One line per operator of each model, in execution order. No cell can be taken for a spreadsheet's formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = list(OperatorRow.model_fields)
    writer.writerow(["model", *fields])
    for model in found.models:
        for op in model.operators:
            values = op.model_dump()
            writer.writerow([_plain(model.name), *(_plain(values[field]) for field in fields)])
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value
