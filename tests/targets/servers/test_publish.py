"""A model repository is written whole or not at all, whatever happens meanwhile."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
from nobody import as_nobody
from onnx import TensorProto, helper

from targets.errors import InputError
from targets.servers import publish as steps
from targets.servers.disk import alone, newest
from targets.servers.publish import place, publish
from targets.servers.shipment import Layout

# What scripts import from: these tests, the helpers of all tests, attar.
IMPORTED = os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 2, 3))


def net(path, *, classes=3, bias=0.0, batch="batch"):
    """A model of one addition; its bias tells versions apart."""
    sizes = [batch, classes]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", "y")]
    constant = helper.make_tensor("bias", TensorProto.FLOAT, [1], [bias])
    graph = helper.make_graph([helper.make_node("Add", ["x", "bias"], ["y"])], "net", value[:1], value[1:], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path):
    return net(tmp_path / "net.onnx")


def layout(model, text="config", **more):
    """A version of a model and a file that names it, and two files beside."""
    shared = {"config.pbtxt": text.encode(), "warmup/one": text.encode()}
    added = {"note.txt": lambda number: f"version {number}".encode()}
    return Layout({"model.onnx": model}, **{"shared": shared, "added": added, **more})


def listing(**files):
    """The list of such files."""
    real = {"config": "config.pbtxt", "note": "note.txt", "warmup": "warmup/one"}
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {real[name]}\n" for name, data in files.items()).encode()


def files(folder):
    """All that lies in a folder, hidden names too: what each file holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_versions_stand_beside_each_other_and_shared_files_are_the_newest(model, tmp_path):
    dest = tmp_path / "models"
    assert publish(layout(model, "one"), dest, "net") == dest / "net" / "1"
    assert publish(layout(net(tmp_path / "b.onnx", bias=1.0), "two"), dest, "net") == dest / "net" / "2"
    with alone(dest):
        assert place(layout(model, "ten"), dest, "net", 10).name == "10"
    assert files(dest) == {
        "net/config.pbtxt": b"ten",
        "net/warmup/one": b"ten",
        "net/LAYOUT.SHA256SUMS": listing(config=b"ten", warmup=b"ten"),
        **{f"net/{n}/LAYOUT.SHA256SUMS": listing(note=f"version {n}".encode()) for n in (1, 2, 10)},
        "net/1/model.onnx": model.read_bytes(),
        "net/1/note.txt": b"version 1",
        "net/2/model.onnx": (tmp_path / "b.onnx").read_bytes(),
        "net/2/note.txt": b"version 2",
        "net/10/model.onnx": model.read_bytes(),
        "net/10/note.txt": b"version 10",
    }
    assert newest(dest / "net") == 10
    assert (dest / "net" / "1").stat().st_mode & 0o777 == 0o755  # servers often run as somebody else
    assert (dest / "net" / "1" / "model.onnx").stat().st_mode & 0o777 == 0o644
    assert (dest / "net" / "1" / "model.onnx").stat().st_nlink == 1


def test_a_file_that_only_an_earlier_publication_wrote_stays_in_the_list_while_it_is_there(model, tmp_path):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    publish(layout(model, shared={"config.pbtxt": b"two"}), dest, "net")
    assert (dest / "net" / "LAYOUT.SHA256SUMS").read_bytes() == listing(config=b"two", warmup=b"one")
    (dest / "net" / "warmup" / "one").unlink()
    publish(layout(model, shared={"config.pbtxt": b"three"}), dest, "net")
    assert (dest / "net" / "LAYOUT.SHA256SUMS").read_bytes() == listing(config=b"three")


def test_a_shared_file_that_attar_did_not_write_is_never_written_over(model, tmp_path):
    dest = tmp_path / "models"
    home = dest / "net"
    home.mkdir(parents=True)
    (home / "config.pbtxt").write_bytes(b"by hand")
    for text, edited in (("one", ["config.pbtxt"]), ("two", ["config.pbtxt", "warmup/one"])):
        before = files(dest)
        with pytest.raises(InputError, match="is not as attar wrote it, and would be written over") as told:
            publish(layout(model, text), dest, "net")
        assert [fault.file for fault in told.value.faults] == [str(home / name) for name in edited]
        assert "config.pbtxt: is not" in str(told.value)
        assert [("--keep-config" in fault.help) for fault in told.value.faults] == [True, False][: len(edited)]
        assert files(dest) == before
        for name in edited:
            (home / name).unlink()
        publish(layout(model, text), dest, "net")
        assert files(home)["LAYOUT.SHA256SUMS"] == listing(config=text.encode(), warmup=text.encode())
        for name in ("config.pbtxt", "warmup/one"):
            (home / name).write_bytes(b"tuned")
    (home / "config.pbtxt").write_bytes(b"three")  # what would be written
    (home / "warmup" / "one").unlink()
    publish(layout(model, "three"), dest, "net")


def test_a_file_that_is_to_stay_stays_and_is_listed_as_it_is(model, tmp_path):
    dest, kept = tmp_path / "models", frozenset({"config.pbtxt"})
    publish(layout(model, "one", kept=kept), dest, "net")
    assert (dest / "net" / "config.pbtxt").read_bytes() == b"one"
    (dest / "net" / "config.pbtxt").write_bytes(b"tuned")
    (dest / "net" / "warmup" / "one").write_bytes(b"tuned")
    with pytest.raises(InputError, match=r"warmup/one: is not as attar wrote it") as told:
        publish(layout(model, "two", kept=kept), dest, "net")
    assert len(told.value.faults) == 1
    (dest / "net" / "warmup" / "one").unlink()
    publish(layout(model, "two", kept=kept), dest, "net")
    assert files(dest)["net/config.pbtxt"] == b"tuned"
    assert files(dest)["net/LAYOUT.SHA256SUMS"] == listing(config=b"tuned", warmup=b"two")
    publish(layout(model, "three"), dest, "net")
    assert files(dest)["net/config.pbtxt"] == b"three"


def test_a_list_that_is_none_is_not_written_over(model, tmp_path):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    (dest / "net" / "LAYOUT.SHA256SUMS").write_bytes(b"mine\n")
    before = files(dest)
    with pytest.raises(InputError, match=r"LAYOUT.SHA256SUMS: is not as attar wrote it\n.*take it away"):
        publish(layout(model, "two"), dest, "net")
    assert files(dest) == before


@pytest.mark.parametrize("name", ["note.txt", "LAYOUT.SHA256SUMS"])
def test_an_artifacts_file_does_not_give_way_to_a_servers(model, tmp_path, name):
    ours = Layout({"model.onnx": model, name: b"mine"}, added={"note.txt": b"theirs"})
    with pytest.raises(InputError, match=rf"{name}: is the artifact's, and what the server needs has the same name"):
        publish(ours, tmp_path / "models", "net")
    assert not (tmp_path / "models").exists()


def test_a_server_that_runs_as_somebody_else_can_read_it_whatever_the_umask_is(model, tmp_path):
    before = os.umask(0o077)
    try:
        publish(layout(model), tmp_path / "above" / "models", "net")
    finally:
        os.umask(before)
    for path in (tmp_path / "above", *(tmp_path / "above").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_version_is_never_written_over(model, tmp_path):
    into = publish(layout(model, "one"), tmp_path / "models", "net")
    for occupied in (1, 2):
        into.with_name("2").mkdir(exist_ok=True)  # an empty folder would be replaced by a rename
        with alone(into.parent.parent), pytest.raises(InputError, match=f"version {occupied} is there already") as told:
            place(layout(model, "other"), tmp_path / "models", "net", occupied)
        assert "next free number" in str(told.value)
    assert (into.parent / "config.pbtxt").read_bytes() == b"one"
    assert not list((into.parent / "2").iterdir())
    with pytest.raises(InputError, match="version 0 must be at least 1"):
        place(layout(model), tmp_path / "models", "net", 0)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "-x", "a b"])
def test_a_name_that_leaves_its_folder_is_refused(model, tmp_path, name):
    with pytest.raises(InputError, match="it names a folder"):
        publish(layout(model), tmp_path / "models", name)
    assert not (tmp_path / "models").exists()


def test_many_publishers_at_once_get_a_number_each(model, tmp_path):
    dest = tmp_path / "models"

    def listed(before):
        return (before or b"") + b"+"

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: publish(layout(model, root={"list": listed}), dest, "net"), range(24)))
    assert sorted(int(path.name) for path in done) == list(range(1, 25))
    assert (dest / "list").read_bytes() == b"+" * 24  # none was lost
    for path in done:
        assert (path / "note.txt").read_text() == f"version {path.name}"
    assert not [name for name in files(dest) if "/." in name or name.startswith(".")]


@pytest.mark.parametrize("other", [{"classes": 4}, {"batch": 1}])
def test_a_model_with_another_face_is_refused(model, tmp_path, other):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    before = files(dest)
    with pytest.raises(
        InputError, match=r"version 1 there is x float32 \(\?, 3\) -> .*its clients would break"
    ) as told:
        publish(layout(net(tmp_path / "other.onnx", **other), "two"), dest, "net")
    assert "ship it under another --name" in str(told.value)
    assert files(dest) == before
    (dest / "net" / "1" / "model.onnx").write_bytes(b"none of ours")
    with pytest.raises(InputError, match="version 1 there is no model that attar shipped"):
        publish(layout(model, "two"), dest, "net")


def test_links_are_not_followed(model, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("mine")
    dest = tmp_path / "models"
    dest.symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"models: is a symbolic link"):
        publish(layout(model), dest, "net")
    dest.unlink()
    dest.mkdir()
    for link, shown in (
        ("net", "net"),
        ("net/config.pbtxt", "config.pbtxt"),
        ("net/LAYOUT.SHA256SUMS", "LAYOUT.SHA256SUMS"),
        ("net/warmup", "warmup"),
        ("list", "list"),
    ):
        place_of = dest / link
        place_of.parent.mkdir(exist_ok=True)
        place_of.symlink_to(elsewhere / "secret" if "." in link or link == "list" else elsewhere)
        with pytest.raises(InputError, match=rf"{shown}: is a symbolic link"):
            publish(layout(model, root={"list": lambda _: b"x"}), dest, "net")
        place_of.unlink()
    (dest / "net" / "1").symlink_to(elsewhere)
    with alone(dest), pytest.raises(InputError, match="version 1 is there already"):
        place(layout(model), dest, "net", 1)
    (dest / "net" / "1").unlink()
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    with pytest.raises(InputError, match="cannot be written"):
        publish(layout(link), dest, "net")
    assert files(elsewhere) == {"secret": b"mine"}
    assert files(dest) == {}


def test_what_is_no_file_of_its_own_is_in_the_way(model, tmp_path):
    dest = tmp_path / "models"
    config = dest / "net" / "config.pbtxt"
    config.mkdir(parents=True)
    with pytest.raises(InputError, match=r"config\.pbtxt: cannot be read: Is a directory; it is in the way"):
        publish(layout(model), dest, "net")
    config.rmdir()
    config.write_text("mine")
    os.link(config, tmp_path / "mine")
    with pytest.raises(InputError, match=r"config\.pbtxt: has 2 names \(hard links\), .*; it is in the way"):
        publish(layout(model), dest, "net")
    assert files(dest) == {"net/config.pbtxt": b"mine"}


def test_root_files_are_shared_by_models_and_can_refuse(model, tmp_path):
    dest = tmp_path / "models"

    def added(name):
        return lambda before: (before or b"") + name

    publish(layout(model, root={"config.json": added(b"one,")}), dest, "one")
    publish(layout(model, root={"config.json": added(b"two,")}), dest, "two")
    assert (dest / "config.json").read_bytes() == b"one,two,"

    def refuses(before):
        raise InputError("config.json is not ours")

    before = files(dest)
    with pytest.raises(InputError, match=r"models/config\.json: config\.json is not ours"):
        publish(layout(model, root={"config.json": refuses}), dest, "three")
    assert files(dest) == before
    assert not (dest / "three").exists()


def test_what_was_left_of_a_trial_is_swept(model, tmp_path):
    dest = tmp_path / "models"
    with alone(dest):
        place(layout(model), dest, ".attar-candidate-net")
    assert (dest / ".attar-candidate-net" / "1" / "model.onnx").exists()
    publish(layout(model), dest, "net")
    assert [path.name for path in dest.iterdir()] == ["net"]


def test_what_an_owner_calls_alike_stays(model, tmp_path):
    dest = tmp_path / "models"
    for mine in (dest / ".attar-notes", dest / "net" / ".attar-notebook"):
        mine.mkdir(parents=True)
        (mine / "mine").write_bytes(b"mine")
    before = files(dest)
    for left in (".attar-new-ab_d01gh", ".attar-gone"):
        (dest / "net" / left).mkdir()
        (dest / "net" / left / "model.onnx").touch()
    publish(layout(model), dest, "net")
    assert {name: data for name, data in files(dest).items() if "/." in f"/{name}"} == before


def test_folders_that_were_made_for_nothing_go_again(model, tmp_path):
    def refuses(before):
        raise InputError("it is not ours")

    (tmp_path / "there").mkdir()
    for dest in ("there/x/y/models", "new/models"):
        with pytest.raises(InputError, match="not ours"):
            publish(layout(model, root={"list": refuses}), tmp_path / dest, "net")
    long = "x" * 300  # no name of a folder
    for dest in (long, f"new/er/{long}"):
        with pytest.raises(InputError, match="cannot be written: File name too long"):
            publish(layout(model), tmp_path / dest, "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "there"]
    assert not [*(tmp_path / "there").iterdir()]
    publish(layout(model), tmp_path / "new" / "models", "net")
    assert (tmp_path / "new" / "models" / "net" / "1").is_dir()


def test_one_who_waits_too_long_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setattr("targets.servers.disk._WAIT_S", 0.1)
    dest = tmp_path / "models"
    with alone(dest), pytest.raises(InputError, match="somebody else has been publishing there"):
        publish(layout(model), dest, "net")


def test_a_full_disk_leaves_what_was(model, tmp_path):
    """The kernel's own limit on a file's size, and a file system of 64 kB where one may be mounted."""
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    before = files(dest)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        for each in ("net", "new"):
            with pytest.raises(InputError, match="models: cannot be written: File too large"):
                publish(layout(model, "two"), dest, each)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(dest) == before
    assert not (dest / "new").exists()


def test_the_list_is_true_where_a_failure_could_not_be_undone(model, tmp_path, monkeypatch):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    put_back = steps.restore

    def stuck(change, home):
        if change.path.name == "config.pbtxt":
            raise OSError(28, "No space left on device")
        put_back(change, home)

    def broken(folder):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(steps, "restore", stuck)
        failing.setattr(steps, "sync", broken)
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            publish(layout(model, "two"), dest, "net")
    assert newest(dest / "net") == 1
    assert files(dest)["net/LAYOUT.SHA256SUMS"] == listing(config=b"two", warmup=b"one")
    publish(layout(model, "three"), dest, "net")


def test_what_an_owner_keeps_stays_theirs_where_nothing_was_published(model, tmp_path):
    dest, other = tmp_path / "models", net(tmp_path / "other.onnx", classes=4)
    publish(layout(model, "one"), dest, "net")
    (dest / "net" / "config.pbtxt").write_bytes(b"tuned")
    before = files(dest)
    with pytest.raises(InputError, match="its clients would break"):
        publish(layout(other, "two", kept=frozenset({"config.pbtxt"})), dest, "net")
    assert files(dest) == before


FULL = """
import sys
from pathlib import Path
from test_publish import files, layout
from targets.errors import InputError
from targets.servers.publish import publish
dest, model = Path(sys.argv[1]) / "models", Path(sys.argv[2])
publish(layout(model, "one"), dest, "net")
before = files(dest)
try:
    publish(layout(model, "two" * 40_000), dest, "net")
except InputError as error:
    assert files(dest) == before, files(dest).keys()
    print(error)
"""


def on_a_small_disk(script, size, small, model):
    """Runs a script with the folder of a file system of that size, and a model; skips where nothing may be mounted."""
    small.mkdir()
    mount = f"mount -t tmpfs -o size={size} small {small} && exec {sys.executable} -c '{script}' {small} {model}"
    environment = {**os.environ, "PYTHONPATH": IMPORTED}
    command = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount)
    if shutil.which("unshare") is None or subprocess.run((*command[:4], "true"), capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_file_system_that_is_full_leaves_what_was(model, tmp_path):
    done = on_a_small_disk(FULL, "64k", tmp_path / "small", model)
    assert "models: cannot be written: No space left on device" in done.stdout, done.stderr


def test_a_folder_that_may_not_be_written_is_said(model):
    with tempfile.TemporaryDirectory() as above:
        dest = Path(above) / "models"
        publish(layout(model, "one"), dest, "net")
        for folder in (dest, Path(above)):
            folder.chmod(0o555)
        content = model.read_bytes()
        try:
            with as_nobody(), pytest.raises(InputError, match="models: cannot be written: Permission denied"):
                publish(Layout({"model.onnx": content}), dest, "net")
        finally:
            for folder in (dest, Path(above)):
                folder.chmod(0o755)
        assert newest(dest / "net") == 1
    with tempfile.NamedTemporaryFile() as file, pytest.raises(InputError, match="cannot be written"):
        publish(layout(model), Path(file.name), "net")


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from test_publish import files, layout, listing
from targets.servers.disk import alone
from targets.servers.publish import changes, place, publish
from targets.servers.undo import forget, retract

root, model = Path(sys.argv[1]), Path(sys.argv[2])
start = {name: data for name, data in files(root / "start").items() if name.startswith("net/1/")}
seen = set()

def new(text="two"):
    return layout(model, text, root={"list": lambda before: text.encode()})

def killed_in(count, act):
    # Whether it was killed before its `count`-th step on the disk; else it is done.
    child = os.fork()
    if child == 0:
        left = [count]
        def killed(event, arguments):
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(killed)
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def others_follow(dest, count):
    # Other artifacts are published: the first is killed, too, somewhere else.
    killed_in(count * 17 % 61 + 1, lambda: publish(new("three"), dest, "net"))
    publish(new("four"), dest, "net")
    assert files(dest) == visible(dest), (count, "something hidden is left")
    assert files(dest)["net/LAYOUT.SHA256SUMS"] == listing(config=b"four", warmup=b"four")

def visible(dest):
    return {name: data for name, data in files(dest).items() if not any(p.startswith(".") for p in Path(name).parts)}

count = 0
while True:
    count += 1
    dest = root / str(count)
    shutil.copytree(root / "start", dest)
    if not killed_in(count, lambda: publish(new(), dest, "net")):
        break
    found = visible(dest)
    old = {name: data for name, data in found.items() if name.startswith("net/1/")}
    assert old == start, (count, old.keys())
    two = {name.rpartition("/")[2] for name in found if name.startswith("net/2/")}
    assert two in (set(), {"model.onnx", "note.txt", "LAYOUT.SHA256SUMS"}), (count, two)
    note = b"version 2"
    whole = {"model.onnx": model.read_bytes(), "note.txt": note, "LAYOUT.SHA256SUMS": listing(note=note)}
    lists = [listing(config=text, warmup=text) for text in (b"one", b"two")]
    for name, data in found.items():
        if name.startswith("net/2/"):
            assert data == whole[name.rpartition("/")[2]], (count, name)
        elif name == "net/LAYOUT.SHA256SUMS":
            assert data in lists, (count, name, data)
        elif not name.startswith("net/1/"):
            assert data in (b"one", b"two"), (count, name, data)
    if two:
        assert found["net/config.pbtxt"] == b"two", count
        assert found["net/LAYOUT.SHA256SUMS"] == lists[1], count
    seen.add(bool(two))
    others_follow(dest, count)
    shutil.rmtree(dest)
assert count > 30 and seen == {False, True}, (count, seen)
print("killed", count - 1, "times")

def taken_back(dest):
    with alone(dest):
        todo = changes(new(), dest, "net")
        into = place(new(), dest, "net")
        return lambda: (retract(into, todo), forget(dest / "net"))

again = 0
while True:
    again += 1
    dest = root / str(again)
    shutil.copytree(root / "start", dest)
    if not killed_in(again, taken_back(dest)):
        break
    others_follow(dest, again)
    shutil.rmtree(dest)
assert again > 15, again
print("and", again - 1, "times")
"""


def test_a_kill_at_any_moment_leaves_nothing_half_written(model, tmp_path):
    """The publisher is killed before its first, second, ... step on the disk, until it gets through."""
    publish(layout(model, "one", root={"list": lambda _: b"one"}), tmp_path / "start", "net")
    environment = {**os.environ, "PYTHONPATH": IMPORTED}
    done = subprocess.run(
        (sys.executable, "-c", KILLED, tmp_path, model), env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "\nand " in done.stdout
