"""Runs ONNX models on the machine that it is started on, and answers with raw numbers.

    python probe.py JOB.json

One self-contained file (standard library, numpy, onnxruntime; Python 3.9 or later): it is copied to a device as it is.
All paths in the job are relative to the job's own folder, and everything is written there.

The job:
    version     1
    tasks       any of "session", "latency", "throughput", "outputs"; or "memory" alone, with one model
    models      {name: ONNX file}; each has one input
    inputs      a .npy file (k, *input shape)
    runtime     provider, options, threads
    meter       warmup_s, samples, blocks, max_seconds, throughput_batch (latency, throughput, session)
    batch       inputs at a time, for "outputs"
    result      the answer's file, default "result.json"

The answer: {"version": 1, "environment": {...}, "models": {name: {...}}}, with for each model
    session_ms          times to create a session, milliseconds, one per creation
    latency_ms          one list of milliseconds per block: one request of batch 1 at a time, as a single client sees it
    throughput_per_s    inferences a second of each block at batch `throughput_batch`
    outputs             a .npy file (k, classes), float32, of the first output
    peak_memory_mb      most resident memory of a process that serves only this model at batch 1 (10^6 bytes)
    runtime_memory_mb   of that: before the session was created
All models are measured in turns, in short blocks whose order rotates, so that a ratio of two models holds while the
machine's speed drifts. Each block opens with a few inferences that are not kept: the caches held another model.

On failure the answer is {"version": 1, "error": "..."} and the exit code is 1.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["cpu", "main"]

VERSION = 1
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
SETTINGS = {
    "inter_op_threads": 1,
    "execution_mode": "sequential",
    "graph_optimization": "all",
    "spinning": "only while a run lasts (session.force_spinning_stop=1): idle sessions take no time from others",
    "garbage_collection": "off while timing",
}


class ProbeError(Exception):
    """What the caller can understand without a traceback."""


def cpu(cpuinfo: str | None = None) -> dict[str, Any]:
    """The processor: {"model", "machine", "cores" (usable by this process), "flags" (those that matter for int8)}.

    Args:
        cpuinfo: text of /proc/cpuinfo; read from this machine when left out.
    """
    text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    part = fields.get("CPU part")
    board = _read("/proc/device-tree/model").strip("\0\n") if cpuinfo is None else ""
    model = fields.get("model name") or board or fields.get("Model") or (f"CPU part {part}" if part else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "model": model or platform.processor() or "unknown",
        "machine": platform.machine(),
        "cores": cores,
        "flags": [flag for flag in FLAGS if flag in present],
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _numbers(folder: str, pattern: str, scale: float) -> list[float]:
    texts = [_read(str(path)).strip() for path in sorted(Path(folder).glob(pattern))]
    return [round(float(text) / scale, 1) for text in texts if text.lstrip("-").isdigit()]


def state() -> dict[str, Any]:
    """What changes while measuring; only what this machine lets us read."""
    found: dict[str, Any] = {}
    if hasattr(os, "getloadavg"):
        found["load_average_1min"] = round(os.getloadavg()[0], 2)
    frequencies = _numbers("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3)
    if not frequencies:
        lines = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
        frequencies = [round(float(line.partition(":")[2]), 1) for line in lines]
    if frequencies:
        found["frequency_mhz"] = [min(frequencies), max(frequencies)]
    governors = {
        _read(str(path)).strip() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    if governors:
        found["governor"] = sorted(governors)
    temperatures = _numbers("/sys/class/thermal", "thermal_zone*/temp", 1e3)
    if temperatures:
        found["temperature_c"] = max(temperatures)
    return found


class Model:
    """One session, ready to be fed."""

    def __init__(self, name: str, path: Path, runtime: dict[str, Any]) -> None:
        import onnxruntime as ort

        self.name, self.path = name, path
        provider = runtime["provider"]
        available = ort.get_available_providers()
        if provider not in available:
            raise ProbeError(f"onnxruntime {ort.__version__} has no {provider} here; it has {', '.join(available)}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = runtime["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        started = time.perf_counter()
        session = ort.InferenceSession(str(path), options, providers=[(provider, runtime.get("options") or {})])
        self.session_ms = [round((time.perf_counter() - started) * 1e3, 3)]
        self.providers = session.get_providers()
        if self.providers[0] != provider:
            raise ProbeError(f"{provider} refused the model, and onnxruntime fell back to {self.providers[0]}")
        if len(session.get_inputs()) != 1:
            names = ", ".join(i.name for i in session.get_inputs())
            raise ProbeError(f"the model has {len(session.get_inputs())} inputs ({names}); one is supported")
        first = session.get_inputs()[0]
        if first.type not in DTYPES:
            raise ProbeError(f"input {first.name} is {first.type}; supported: {', '.join(DTYPES)}")
        self.input, self.dtype = first.name, DTYPES[first.type]
        self.batch = first.shape[0] if first.shape and isinstance(first.shape[0], int) else None
        self.session, self.names = session, [session.get_outputs()[0].name]

    def feed(self, inputs: Any, batch: int, start: int = 0) -> dict[str, Any]:
        """The next `batch` inputs from `start` on, beginning anew after the last."""
        import numpy as np

        index = np.arange(start, start + batch) % len(inputs)
        return {self.input: np.ascontiguousarray(inputs[index], dtype=self.dtype)}

    def run(self, feed: dict[str, Any]) -> Any:
        """The first output."""
        return self.session.run(self.names, feed)[0]

    def times(self, feeds: Iterator[dict[str, Any]], count: int) -> list[float]:
        """Milliseconds of `count` runs."""
        run, names, clock, found = self.session.run, self.names, time.perf_counter_ns, []
        checked = clock()
        for feed in itertools.islice(feeds, count):
            started = clock()
            run(names, feed)
            ended = clock()
            found.append((ended - started) / 1e6)
            if ended - checked > 500_000_000:
                _still_wanted()
                checked = ended
        return found

    def warm(self, feeds: Iterator[dict[str, Any]], seconds: float) -> float:
        """Runs for `seconds` and at least three times; gives the typical time of one run in seconds."""
        found, started = self.times(feeds, 3), time.perf_counter()
        while time.perf_counter() - started < seconds:
            found += self.times(feeds, 1)
        later = sorted(found[len(found) // 2 :])
        return max(later[len(later) // 2] / 1e3, 1e-6)


def in_turns(models: list[Model], turn: int) -> list[Model]:
    """The order of one round: each model opens a round as often as any other."""
    turn %= len(models)
    return models[turn:] + models[:turn]


def latency(models: list[Model], inputs: Any, meter: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Blocks of latencies of each model, at batch 1 (or the batch that is fixed in the model)."""
    feeds = {m.name: _cycle(m, inputs, m.batch or 1) for m in models}
    typical = {m.name: m.warm(feeds[m.name], meter["warmup_s"]) for m in models}
    limit = meter["max_seconds"] * len(models)
    affordable = int(limit / (meter["blocks"] * sum(typical.values())))
    count = max(1, min(math.ceil(meter["samples"] / meter["blocks"]), affordable))
    found: dict[str, list[list[float]]] = {m.name: [] for m in models}
    started = time.perf_counter()
    for turn in itertools.count():
        _still_wanted()
        for model in in_turns(models, turn):
            model.times(feeds[model.name], 3 if typical[model.name] < 0.05 else 1)
            found[model.name].append([round(ms, 6) for ms in model.times(feeds[model.name], count)])
        enough = turn + 1 >= meter["blocks"] and (turn + 1) * count >= meter["samples"]
        if enough or time.perf_counter() - started > limit:
            return found
    raise AssertionError


def throughput(models: list[Model], inputs: Any, meter: dict[str, Any]) -> dict[str, list[float]]:
    """Inferences a second of each model, one number per block of about a tenth of a second."""
    size = {m.name: m.batch or meter["throughput_batch"] for m in models}
    feeds = {m.name: _cycle(m, inputs, size[m.name]) for m in models}
    block_s = min(0.1, meter["max_seconds"] / meter["blocks"])
    runs = {m.name: max(1, math.ceil(block_s / m.warm(feeds[m.name], meter["warmup_s"] / 3))) for m in models}
    found: dict[str, list[float]] = {m.name: [] for m in models}
    started = time.perf_counter()
    for turn in range(meter["blocks"]):
        _still_wanted()
        for model in in_turns(models, turn):
            model.times(feeds[model.name], 1)
            spent_ms = sum(model.times(feeds[model.name], runs[model.name]))
            found[model.name].append(round(runs[model.name] * size[model.name] / spent_ms * 1e3, 3))
        if time.perf_counter() - started > meter["max_seconds"] * len(models):
            break
    return found


def _cycle(model: Model, inputs: Any, batch: int) -> Iterator[dict[str, Any]]:
    """Feeds made beforehand, so that no copying is timed: at most 64 of them, or 64 MB."""
    one = model.feed(inputs, batch)
    count = max(1, min(math.ceil(len(inputs) / batch), 64, int(64e6 / max(1, one[model.input].nbytes))))
    return itertools.cycle([one] + [model.feed(inputs, batch, i * batch) for i in range(1, count)])


def outputs(model: Model, inputs: Any, batch: int, path: Path) -> None:
    """Writes the first output for all inputs, (k, ...), as float32."""
    import numpy as np

    batch, file = model.batch or batch, None
    for start in range(0, len(inputs), batch):
        _still_wanted()
        got = np.asarray(model.run(model.feed(inputs, batch, start)))
        if got.ndim == 0 or len(got) != batch:
            raise ProbeError(f"{batch} inputs gave an output of shape {got.shape}: its first axis must be the batch")
        if file is None:
            file = np.lib.format.open_memmap(path, "w+", np.float32, (len(inputs), *got.shape[1:]))
        file[start : start + batch] = got[: len(inputs) - start]
    if file is not None:
        file.flush()


def peak_memory() -> float:
    """Most resident memory that this process ever had, MB. VmHWM first: on Linux, ru_maxrss may be the parent's, from
    before exec."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


_PARENT = os.getppid() if hasattr(os, "getppid") else 0


def _still_wanted() -> None:
    """Ends a probe whose caller died: it would disturb the next measurement."""
    if _PARENT and os.getppid() != _PARENT:
        raise ProbeError("the process that started the probe is gone")


def work(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Does the job; see the module's text."""
    if job.get("version") != VERSION:
        raise ProbeError(f"this probe reads jobs of version {VERSION}, and got {job.get('version')!r}")
    import numpy as np
    import onnxruntime as ort

    tasks, runtime, meter = job["tasks"], job["runtime"], job.get("meter", {})
    before, idle_mb = state(), peak_memory()
    inputs = np.load(folder / job["inputs"], mmap_mode="r", allow_pickle=False)
    if "memory" in tasks and (len(tasks) > 1 or len(job["models"]) > 1):
        raise ProbeError("memory is measured in a process of its own, one model at a time")
    models = []
    for name, file in job["models"].items():
        try:
            models.append(Model(name, folder / file, runtime))
        except ProbeError as error:
            raise ProbeError(f"model {name!r}: {error}") from None
        except Exception as error:
            raise ProbeError(f"onnxruntime {ort.__version__} refused model {name!r}: {_short(error)}") from error
    answer: dict[str, dict[str, Any]] = {m.name: {} for m in models}

    def tell(key: str, found: dict[str, Any]) -> None:
        for name, value in found.items():
            answer[name][key] = value

    if "session" in tasks:
        for _ in range(2):
            for model in models:
                if model.session_ms[0] < meter["max_seconds"] * 50:  # a twentieth of the time that one model has
                    model.session_ms += Model(model.name, model.path, runtime).session_ms
        tell("session_ms", {m.name: m.session_ms for m in models})
    gc.collect()
    gc.disable()
    if "latency" in tasks:
        tell("latency_ms", latency(models, inputs, meter))
    if "throughput" in tasks:
        tell("throughput_per_s", throughput(models, inputs, meter))
    gc.enable()
    if "outputs" in tasks:
        for number, model in enumerate(models):
            outputs(model, inputs, job["batch"], folder / f"outputs{number}.npy")
            answer[model.name]["outputs"] = f"outputs{number}.npy"
    if "memory" in tasks:
        models[0].times(_cycle(models[0], inputs[:1], models[0].batch or 1), 10)
        tell("peak_memory_mb", {models[0].name: round(peak_memory(), 3)})
        tell("runtime_memory_mb", {models[0].name: round(idle_mb, 3)})
    environment = {
        "cpu": cpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "providers": models[0].providers if models else [],
        "settings": {"intra_op_threads": runtime["threads"], **SETTINGS},
        "before": before,
        "after": state(),
    }
    return {"version": VERSION, "environment": environment, "models": answer}


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


def _write(path: Path, answer: dict[str, Any]) -> None:
    """All or nothing, so that whoever waits for the file never reads half of it."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(answer, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)  # noqa: PTH105  Path.replace is the same; this is the name of the guarantee


def main(argv: list[str]) -> int:
    """Reads the job, does it, writes the answer; gives the exit code."""
    if len(argv) != 2:
        sys.stderr.write("usage: python probe.py JOB.json\n")
        return 2
    path = Path(argv[1])
    result = path.with_name("result.json")
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        result = path.with_name(job.get("result", result.name))
        answer = work(job, path.parent)
    except ProbeError as error:
        answer = {"version": VERSION, "error": str(error)}
    except ModuleNotFoundError as error:
        answer = {"version": VERSION, "error": f"{error.name} is not installed for {sys.executable}"}
    except KeyError as error:
        answer = {"version": VERSION, "error": f"the job has no {error}"}
    except Exception as error:  # the caller reads the answer, not a traceback
        answer = {"version": VERSION, "error": f"{type(error).__name__}: {_short(error)}"}
    _write(result, answer)
    if "error" in answer:
        sys.stderr.write(answer["error"] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
