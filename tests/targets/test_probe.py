"""The probe as a device sees it: one zip file, run by itself."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from probing import METER, RUNTIME, job, run, run_here

from targets.devices.bundle import bundle
from targets.probe import timing
from targets.testing import tiny_onnx

SOURCES = sorted((Path(__file__).parents[2] / "targets/probe").glob("*.py"))


@pytest.fixture
def folder(tmp_path):
    tiny_onnx(tmp_path / "a.onnx", width=64)
    tiny_onnx(tmp_path / "b.onnx", width=8)
    tiny_onnx(tmp_path / "fixed.onnx", batch=3)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_it_stands_alone_on_python_3_9(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    ours = {name for name in imported if name.partition(".")[0] == "targets"}
    assert all(name.startswith("targets.probe") for name in ours)
    tops = {name.partition(".")[0] for name in imported - ours}
    assert tops - set(sys.stdlib_module_names) <= {"numpy", "onnxruntime"}
    for node in tree.body:  # heavy libraries wake inside functions, where their absence becomes an answer
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "numpy" not in ast.unparse(node)
            assert "onnxruntime" not in ast.unparse(node)


def test_all_timed_tasks_at_once(folder):
    code, answer = run(folder, ["session", "latency", "throughput", "energy"], ["a", "b"])
    assert code == 0
    assert answer["version"] == 2
    for got in answer["models"].values():
        assert [len(block) for block in got["latency_ms"]] == [15, 15, 15, 15]
        assert all(0 < ms < 1000 for block in got["latency_ms"] for ms in block)
        assert len(got["throughput_per_s"]) == 4
        assert len(got["session_ms"]) == 3
        assert got["warmup"]["seconds"] >= METER["warmup_s"]
        assert got["energy"]["instrument"] == ""
        assert all(window["inferences"] > 0 for window in got["energy"]["windows"])
    environment = answer["environment"]
    assert environment["providers"] == ["CPUExecutionProvider"]
    assert environment["settings"]["intra_op_threads"] == 1
    assert environment["settings"]["inter_op_threads"] == 1
    assert {"model", "machine", "cores", "flags"} == set(environment["cpu"])
    assert "load_average_1min" in environment["before"]
    assert environment["memory_mb"] > environment["before"]["memory_available_mb"] > 0
    assert environment["pinned"] == []


def test_threads_are_set(folder):
    code, answer = run(folder, ["session"], runtime={**RUNTIME, "threads": 2})
    assert (code, answer["environment"]["settings"]["intra_op_threads"]) == (0, 2)


def test_a_pinned_probe_says_where(folder):
    """`cores` is what the process could have used."""
    code, answer = run(folder, ["latency"], meter={**METER, "pin": True})
    environment = answer["environment"]
    if sys.platform.startswith("linux"):
        assert code == 0
        assert len(environment["pinned"]) == 1
        assert environment["cpu"]["cores"] >= len(environment["pinned"])


def test_a_wide_net_is_slower_than_a_narrow_one(folder):
    """1024 times the work: whatever else the machine does meanwhile, a ratio in turns shows it."""
    tiny_onnx(folder / "wide.onnx", width=65536)
    _, answer = run(folder, ["latency"], ["wide", "b"])
    medians = {name: np.median(got["latency_ms"]) for name, got in answer["models"].items()}
    assert medians["wide"] > 5 * medians["b"]


def test_batches_raise_the_rate_of_a_tiny_net(folder):
    """Overhead is shared by a batch, so inferences a second are counted, not batches."""
    _, answer = run(folder, ["latency", "throughput"], meter={**METER, "throughput_batch": 64})
    got = answer["models"]["a"]
    assert np.median(got["throughput_per_s"]) > 2 * 1e3 / np.median(got["latency_ms"])


def test_models_take_turns_in_a_rotating_order():
    orders = [timing.in_turns(["a", "b", "c"], turn) for turn in range(6)]
    assert orders[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert orders[3:] == orders[:3]


class Slow:
    """A model whose every run takes 20 ms, or what `script` says, and which really takes that time."""

    def __init__(self, name="a", log=None, script=()):
        self.name, self.log, self.script = name, [] if log is None else log, iter(script)
        self.feeds = self

    def made(self, batch):
        return [{"x": 0}, {"x": 1}, {"x": 2}]

    def times(self, feeds, count):
        self.log.append((self.name, count))
        took = [next(self.script, 20.0) for _ in range(count)]
        time.sleep(sum(took) / 1e3)
        return took


def test_a_slow_model_gets_smaller_blocks_and_ends_in_time():
    log = []
    meter = {"warmup_s": 0, "samples": 100_000, "blocks": 4, "max_seconds": 0.4}
    started = time.perf_counter()
    found, _, inputs = timing.latency([Slow("a", log), Slow("b", log)], meter)
    assert time.perf_counter() - started < 3
    assert len(found["a"]) == len(found["b"]) >= 3, "every model has the same number of turns"
    assert {len(block) for block in found["a"]} == {5}  # 0.8 s for both, in 4 blocks of 40 ms a pair
    kept = [name for name, count in log if count == 5]
    assert kept[:4] == ["a", "b", "b", "a"], "the order rotates"
    assert inputs["a"] == inputs["b"], "and the inputs are the same"


class Fed(Slow):
    """Remembers what it was fed with."""

    def times(self, feeds, count):
        self.log += [feed["x"] for _, feed in zip(range(count), feeds, strict=False)]
        return [1.0] * count


def test_it_is_known_which_input_a_latency_was_taken_on():
    model = Fed()
    meter = {"warmup_s": 0, "samples": 12, "blocks": 3, "max_seconds": 10}
    _, _, inputs = timing.latency([model], meter)
    timed = model.log[-3 * (3 + 4) :]  # three runs that are not kept, then the block
    assert [timed[7 * turn + 3 : 7 * turn + 7] for turn in range(3)] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]
    assert inputs == {"a": {"count": 3, "first": [0, 1, 2]}}


def test_warming_up_goes_on_until_times_have_settled():
    """Windows of 3 runs: 10, 8 and 6 ms on the way, then two of 5 ms."""
    script = [30] + [10] * 3 + [8] * 3 + [6] * 3 + [5] * 20
    found = timing.warm(Slow(script=script), iter(()), seconds=0.06)
    assert found.stable
    assert found.typical_s == 0.005
    assert found.seconds >= sum(script[:16]) / 1e3


def test_warming_up_ends_and_says_that_times_never_settled():
    script = [5 * 1.1**i for i in range(60)]
    found = timing.warm(Slow(script=script), iter(()), seconds=0.03)
    assert not found.stable
    assert 0.3 <= found.seconds < 1.5, "ten times the least, and the window that was under way"


def test_a_warm_model_is_warmed_up_no_longer_than_asked():
    found = timing.warm(Slow(), iter(()), seconds=0.2)
    assert found.stable
    assert 0.2 <= found.seconds < 1


def test_it_goes_on_until_there_are_samples_enough(folder):
    _, answer = run(folder, ["latency"], meter={**METER, "samples": 61})
    assert sum(map(len, answer["models"]["a"]["latency_ms"])) == 64


def test_a_full_clock_ends_it_early(folder):
    _, answer = run(folder, ["latency"], meter={**METER, "samples": 10_000_000, "max_seconds": 0.3})
    assert sum(map(len, answer["models"]["a"]["latency_ms"])) < 10_000_000


@pytest.mark.parametrize("model", ["a", "fixed"])
def test_outputs_are_the_runtimes_own(folder, model):
    import onnxruntime

    code, answer = run(folder, ["outputs"], [model])
    assert code == 0
    found = np.load(folder / answer["models"][model]["outputs"])
    session = onnxruntime.InferenceSession(folder / f"{model}.onnx")
    x = np.load(folder / "x.npy")
    batches = [x[:3], x[3:6], x[6:9], np.concatenate([x[9:], x[:2]])]
    expected = np.concatenate([session.run(None, {"x": b})[0] for b in batches])[:10]
    assert found.dtype == np.float32
    assert found.shape == (10, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_memory_grows_with_the_weights(folder):
    tiny_onnx(folder / "large.onnx", width=300_000)  # 17 M weights, 70 MB
    peaks = {m: run(folder, ["memory"], [m])[1]["models"][m] for m in ("b", "large")}
    assert peaks["large"]["peak_memory_mb"] > peaks["b"]["peak_memory_mb"] + 60
    assert 10 < peaks["b"]["runtime_memory_mb"] <= peaks["b"]["peak_memory_mb"] < 200


def test_peak_memory_is_this_process_and_not_its_parent(folder):
    """ru_maxrss of a child starts at its parent's, on Linux; 400 MB are held here meanwhile."""
    held = np.ones(50_000_000)
    _, answer = run(folder, ["memory"])
    assert answer["models"]["a"]["peak_memory_mb"] < held.nbytes / 1e6


@pytest.mark.parametrize(
    ("tasks", "models", "changes", "error"),
    [
        (["latency"], ["a"], {"version": 9}, "this probe reads jobs of version 2, and got 9"),
        (["latency"], ["a"], {"runtime": None}, "the job has no 'runtime'"),
        (["dance"], ["a"], {}, "no task is called 'dance'; there are session, latency, "),
        (["latency"], ["gone"], {}, "refused model 'gone': "),
        (["memory"], ["a", "b"], {}, "memory is measured in a process of its own, one model at a time"),
        (["memory", "latency"], ["a"], {}, "memory is measured in a process of its own"),
        (["latency"], ["a"], {"runtime": {**RUNTIME, "provider": "MoonProvider"}}, "has no MoonProvider here; it has "),
        (["latency"], ["junk"], {}, "refused model 'junk': "),
        (["latency"], ["a"], {"meter": {**METER, "blocks": None}}, "TypeError: "),
    ],
)
def test_errors_are_answers(folder, tasks, models, changes, error):
    (folder / "junk.onnx").write_bytes(b"junk")
    code, answer = run_here(folder, tasks, models, **changes)
    assert code == 1
    assert error in answer["error"]
    assert "models" not in answer
    assert not list(folder.glob("*.part"))


def test_a_provider_that_gives_way_is_told(folder):
    """CUDA without its libraries: onnxruntime warns, goes on with the CPU, and would be timed as if it were the GPU."""
    before = """import onnxruntime as ort
class Lame(ort.InferenceSession):
    def __init__(self, path, options, providers, **kw):
        super().__init__(path, options, providers=["CPUExecutionProvider"], **kw)
ort.InferenceSession = Lame"""
    code, answer = run(folder, ["latency"], before=before, runtime={**RUNTIME, "provider": "AzureExecutionProvider"})
    assert code == 1
    assert "AzureExecutionProvider refused the model, and onnxruntime fell back to CPU" in answer["error"]


def test_a_missing_runtime_is_named(folder):
    """A bare board: onnxruntime is not there."""
    code, answer = run(folder, [], before="sys.modules['onnxruntime'] = None")
    assert code == 1
    assert answer["error"] == f"onnxruntime is not installed for {sys.executable}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_it_ends_when_its_caller_is_gone(folder):
    """Nobody waits for it any more, and it would disturb the next measurement."""
    (folder / "probe.pyz").write_bytes(bundle())
    meter = {**METER, "samples": 100_000_000, "max_seconds": 60}
    (folder / "job.json").write_text(json.dumps(job(["a"], ["latency"], meter=meter)))
    command = [sys.executable, "-I", str(folder / "probe.pyz"), str(folder / "job.json")]
    script = f"""import subprocess, time
started = subprocess.Popen({command!r})
while "onnxruntime" not in open(f"/proc/{{started.pid}}/maps").read():
    time.sleep(0.05)"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
    until = time.monotonic() + 20
    while not (folder / "result.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert "the process that started the probe is gone" in json.loads((folder / "result.json").read_text())["error"]


def test_called_without_a_job(folder):
    (folder / "probe.pyz").write_bytes(bundle())
    done = subprocess.run([sys.executable, folder / "probe.pyz"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: probe.pyz JOB.json\n")
