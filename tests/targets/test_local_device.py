"""This machine as a device: a fresh, isolated process that never outlives its caller."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from targets import probe
from targets.devices.local import LocalDevice
from targets.errors import DeviceError
from targets.testing import tiny_onnx

ENDLESS = {"warmup_s": 0, "samples": 10_000_000, "blocks": 3, "max_seconds": 600, "throughput_batch": 1}
RUNTIME = {"provider": "CPUExecutionProvider", "options": {}, "threads": 1}
JOB = {"version": 1, "tasks": ["latency"], "models": {"a": "a.onnx"}, "inputs": "x.npy", "runtime": RUNTIME}


@pytest.fixture
def workspace(tmp_path):
    with LocalDevice().open() as opened:
        np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 4), np.float32))
        opened.put(tmp_path / "x.npy", "x.npy")
        opened.put(tiny_onnx(tmp_path / "a.onnx"), "a.onnx")
        yield opened


def fake_probe(monkeypatch, tmp_path, text):
    path = tmp_path / "fake_probe.py"
    path.write_text("import json, os, sys, time\nfrom pathlib import Path\n" + text)
    monkeypatch.setattr(probe, "__file__", str(path))


def running(marker):
    """Processes whose command line holds `marker`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, UnicodeDecodeError):
            continue
        if marker in command and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def gone(marker, within_s=10.0):
    deadline = time.monotonic() + within_s
    while running(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_files_go_in_the_probe_runs_files_come_out(workspace):
    answer = workspace.run({**JOB, "tasks": ["outputs"], "batch": 1}, timeout_s=60)
    assert np.load(workspace.get(answer["models"]["a"]["outputs"])).shape == (2, 10)
    folder = workspace.folder
    assert folder.is_dir()


def test_the_workspace_is_removed():
    with LocalDevice().open() as opened:
        folder = opened.folder
    assert not folder.exists()


def test_the_process_is_isolated_and_its_environment_clean(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fake_probe(
        monkeypatch,
        tmp_path,
        "Path('result.json').write_text(json.dumps("
        "{'environ': dict(os.environ), 'isolated': sys.flags.isolated, 'path': sys.path, 'group': os.getpgrp()}))",
    )
    found = workspace.run({}, timeout_s=60)
    assert found["isolated"] == 1
    assert str(tmp_path) not in found["path"]
    assert "OMP_NUM_THREADS" not in found["environ"]
    assert set(found["environ"]) <= {"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LC_ALL"}
    assert found["group"] != os.getpgrp()


def test_an_error_of_the_probe_is_a_device_error(workspace):
    with pytest.raises(DeviceError, match=r"^this probe reads jobs of version 1, and got 2$"):
        workspace.run({**JOB, "version": 2}, timeout_s=60)


def test_a_crash_shows_the_last_words(workspace, monkeypatch, tmp_path):
    fake_probe(monkeypatch, tmp_path, "sys.stderr.write('line\\n' * 50 + 'bad things')\nos.kill(os.getpid(), 11)")
    match = r"^the probe was killed by SIGSEGV and gave no answer; its last words:\n(.*\n)*  "
    with pytest.raises(DeviceError, match=match) as caught:
        workspace.run(JOB, timeout_s=60)
    assert len(str(caught.value).splitlines()) <= 9


def test_a_kill_hints_at_memory(workspace, monkeypatch, tmp_path):
    fake_probe(monkeypatch, tmp_path, "os.kill(os.getpid(), 9)")
    with pytest.raises(DeviceError, match=r"^the probe was killed by SIGKILL \(out of memory\?\) and gave no answer$"):
        workspace.run(JOB, timeout_s=60)


@pytest.mark.parametrize("text", ["pass", "Path('result.json').write_text('{half')", "sys.exit(5)"])
def test_no_answer_is_a_device_error(workspace, monkeypatch, tmp_path, text):
    fake_probe(monkeypatch, tmp_path, text)
    with pytest.raises(DeviceError, match=r"^the probe ended with exit code [05] and gave no answer$"):
        workspace.run(JOB, timeout_s=60)


def test_an_old_answer_is_not_taken_for_a_new_one(workspace, monkeypatch, tmp_path):
    workspace.run({**JOB, "tasks": ["outputs"], "batch": 1}, timeout_s=60)
    fake_probe(monkeypatch, tmp_path, "pass")
    with pytest.raises(DeviceError, match="gave no answer"):
        workspace.run(JOB, timeout_s=60)


def test_too_long_is_stopped(workspace):
    with pytest.raises(DeviceError, match=r"^the probe did not end within 1 s and was stopped"):
        workspace.run({**JOB, "meter": ENDLESS}, timeout_s=1)
    assert gone(str(workspace.folder), within_s=0)


def test_what_the_probe_started_is_stopped_too(workspace, monkeypatch, tmp_path):
    text = "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', os.getcwd()])\n"
    fake_probe(monkeypatch, tmp_path, text + "time.sleep(60)")
    with pytest.raises(DeviceError, match="did not end"):
        workspace.run(JOB, timeout_s=1.5)
    assert gone(str(workspace.folder))


def test_a_file_that_cannot_be_copied(workspace, tmp_path):
    with pytest.raises(DeviceError, match=r"^cannot copy .*no\.onnx to .*: No such file or directory$"):
        workspace.put(tmp_path / "no.onnx", "no.onnx")


def test_identity_is_the_same_each_time_and_plain():
    first = LocalDevice().identity()
    assert json.loads(json.dumps(first)) == first == LocalDevice().identity()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_probe_does_not_outlive_its_caller(tmp_path, sent, code):
    """Ctrl-C, and a kill that leaves the caller no time to clean up."""
    tiny_onnx(tmp_path / "a.onnx")
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 4), np.float32))
    script = f"""
import sys
from pathlib import Path
from targets.devices.local import LocalDevice
with LocalDevice().open() as workspace:
    for name in ("a.onnx", "x.npy"):
        workspace.put(Path({str(tmp_path)!r}) / name, name)
    print(workspace.folder, flush=True)
    workspace.run({ {**JOB, "meter": ENDLESS}!r}, timeout_s=600)
"""
    root = str(Path(probe.__file__).parents[1])
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)},
    )
    with caller:
        folder = caller.stdout.readline().strip()
        deadline = time.monotonic() + 20
        while not running(folder + "/job.json") and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # well into the measurement
        assert running(folder + "/job.json")
        caller.send_signal(sent)
        assert caller.wait(20) == code
    assert gone(folder + "/job.json")
    assert Path(folder).exists() == (sent == signal.SIGKILL)
