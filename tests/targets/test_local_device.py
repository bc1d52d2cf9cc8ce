"""This machine as a device: fresh, isolated processes that never outlive their caller."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from device_tools import ENDLESS, JOB, OUTPUTS, appears, emptied, fake_job, gone, running, write_files

import targets
from targets.devices.local import LocalDevice
from targets.errors import DeviceError
from targets.target import Connection, Target


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attar"


@pytest.fixture
def opened(tmp_path):
    """Opens a workspace with the files of `JOB`; closes all at the end."""
    write_files(tmp_path)
    contexts = []

    def open_(**connection):
        target = Target(name="here", connection=Connection(**connection))
        context = LocalDevice(target).open()
        workspace = context.__enter__()
        contexts.append(context)
        for name in ("a.onnx", "x.npy"):
            workspace.put(tmp_path / name, name)
        return workspace

    yield open_
    for context in contexts:
        context.__exit__(None, None, None)


def test_files_go_in_the_probe_runs_files_come_out(opened):
    workspace = opened()
    answer = workspace.run(OUTPUTS, timeout_s=60)
    assert np.load(workspace.get(answer["models"]["a"]["outputs"])).shape == (2, 10)
    with pytest.raises(DeviceError, match=r"^the probe wrote no file nothing\.npy$"):
        workspace.get("nothing.npy")
    assert "latency_ms" in workspace.run(JOB, timeout_s=60)["models"]["a"]


def test_the_workspace_is_removed_and_no_process_stays(cache):
    with LocalDevice().open() as opened:
        folder = opened.folder
        assert folder.is_dir()
        assert running(folder.name) == []
    assert not folder.exists()
    assert list((cache / "work").iterdir()) == []


def test_the_folder_is_for_its_owner_alone(cache):
    with LocalDevice().open() as opened:
        for folder in (cache, cache / "work", opened.folder):
            assert folder.stat().st_mode & 0o777 == 0o700


def test_the_process_is_isolated_and_its_environment_clean(opened, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fake_job(
        monkeypatch,
        "found = {'environ': dict(os.environ), 'flag': sys.flags.ignore_environment, 'path': sys.path}\n"
        "Path('result.json').write_text(json.dumps({**found, 'group': os.getpgrp(), 'pid': os.getpid()}))",
    )
    found = opened().run({}, timeout_s=60)
    assert found["flag"] == 1
    assert found["environ"]["ORT_DISABLE_TELEMETRY"] == "1"
    assert not {str(tmp_path), "", "."} & set(found["path"])
    assert set(found["environ"]) <= {"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LC_ALL", "ORT_DISABLE_TELEMETRY"}
    assert found["group"] == found["pid"] != os.getpgrp()


def test_another_python_runs_the_jobs(opened, tmp_path, monkeypatch):
    other = tmp_path / "other python"
    other.write_text(f'#!/bin/sh\nATTAR_TEST=other exec {sys.executable} "$@"\n')
    other.chmod(0o755)
    fake_job(monkeypatch, "Path('result.json').write_text(json.dumps({'found': os.environ.get('ATTAR_TEST')}))")
    assert opened(python=str(other)).run({}, timeout_s=60) == {"found": "other"}


@pytest.mark.parametrize("python", ["/no/python", "/etc/passwd"])
def test_no_python_there(python):
    device = LocalDevice(Target(name="here", connection=Connection(python=python)))
    with pytest.raises(DeviceError, match=rf"^cannot start Python as {python}: .*; connection\.python in the target's"):
        device.identity()


def test_a_python_that_is_none():
    device = LocalDevice(Target(name="here", connection=Connection(python="false")))
    with pytest.raises(DeviceError, match=r"^false did not start the probe: the stream was closed$"):
        device.identity()


def test_a_python_without_the_runtime(opened, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -S "$@"\n')
    bare.chmod(0o755)
    target = Target(name="here", connection=Connection(python=str(bare)))
    found = LocalDevice(target).identity()
    assert (found["numpy"], found["onnxruntime"], found["providers"]) == ("", "", [])
    assert found["cores"] > 0
    match = r"^(numpy|onnxruntime) is not installed for .*; install it there \(pip install .*connection\.python"
    with pytest.raises(DeviceError, match=match):
        opened(python=str(bare)).run(JOB, timeout_s=60)


def test_an_error_of_the_probe_is_a_device_error(opened):
    with pytest.raises(DeviceError, match=r"^this probe reads jobs of version 2, and got 1$"):
        opened().run({**JOB, "version": 1}, timeout_s=60)


def test_a_crash_shows_the_last_words(opened, monkeypatch):
    fake_job(
        monkeypatch, "sys.stderr.write('line\\n' * 50 + 'bad things')\nsys.stderr.flush()\nos.kill(os.getpid(), 11)"
    )
    match = r"^the probe was killed by SIGSEGV and gave no answer; its last words:\n(.*\n)*  "
    with pytest.raises(DeviceError, match=match) as caught:
        opened().run(JOB, timeout_s=60)
    assert len(str(caught.value).splitlines()) <= 9


def test_a_kill_hints_at_memory(opened, monkeypatch):
    fake_job(monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(DeviceError, match=r"^the probe was killed by SIGKILL \(out of memory\?\) and gave no answer$"):
        opened().run(JOB, timeout_s=60)


@pytest.mark.parametrize("text", ["pass", "Path('result.json').write_text('{half')", "sys.exit(5)"])
def test_no_answer_is_a_device_error(opened, monkeypatch, text):
    fake_job(monkeypatch, text)
    with pytest.raises(DeviceError, match=r"^the probe ended with exit code [05] and gave no answer$"):
        opened().run(JOB, timeout_s=60)


def test_an_old_answer_is_not_taken_for_a_new_one(opened, monkeypatch):
    fake_job(
        monkeypatch,
        "if not Path('once').exists():\n    Path('once').touch()\n    Path('result.json').write_text('{\"a\": 1}')",
    )
    workspace = opened()
    assert workspace.run(JOB, timeout_s=60) == {"a": 1}
    with pytest.raises(DeviceError, match="gave no answer"):
        workspace.run(JOB, timeout_s=60)


def test_too_long_is_stopped(opened):
    workspace = opened()
    with pytest.raises(DeviceError, match=r"^the probe did not end within 1\.5 s and was stopped"):
        workspace.run({**JOB, "meter": ENDLESS}, timeout_s=1.5)
    assert gone(str(workspace.folder), within_s=0)
    assert "latency_ms" in workspace.run(JOB, timeout_s=60)["models"]["a"]


@pytest.mark.parametrize("end", ["time.sleep(60)", "pass"])
def test_what_the_probe_started_is_stopped_too(opened, monkeypatch, end):
    text = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', os.getcwd()])\n"
    fake_job(monkeypatch, text + end)
    workspace = opened()
    with pytest.raises(DeviceError, match=r"did not end|gave no answer"):
        workspace.run(JOB, timeout_s=1.5)
    assert gone(str(workspace.folder))


def test_a_file_that_cannot_be_copied(opened, tmp_path):
    workspace = opened()
    with pytest.raises(DeviceError, match=r"^cannot copy .*no\.onnx to .*: No such file or directory$"):
        workspace.put(tmp_path / "no.onnx", "no.onnx")
    with pytest.raises(DeviceError, match=r"^'\.\./a' is no plain file name$"):
        workspace.put(tmp_path / "a.onnx", "../a")


def test_identity_is_the_same_each_time_and_plain():
    first = LocalDevice().identity()
    assert json.loads(json.dumps(first)) == first == LocalDevice().identity()
    import onnxruntime

    assert first["onnxruntime"] == onnxruntime.__version__
    assert "CPUExecutionProvider" in first["providers"]


def test_two_runs_do_not_measure_at_once(monkeypatch):
    target = Target(name="here", connection=Connection(lease_wait_s=0.3))
    said = []
    with LocalDevice().open():
        LocalDevice().identity()  # needs no lease
        match = (
            r"^this machine is measuring for another run \(pid \d+, for \d s so far\).*kill \d+.*lease_wait_s = 0\.3 s"
        )
        with pytest.raises(DeviceError, match=match), LocalDevice(target).open(said.append):
            pass
    assert said[0].startswith("waiting for another run on this machine (pid ")
    with LocalDevice(target).open():
        pass


def test_a_run_that_waits_gets_its_turn():
    said, order = [], []

    def second():
        with LocalDevice().open(said.append):
            order.append("second")

    thread = threading.Thread(target=second)
    with LocalDevice().open():
        thread.start()
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.02)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert len(said) == 1


def test_a_dead_keeper_is_one_fault(opened, cache):
    workspace = opened()
    keeper = workspace._keeper._process
    timer = threading.Timer(1.0, keeper.kill)
    timer.start()
    with pytest.raises(
        DeviceError, match=r"^the process that starts the probe on this machine ended: killed by signal 9"
    ):
        workspace.run({**JOB, "meter": ENDLESS}, timeout_s=60)
    assert gone(str(workspace.folder), within_s=2)
    assert workspace.folder.exists()  # there was nobody left to remove it
    with LocalDevice().open() as other:
        assert not workspace.folder.exists()
        assert list((cache / "work").iterdir()) == [other.folder]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_outlives_its_caller(tmp_path, cache, sent, code):
    """Ctrl-C, and a kill that leaves the caller no time to clean up."""
    write_files(tmp_path)
    script = f"""
from pathlib import Path
from targets.devices.local import LocalDevice
with LocalDevice().open() as workspace:
    for name in ("a.onnx", "x.npy"):
        workspace.put(Path({str(tmp_path)!r}) / name, name)
    print(workspace.folder, flush=True)
    workspace.run({ {**JOB, "meter": ENDLESS}!r}, timeout_s=600)
"""
    root = str(Path(targets.__file__).parents[1])
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    with caller:
        folder = caller.stdout.readline().strip()
        appears(folder + "/job.json")
        time.sleep(0.5)  # well into the measurement
        assert running(folder + "/job.json")
        caller.send_signal(sent)
        assert caller.wait(20) == code
    assert gone(folder + "/job.json")
    assert emptied(cache / "work")
