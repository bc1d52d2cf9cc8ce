"""A device behind a real OpenSSH server, and all the ways in which it cannot be reached."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from device_tools import ENDLESS, JOB, OUTPUTS, appears, emptied, gone, running, write_files
from sshd import Sshd

import targets
from targets.devices import ssh
from targets.devices.bundle import bundle
from targets.devices.ssh import SshDevice, command
from targets.devices.ssh_faults import explain
from targets.devices.stream import LostError
from targets.errors import DeviceError
from targets.target import Connection


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Sshd(tmp_path_factory.mktemp("sshd"))
    yield started
    started.stop()


@pytest.fixture
def sshd(server, monkeypatch):
    monkeypatch.setattr(ssh, "_PAUSE_S", 0.1)
    return server


@pytest.fixture
def files(tmp_path):
    write_files(tmp_path)
    return tmp_path


def put(workspace, files):
    for name in ("a.onnx", "x.npy"):
        workspace.put(files / name, name)


def nothing_stays(sshd):
    """Neither a process nor a file, but for the cache."""
    assert gone(str(sshd.cache))
    assert emptied(sshd.cache / "work")
    assert list((sshd.folder / "tmp").iterdir()) == []
    assert {path.name[:5] for path in sshd.cache.iterdir()} <= {"lease", "probe", "files", "work"}


def test_a_job_runs_there(sshd, files):
    with SshDevice(sshd.target()).open() as workspace:
        put(workspace, files)
        answer = workspace.run(OUTPUTS, timeout_s=60)
        path = workspace.get(answer["models"]["a"]["outputs"])
        assert np.load(path).shape == (2, 10)
        assert workspace.get("result.json").read_text()
        with pytest.raises(DeviceError, match=r"^127\.0\.0\.1:\d+: .*/none\.npy: No such file"):
            workspace.get("none.npy")
    assert not path.exists()
    nothing_stays(sshd)


def test_files_are_sent_once(sshd, files):
    (files / "large").write_bytes(os.urandom(3_000_000))
    device = SshDevice(sshd.target())
    for _ in range(2):
        with device.open() as workspace:
            workspace.put(files / "large", "large")
            sent = workspace._keeper.ask  # a second `store` would be an error
            workspace._keeper.ask = lambda op, *a, **k: pytest.fail(op) if op == "store" else sent(op, *a, **k)  # noqa: B023
            workspace.put(files / "large", "again")
    nothing_stays(sshd)


def test_identity(sshd):
    device = SshDevice(sshd.target())
    found = device.identity()
    assert "CPUExecutionProvider" in found["providers"]
    assert device.identity() == found


def test_no_such_file_here(sshd, tmp_path):
    with SshDevice(sshd.target()).open() as workspace, pytest.raises(DeviceError, match=r"^cannot send .*/none to "):
        workspace.put(tmp_path / "none", "none")


def test_an_unknown_host_key(sshd, tmp_path):
    match = r"^the host key of 127.* is not in .*/none: connect once by hand with `ssh -i .* ssh://127.*`, and compare"
    with pytest.raises(DeviceError, match=match):
        SshDevice(sshd.target(known_hosts=str(tmp_path / "none"))).identity()
    assert not (tmp_path / "none").exists()


def test_a_changed_host_key(sshd, tmp_path):
    known = tmp_path / "known"
    key = " ".join((sshd.folder / "other.pub").read_text().split()[:2])
    known.write_text(f"[127.0.0.1]:{sshd.port} {key}\n")
    match = (
        r"^THE HOST KEY OF 127.* HAS CHANGED: .* It shows SHA256:\S+\.\n"
        rf"Nothing was sent\. .*: ssh-keygen -f {known} -R '\[127\.0\.0\.1\]:{sshd.port}'$"
    )
    with pytest.raises(DeviceError, match=match) as caught:
        SshDevice(sshd.target(known_hosts=str(known))).identity()
    subprocess.run(str(caught.value).rpartition(": ")[2], shell=True, check=True, capture_output=True)  # as told
    assert known.read_text() == ""


@pytest.mark.parametrize(("key", "said"), [("other", ""), ("none", r" \(No such file or directory\)")])
def test_a_wrong_key(sshd, key, said):
    match = rf"^127\S+ did not let us in with .*/{key}{said}: no key or agent here is accepted there, and no password"
    with pytest.raises(DeviceError, match=match):
        SshDevice(sshd.target(identity_file=str(sshd.folder / key))).identity()


def test_a_closed_port(sshd):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"ssh://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DeviceError, match=r"^the connection to 127.* was refused: nothing listens there"):
            SshDevice(sshd.target(address)).identity()


def test_one_that_accepts_and_says_nothing(sshd):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"ssh://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(DeviceError, match=r"^the connection to 127.* timed out.*connect_timeout_s is 1 s"):
            SshDevice(sshd.target(address, connect_timeout_s=1)).identity()


def test_a_name_that_nobody_knows(sshd):
    match = r"^(board\.invalid is not known by that name|the connection to board\.invalid failed, as no name server)"
    with pytest.raises(DeviceError, match=match):
        SshDevice(sshd.target("ssh://board.invalid")).identity()


@pytest.mark.parametrize("python", ["python2.4", "/etc/passwd", "~/no such/python"])
def test_no_python_there(sshd, python):
    with pytest.raises(DeviceError, match=rf"^127\S+ has no Python called {python}; .*connection\.python"):
        SshDevice(sshd.target(python=python)).identity()


def test_a_python_that_is_none(sshd):
    with pytest.raises(DeviceError, match=r"^127\S+ did not start the probe with true \(exit code 0; the stream was c"):
        SshDevice(sshd.target(python="true")).identity()


def wrapper(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_too_old(sshd, tmp_path):
    code = "import sys; sys.version_info = (3, 8, 1); sys.version = '3.8.1 (x)'; exec(sys.argv[1])"
    old = wrapper(tmp_path / "old python", f'exec {sys.executable} -c "{code}" "$3"')
    match = (
        r"^127\S+: attar needs Python 3\.9 or later on the device, and this is 3\.8\.1 \(.*old python\); let connection"
    )
    with pytest.raises(DeviceError, match=match):
        SshDevice(sshd.target(python=old)).identity()


def test_a_python_without_the_runtime(sshd, files):
    bare = wrapper(files / "bare", f'exec {Path(sys.executable).resolve()} -S "$@"')
    device = SshDevice(sshd.target(python=bare))
    assert device.identity()["onnxruntime"] == ""
    match = r"^127\S+: (numpy|onnxruntime) is not installed for .*; install it there \(pip .*connection\.python"
    with device.open() as workspace:
        put(workspace, files)
        with pytest.raises(DeviceError, match=match):
            workspace.run(JOB, timeout_s=60)


def test_no_ssh_here(sshd, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"^cannot start ssh to reach 127.*: No such file.*openssh-client"):
        SshDevice(sshd.target()).identity()


def test_an_error_of_the_probe_is_not_tried_again(sshd, files):
    said = []
    with SshDevice(sshd.target()).open(said.append) as workspace:
        put(workspace, files)
        with pytest.raises(DeviceError, match=r"^127\S+: this probe reads jobs of version 2, and got 1$"):
            workspace.run({**JOB, "version": 1}, timeout_s=60)
        with pytest.raises(DeviceError, match=r"^127\S+: the probe did not end within 1\.5 s"):
            workspace.run({**JOB, "meter": ENDLESS}, timeout_s=1.5)
        assert "models" in workspace.run(JOB, timeout_s=60)
    assert said == []


def test_a_connection_that_drops_once(sshd, files):
    said = []

    def drop():
        appears(str(sshd.cache / "work"))
        sshd.drop()

    with SshDevice(sshd.target()).open(said.append) as workspace:
        put(workspace, files)
        thread = threading.Thread(target=drop)
        thread.start()
        answer = workspace.run(
            {**OUTPUTS, "tasks": ["latency", "outputs"], "meter": {**JOB["meter"], "warmup_s": 1}}, 60
        )
        assert np.load(workspace.get(answer["models"]["a"]["outputs"])).shape == (2, 10)
    thread.join()
    assert [text for text in said if "waiting" not in text] == [
        f"the connection to 127.0.0.1:{sshd.port} was lost while measuring; trying again in 0.1 s"
    ]
    nothing_stays(sshd)


def test_a_connection_that_drops_between_two_calls(sshd, files):
    with SshDevice(sshd.target()).open() as workspace:
        workspace.put(files / "a.onnx", "a.onnx")
        sshd.drop()
        workspace.put(files / "x.npy", "x.npy")
        assert "models" in workspace.run(JOB, timeout_s=60)
    nothing_stays(sshd)


def test_a_connection_that_drops_each_time(sshd, files):
    over = threading.Event()

    def drop():
        while not over.wait(0.05):
            if running(str(sshd.cache / "work")):
                sshd.drop()

    thread = threading.Thread(target=drop)
    match = (
        r"^the connection to 127\S+ was lost 2 times while measuring: (.*\n)*"
        r"steps that were finished before are stored: give the same command again when 127\S+ is back$"
    )
    with SshDevice(sshd.target(retries=1)).open() as workspace:
        put(workspace, files)
        thread.start()
        with pytest.raises(DeviceError, match=match):
            workspace.run({**JOB, "meter": ENDLESS}, timeout_s=60)
        over.set()
    thread.join()
    nothing_stays(sshd)


@pytest.mark.slow
def test_a_network_that_swallows_everything(sshd, files):
    """No side is told: ssh here notices after 15 s, and the new connection ends the old one's job on the device."""
    stopped = []

    def swallow():
        appears(str(sshd.cache / "work"))
        stopped.extend(sshd.sessions())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    said = []
    thread = threading.Thread(target=swallow)
    with SshDevice(sshd.target()).open(said.append) as workspace:
        put(workspace, files)
        thread.start()
        started = time.monotonic()
        assert "models" in workspace.run({**JOB, "meter": {**JOB["meter"], "warmup_s": 2}}, timeout_s=60)
        assert time.monotonic() - started < 40
    thread.join()
    assert "was lost while measuring" in said[0]
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    nothing_stays(sshd)


def test_a_connection_that_drops_while_it_waits(sshd):
    def drop():
        time.sleep(1)
        sshd.drop()

    with SshDevice(sshd.target()).open():
        thread = threading.Thread(target=drop)
        thread.start()
        match = r"^the connection to 127\S+ was lost while it was set up: the stream was closed"
        with pytest.raises(DeviceError, match=match), SshDevice(sshd.target()).open():
            pass
        thread.join()
    nothing_stays(sshd)


def test_a_device_that_vanishes(tmp_path, files, monkeypatch):
    monkeypatch.setattr(ssh, "_PAUSE_S", 0.1)
    sshd = Sshd(tmp_path)

    def vanish():
        appears(str(sshd.cache / "work"))
        sshd.stop()

    thread = threading.Thread(target=vanish)
    match = r"^the connection to 127\S+ was lost 2 times while measuring: the connection to 127\S+ was refused"
    try:
        with SshDevice(sshd.target(retries=1)).open() as workspace:
            put(workspace, files)
            thread.start()
            with pytest.raises(DeviceError, match=match):
                workspace.run({**JOB, "meter": ENDLESS}, timeout_s=60)
    finally:
        thread.join()
        sshd.stop()
    nothing_stays(sshd)


def test_two_runs_do_not_measure_at_once(sshd):
    said = []
    with SshDevice(sshd.target()).open():
        with (
            pytest.raises(DeviceError, match=r"^127\S+ is measuring for another run \(pid \d+"),
            SshDevice(sshd.target(lease_wait_s=0.3)).open(said.append),
        ):
            pass
        assert said[0].startswith(f"waiting for another run on 127.0.0.1:{sshd.port} (pid ")
    with SshDevice(sshd.target(lease_wait_s=0)).open():
        pass


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_caller(sshd, files, sent):
    script = f"""
import sys
from pathlib import Path
from targets.devices.ssh import SshDevice
from targets.target import Target
with SshDevice(Target.model_validate_json({sshd.target().model_dump_json()!r})).open() as workspace:
    for name in ("a.onnx", "x.npy"):
        workspace.put(Path({str(files)!r}) / name, name)
    workspace.run({ {**JOB, "meter": ENDLESS}!r}, timeout_s=600)
"""
    root = str(Path(targets.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    caller = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, env=environment)
    with caller:
        appears(str(sshd.cache / "work"))
        time.sleep(0.3)
        caller.send_signal(sent)
        assert caller.wait(20) == -sent
    nothing_stays(sshd)


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh", "csh"])
def test_every_login_shell_takes_the_command(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line = command("ssh://host", Connection(python=sys.executable))[-1]
    done = subprocess.run(
        [shell, "-c", line], input=bundle(), capture_output=True, env={"XDG_CACHE_HOME": str(tmp_path)}
    )
    assert b"attar keeper" in done.stdout
    assert done.returncode == 0


def test_the_command_line():
    words = command("ssh://pi@[fe80::1]:2222", Connection(identity_file="/a b/50%", known_hosts="~/known"))
    assert words[words.index("--") + 1] == "fe80::1"
    assert words[words.index("-p") + 1] == "2222"
    assert words[words.index("-l") + 1] == "pi"
    assert 'IdentityFile="/a b/50%%"' in words
    assert 'UserKnownHostsFile="~/known"' in words
    words = command("ssh://pi4", Connection(python="~/venv 1/bin/python"))
    assert words[-2] == "pi4"
    assert words[-1].startswith("exec ~/'venv 1/bin/python' -E -c ")
    assert not {"-p", "-l"} & set(words)


@pytest.mark.parametrize(
    ("words", "again", "match"),
    [
        ("ssh: connect to host b port 22: No route to host", True, "has no route"),
        ("ssh: connect to host b port 22: Connection timed out", True, "timed out: is the device up"),
        ("ssh: Could not resolve hostname b: Temporary failure in name resolution", True, "no name server answers"),
        ("kex_exchange_identification: Connection closed by remote host", True, "was closed by the other side"),
        ("Timeout, server b not responding.", True, "was closed by the other side"),
        ("Received disconnect from b: Too many authentication failures", False, "did not let us in"),
        ("WARNING: UNPROTECTED PRIVATE KEY FILE!\nLoad key: bad permissions", False, r"let us in \(bad permissions\)"),
        ("@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", False, "THE HOST KEY OF b HAS CHANGED"),
        ("command-line: line 0: Bad configuration option: x", True, r"try `ssh b`; its last words:\n  command-line"),
    ],
)
def test_what_ssh_says(words, again, match):
    """Faults that need networks and clients which are not at hand, in the words of OpenSSH's sources."""
    fault = explain("ssh://b", Connection(), 255, words, "the stream was closed")
    assert isinstance(fault, LostError) == again
    with pytest.raises(DeviceError, match=match):
        raise fault


def test_no_room_for_temporary_files():
    words = "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device\n"
    told = explain("ssh://pi4", Connection(), 1, words, "the stream was closed")
    assert str(told).startswith("pi4 has no room for temporary files: make room there, or let TMPDIR")
    assert "Traceback" not in str(told)
