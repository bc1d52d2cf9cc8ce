"""What the probe reads of the machine, which cores it takes, and how it keeps within the memory that is there."""

import os
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper
from probing import run, save, value

from targets.probe import cores, machine, memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's own files")

STAT = """cpu  100 0 0 300 0 0 0 0 0 0
cpu0 {0} 0 0 {1} 0 0 0 0 0 0
cpu1 {2} 0 0 {3} {4} 0 0 0 0 0
intr 1 2 3
"""


def test_busy_is_the_share_of_time_between_two_looks():
    """Waiting for a disk is idle."""
    before, after = STAT.format(10, 90, 50, 50, 0), STAT.format(20, 90, 50, 55, 5)
    assert cores.busy(before, after) == {0: 1.0, 1: 0.0}
    assert cores.busy("", "") == {}
    assert cores.busy(before, before) == {0: 0.0, 1: 0.0}


BIG_LITTLE = {0: 1800, 1: 1800, 2: 2400, 3: 2400}
ALONE = {c: str(c) for c in range(4)}


@pytest.mark.parametrize(
    ("count", "speed", "load", "core", "expected"),
    [
        (1, BIG_LITTLE, {}, ALONE, [2]),
        (1, BIG_LITTLE, {2: 0.9}, ALONE, [3]),
        (2, BIG_LITTLE, {0: 0.0, 2: 1.0, 3: 1.0}, ALONE, [2, 3]),
        (3, BIG_LITTLE, {0: 0.9}, ALONE, [1, 2, 3]),
        (1, {0: 5000, 1: 5100, 2: 5000, 3: 5000}, {0: 0.4, 1: 0.8, 2: 0.1, 3: 0.5}, ALONE, [2]),
        (2, dict.fromkeys(range(4), 1), {}, {0: "0,1", 1: "0,1", 2: "2,3", 3: "2,3"}, [0, 2]),
        (3, dict.fromkeys(range(4), 1), {}, {0: "0,1", 1: "0,1", 2: "2,3", 3: "2,3"}, [0, 1, 2]),
        (1, dict.fromkeys(range(4), 1), {1: 1.0}, {0: "0,1", 1: "0,1", 2: "2,3", 3: "2,3"}, [2]),
    ],
    ids=["fast", "fast and idle", "fast before idle", "then slow", "turbo bins", "apart", "twins last", "busy twin"],
)
def test_the_idlest_of_the_fastest_cores(count, speed, load, core, expected):
    assert cores.choose(range(4), count, speed, load, core) == expected


@linux
def test_a_pinned_process_and_its_threads_stay_there(tmp_path):
    """A session's own threads start after the pinning, and inherit it."""
    from targets.testing import tiny_onnx

    tiny_onnx(tmp_path / "a.onnx")
    np.save(tmp_path / "x.npy", np.ones((2, 3, 4, 4), np.float32))
    before = f"""import os
from pathlib import Path
from targets.probe import timing
def tell(*_):
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    Path({str(tmp_path / "masks")!r}).write_text(repr(set(map(tuple, map(os.sched_getaffinity, tasks)))))
    return {{}}, {{}}, {{}}
timing.latency = tell"""
    runtime = {"provider": "CPUExecutionProvider", "threads": 1}
    code, answer = run(tmp_path, ["latency"], before=before, runtime=runtime, meter={"pin": True, "max_seconds": 1})
    assert code == 0, answer
    assert (tmp_path / "masks").read_text() == repr({tuple(answer["environment"]["pinned"])})


def test_pinning_is_harmless_where_there_is_no_such_call(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert cores.pin(1) == []


@linux
def test_pinning_is_harmless_where_it_is_forbidden(monkeypatch):
    def forbidden(pid, cpus):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert cores.pin(1) == []


def test_throttling_is_read(tmp_path, monkeypatch):
    (tmp_path / "throttled").write_text("50000\n")
    monkeypatch.setattr(machine, "RASPBERRY_THROTTLED", str(tmp_path / "throttled"))
    assert machine.state()["throttled"] == "50000"


def big(path, floats):
    """A model that makes a tensor of so many floats when it runs."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"], value=helper.make_tensor("v", 1, [1], [1.0])),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [floats])
    np.save(path.with_name("x.npy"), np.ones((2, 1), np.float32))
    return save(path, nodes, [value("x", ["n", 1])], [value("y", ["n", 1])], [shape])


@pytest.mark.parametrize("task", ["latency", "outputs", "operators", "memory"])
def test_a_model_that_wants_a_terabyte_is_told(tmp_path, task):
    big(tmp_path / "a.onnx", 250_000_000_000)
    code, answer = run(tmp_path, [task])
    assert code == 1
    assert "model 'a' needs more memory than the " in answer["error"]
    assert " MB that are free: " in answer["error"]


@linux
def test_a_model_that_wants_more_than_is_free_is_told(tmp_path):
    """400 MB; the machine has them, and the probe is told that it has 200: only the limit can stop it."""
    big(tmp_path / "a.onnx", 100_000_000)
    assert run(tmp_path, ["outputs"])[0] == 0
    before = "from targets.probe import memory\nmemory.available_mb = lambda: 200.0"
    code, answer = run(tmp_path, ["outputs"], before=before)
    assert code == 1
    assert "needs more memory than the 136 MB that are free" in answer["error"]


@linux
def test_the_limit_is_for_the_cpu_provider():
    assert memory.guard("CUDAExecutionProvider") is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("bad allocation"), True),
        (RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 1"), True),
        (RuntimeError("CUDA failure 2: out of memory"), True),
        (RuntimeError("Invalid rank for input: x"), False),
    ],
)
def test_errors_that_say_memory(error, expected):
    assert memory.exhausted(error) is expected


def test_a_control_group_leaves_less(tmp_path):
    """Version 2, limited at a level above; version 1; a container whose path leads nowhere."""
    for folder, names in {
        "app.slice/job": ("max", "memory.max", "memory.current"),
        "app.slice": ("500000000", "memory.max", "memory.current"),
        "memory": ("300000000", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    }.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / names[1]).write_text(names[0])
        (tmp_path / folder / names[2]).write_text("200000000\n")
    (tmp_path / "app.slice/memory.stat").write_text("anon 1\ninactive_file 50000000\n")
    assert list(memory._rooms("0::/app.slice/job\n", str(tmp_path))) == [350.0]
    assert list(memory._rooms("4:memory:/elsewhere\n1:cpu:/\n", str(tmp_path))) == [100.0]
    assert list(memory._rooms("", str(tmp_path))) == []
