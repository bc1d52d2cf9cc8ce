"""The whole tool on a tiny recipe: real training, a real export, a real onnxruntime; the real command, or the same in
this process (`attar`)."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from forked import forking
from tiny_run import QUICK, attar, attar_process, write_tiny


def _sha(folder):
    return json.loads((folder / "runs/tiny/quick/manifest.json").read_text())["model"]["sha256"]


def test_a_run_leaves_a_judged_artifact(finished):
    folder, done = finished
    out = folder / "runs" / "tiny"
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {
        "report.html",
        "report.json",
        "report.md",
        "recipe.lock",
        "events.jsonl",
        "quick/model.onnx",
        "quick/manifest.json",
        "quick/SHA256SUMS",
        "quick/measurements.json",
        "quick/reference.npz",
    }
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert report["verdict"] == "met"
    assert {c["metric"] for c in report["targets"][0]["checks"]} == {
        "accuracy_drop_points",
        "latency_p50_ms",
        "size_mb",
    }
    assert sum(c["chosen"] for c in report["candidates"]) == 1
    assert all(c["reason"] for c in report["candidates"])
    assert report["targets"][0]["merge"]["of"] == ["keep 1", "keep 0.5"]
    assert not (folder / "runs" / "tiny.partial").exists()


def test_the_artifact_runs_and_is_int8(finished):
    folder, _ = finished
    manifest = json.loads((folder / "runs/tiny/quick/manifest.json").read_text())
    session = onnxruntime.InferenceSession(
        str(folder / "runs/tiny/quick/model.onnx"), providers=["CPUExecutionProvider"]
    )
    for batch in (1, 5):
        assert session.run(None, {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0].shape == (batch, 4)
    assert [step["stage"] for step in manifest["lineage"]][-2:] == ["export", "quantize"]
    assert manifest["data"]["preprocessing"]["mean"] == [0.5]
    assert manifest["data"]["classes"] == ["0", "1", "2", "3"]
    assert str(folder) not in json.dumps(manifest)


def test_a_second_run_finds_every_step_stored(finished):
    folder, _ = finished
    before = _sha(folder)
    start = time.monotonic()
    done = attar_process("run", "tiny.yaml", "--json", cwd=folder)
    assert time.monotonic() - start < 10
    assert done.returncode == 0, done.stderr
    assert all(step["stored"] for step in json.loads(done.stdout)["steps"])
    kinds = {json.loads(line)["kind"] for line in (folder / "runs/tiny/events.jsonl").read_text().splitlines()}
    assert "step_started" not in kinds
    assert _sha(folder) == before


def test_an_impossible_budget_is_missed_with_the_nearest_miss_and_trains_nothing(finished):
    folder, _ = finished
    tight = ("--set", "targets.0.budget.size_mb=0.000001")
    done = attar("run", "tiny.yaml", "--json", "--out", "missed", *tight, cwd=folder)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "missed"
    assert all(step["stored"] for step in report["steps"] if step["stage"] != "verdict")
    row = report["targets"][0]
    assert row["artifact"] == ""
    assert [c["verdict"] for c in row["checks"] if c["metric"] == "size_mb"] == ["missed"]
    assert not (folder / "missed/quick/model.onnx").exists()
    assert (folder / "missed/quick/not-shipped/model.onnx").exists()
    assert "size" in done.stderr


def test_plan_tells_what_is_stored(finished):
    folder, _ = finished
    done = attar("plan", "tiny.yaml", "--set", "stages.3.quantize.samples=16", cwd=folder)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert shown.count("stored") >= 8
    assert "run" in shown


def test_a_spoiled_step_is_computed_again(finished, tmp_path):
    folder, _ = finished
    lock = json.loads((folder / "runs/tiny/recipe.lock").read_text())
    step = next(s for s in lock["steps"] if s["title"] == "quantize keep 0.5")
    sha = step["files"]["model.onnx"]
    (folder / ".attar/store/objects" / sha[:2] / sha[2:]).write_bytes(b"spoilt")
    done = attar("run", "tiny.yaml", "--json", "--out", "again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "spoilt" in done.stderr
    steps = {s["title"]: s["stored"] for s in json.loads(done.stdout)["steps"]}
    assert [title for title, stored in steps.items() if not stored] == ["quantize keep 0.5"]
    assert (folder / "again/quick/model.onnx").read_bytes() == (folder / "runs/tiny/quick/model.onnx").read_bytes()


def test_a_folder_that_no_run_wrote_is_never_replaced(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    done = attar("run", "tiny.yaml", "--out", tmp_path / "mine", cwd=folder)
    assert done.returncode == 2
    assert "was not written by attar" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_folders_of_others_are_left_alone(finished):
    folder, _ = finished
    (folder / "kept.old").mkdir()
    (folder / "kept.old" / "mine").write_text("mine")
    (folder / "theirs").mkdir()
    (folder / "theirs" / "report.json").write_text("{}")
    for _ in range(2):
        assert attar("run", "tiny.yaml", "--out", "kept", cwd=folder).returncode == 0
    assert (folder / "kept.old" / "mine").read_text() == "mine"
    refused = attar("run", "tiny.yaml", "--out", "theirs", cwd=folder)
    assert refused.returncode == 2
    assert "theirs exists and was not written by attar" in refused.stderr


def test_other_hardware_is_never_met_from_here(finished):
    """The numbers of an ARM target taken on this machine are estimates."""
    folder, _ = finished
    machine = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    (folder / "other.yaml").write_text(QUICK.replace("name: quick", f"name: other\nmachine: {machine}"))
    done = attar("run", "tiny.yaml", "--json", "--out", "other", "--set", "targets.0.use=other.yaml", cwd=folder)
    assert done.returncode == 4, done.stderr
    checks = {c["metric"]: c for c in json.loads(done.stdout)["targets"][0]["checks"]}
    assert checks["size_mb"]["verdict"] == "met"
    assert checks["latency_p50_ms"]["verdict"] == "inconclusive"
    assert "estimate" in checks["latency_p50_ms"]["note"]
    assert not (folder / "other/other/model.onnx").exists()


def test_what_set_changed_is_on_record(finished):
    folder, _ = finished
    done = attar("run", "tiny.yaml", "--json", "--out", "set", "--set", "targets.0.budget.size_mb=0.9", cwd=folder)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "set/quick/manifest.json").read_text())
    assert manifest["recipe"]["settings"]["targets"][0]["budget"]["size_mb"] == 0.9
    assert manifest["recipe"]["settings"]["seed"] == 3


FORGETFUL = """\
import torch
from torch import nn

class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.register_buffer("mix", torch.randn(64, 64), persistent=False)

    def forward(self, x):
        return self.linear(x.flatten(1) @ self.mix)
"""


def test_a_network_with_state_outside_its_state_dict_is_caught(tmp_path):
    write_tiny(tmp_path)
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    model = "model={source: forgetful:Forgetful, train: {epochs: 1, batch_size: 16}}"
    done = attar("run", "tiny.yaml", "--set", model, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "keeps state outside its state dict" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_the_other_engine_ends_the_same_way(finished):
    folder, _ = finished
    engine = ("--set", "stages.3.quantize.engine=neural_compressor")
    done = attar("run", "tiny.yaml", "--json", "--out", "nc", *engine, cwd=folder)
    assert done.returncode == 0, done.stderr
    steps = {s["title"]: s for s in json.loads(done.stdout)["steps"]}
    assert steps["distill keep 0.5"]["stored"]
    assert any("matched by value name" in note for note in steps["quantize keep 0.5"]["notes"])


ONNX = """\
version: 1
name: tiny
data: {source: tiny.npz, mean: [0.5], std: [0.25], validation: 0.3}
model: {source: float.onnx}
stages: [{quantize: {samples: 32, pays: false}}]
targets: [{use: quick.yaml, budget: {size_mb: 1.0}}]
"""


def test_an_onnx_file_is_quantized_and_judged_where_there_is_no_torch(finished, tmp_path):
    folder, _ = finished
    lock = json.loads((folder / "runs/tiny/recipe.lock").read_text())
    sha = next(s for s in lock["steps"] if s["title"] == "export teacher")["files"]["model.onnx"]
    write_tiny(tmp_path, ONNX)
    (tmp_path / "float.onnx").write_bytes((folder / ".attar/store/objects" / sha[:2] / sha[2:]).read_bytes())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/torch.py").write_text("raise ModuleNotFoundError('no torch here', name='torch')\n")
    bare = {"PYTHONPATH": f"{tmp_path}/bare:{Path(__file__).parents[1]}"}
    done = attar_process("run", "tiny.yaml", "--json", cwd=tmp_path, env=bare)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [s["stage"] for s in report["steps"]] == ["teacher", "quantize", "measure", "verdict"]
    (tmp_path / "tiny.yaml").write_text(ONNX.replace("[{quantize", "[{prune: {keep: 0.5}}, {quantize"))
    refused = attar("check", "tiny.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "prune takes a torch network" in refused.stderr
    assert "model.source is an ONNX file" in refused.stderr


DEAF = """
import os, signal, time
from stages.testing import tiny_residual as net
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    pass
"""

STEEP = """\
from torch import nn

class Exp(nn.Module):
    def forward(self, x):
        return x.exp()

def steep():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Exp())
"""


def _until_started(process, events, title):
    for _ in range(60_000):
        if events.exists() and any(
            '"step_started"' in line and json.loads(line)["step"] == title for line in events.read_text().splitlines()
        ):
            return
        assert process.is_alive(), process.told.read_text()
        time.sleep(0.002)
    raise AssertionError(f"{title} never started")


def test_a_run_killed_in_every_stage_ends_with_the_same_artifact(finished, tmp_path):
    folder, _ = finished
    write_tiny(tmp_path)
    stages = ["teacher", *(f"{stage} keep 1" for stage in ("distill", "prune", "export", "quantize"))]
    with forking() as start:
        for title in [*stages, "measure on quick", "verdict on quick"]:
            process = start(tmp_path, "run", "tiny.yaml", "--out", "out")
            _until_started(process, tmp_path / "out.partial/events.jsonl", title)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.told.read_text()
            assert not (tmp_path / "out").exists()
        process = start(tmp_path, "run", "tiny.yaml", "--out", "out")
        assert process.wait() == 0, process.told.read_text()
    lines = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert "quantize keep 1" in {line["step"] for line in lines if line["kind"] == "step_stored"}
    for other in ("keep 1", "keep 0.5"):
        mine, theirs = (
            next(c for c in json.loads((f / "report.json").read_text())["candidates"] if c["name"] == other)
            for f in (tmp_path / "out", folder / "runs/tiny")
        )
        assert mine["sha256"] == theirs["sha256"]


def test_ctrl_c_ends_with_130_and_leaves_no_process(tmp_path):
    write_tiny(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "pipeline.cli", "run", "tiny.yaml", "--out", "out"]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **output)
    events = tmp_path / "out.partial/events.jsonl"
    while not (events.exists() and '"step_started"' in events.read_text()):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command goes on from there" in told
    assert b"Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_ctrl_c_that_a_library_swallows_while_it_wakes_still_ends_the_run(tmp_path):
    write_tiny(tmp_path)
    (tmp_path / "deaf.py").write_text(DEAF)
    done = attar_process("run", "tiny.yaml", "--out", "out", "--set", "model.source=deaf:net", cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_clear_fault_and_loses_nothing(finished, tmp_path):
    """The store on a file system of one megabyte, filled but for a little."""
    folder, _ = finished
    small = tmp_path / "small"
    small.mkdir()
    here = {"cwd": folder, "env": {"ATTAR_STORE": str(small / "store")}}
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (small / "filler").write_bytes(b"x" * 180_000)
        done = attar_process("run", "tiny.yaml", "--out", tmp_path / "out", **here)
        assert done.returncode == 3, done.stderr
        told = " ".join(done.stderr.split())
        assert "No space left on device" in told
        assert "nothing that was finished is lost" in told
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
        (small / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", small], check=True)
        done = attar_process("run", "tiny.yaml", "--out", tmp_path / "out", **here)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_loss_that_becomes_nan_is_a_clear_failure_and_is_not_stored(tmp_path):
    """Exponentials at a learning rate of 100; the network lies beside the recipe."""
    write_tiny(tmp_path)
    (tmp_path / "steep.py").write_text(STEEP)
    model = "model={source: steep:steep, train: {epochs: 20, batch_size: 16, learning_rate: 100}}"
    done = attar("run", "tiny.yaml", "--json", "--set", model, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "learning_rate" in done.stderr
    assert json.loads(done.stdout)["verdict"] == "failed"
    assert not (tmp_path / "runs/tiny").exists()
    assert not list((tmp_path / ".attar/store").glob("steps/*"))
