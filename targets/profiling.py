"""Profiles models on a target: any inputs, in turns, with their operators; and sweeps over batches and threads.

`profile` is the part that touches the device. What it brings back is turned into numbers by `targets.samples`,
`targets.operator_rows`, `targets.operators` and `targets.hints`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets import artifact
from targets.artifact import Artifact
from targets.devices import Device, Workspace
from targets.errors import Fault, InputError
from targets.inputs import Given, Inputs, made, names_known, open_axes, shown
from targets.measure import check_runtime, connect, job_for, time_limit_s
from targets.samples import Measured, Samples
from targets.target import Target

__all__ = ["DEFAULT_SECONDS", "Profiled", "Sweep", "profile"]

DEFAULT_SECONDS = 4.0
_SAMPLES = 3000  # latencies of a model that is fast enough: plenty for p99
_MOST_SAMPLES = 100_000  # with more seconds than usual, as many more: what a report can still carry
_SWEEP_SAMPLES = 300
_WARMUP_S = 0.1  # the probe goes on, up to ten times as long, until times have settled
_ENERGY_S = 1.0  # for each model: enough for three windows of a counter
_MOST_CELLS = 64


@dataclass(frozen=True)
class Sweep:
    """One setting of a sweep. Block i of every model was taken in the same round.

    Attributes:
        latency_ms: blocks of latencies by model, of runs of `batch` inferences.
    """

    batch: int
    threads: int
    latency_ms: Mapping[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True)
class Profiled:
    """What was observed.

    Attributes:
        artifacts: the files, by the models' names.
        measured: samples at the first batch and number of threads.
        sweeps: every setting that was asked for, the first one too; empty where there was only one.
        shapes: of what each model was fed with at the first batch, by input.
        batch, threads: the first setting.
        settings: of the meter, as they were used.
    """

    artifacts: Mapping[str, Artifact]
    measured: Measured
    sweeps: tuple[Sweep, ...]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    batch: int
    threads: int
    settings: Mapping[str, Any]


def _silent(_: str) -> None: ...


def profile(
    target: Target,
    models: Mapping[str, Path],
    known: Given | None = None,
    *,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    seconds: float = DEFAULT_SECONDS,
    say: Callable[[str], None] = _silent,
    device: Device | None = None,
) -> Profiled:
    """Measures models in turns on the target's device, with their operators under the runtime's profiler.

    Args:
        models: ONNX files by name.
        known: shapes or arrays of inputs; see `targets.inputs`.
        batches: sizes of a first axis that the models leave open; empty: 1, or what `known` says.
        threads: for one inference; empty: the target's.
        seconds: of measuring latencies, over all models; each further setting of a sweep gets a quarter of it. With
            more than the default, more latencies are taken.
        say: tells a person one sentence.
        device: instead of the target's own; for tests, or to keep one that is connected already.

    Raises:
        InputError: a file is no sound model, needs inputs that nobody gave, or is newer than the device's runtime.
        DeviceError: the device did not answer, or its runtime refused a model.
    """
    found = {name: artifact.load(path, batched=False) for name, path in models.items()}
    known = known or {}
    names_known(found.values(), known)
    sizes: list[int | None] = [*batches] or [None]
    counts = [*threads] or [target.runtime.threads]
    if len(sizes) * len(counts) > _MOST_CELLS:
        raise InputError(f"{len(sizes)} batches times {len(counts)} threads are more than {_MOST_CELLS} settings")
    if batches:
        _check_batches(found, batches)
    feeds = {size: {name: made(model, known, size) for name, model in found.items()} for size in sizes}
    device = connect(target) if device is None else device
    check_runtime(found.values(), device)
    samples = min(_MOST_SAMPLES, max(_SAMPLES, round(_SAMPLES * seconds / DEFAULT_SECONDS)))
    base = _tuned(target, counts[0], seconds / len(models), samples)
    with device.open(say) as workspace, tempfile.TemporaryDirectory(prefix="attar-") as folder:
        bench = _Bench(workspace, Path(folder), found, target.runtime.fixed_shapes)
        jobs = bench.jobs(feeds[sizes[0]])
        say(f"measuring {_named(list(models))} on {target.name}")
        measured = _base(base, bench, jobs)
        sweeps = []
        for size in sizes:
            for count in counts:
                if (size, count) == (sizes[0], counts[0]):
                    latencies = {name: samples.latency_ms for name, samples in measured.models.items()}
                else:
                    say(f"measuring batch {size or 1}, threads {count}")
                    short = _tuned(target, count, seconds / 4 / len(models), _SWEEP_SAMPLES)
                    answer = bench.run(short, bench.jobs(feeds[size]), ["latency"])
                    latencies = {name: Samples.of(row, 0).latency_ms for name, row in answer["models"].items()}
                sweeps.append(Sweep(size or _fed(found, feeds[size]), count, latencies))
    shapes = {name: {i: a.shape for i, a in arrays.items()} for name, arrays in feeds[sizes[0]].items()}
    settings = {"seconds": seconds, "runtime": base.runtime.model_dump(), "meter": base.meter.model_dump()}
    several = tuple(sweeps) if len(sweeps) > 1 else ()
    return Profiled(found, measured, several, shapes, sweeps[0].batch, counts[0], settings)


class _Bench:
    """Models and arrays in a workspace; each is put there once."""

    def __init__(self, workspace: Workspace, folder: Path, models: Mapping[str, Artifact], fixed: bool) -> None:
        self.workspace, self.folder, self.models, self._fixed = workspace, folder, models, fixed
        self.files: dict[str, str] = {}
        self._arrays: dict[tuple[str, str, tuple[int, ...]], str] = {}
        for number, (name, model) in enumerate(models.items()):
            self.files[name] = f"model{number}.onnx"
            workspace.put(model.path, self.files[name])

    def jobs(self, feeds: Mapping[str, Inputs]) -> dict[str, Any]:
        """The job's "models" for these arrays."""
        return {
            name: {
                "file": self.files[name],
                "inputs": {value: self._file(value, array) for value, array in arrays.items()},
                "whole": True,
                "axes": self._axes(name, arrays),
            }
            for name, arrays in feeds.items()
        }

    def _axes(self, name: str, arrays: Inputs) -> dict[str, int]:
        shapes = {value: array.shape for value, array in arrays.items()}
        return open_axes(self.models[name], shapes) if self._fixed else {}

    def _file(self, value: str, array: NDArray[Any]) -> str:
        """Models that call an input alike, with one type and shape, are fed the same numbers."""
        key = value, str(array.dtype), array.shape
        if key not in self._arrays:
            self._arrays[key] = f"input{len(self._arrays)}.npy"
            np.save(self.folder / self._arrays[key], array)
            self.workspace.put(self.folder / self._arrays[key], self._arrays[key])
        return self._arrays[key]

    def run(self, target: Target, jobs: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
        """The probe's answer."""
        job = {**job_for(target), "tasks": list(tasks), "models": dict(jobs)}
        return self.workspace.run(job, time_limit_s(target, len(jobs)))


def _base(target: Target, bench: _Bench, jobs: Mapping[str, Any]) -> Measured:
    """All that there is to know at the first setting."""
    tasks = ["session", "latency", "operators"] + ["energy"] * (target.meter.energy_s > 0)
    answer = bench.run(target, jobs, tasks)
    rows = {}
    for name, one in jobs.items():
        alone = bench.run(target, {name: one}, ["memory"])
        memory = (alone["models"][name]["peak_memory_mb"],)
        rows[name] = Samples.of(answer["models"][name], bench.models[name].size_bytes, memory)
    return Measured({"device": target.device, "target": target.name, **answer["environment"]}, rows)


def _tuned(target: Target, threads: int, max_seconds: float, samples: int) -> Target:
    """The target with a meter for a profile: bounded, whatever its own one takes for a verdict."""
    meter = target.meter.model_copy(
        update={
            "samples": samples,
            "max_seconds": max_seconds,
            "warmup_s": min(target.meter.warmup_s, _WARMUP_S),
            "energy_s": min(target.meter.energy_s, _ENERGY_S),
        }
    )
    return target.model_copy(update={"meter": meter, "runtime": target.runtime.model_copy(update={"threads": threads})})


def _check_batches(models: Mapping[str, Artifact], batches: Sequence[int]) -> None:
    faults = []
    for name, model in models.items():
        if any(value.shape and isinstance(value.shape[0], str) for value in model.inputs):
            continue
        shapes = ", ".join(f"{value.name} {shown(value.shape)}" for value in model.inputs)
        fixed = {value.shape[0] for value in model.inputs if value.shape}
        if any(batch not in fixed for batch in batches):
            what = f"fixes the batch in its inputs ({shapes}): --batch cannot change it"
            faults.append(Fault(f"{name} {what}", file=str(model.path), help="export it with a dynamic batch axis"))
    if faults:
        raise InputError(faults)


def _fed(models: Mapping[str, Artifact], feeds: Mapping[str, Inputs]) -> int:
    """Inferences in one run: the size of a first axis that a model leaves open, else 1."""
    for name, model in models.items():
        for value in model.inputs:
            if value.shape and isinstance(value.shape[0], str):
                return len(feeds[name][value.name])
    return 1


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} models in turns"
