"""Is the probe's number what a bare loop around onnxruntime would give, and does a ratio hold beside a noisy neighbour?

    python benchmarks/probe.py [MODEL.onnx ...]

1. The probe's p50 over a bare loop's, each in fresh processes, in turns, on the same core: 0.97 to 1.03.
2. The paired ratio of two models with a busy loop on one core over that without: less than 5 % apart.

By default it builds its models: one so small that Python's own time would show, and convolutional ones. Sizes that a
given model leaves open become 1. Takes about a minute, two at most: more pairs of processes are run while the interval
is not within the bound. Prints a Markdown table. Exit code 0 if all intervals are within their bounds, 1 if one is
outside, 4 if one straddles its bound in the end (a busy machine).
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from targets.devices.bundle import bundle
from targets.statistics import mean_interval, paired_ratio
from targets.testing import tiny_onnx

SAME, MOVED = (0.97, 1.03), 0.05
LEAST, MOST = 6, 16  # pairs of processes
SECONDS = 35  # for each ratio; no new pair after that
METER = {"warmup_s": 0.2, "samples": 100_000, "blocks": 20, "max_seconds": 0.6, "throughput_batch": 1, "pin": True}
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}

BARE = """
import json, sys, time
import numpy as np, onnxruntime as ort
spec = json.load(open(sys.argv[1]))
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(spec["file"], options, providers=["CPUExecutionProvider"])
feed = {name: np.load(file) for name, file in spec["inputs"].items()}
names = [session.get_outputs()[0].name]
def loop(count, seconds, run=session.run, clock=time.perf_counter):
    found, end = [], clock() + seconds
    while len(found) < count and clock() < end:
        start = clock()
        run(names, feed)
        found.append(clock() - start)
    return found
loop(10**9, spec["warmup_s"])
found = loop(spec["samples"], spec["max_seconds"])
print(sorted(found)[len(found) // 2] * 1e3)
"""


def conv_onnx(path: Path, channels: int, layers: int) -> Path:
    """Convolutions of 3 by 3 on 32 by 32: x (1, 3, 32, 32) -> y."""
    random, nodes, weights, last, width = np.random.default_rng(0), [], [], "x", 3
    for i in range(layers):
        w = random.standard_normal((channels, width, 3, 3)).astype(np.float32) / math.sqrt(9 * width)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last, width = f"r{i}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    x = helper.make_tensor_value_info("x", 1, [1, 3, 32, 32])
    y = helper.make_tensor_value_info("y", 1, [1, channels, 1, 1])
    graph = helper.make_graph(nodes, "conv", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def spec_of(path: Path, folder: Path) -> dict:
    """A model for the job, whose arrays are made and saved here."""
    random, inputs = np.random.default_rng(0), {}
    for number, value in enumerate(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()):
        if value.type not in DTYPES:
            sys.exit(f"{path}: input {value.name} is {value.type}; this benchmark makes {', '.join(DTYPES)}")
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in value.shape]
        array = random.standard_normal(shape) if "float" in value.type else np.zeros(shape)
        inputs[value.name] = str(folder / f"{path.stem}_{number}.npy")
        np.save(inputs[value.name], array.astype(DTYPES[value.type]))
    return {"file": str(path), "inputs": inputs, "whole": True}


def run(command: list, cores: set[int] | None = None) -> str:
    """Its standard output; the process may run on these cores only."""
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pin)
    if done.returncode:
        sys.exit(f"{command[1]} failed: {done.stderr}")
    return done.stdout


def probe(folder: Path, models: dict[str, dict], cores: set[int] | None = None) -> dict:
    """Blocks of latencies by model, from the probe in a fresh process."""
    job = {"version": 2, "tasks": ["latency"], "models": models, "meter": METER}
    job["runtime"] = {"provider": "CPUExecutionProvider", "options": {}, "threads": 1}
    (folder / "job.json").write_text(json.dumps(job))
    run([sys.executable, "-I", folder / "probe.pyz", folder / "job.json"], cores)
    answer = json.loads((folder / "result.json").read_text())
    return {name: got["latency_ms"] for name, got in answer["models"].items()}


def bare(folder: Path, spec: dict, cores: set[int]) -> float:
    """p50 of a loop that anyone would write, milliseconds."""
    (folder / "bare.json").write_text(json.dumps({**spec, **METER}))
    return float(run([sys.executable, "-I", "-c", BARE, folder / "bare.json"], cores))


def quantile(blocks: list, q: float) -> float:
    return float(np.quantile(np.concatenate(blocks), q))


def settle(pair, inside) -> list[float]:
    """Log ratios of pairs, until their interval is inside the bounds or time is up."""
    logs, end = [], time.monotonic() + SECONDS
    while len(logs) < LEAST or (len(logs) < MOST and time.monotonic() < end and not inside(mean_interval(logs, 0.95))):
        logs.append(math.log(pair(len(logs))))
    return logs


def against_bare(folder: Path, spec: dict, cores: set[int]) -> list[float]:
    """Log ratios of p50, probe over bare loop; which of the two goes first alternates."""

    def pair(turn: int) -> float:
        first = bare(folder, spec, cores) if turn % 2 else 0.0
        mine = quantile(probe(folder, {"m": spec}, cores)["m"], 0.5)
        return mine / (first or bare(folder, spec, cores))

    return settle(pair, lambda i: math.log(SAME[0]) < i.low and i.high < math.log(SAME[1]))


def beside_a_neighbour(folder: Path, models: dict[str, dict], core: int) -> list[float]:
    """Log of (ratio of the two models beside a busy loop) / (ratio without), in turns."""
    names = list(models)

    busy = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"

    def ratio(noisy: bool) -> float:
        loop = subprocess.Popen([sys.executable, "-c", busy]) if noisy else None
        try:
            blocks = probe(folder, models)
        finally:
            if loop is not None:
                loop.kill()
                loop.wait()
        return paired_ratio(blocks[names[0]], blocks[names[1]], 0.95).value

    def pair(turn: int) -> float:
        first = ratio(turn % 2 == 1)
        second = ratio(turn % 2 == 0)
        return first / second if turn % 2 else second / first

    return settle(pair, lambda i: max(-i.low, i.high) < math.log1p(MOVED))


def row(what: str, logs: list[float], low: float, high: float) -> int:
    """Prints a row of the table; gives the exit code that it stands for."""
    found = mean_interval(logs, 0.95)
    value, lower, upper = math.exp(found.value), math.exp(found.low), math.exp(found.high)
    code = 0 if low < lower and upper < high else 1 if lower > high or upper < low else 4
    print(
        f"| {what} | {value:.4f} ({lower:.4f} to {upper:.4f}) | {low:g} to {high:g} | {len(logs)} | "
        f"{ {0: 'yes', 1: 'no', 4: 'undecided'}[code] } |",
        flush=True,
    )
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    given = parser.parse_args().models
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("this benchmark puts processes on chosen cores, which only Linux allows")
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="attar-benchmark-") as name:
        folder = Path(name)
        (folder / "probe.pyz").write_bytes(bundle())
        wide, narrow = conv_onnx(folder / "wide.onnx", 32, 6), conv_onnx(folder / "narrow.onnx", 16, 6)
        paths = [path.resolve() for path in given] or [tiny_onnx(folder / "tiny.onnx"), wide]
        two = [*paths, narrow][:2] if given else [wide, narrow]
        print(f"{platform.machine()}, {len(cores)} cores, onnxruntime {onnxruntime.__version__}, one thread")
        print(f"load average when it began: {os.getloadavg()[0]:.2f}\n")
        print("| ratio | value (95 %) | bound | pairs of processes | holds |")
        print("|---|---|---|---:|---|")
        codes = []
        for path in paths:
            logs = against_bare(folder, spec_of(path, folder), {cores[-1]})
            codes.append(row(f"p50 of {path.name}: probe / bare loop", logs, *SAME))
        if len(cores) > 1:
            models = {str(number): spec_of(path, folder) for number, path in enumerate(two)}
            logs = beside_a_neighbour(folder, models, cores[0])
            what = f"{two[0].name} / {two[1].name}: beside a busy core / alone"
            codes.append(row(what, logs, 1 - MOVED, 1 + MOVED))
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
