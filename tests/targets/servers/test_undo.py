"""What was published is taken back: the version at once, then the files beside it, also where the disk is full."""

import json
import resource

import pytest
from test_publish import files, layout, listing, net, on_a_small_disk

from targets.errors import InputError
from targets.servers import undo
from targets.servers.disk import alone, newest
from targets.servers.publish import changes, place, publish
from targets.servers.undo import Change, forget, noted, recalled, retract


@pytest.fixture
def model(tmp_path):
    return net(tmp_path / "net.onnx")


def test_retract_brings_back_what_was(model, tmp_path):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    before = files(dest)
    with alone(dest):
        new = layout(model, "two", root={"list": lambda _: b"net"})
        todo = changes(new, dest, "net")
        into = place(new, dest, "net")
        retract(into, todo)
        assert (dest / "net" / ".attar-gone").is_dir()
        forget(dest / "net")
    assert files(dest) == before
    with alone(dest):
        todo = changes(layout(model), dest, "other")
        retract(place(layout(model), dest, "other"), todo)
        forget(dest / "other")
    assert files(dest) == before
    assert not (dest / "other").exists()


def test_what_somebody_changed_since_stays(model, tmp_path):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    with alone(dest):
        todo = changes(layout(model, "two"), dest, "net")
        into = place(layout(model, "two"), dest, "net")
        (dest / "net" / "config.pbtxt").write_bytes(b"by hand")
        retract(into, todo)
    assert (dest / "net" / "config.pbtxt").read_bytes() == b"by hand"
    assert newest(dest / "net") == 1


def test_a_file_that_cannot_be_put_back_is_told_and_the_version_is_gone(model, tmp_path):
    """The kernel's own limit on a file's size."""
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    with alone(dest):
        todo = changes(layout(model, "by far larger"), dest, "net")
        into = place(layout(model, "by far larger"), dest, "net")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2, hard))
        try:
            stays = retract(into, todo)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        forget(dest / "net")
    assert len(stays) == 3
    assert stays[1] == f"{dest}/net/config.pbtxt stays as version 2 had it: File too large"
    assert newest(dest / "net") == 1
    assert not [*dest.rglob(".*")]
    publish(layout(model, "three"), dest, "net")


def test_the_list_is_true_where_one_file_could_not_be_put_back(model, tmp_path, monkeypatch):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    put_back = undo.restore

    def stuck(change, home):
        if change.path.name == "config.pbtxt":
            raise OSError(28, "No space left on device")
        put_back(change, home)

    monkeypatch.setattr(undo, "restore", stuck)
    with alone(dest):
        todo = changes(layout(model, "two"), dest, "net")
        stays = retract(place(layout(model, "two"), dest, "net"), todo)
        forget(dest / "net")
    assert stays == (f"{dest}/net/config.pbtxt stays as version 2 had it: No space left on device",)
    assert files(dest)["net/config.pbtxt"] == b"two"
    assert files(dest)["net/warmup/one"] == b"one"
    assert files(dest)["net/LAYOUT.SHA256SUMS"] == listing(config=b"two", warmup=b"one")
    publish(layout(model, "three"), dest, "net")


@pytest.mark.parametrize("lists", [0, 1])
def test_what_makes_the_list_true_stays_while_the_disk_is_full(model, tmp_path, monkeypatch, lists):
    """From config.pbtxt on there is no room, but for so many lists."""
    dest, full = tmp_path / "models", [True]
    publish(layout(model, "one"), dest, "net")
    put_back, written = undo.restore, []

    def stuck(change, home):
        if change.path.name == "LAYOUT.SHA256SUMS":
            written.append(change)
        if full and (change.path.name == "config.pbtxt" or len(written) > lists):
            raise OSError(28, "No space left on device")
        put_back(change, home)

    monkeypatch.setattr(undo, "restore", stuck)
    with alone(dest):
        todo = changes(layout(model, "two"), dest, "net")
        retract(place(layout(model, "two"), dest, "net"), todo)
        forget(dest / "net")
    before = files(dest)
    assert (before["net/config.pbtxt"], before["net/warmup/one"]) == (b"two", b"one")
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        publish(layout(model, "three"), dest, "net")
    assert files(dest) == before
    full.clear()
    publish(layout(model, "three"), dest, "net")
    assert files(dest)["net/LAYOUT.SHA256SUMS"] == listing(config=b"three", warmup=b"three")
    assert not [*dest.rglob(".*")]


def test_a_version_that_cannot_be_taken_away_is_told_and_all_stays(model, tmp_path):
    dest = tmp_path / "models"
    publish(layout(model, "one"), dest, "net")
    before = files(dest)
    with alone(dest), pytest.raises(InputError, match="net/2: could not be taken away again: No such file") as told:
        retract(dest / "net" / "2", (Change(dest / "net" / "config.pbtxt", b"none", b"one"),))
    assert "remove it by hand" in str(told.value)
    assert files(dest) == before


FULL = """
import sys
from dataclasses import replace
from pathlib import Path
from test_publish import files, layout
from targets.servers.disk import alone
from targets.servers.publish import changes, place, publish
from targets.servers.undo import forget, retract
dest, model = Path(sys.argv[1]) / "models", Path(sys.argv[2])
publish(layout(model, "one" * 4_000), dest, "net")
before = files(dest)
with alone(dest):
    two = layout(model, "two")
    two = replace(two, version={**two.version, "large": bytes(60_000)})
    todo = changes(two, dest, "net")
    into = place(two, dest, "net")
    try:
        with Path(sys.argv[1], "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    except OSError as error:
        print(error.strerror)
    print(retract(into, todo))
    forget(dest / "net")
assert not into.exists()
assert (dest / "net" / "1" / "model.onnx").exists()
assert files(dest) == before, sorted(files(dest))
"""


def test_a_file_system_that_is_full_keeps_no_version_that_is_taken_back(model, tmp_path):
    done = on_a_small_disk(FULL, "256k", tmp_path / "small", model)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n()\n"), done.stderr


def test_what_is_noted_is_recalled(tmp_path):
    todo = (
        Change(tmp_path / "net" / "config.pbtxt", b"one", b"\xff\x00"),
        Change(tmp_path / "net" / "warmup" / "one", None, b""),
        Change(tmp_path / "list", b"", b"one"),
    )
    same = Change(tmp_path / "net" / "labels.txt", b"cat", b"cat")
    assert recalled(noted((*todo, same), tmp_path), tmp_path) == todo


@pytest.mark.parametrize("note", ["", "{}", "3", "[1]", '[["a", null]]', '[["a", 1, ""]]', '[["a", "!", ""]]', "["])
def test_what_is_no_note_is_refused(tmp_path, note):
    with pytest.raises(ValueError, match=r"."):
        recalled(note.encode(), tmp_path)


@pytest.mark.parametrize("file", ["/etc/passwd", "../up", "a/../../up", "", "a\0", "\ud800"])
def test_no_note_leads_out_of_the_repository(tmp_path, file):
    with pytest.raises(ValueError, match="does not stay in its folder"):
        recalled(
            noted([Change(tmp_path / "a", None, b"")], tmp_path).replace(b'"a"', json.dumps(file).encode()), tmp_path
        )
