"""The store: content-addressed, crash-safe, and safe for two runs at once."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.store import Store
from targets.errors import StageError


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    yield store
    store.close()


def _folder(tmp_path, name="out", **files):
    folder = tmp_path / name
    folder.mkdir()
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return folder


def test_what_is_put_is_found_with_its_files_and_values(store, tmp_path):
    store.put("k1", _folder(tmp_path, model=b"weights", note=b"hello"), {"seconds": 1.5})
    entry = store.find("k1")
    assert entry is not None
    assert entry.values == {"seconds": 1.5}
    assert store.read(entry, "model") == b"weights"
    folder = store.checkout(entry)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"model": b"weights", "note": b"hello"}


def test_an_unknown_key_is_not_found(store):
    assert store.find("never") is None


def test_equal_bytes_are_kept_once(store, tmp_path):
    store.put("a", _folder(tmp_path, "a", x=b"same"))
    store.put("b", _folder(tmp_path, "b", y=b"same"))
    assert len(list((store.root / "objects").glob("*/*"))) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "folder", "record", "value"])
def test_a_spoiled_entry_is_dropped_and_told(store, tmp_path, damage):
    dropped = []
    store.on_spoiled = dropped.append
    entry = store.put("k", _folder(tmp_path, model=b"weights"))
    blob = store._blob(entry.files["model"])
    if damage == "flip":
        blob.write_bytes(b"weightz")
    elif damage == "truncate":
        blob.write_bytes(b"")
    elif damage == "remove":
        blob.unlink()
    elif damage == "folder":
        blob.unlink()
        blob.mkdir()
    elif damage == "value":
        record = store.root / "steps" / "k.json"
        record.write_text(record.read_text().replace('"values": {}', '"values": {"accuracy": 100}'))
    else:
        (store.root / "steps" / "k.json").write_text("{")
    assert store.find("k") is None
    assert dropped == ["k"]
    if damage == "folder":
        blob.rmdir()
    store.put("k", _folder(tmp_path, "again", model=b"weights"))
    assert store.find("k") is not None


def test_a_checkout_is_a_copy_and_no_link(store, tmp_path):
    entry = store.put("k", _folder(tmp_path, model=b"weights"))
    path = store.checkout(entry) / "model"
    assert path.stat().st_nlink == 1
    assert not path.is_symlink()
    path.write_bytes(b"scribble")
    assert store.read(entry, "model") == b"weights"


def test_links_are_refused(store, tmp_path):
    folder = _folder(tmp_path, real=b"x")
    (folder / "link").symlink_to(folder / "real")
    with pytest.raises(ValueError, match="link is not a plain file"):
        store.put("k", folder)
    assert store.find("k") is None


def test_scratch_outlives_the_object_and_goes_when_the_step_is_stored(tmp_path):
    first = Store(tmp_path / "s")
    (first.scratch("k") / "checkpoint").write_text("epoch 3")
    second = Store(tmp_path / "s")
    assert (second.scratch("k") / "checkpoint").read_text() == "epoch 3"
    second.put("k", _folder(tmp_path, x=b"x"))
    assert not (tmp_path / "s" / "scratch" / "k").exists()


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path):
    code = f"""
import os, pathlib, signal
from pipeline import store
real = os.fsync
count = 0
def fsync(handle):
    global count
    real(handle)
    count += 1
    if count == 3:  # between the blobs and the record
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
folder = pathlib.Path({str(tmp_path)!r}) / "out"
folder.mkdir()
(folder / "a").write_bytes(b"a"); (folder / "b").write_bytes(b"b")
store.Store(pathlib.Path({str(tmp_path)!r}) / "s").put("k", folder)
"""
    died = subprocess.run([sys.executable, "-c", code], check=False)
    assert died.returncode == -signal.SIGKILL
    store = Store(tmp_path / "s")
    assert store.find("k") is None
    entry = store.put("k", tmp_path / "out")
    assert store.find("k") == entry


def test_two_runs_do_not_compute_the_same_step_at_once(tmp_path):
    first, second = Store(tmp_path / "s"), Store(tmp_path / "s")
    order, waited = [], []

    def other():
        with second.lock("k", lambda: waited.append(True)):
            order.append("second")

    with first.lock("k"):
        thread = threading.Thread(target=other)
        thread.start()
        for _ in range(200):
            if waited:
                break
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert waited
    assert order == ["first", "second"]


def test_folders_of_dead_runs_are_swept_and_those_of_living_ones_stay(tmp_path):
    root = tmp_path / "s"
    code = f"from pathlib import Path; from pipeline.store import Store; print(Store(Path({str(root)!r})).work())"
    dead = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert Path(dead).is_dir()
    living = Store(root)
    mine = living.work()
    assert not Path(dead).exists()
    another = Store(root)
    another.work()
    assert mine.is_dir()
    living.close()
    another.close()
    assert not mine.exists()


def test_the_record_is_readable_json(store, tmp_path):
    store.put("k", _folder(tmp_path, x=b"x"), {"seconds": 2.0})
    record = json.loads((store.root / "steps" / "k.json").read_text())
    assert set(record) == {"key", "files", "values", "digest"}


def test_bytes_that_are_damaged_after_they_were_found_are_not_handed_out(store, tmp_path):
    entry = store.put("k", _folder(tmp_path, model=b"weights"))
    assert store.find("k") == entry
    store._blob(entry.files["model"]).write_bytes(b"weightz")
    with pytest.raises(StageError, match="was damaged while it was in use"):
        store.read(entry, "model")
    with pytest.raises(StageError, match="give the same command again"):
        store.checkout(entry)
