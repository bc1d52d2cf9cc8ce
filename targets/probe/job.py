"""Does one job: reads it, measures, writes the answer. See `targets.probe` for both formats."""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.probe import VERSION, cores, memory, timing
from targets.probe.errors import ProbeError, short, still_wanted
from targets.probe.feeds import MOST_FEEDS
from targets.probe.machine import cpu, state
from targets.probe.operators import operators
from targets.probe.session import SETTINGS, Model, create, told

__all__ = ["main", "work"]

TASKS = ("session", "latency", "throughput", "operators", "energy", "outputs", "memory")
MEMORY_S = 2.0  # in which a process whose memory is taken goes on to further inputs


def work(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Does the job, whose paths start from `folder`.

    Raises:
        ProbeError: it cannot be done; also KeyError, where the job lacks something.
    """
    if job.get("version") != VERSION:
        raise ProbeError(f"this probe reads jobs of version {VERSION}, and got {job.get('version')!r}")
    tasks, runtime, meter = job["tasks"], job["runtime"], job.get("meter", {})
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ProbeError(f"no task is called {unknown[0]!r}; there are {', '.join(TASKS)}")
    if "memory" in tasks and (len(tasks) > 1 or len(job["models"]) > 1):
        raise ProbeError("memory is measured in a process of its own, one model at a time")
    processor, before = cpu(), _state()
    pinned = cores.pin(runtime["threads"]) if meter.get("pin") else []  # before libraries start threads of their own
    import numpy as np
    import onnxruntime as ort

    idle_mb = memory.peak_mb()
    free_mb = memory.guard(runtime["provider"])
    models = [_model(name, spec, runtime, folder, free_mb) for name, spec in job["models"].items()]
    answer: dict[str, dict[str, Any]] = {m.name: {} for m in models}

    def tell(key: str, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            answer[name][key] = value

    if "session" in tasks:
        tell("session_ms", _session(models, runtime, meter))
    gc.collect()
    gc.disable()
    if "latency" in tasks:
        blocks, warmup, inputs = timing.latency(models, meter)
        tell("latency_ms", blocks)
        tell("warmup", warmup)
        tell("inputs", inputs)
    if "throughput" in tasks:
        tell("throughput_per_s", timing.throughput(models, meter))
    if "energy" in tasks:
        tell("energy", _energy(models, job))
    gc.enable()
    if "operators" in tasks:
        for model in models:
            answer[model.name]["operators"], answer[model.name]["assignment"] = operators(model, runtime, meter, folder)
    if "outputs" in tasks:
        for number, model in enumerate(models):
            _outputs(model, job["batch"], folder / f"outputs{number}.npy")
            answer[model.name]["outputs"] = f"outputs{number}.npy"
    if "memory" in tasks:
        for model in models:
            feeds, until = model.feeds.cycle(1), time.perf_counter() + MEMORY_S
            model.times(feeds, 10)
            for _ in range(10, min(model.feeds.count, MOST_FEEDS)):  # what it needs can depend on the input
                if time.perf_counter() > until:
                    break
                model.times(feeds, 1)
            answer[model.name]["peak_memory_mb"] = round(memory.peak_mb(), 3)
            answer[model.name]["runtime_memory_mb"] = round(idle_mb, 3)
    environment = {
        "cpu": processor,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "providers": models[0].providers if models else [],
        "settings": {"intra_op_threads": runtime["threads"], **SETTINGS},
        "pinned": pinned,
        "memory_mb": _whole(memory.total_mb()),
        "before": before,
        "after": _state(),
    }
    return {"version": VERSION, "environment": environment, "models": answer}


def _model(
    name: str, spec: Mapping[str, Any], runtime: Mapping[str, Any], folder: Path, free_mb: float | None
) -> Model:
    inputs = {given: folder / file for given, file in spec["inputs"].items()}
    return Model(name, folder / spec["file"], runtime, inputs, bool(spec.get("whole")), free_mb, spec.get("axes"))


def _state() -> dict[str, Any]:
    free = memory.available_mb()
    return state() if free is None else {**state(), "memory_available_mb": _whole(free)}


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def _session(models: Sequence[Model], runtime: Mapping[str, Any], meter: Mapping[str, Any]) -> dict[str, list[float]]:
    """Two more creations of each session, where they are quick: a twentieth of the time that one model has."""
    found = {m.name: [m.session_ms] for m in models}
    for _ in range(2):
        for model in models:
            if model.session_ms < meter["max_seconds"] * 50:
                with told(model.name, model.free_mb, "refused"):
                    found[model.name].append(create(model.path, runtime, model.axes, {})[1])
    return found


def _energy(models: Sequence[Model], job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    from targets.probe import energy

    def once(model: Model) -> Any:
        feeds = model.feeds.cycle(1)
        return lambda: model.run(next(feeds))

    runtime = job["runtime"]
    settings = {**job["energy"], "provider": runtime["provider"], "options": runtime.get("options") or {}}
    return energy.measure({m.name: once(m) for m in models}, settings, job["meter"]["energy_s"])


def _outputs(model: Model, batch: int, path: Path) -> None:
    """Writes the first output for all that the model is fed with, (k, ...), as float32."""
    import numpy as np

    feeds, size, shape = model.feeds, model.feeds.size(batch), None
    with path.open("wb") as file:
        for start in range(0, feeds.count, size):
            still_wanted()
            got = np.asarray(model.run(feeds.feed(batch, start)))
            if got.dtype.kind not in "fiub":
                raise ProbeError(f"model {model.name!r}: its first output holds {got.dtype}, no numbers")
            if not feeds.whole and (got.ndim == 0 or len(got) != size):
                raise ProbeError(
                    f"model {model.name!r}: {size} examples gave an output of shape {got.shape}: "
                    "its first axis must be the batch"
                )
            if shape is None:
                shape = got.shape if feeds.whole else (feeds.count, *got.shape[1:])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            elif got.shape[1:] != shape[1:]:
                raise ProbeError(
                    f"model {model.name!r}: its output's shape is not the same for all batches: "
                    f"{got.shape[1:]} after {shape[1:]}"
                )
            kept = got if feeds.whole else got[: feeds.count - start]
            file.write(kept.astype("<f4").tobytes())


def _write(path: Path, answer: Mapping[str, Any]) -> None:
    """All or nothing, so that whoever waits for the file never reads half of it."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(answer, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)  # noqa: PTH105  Path.replace is the same; this is the name of the guarantee


def main(argv: Sequence[str]) -> int:
    """Reads the job, does it, writes the answer; gives the exit code.

    Args:
        argv: the program's name, and the job's file.
    """
    if len(argv) != 2:
        sys.stderr.write("usage: probe.pyz JOB.json\n")
        return 2
    path = Path(argv[1])
    result = path.with_name("result.json")
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        result = path.with_name(job.get("result", result.name))
        answer = work(job, path.parent)
    except ProbeError as error:
        answer = {"error": str(error)}
    except ModuleNotFoundError as error:
        answer = {"error": f"{error.name} is not installed for {sys.executable}"}
    except KeyError as error:
        answer = {"error": f"the job has no {error}"}
    except MemoryError:
        answer = {"error": f"this machine's memory is full: {_whole(memory.available_mb())} MB are free"}
    except Exception as error:  # the caller reads the answer, not a traceback
        answer = {"error": f"{type(error).__name__}: {short(error)}"}
    _write(result, {"version": VERSION, **answer})
    if "error" in answer:
        sys.stderr.write(answer["error"] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
