"""The keeper on the device, over plain pipes: whatever happens to the stream, nothing stays but the cache."""

import ast
import errno
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from device_tools import ENDLESS, JOB, appears, emptied, gone, running, write_files

from targets import probe
from targets.devices.bundle import bundle
from targets.devices.stream import Keeper, LostError, starter, take_lease, work
from targets.errors import DeviceError
from targets.probe import frames
from targets.probe.cache import Cache, CacheError
from targets.probe.keeper import _told

PROBE = Path(probe.__file__).parent
PACKAGES = {"numpy", "onnxruntime"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attar"


@pytest.fixture
def start():
    """Starts keepers; ends them at the end."""
    started = []

    def start_(before=(), *, silence_s=0, beats_s=None, start_s=20, run="r"):
        def explain(code, words, why):
            return DeviceError(f"{code}: {why}: {words}")

        command = [*before, *starter(sys.executable, silence_s)]
        beats_s = silence_s if beats_s is None else beats_s
        keeper = Keeper(command, "dev", explain=explain, silence_s=beats_s, start_s=start_s)
        started.append(keeper)
        if run:
            take_lease(keeper, run, 10, print)
            keeper.folder = Path(keeper.ask("open")[0]["folder"])
        return keeper

    yield start_
    for keeper in started:
        keeper.close()


def send(keeper, folder, *names):
    for name in names:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if not keeper.ask("put", name=name, sha256=digest)[0]["have"]:
            with (folder / name).open("rb") as file:
                keeper.ask("store", file, name=name, sha256=digest)


def ready(keeper, folder):
    write_files(folder)
    send(keeper, folder, "a.onnx", "x.npy")
    return keeper


def when_it_runs(keeper, then):
    """Calls `then` once a job has started; gives the thread."""

    def wait():
        appears(str(keeper.folder / "job.json"))
        time.sleep(0.3)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_bundle_is_the_same_each_time_and_holds_the_probe_alone():
    bundle.cache_clear()
    first = bundle()
    bundle.cache_clear()
    assert bundle() == first
    with zipfile.ZipFile(io.BytesIO(first)) as packed:
        assert packed.testzip() is None
        names = packed.namelist()
    assert names == sorted(names)
    assert {f"targets/probe/{path.name}" for path in PROBE.glob("*.py")} | {
        "__main__.py",
        "targets/__init__.py",
    } == set(names)


@pytest.mark.parametrize("path", sorted(PROBE.glob("*.py")), ids=lambda path: path.name)
def test_it_runs_on_python_3_9_and_imports_nothing_else_of_attar(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.startswith("targets.probe") or name.partition(".")[0] in PACKAGES | sys.stdlib_module_names
            assert node not in tree.body or name.partition(".")[0] not in PACKAGES


def test_the_zip_does_a_job_by_itself(tmp_path):
    (tmp_path / "probe.pyz").write_bytes(bundle())
    write_files(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    subprocess.run([sys.executable, "-E", "probe.pyz", "job.json"], cwd=tmp_path, check=True)
    assert len(json.loads((tmp_path / "result.json").read_text())["models"]["a"]["latency_ms"]) == 3


def test_the_identity_costs_no_lease_and_no_workspace(start, cache):
    found = json.loads(start(run="").ask("identity")[1])
    assert set(found) == {"model", "machine", "cores", "flags", "python", "numpy", "onnxruntime", "providers"}
    assert not (cache / "work").exists()


def test_a_file_is_sent_once(start, tmp_path, cache):
    keeper = ready(start(), tmp_path)
    digest = hashlib.sha256((tmp_path / "a.onnx").read_bytes()).hexdigest()
    assert keeper.ask("put", name="again.onnx", sha256=digest)[0]["have"]
    keeper.close()
    later = start()
    assert later.ask("put", name="b.onnx", sha256=digest)[0]["have"]
    assert (later.folder / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    assert (later.folder / "b.onnx").stat().st_nlink == 1  # onnx refuses hard links
    assert {path.name for path in (cache / "files").iterdir()} >= {digest}


@pytest.mark.parametrize("damage", ["changed", "cut", "link", "folder"])
def test_a_damaged_file_is_sent_again(start, tmp_path, cache, damage):
    keeper = ready(start(), tmp_path)
    content = (tmp_path / "a.onnx").read_bytes()
    stored = cache / "files" / hashlib.sha256(content).hexdigest()
    if damage == "changed":
        stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        stored.write_bytes(content[:100])
    elif damage == "link":
        stored.unlink()
        stored.symlink_to(tmp_path / "a.onnx")
    else:
        stored.unlink()
        stored.mkdir()
    assert not keeper.ask("put", name="b.onnx", sha256=stored.name)[0]["have"]
    assert not (keeper.folder / "b.onnx").exists()
    send(keeper, tmp_path, "a.onnx")
    assert stored.read_bytes() == content
    assert not stored.is_symlink()


def test_what_arrives_must_be_what_was_announced(start, tmp_path, cache):
    keeper = start()
    with pytest.raises(
        DeviceError, match=r"^dev: a file arrived with the digest \w{12}, and 000000000000 was announced$"
    ):
        keeper.ask("store", b"x" * 200_000, name="a", sha256="0" * 64)
    assert list((cache / "files").iterdir()) == []
    assert keeper.ask("put", name="a", sha256="0" * 64)[0] == {"have": False, "bytes": 0}  # the stream is still in step


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", "", "a/b", "n" * 300])
def test_names_stay_in_the_workspace(start, name):
    keeper = start()
    for op in ("get", "store"):
        with pytest.raises(DeviceError, match=r"^dev: '.*' is no plain file name$"):
            keeper.ask(op, b"data" if op == "store" else b"", name=name, sha256="0" * 64)


def test_a_link_is_not_followed_and_a_missing_file_is_said(start):
    keeper = start()
    (keeper.folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(DeviceError, match=r"^dev: .*/link: Too many levels of symbolic links$"):
        keeper.ask("get", name="link")
    with pytest.raises(DeviceError, match=r"^dev: .*/none: No such file or directory$"):
        keeper.ask("get", name="none")


def test_large_files_go_both_ways(start, tmp_path):
    keeper, content = start(), os.urandom(5_000_000)
    (tmp_path / "large").write_bytes(content)
    send(keeper, tmp_path, "large")
    with (tmp_path / "back").open("w+b") as file:
        keeper.ask("get", name="large", into=file)
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("said", ["", "Welcome to the board!", "last login\\n\\n", "\\036attar", "x" * 70_000])
def test_a_chatty_login_shell_is_overheard(start, said):
    keeper = start(["sh", "-c", f"printf '{said}'; exec \"$@\"", "sh"])
    assert keeper.hello["python"] == ".".join(map(str, sys.version_info[:3]))


def test_one_that_never_stops_talking_is_not(start):
    with pytest.raises(DeviceError, match="something else answers there"):
        start(["sh", "-c", "yes", "sh"])


def test_a_silent_one_is_given_up(start):
    with pytest.raises(DeviceError, match="no answer came in time"):
        start(["sh", "-c", "sleep 30", "sh"], start_s=0.5)


def test_modules_in_the_home_folder_are_not_taken_for_the_real_ones(start, tmp_path):
    for name in ("tempfile", "runpy", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')")
    keeper = start(["sh", "-c", f'cd {tmp_path} && exec "$@"', "sh"])
    assert json.loads(keeper.ask("identity")[1])["numpy"]


def test_the_stream_ends_in_mid_run(start, tmp_path, cache):
    keeper = ready(start(), tmp_path)
    thread = when_it_runs(keeper, keeper._process.stdin.close)  # as when the host dies
    with pytest.raises(LostError, match="the stream was closed"):
        work(keeper, {**JOB, "meter": ENDLESS}, 60)
    thread.join()
    assert gone(str(keeper.folder), within_s=0)
    assert list((cache / "work").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_mid_run(start, tmp_path, cache, number):
    keeper = ready(start(), tmp_path)
    thread = when_it_runs(keeper, lambda: keeper._process.send_signal(number))
    with pytest.raises(LostError, match=f"stopped by {number.name}"):
        work(keeper, {**JOB, "meter": ENDLESS}, 60)
    thread.join()
    assert gone(str(keeper.folder), within_s=0)
    assert list((cache / "work").iterdir()) == []


def test_a_killed_keeper_takes_the_job_along_and_the_next_one_cleans_up(start, tmp_path, cache):
    keeper = ready(start(), tmp_path)
    thread = when_it_runs(keeper, keeper._process.kill)
    with pytest.raises(LostError, match="killed by signal 9"):
        work(keeper, {**JOB, "meter": ENDLESS}, 60)
    thread.join()
    assert gone(str(keeper.folder), within_s=1)
    assert keeper.folder.exists()
    later = start(run="other")
    assert list((cache / "work").iterdir()) == [later.folder]


def test_silence_ends_the_keeper_in_mid_run(start, tmp_path, cache):
    """As when the network is cut and no word of it reaches the device."""
    keeper = ready(start(silence_s=1, beats_s=0), tmp_path)
    with pytest.raises(LostError, match="nothing was heard for 1 s"):
        work(keeper, {**JOB, "meter": ENDLESS}, 60)
    assert gone(str(keeper.folder), within_s=0)
    assert list((cache / "work").iterdir()) == []


def test_heartbeats_keep_it_alive(start, tmp_path):
    keeper = ready(start(silence_s=1), tmp_path)
    time.sleep(1.5)
    with pytest.raises(DeviceError, match=r"did not end within 2 s"):
        work(keeper, {**JOB, "meter": ENDLESS}, 2)
    assert "models" in work(keeper, JOB, 60)


def test_a_run_takes_over_from_its_own_broken_connection(start, tmp_path):
    first = ready(start(run="mine"), tmp_path)
    started = time.monotonic()
    second = start(run="mine")
    assert time.monotonic() - started < 5
    assert first._process.wait(5) == 0
    assert not first.folder.exists()
    assert second.folder.is_dir()


def test_a_workspace_needs_the_lease(start):
    keeper = start(run="")
    with pytest.raises(DeviceError, match="a workspace needs the lease"):
        keeper.ask("open")
    with pytest.raises(DeviceError, match="no workspace is open"):
        keeper.ask("get", name="a")
    with pytest.raises(DeviceError, match="'dance' is nothing that a keeper does"):
        keeper.ask("dance")


def test_no_home_to_write_to(start, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    keeper = start()
    other = tmp_path / f"attar-{os.getuid()}"
    assert keeper.hello["note"].endswith(f"cannot be used (Not a directory): files are kept in {other}")
    assert keeper.folder.is_relative_to(other)


def test_a_full_disk_keeps_no_half_file(cache):
    store, before = Cache(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.keep_probe(bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(cache.iterdir()) == []


def test_no_room_for_temporary_files_leaves_none(start, tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    with pytest.raises(DeviceError, match="File too large"):
        start(["sh", "-c", 'ulimit -f 20 && exec "$0" "$@"'])  # blocks of 512 or 1024 bytes: the probe is larger
    assert list((tmp_path / "t").iterdir()) == []


def test_room_is_what_a_full_disk_needs():
    told = _told(OSError(errno.ENOSPC, "No space left on device"), Path("/x"))
    assert told.startswith("/x: No space left on device; make room on the device, or set XDG_CACHE_HOME")
    assert _told(PermissionError(errno.EACCES, "Permission denied", "/y"), Path("/x")) == "/y: Permission denied"


def test_a_cache_that_is_a_link_is_refused(start, tmp_path, cache):
    (tmp_path / "elsewhere").mkdir()
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    match = "no folder for attar's files: .* is a symbolic link, and is not followed: remove it"
    with pytest.raises(DeviceError, match=match):
        start()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path):
    store = Cache()
    digests = []
    for number in range(4):
        content = bytes([number]) * 100
        digests.append(hashlib.sha256(content).hexdigest())
        store.store(digests[-1], [content])
        os.utime(store.root / "files" / digests[-1], (number, number))
    assert store.fetch(digests[0], tmp_path / "used")
    store.shrink(250)
    assert {path.name for path in (store.root / "files").iterdir()} == {digests[0], digests[3]}


def test_a_lock_by_itself_holds_the_lease(cache):
    one, other = Cache(), Cache()
    assert one.lease("a") == {}
    assert other.lease("b")["pid"] == os.getpid()
    with pytest.raises(CacheError, match="needs the lease"):
        other.workspace()
    one.release()
    assert other.lease("b") == {}
    other.release()


def test_old_probes_go(cache):
    store = Cache()
    path = store.keep_probe(b"one")
    os.utime(path, (0, 0))
    other = store.keep_probe(b"two")
    assert list(cache.glob("probe-*")) == [other]
    other.write_bytes(b"damaged")
    assert store.keep_probe(b"two").read_bytes() == b"two"


def test_frames_end_where_their_length_says():
    reading, writing = os.pipe()
    pipe = frames.Pipe(reading, writing)
    pipe.send({"a": 1}, b"data\n{}")
    pipe.send({"b": 2}, b"unread")
    pipe.send({"c": 3})
    assert pipe.receive(1) == {"a": 1, "bytes": 7}
    assert pipe.data() == b"data\n{}"
    assert pipe.receive(1)["b"] == 2
    assert pipe.receive(1)["c"] == 3
    pipe.write(b"no json\n")
    with pytest.raises(frames.GoneError, match="something else"):
        pipe.receive(1)
    with pytest.raises(frames.GoneError, match="no answer came in time"):
        pipe.receive(0.05)
    os.close(writing)
    with pytest.raises(frames.GoneError, match="the stream was closed"):
        pipe.receive(1)
    pipe.close()
    os.close(reading)


def test_one_that_takes_nothing_does_not_hold_us():
    reading, writing = os.pipe()
    pipe = frames.Pipe(reading, writing, patience_s=0.1)
    with pytest.raises(frames.GoneError, match="nothing was taken for"):
        pipe.send({}, b"x" * 10_000_000)
    pipe.close()
    os.close(reading)
    os.close(writing)


def test_nothing_is_left_running(cache):
    """Runs last: whatever the tests above did to keepers and jobs, all are gone."""
    assert running(str(cache.parents[2])) == []
    assert not cache.exists() or emptied(cache / "work")
