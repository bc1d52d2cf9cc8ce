"""The probe as a device sees it: one file, run by itself."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from targets import probe
from targets.testing import tiny_onnx

METER = {"warmup_s": 0.02, "samples": 60, "blocks": 4, "max_seconds": 10, "throughput_batch": 8}
RUNTIME = {"provider": "CPUExecutionProvider", "options": {}, "threads": 1}


@pytest.fixture
def folder(tmp_path):
    tiny_onnx(tmp_path / "a.onnx", width=64)
    tiny_onnx(tmp_path / "b.onnx", width=8)
    tiny_onnx(tmp_path / "fixed.onnx", batch=3)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32))
    return tmp_path


def run(folder, tasks, models=("a",), **changes):
    """(exit code, answer) of the probe as its own program."""
    job = {"version": 1, "tasks": list(tasks), "models": {m: f"{m}.onnx" for m in models}, "inputs": "x.npy"}
    job = {**job, "runtime": RUNTIME, "meter": METER, "batch": 4, **changes}
    (folder / "job.json").write_text(json.dumps({k: v for k, v in job.items() if v is not None}))
    done = subprocess.run(
        [sys.executable, "-I", probe.__file__, folder / "job.json"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads((folder / "result.json").read_text())


def test_it_is_one_file_for_python_3_9():
    text = Path(probe.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in imported}
    assert tops - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    for node in tree.body:  # heavy libraries wake inside functions, where their absence becomes an answer
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "numpy" not in ast.unparse(node)
            assert "onnxruntime" not in ast.unparse(node)


def test_all_timed_tasks_at_once(folder):
    code, answer = run(folder, ["session", "latency", "throughput"], ["a", "b"])
    assert code == 0
    for got in answer["models"].values():
        assert [len(block) for block in got["latency_ms"]] == [15, 15, 15, 15]
        assert all(0 < ms < 1000 for block in got["latency_ms"] for ms in block)
        assert len(got["throughput_per_s"]) == 4
        assert len(got["session_ms"]) == 3
    environment = answer["environment"]
    assert environment["providers"] == ["CPUExecutionProvider"]
    assert environment["settings"]["intra_op_threads"] == 1
    assert environment["settings"]["inter_op_threads"] == 1
    assert {"model", "machine", "cores", "flags"} == set(environment["cpu"])
    assert "load_average_1min" in environment["before"]


def test_threads_are_set(folder):
    code, answer = run(folder, ["session"], runtime={**RUNTIME, "threads": 2})
    assert (code, answer["environment"]["settings"]["intra_op_threads"]) == (0, 2)


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
    orders = [probe.in_turns(["a", "b", "c"], turn) for turn in range(6)]
    assert orders[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert orders[3:] == orders[:3]


class Slow:
    """A model whose every run takes 20 ms."""

    batch = None
    input = "x"

    def __init__(self, name, log):
        self.name, self.log = name, log

    def feed(self, inputs, batch, start=0):
        return {"x": np.zeros(batch, np.float32)}

    def warm(self, feeds, seconds):
        return 0.02

    def times(self, feeds, count):
        self.log.append((self.name, count))
        probe.time.sleep(0.02 * count)
        return [20.0] * count


def test_a_slow_model_gets_smaller_blocks_and_ends_in_time():
    log = []
    meter = {"warmup_s": 0, "samples": 100_000, "blocks": 4, "max_seconds": 0.4}
    started = probe.time.perf_counter()
    found = probe.latency([Slow("a", log), Slow("b", log)], np.zeros((1, 1)), meter)
    assert probe.time.perf_counter() - started < 3
    assert len(found["a"]) == len(found["b"]) >= 3, "every model has the same number of turns"
    assert {len(block) for block in found["a"]} == {5}  # 0.8 s for both, in 4 blocks of 40 ms a pair
    kept = [name for name, count in log if count == 5]
    assert kept[:4] == ["a", "b", "b", "a"], "the order rotates"


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
        (["latency"], ["a"], {"version": 9}, "this probe reads jobs of version 1, and got 9"),
        (["latency"], ["a"], {"runtime": None}, "the job has no 'runtime'"),
        (["latency"], ["a"], {"inputs": "y.npy"}, "FileNotFoundError: "),
        (["latency"], ["gone"], {}, "refused model 'gone': "),
        (["memory"], ["a", "b"], {}, "memory is measured in a process of its own, one model at a time"),
        (["memory", "latency"], ["a"], {}, "memory is measured in a process of its own"),
        (["latency"], ["a"], {"runtime": {**RUNTIME, "provider": "MoonProvider"}}, "has no MoonProvider here; it has "),
        (["latency"], ["junk"], {}, "refused model 'junk': "),
        (["latency"], ["two"], {}, "model 'two': the model has 2 inputs (x, z); one is supported"),
        (["latency"], ["a"], {"inputs": "wrong.npy"}, "Got invalid dimensions for input"),
        (["latency"], ["a"], {"inputs": "pickled.npy"}, "ValueError: Array can't be memory-mapped"),
    ],
)
def test_errors_are_answers(folder, tasks, models, changes, error):
    import onnx

    (folder / "junk.onnx").write_bytes(b"junk")
    np.save(folder / "wrong.npy", np.zeros((4, 3, 5, 5), np.float32))
    np.save(folder / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    two = onnx.load(folder / "a.onnx")
    two.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n"]))
    onnx.save(two, folder / "two.onnx")
    code, answer = run(folder, tasks, models, **changes)
    assert code == 1
    assert error in answer["error"]
    assert "models" not in answer
    assert not list(folder.glob("*.part"))


def test_a_missing_runtime_is_named(folder, tmp_path):
    """A bare board: numpy and onnxruntime are not there."""
    (folder / "job.json").write_text(json.dumps({"version": 1, "tasks": []}))
    code = f"import sys; sys.modules['onnxruntime'] = None; sys.argv = ['probe.py', {str(folder / 'job.json')!r}]\n"
    code += f"import runpy; runpy.run_path({probe.__file__!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"onnxruntime is not installed for {sys.executable}" in done.stderr


def test_called_without_a_job():
    done = subprocess.run([sys.executable, probe.__file__], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: python probe.py JOB.json\n")
