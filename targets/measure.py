"""Measures models on a target: the part that touches the device. What came back is turned into numbers with intervals
in `targets.samples`, and outputs into accuracy in `targets.accuracy`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets import artifact, probe
from targets.devices import Device, Workspace
from targets.devices.local import LocalDevice
from targets.devices.ssh import SshDevice
from targets.errors import Fault, InputError
from targets.hardware import beyond
from targets.inputs import open_axes
from targets.samples import PERCENTILES, Measured, Samples, notes
from targets.statistics import samples_needed
from targets.target import Target

__all__ = ["DEVICES", "check_runtime", "connect", "job_for", "measure", "outputs", "race", "time_limit_s"]

DEVICES: Mapping[str, Callable[[Target], Device]] = {"local": LocalDevice, "ssh": SshDevice}
"""By the scheme of `Target.device`."""

_MEMORY_RUNS = 3
_CIRCLES = 3
_START_S = 300.0  # for a slow device to start Python, import the runtime and create sessions


def connect(target: Target) -> Device:
    """The device that a target names. Nothing is reached yet."""
    return DEVICES[target.device.partition(":")[0]](target)


def job_for(target: Target) -> dict[str, Any]:
    """What every job for a target says, in the form of `targets.probe`: runtime, meter, where energy is read."""
    return {
        "version": probe.VERSION,
        "runtime": target.runtime.model_dump(),
        "meter": target.meter.model_dump(),
        "energy": {**target.energy.model_dump(), "provider": target.runtime.provider},
    }


def check_runtime(models: Iterable[artifact.Artifact], device: Device) -> None:
    """Refuses models that a device's onnxruntime is known to be too old for.

    Raises:
        InputError: a model's opset or IR version is above what that version is documented to take.
    """
    runtime, faults = device.identity()["onnxruntime"], []
    for model in models:
        if found := beyond(runtime, model.opset, model.ir_version):
            what, got, most = found
            told = f"uses {what} {got}, and the device's onnxruntime {runtime} takes at most {most}"
            help = f"export it with {what} {most} or below, or update onnxruntime there"
            faults.append(Fault(told, file=str(model.path), help=help))
    if faults:
        raise InputError(faults)


def time_limit_s(target: Target, models: int) -> float:
    """Seconds after which a probe that measures so many models is taken for lost."""
    meter = target.meter
    return _START_S + models * (4 * meter.max_seconds + 20 * meter.warmup_s + 2 * meter.energy_s)


def samples_for(target: Target) -> int:
    """Latencies to take at least: the meter's, or more where the budget limits a percentile that needs more."""
    limited = [q for metric, q in PERCENTILES.items() if getattr(target.budget, metric, None) is not None]
    return max([target.meter.samples, *(samples_needed(q, target.meter.confidence) for q in limited)])


def _silent(_: str) -> None: ...


def _decided(_: Measured) -> bool:
    return False


def measure(
    target: Target,
    models: Mapping[str, Path],
    sample: NDArray[np.float32],
    say: Callable[[str], None] = _silent,
    device: Device | None = None,
    undecided: Callable[[Measured], bool] = _decided,
) -> Measured:
    """Measures models in turns on the target's device: all that `targets.probe` can say about them but their outputs.

    Takes `meter.samples` latencies of each model (more where the budget limits a percentile that needs more, and three
    on each input where a model's time depends on it). While
    they decide nothing, goes on sampling, twice as many each time, in a fresh process each time; all within
    `meter.max_seconds` for each model.

    Args:
        models: ONNX files by name.
        sample: (k, *input shape), real inputs; what a model computes can depend on them.
        say: tells a person one sentence.
        device: instead of the target's own; for tests, or to keep one that is connected already.
        undecided: whether more latencies could still turn a verdict.

    Raises:
        InputError: a file is no sound artifact, or does not take these inputs.
        DeviceError: the device did not answer, or its runtime refused a model.
    """
    found = {name: _checked(path, sample, batch_one=True) for name, path in models.items()}
    job, meter = job_for(target), target.meter
    job["meter"]["samples"] = samples_for(target)
    _in_circles(job, found.values(), len(sample))
    tasks = ["session", "latency", "throughput", "operators"] + ["energy"] * (meter.energy_s > 0)
    timeout_s = time_limit_s(target, len(models))
    device = connect(target) if device is None else device
    check_runtime(found.values(), device)
    with _laid_out(target, device, models, found, sample, say) as (workspace, jobs):
        what = "1 model" if len(models) == 1 else f"{len(models)} models in turns"
        say(f"measuring {what} on {target.name}, {job['meter']['samples']} latencies each")
        answer = workspace.run({**job, "tasks": tasks, "models": jobs}, timeout_s)
        memory: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_MEMORY_RUNS):
            for name, one in jobs.items():
                alone = workspace.run({**job, "tasks": ["memory"], "models": {name: one}}, timeout_s)
                memory[name].append(alone["models"][name]["peak_memory_mb"])
        got = {
            name: Samples.of(row, found[name].size_bytes, tuple(memory[name])) for name, row in answer["models"].items()
        }
        measured = Measured({"device": target.device, "target": target.name, **answer["environment"]}, got)
        measured = _longer(measured, job, jobs, workspace, timeout_s, undecided, say)
    if told := notes(measured):
        measured.environment["notes"] = told
    return measured


def race(
    target: Target,
    models: Mapping[str, Path],
    sample: NDArray[np.float32],
    *,
    operators: bool = False,
    say: Callable[[str], None] = _silent,
    device: Device | None = None,
    undecided: Callable[[Measured], bool] = _decided,
) -> Measured:
    """Which of some models is the faster: their latencies in turns and nothing else, by the target's meter.

    Args:
        operators: whether to run them under the runtime's profiler too.
        models, sample, say, device, undecided: as for `measure`.

    Raises:
        InputError: a file is no sound artifact, or does not take these inputs.
        DeviceError: the device did not answer, or its runtime refused a model.
    """
    found = {name: _checked(path, sample, batch_one=True) for name, path in models.items()}
    job, timeout_s = job_for(target), time_limit_s(target, len(models))
    _in_circles(job, found.values(), len(sample))
    device = connect(target) if device is None else device
    check_runtime(found.values(), device)
    with _laid_out(target, device, models, found, sample, say) as (workspace, jobs):
        tasks = ["latency"] + ["operators"] * operators
        answer = workspace.run({**job, "tasks": tasks, "models": jobs}, timeout_s)
        got = {name: Samples.of(row, found[name].size_bytes) for name, row in answer["models"].items()}
        measured = Measured({"device": target.device, "target": target.name, **answer["environment"]}, got)
        return _longer(measured, job, jobs, workspace, timeout_s, undecided, say)


def _in_circles(job: dict[str, Any], models: Iterable[artifact.Artifact], inputs: int) -> None:
    """Where a model's time depends on the input, each one is taken several times, and all as often."""
    if any(model.branches for model in models):
        job["meter"]["samples"] = max(job["meter"]["samples"], _CIRCLES * inputs)


@contextmanager
def _laid_out(
    target: Target,
    device: Device,
    models: Mapping[str, Path],
    found: Mapping[str, artifact.Artifact],
    sample: NDArray[np.float32],
    say: Callable[[str], None],
) -> Iterator[tuple[Workspace, dict[str, Any]]]:
    """A workspace that holds models and their inputs, and the job's "models"."""
    with device.open(say) as workspace, tempfile.TemporaryDirectory(prefix="attar-") as folder:
        np.save(Path(folder) / "inputs.npy", sample)
        workspace.put(Path(folder) / "inputs.npy", "inputs.npy")
        jobs: dict[str, Any] = {}
        for number, (name, path) in enumerate(models.items()):
            workspace.put(path, f"model{number}.onnx")
            jobs[name] = _job_of(target, found[name], f"model{number}.onnx", sample.shape)
        yield workspace, jobs


def _longer(
    measured: Measured,
    job: dict[str, Any],
    jobs: Mapping[str, Any],
    workspace: Workspace,
    timeout_s: float,
    undecided: Callable[[Measured], bool],
    say: Callable[[str], None],
) -> Measured:
    """With more latencies, twice as many in each further round, while they decide nothing and there is time."""
    max_seconds = job["meter"]["max_seconds"]
    while (left_s := max_seconds - _seconds(measured)) > 0.1 * max_seconds and undecided(measured):
        job = job | {"meter": job["meter"] | {"samples": 2 * job["meter"]["samples"], "max_seconds": left_s}}
        say(f"not decided yet: {job['meter']['samples']} more latencies each")
        answer = workspace.run({**job, "tasks": ["latency"], "models": jobs}, timeout_s)
        got = {name: samples.more(answer["models"][name]) for name, samples in measured.models.items()}
        measured = Measured({**measured.environment, "after": answer["environment"].get("after", {})}, got)
    return measured


def _seconds(measured: Measured) -> float:
    """Time that latencies took so far, seconds per model."""
    spent = [sum(map(sum, samples.latency_ms)) / 1e3 for samples in measured.models.values()]
    return sum(spent) / len(spent)


def outputs(
    target: Target,
    models: Mapping[str, Path],
    inputs: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    device: Device | None = None,
    say: Callable[[str], None] = _silent,
) -> dict[str, NDArray[np.float32]]:
    """Runs models over many inputs in the target's own runtime, one after the other.

    Args:
        models: ONNX files by name; all take the same inputs.
        inputs: (n, *input shape), or batches of it; batches are written to disk as they come.

    Returns:
        By name: (n, classes), the model's first output.

    Raises:
        InputError: a file is no sound artifact, does not take these inputs, or gives no (n, classes).
        DeviceError: the device did not answer, or its runtime refused a model.
    """
    device = connect(target) if device is None else device
    answers: dict[str, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory(prefix="attar-") as folder:
        file, batches = Path(folder) / "inputs.npy", [inputs] if isinstance(inputs, np.ndarray) else inputs
        shape, found = _write_batches(file, models, batches)
        with device.open(say) as workspace:
            workspace.put(file, "inputs.npy")
            for name, path in models.items():
                workspace.put(path, "model.onnx")
                one = _job_of(target, found[name], "model.onnx", shape)
                job = {**job_for(target), "batch": 64, "tasks": ["outputs"], "models": {name: one}}
                answer = workspace.run(job, _START_S + shape[0])
                answers[name] = np.load(workspace.get(answer["models"][name]["outputs"]), allow_pickle=False)
    for name, got in answers.items():
        if got.ndim != 2:
            raise _fault(models[name], f"gives outputs of shape {got.shape}", "a classifier gives (batch, classes)")
    return answers


def _job_of(target: Target, model: artifact.Artifact, file: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The job's entry for a model of one input that is fed with examples from inputs.npy, which has this shape."""
    name = model.inputs[0].name
    axes = open_axes(model, {name: (1, *shape[1:])}) if target.runtime.fixed_shapes else {}
    return {"file": file, "inputs": {name: "inputs.npy"}, "axes": axes}


def _write_batches(
    path: Path, models: Mapping[str, Path], batches: Iterable[NDArray[np.float32]]
) -> tuple[tuple[int, ...], dict[str, artifact.Artifact]]:
    """One .npy file from many batches; gives its shape, and the models. Only one batch is in memory."""
    shape: tuple[int, ...] = ()
    found: dict[str, artifact.Artifact] = {}
    n = 0
    with path.open("wb") as file:
        for batch in batches:
            if not shape:
                found = {name: _checked(model, batch) for name, model in models.items()}
                shape = batch.shape[1:]
                _header(file, n, shape)
            elif batch.shape[1:] != shape:
                raise InputError(f"a batch has inputs of shape {batch.shape[1:]}, the first had {shape}")
            file.write(np.ascontiguousarray(batch, np.float32).tobytes())
            n += len(batch)
        if n == 0:
            raise InputError("there are no inputs to run the model on", help="give at least one example")
        file.seek(0)
        _header(file, n, shape)  # numpy leaves room for the first axis to grow
    return (n, *shape), found


def _header(file: Any, n: int, shape: tuple[int, ...]) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**description, "shape": (n, *shape)})


def _checked(path: Path, sample: NDArray[np.float32], *, batch_one: bool = False) -> artifact.Artifact:
    """The artifact, once it is sound and takes these inputs."""
    found = artifact.load(path)
    if len(found.inputs) != 1:
        names = ", ".join(value.name for value in found.inputs)
        raise _fault(path, f"has {len(found.inputs)} inputs ({names})", "models of one input can be judged")
    shape = found.inputs[0].shape
    fits = len(shape) == sample.ndim and all(
        want == got for want, got in zip(shape[1:], sample.shape[1:], strict=True) if isinstance(want, int)
    )
    if not fits or len(sample) == 0:
        what = f"takes inputs of shape ({', '.join(map(str, shape))}) and was given {sample.shape}"
        raise _fault(path, what, "the data's shape is set by the recipe's `data:` part")
    if batch_one and isinstance(shape[0], int) and shape[0] != 1:
        what = f"has its batch fixed to {shape[0]}; latency is measured at batch 1"
        raise _fault(path, what, "export it with a dynamic batch axis")
    return found


def _fault(path: Path, what: str, help: str) -> InputError:
    return InputError(Fault(what, file=str(path), help=help))
