"""Measures models on a target: asks its device, and turns raw samples into measurements with intervals.

`measure` and `outputs` touch the device; everything else here is arithmetic on what came back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets import artifact, probe
from targets.budget import Measurement
from targets.devices import Device
from targets.devices.local import LocalDevice
from targets.errors import DeviceError, Fault, InputError
from targets.statistics import (
    Interval,
    mean_interval,
    paired_drop,
    paired_ratio,
    quantile_interval,
    samples_needed,
    wilson,
)
from targets.target import Target

__all__ = [
    "DEVICES",
    "Measured",
    "Samples",
    "accuracy",
    "accuracy_drop",
    "identity",
    "measure",
    "measurements",
    "outputs",
]

DEVICES: Mapping[str, Callable[[], Device]] = {"local": LocalDevice}

_PERCENTILES = {"latency_p50_ms": 0.50, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
_MEMORY_RUNS = 3
_START_S = 300.0  # for a slow device to start Python, import the runtime and create sessions


@dataclass(frozen=True)
class Samples:
    """What was observed of one model. Block i of every model was taken in the same round.

    Attributes:
        latency_ms: blocks of single requests at batch 1.
        throughput_per_s: one rate per block.
        session_ms: time to create a session, one per creation.
        peak_memory_mb: most resident memory of a process that serves only this model, one per process (10^6 bytes).
    """

    latency_ms: tuple[tuple[float, ...], ...]
    throughput_per_s: tuple[float, ...]
    session_ms: tuple[float, ...]
    peak_memory_mb: tuple[float, ...]
    size_bytes: int


@dataclass(frozen=True)
class Measured:
    """Raw samples of several models that were measured together, and where."""

    environment: dict[str, Any]
    models: Mapping[str, Samples]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"environment": self.environment, "models": {name: asdict(s) for name, s in self.models.items()}}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`, also after a turn through JSON text."""
        models = {
            name: Samples(
                latency_ms=tuple(tuple(block) for block in s["latency_ms"]),
                throughput_per_s=tuple(s["throughput_per_s"]),
                session_ms=tuple(s["session_ms"]),
                peak_memory_mb=tuple(s["peak_memory_mb"]),
                size_bytes=s["size_bytes"],
            )
            for name, s in values["models"].items()
        }
        return Measured(dict(values["environment"]), models)


def _silent(_: str) -> None: ...


def identity(target: Target, device: Device | None = None) -> dict[str, Any]:
    """Which machine would measure: what must be equal for a stored measurement to stand for a new one."""
    return {"device": target.device, **_device(target, device).identity()}


def measure(
    target: Target,
    models: Mapping[str, Path],
    sample: NDArray[np.float32],
    say: Callable[[str], None] = _silent,
    device: Device | None = None,
) -> Measured:
    """Measures models in turns on the target's device: latency, throughput, session creation, memory, size.

    Takes `meter.samples` latencies of each model (more where the budget limits a percentile that needs more), within
    `meter.max_seconds` for each.

    Args:
        models: ONNX files by name.
        sample: (k, *input shape), real inputs; what a model computes can depend on them.
        say: tells a person one sentence.
        device: instead of the target's own; for tests.

    Raises:
        InputError: a file is no sound artifact, or does not take these inputs.
        DeviceError: the device did not answer, or its runtime refused a model.
    """
    sizes = {name: _checked(path, sample, batch_one=True).size_bytes for name, path in models.items()}
    files = {name: f"model{number}.onnx" for number, name in enumerate(models)}
    meter = target.meter.model_dump()
    for metric, q in _PERCENTILES.items():
        if getattr(target.budget, metric) is not None:
            meter["samples"] = max(meter["samples"], samples_needed(q, target.meter.confidence))
    job = {"version": probe.VERSION, "inputs": "inputs.npy", "runtime": target.runtime.model_dump(), "meter": meter}
    timeout_s = _START_S + len(models) * (4 * target.meter.max_seconds + 10 * target.meter.warmup_s)
    with _device(target, device).open() as workspace, tempfile.TemporaryDirectory(prefix="attar-") as folder:
        np.save(Path(folder) / "inputs.npy", sample)
        workspace.put(Path(folder) / "inputs.npy", "inputs.npy")
        for name, path in models.items():
            workspace.put(path, files[name])
        say(f"measuring {len(models)} models in turns on {target.name}, {meter['samples']} latencies each")
        answer = workspace.run(
            {**job, "tasks": ["session", "latency", "throughput"], "models": files}, timeout_s=timeout_s
        )
        memory: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_MEMORY_RUNS):
            for name, file in files.items():
                alone = workspace.run({**job, "tasks": ["memory"], "models": {name: file}}, timeout_s=timeout_s)
                memory[name].append(alone["models"][name]["peak_memory_mb"])
    environment = {"device": target.device, "target": target.name, **answer["environment"]}
    busy = _busy(environment)
    if busy:
        say(busy)
        environment["notes"] = [busy]
    rows = {
        name: {**got, "peak_memory_mb": memory[name], "size_bytes": sizes[name]}
        for name, got in answer["models"].items()
    }
    return Measured.from_json({"environment": environment, "models": rows})


def _busy(environment: Mapping[str, Any]) -> str:
    load = environment.get("after", {}).get("load_average_1min", 0.0)
    cores = environment.get("cpu", {}).get("cores", 1)
    if load <= cores + 0.5:
        return ""
    return (
        f"the machine was busy (load {load:g} on {cores} cores): absolute times are too high; "
        "ratios of models measured in turns still hold"
    )


def outputs(
    target: Target,
    model: Path,
    inputs: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    device: Device | None = None,
) -> NDArray[np.float32]:
    """Runs a model over many inputs in the target's own runtime.

    Args:
        inputs: (n, *input shape), or batches of it; batches are written to disk as they come.

    Returns:
        (n, classes), the model's first output.

    Raises:
        InputError: the file is no sound artifact, does not take these inputs, or gives no (n, classes).
        DeviceError: the device did not answer, or its runtime refused the model.
    """
    with _device(target, device).open() as workspace, tempfile.TemporaryDirectory(prefix="attar-") as folder:
        n = _write_batches(Path(folder) / "inputs.npy", model, [inputs] if isinstance(inputs, np.ndarray) else inputs)
        workspace.put(Path(folder) / "inputs.npy", "inputs.npy")
        workspace.put(model, "model.onnx")
        job = {"inputs": "inputs.npy", "runtime": target.runtime.model_dump(), "batch": 64, "tasks": ["outputs"]}
        job |= {"version": probe.VERSION, "models": {model.name: "model.onnx"}}
        answer = workspace.run(job, timeout_s=_START_S + n)
        found: NDArray[np.float32] = np.load(workspace.get(answer["models"][model.name]["outputs"]), allow_pickle=False)
    if found.ndim != 2:
        raise _fault(model, f"gives outputs of shape {found.shape}", "a classifier gives (batch, classes)")
    return found


def _write_batches(path: Path, model: Path, batches: Iterable[NDArray[np.float32]]) -> int:
    """One .npy file from many batches; gives the number of inputs. Only one batch is in memory."""
    shape: tuple[int, ...] = ()
    n = 0
    with path.open("wb") as file:
        for batch in batches:
            if not shape:
                _checked(model, batch)
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
    return n


def _header(file: Any, n: int, shape: tuple[int, ...]) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**description, "shape": (n, *shape)})


def _checked(path: Path, sample: NDArray[np.float32], *, batch_one: bool = False) -> artifact.Artifact:
    """The artifact, once it is sound and takes these inputs."""
    found = artifact.load(path)
    if len(found.inputs) != 1:
        names = ", ".join(value.name for value in found.inputs)
        raise _fault(path, f"has {len(found.inputs)} inputs ({names})", "models of one input can be measured")
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


def _device(target: Target, device: Device | None) -> Device:
    return DEVICES[target.device]() if device is None else device


def measurements(
    measured: Measured, name: str, baseline: str | None = None, confidence: float = 0.95
) -> dict[str, Measurement]:
    """Numbers with intervals for one model.

    Gives `latency_p50_ms`, `latency_p95_ms`, `latency_p99_ms` (each only where there are samples enough for its
    interval), `throughput_per_s`, `session_ms`, `size_mb`, `peak_memory_mb`, and with a baseline `speedup_p50`: how
    many times lower the median latency is. The intervals of memory and session time are the range that was seen.

    Args:
        baseline: the name of another model that was measured in the same turns.
    """
    got, runtime = measured.models[name], f"onnxruntime {measured.environment.get('onnxruntime', '')}, wall clock"
    found: dict[str, Measurement] = {}

    def add(metric: str, interval: Interval | None, samples: int, instrument: str) -> None:
        if interval is not None:
            found[metric] = Measurement(metric, *interval, samples, instrument)

    latencies = [ms for block in got.latency_ms for ms in block]
    for metric, q in _PERCENTILES.items():
        add(metric, quantile_interval(latencies, q, confidence), len(latencies), runtime)
    rates = got.throughput_per_s
    add("throughput_per_s", mean_interval(rates, confidence), len(rates), runtime)
    add("session_ms", _range(got.session_ms), len(got.session_ms), runtime)
    add("size_mb", Interval(*(3 * [got.size_bytes / 1e6])), 1, "file size")
    memory = got.peak_memory_mb
    add("peak_memory_mb", _range(memory), len(memory), "peak resident memory of a process that serves one model")
    if baseline is not None:
        theirs = measured.models[baseline].latency_ms
        add("speedup_p50", paired_ratio(theirs, got.latency_ms, confidence), len(theirs), runtime)
    return found


def _range(values: tuple[float, ...]) -> Interval | None:
    return Interval(float(np.median(values)), min(values), max(values)) if values else None


def accuracy(outputs: NDArray[np.float32], labels: NDArray[np.int64], confidence: float) -> Measurement:
    """Share of examples whose largest output is at their label, percent, with Wilson's interval.

    Args:
        outputs: (n, classes). labels: (n,).

    Raises:
        InputError: outputs and labels do not fit each other.
        DeviceError: an output is NaN or infinite.
    """
    right = _right(outputs, labels)
    value, low, high = wilson(int(right.sum()), len(right), confidence)
    return Measurement("accuracy", 100 * value, 100 * low, 100 * high, len(right), "argmax of the outputs")


def accuracy_drop(
    baseline_outputs: NDArray[np.float32], outputs: NDArray[np.float32], labels: NDArray[np.int64], confidence: float
) -> Measurement:
    """Accuracy lost against the baseline on the same examples, percentage points; see `statistics.paired_drop`."""
    found = paired_drop(_right(baseline_outputs, labels), _right(outputs, labels), confidence)
    return Measurement("accuracy_drop_points", *found, len(labels), "argmax of both outputs, paired")


def _right(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    if len(outputs) != len(labels) or len(labels) == 0:
        raise InputError(f"{len(outputs)} outputs and {len(labels)} labels: one of each is needed per example")
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise InputError(
            f"labels from {labels.min()} to {labels.max()} do not fit a model of {outputs.shape[1]} classes",
            help="labels count from 0; the model must give one output per class",
        )
    broken = int(np.count_nonzero(~np.isfinite(outputs).all(axis=1)))
    if broken:
        raise DeviceError(f"the model gave NaN or infinite outputs for {broken} of {len(outputs)} examples")
    found: NDArray[np.bool_] = outputs.argmax(axis=1) == labels
    return found
