"""Where a version is wrong once it serves, it does not go on serving, whatever else fails."""

import threading
import time
from dataclasses import replace

import numpy as np
import oip_server
import onnxruntime
import pytest

from pipeline import takeover
from targets import artifact
from targets.errors import DeviceError, InputError
from targets.servers import control as controls
from targets.servers import undo
from targets.servers.control import Control
from targets.servers.disk import alone, newest
from targets.servers.publish import changes, place, publish
from targets.servers.shipment import Layout, Shipment
from targets.servers.undo import noted
from targets.sha256sums import LAYOUT, render
from targets.target import Target
from targets.testing import tiny_onnx


def made(path, *, k=3, batch="batch"):
    model = artifact.load(tiny_onnx(path, batch=batch))
    sample = np.random.default_rng(1).standard_normal((k, 3, 4, 4)).astype(np.float32)
    rows = np.arange(batch if isinstance(batch, int) else k) % k
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": sample[rows]})[0][:k]
    return Shipment("tiny", model, Target(name="here"), (), {}, sample, answers), Layout({"model.onnx": path})


def test_a_fixed_batch_larger_than_the_sample_is_proven(tmp_path):
    ours, layout = made(tmp_path / "model.onnx", batch=4)
    oip = oip_server.Oip(tmp_path / "model.onnx")
    with oip_server.http(oip) as place:
        control = Control(f"http://{place}")
        assert takeover._prove(ours, layout, control, "tiny", "1").verdict == "equal"
        oip.spoil = lambda y: y + 1
        with pytest.raises(DeviceError, match="does not answer as the artifact did"):
            takeover._prove(ours, layout, control, "tiny", "1")


def test_a_server_that_dies_while_it_owes_an_answer_to_the_sample_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "_STEP_S", 0.01)
    ours, layout = made(tmp_path / "model.onnx")
    oip, over = oip_server.Oip(tmp_path / "model.onnx"), threading.Event()

    def never(answer):
        over.wait(30)
        return answer

    oip.spoil = never
    with oip_server.http(oip) as there:
        control = Control("http://127.0.0.1:9")  # where nobody says that he lives
        control.url = f"http://{there}"
        start = time.monotonic()
        try:
            with pytest.raises(DeviceError, match="stopped answering while an answer of tiny version 1 was awaited"):
                takeover._prove(ours, layout, control, "tiny", "1")
            assert time.monotonic() - start < 20
        finally:
            over.set()


def test_a_file_that_its_owner_changed_is_told_before_the_server_is_asked_for_anything(tmp_path):
    ours, layout = made(tmp_path / "model.onnx")
    dest, said = tmp_path / "models", []
    layout = replace(layout, shared={"config.pbtxt": b"two"})
    publish(layout, dest, "tiny")
    control = Served(dest)
    control.load("tiny")
    (dest / "tiny" / "config.pbtxt").write_bytes(b"tuned")
    before = files(dest)
    with pytest.raises(InputError, match=r"config\.pbtxt: is not as attar wrote it"):
        takeover.proven(ours, layout, layout, ".attar-candidate-tiny", dest, control, said.append)
    assert (control.asked, said, files(dest)) == (["load tiny 1"], [], before)


def test_what_a_publication_left_that_was_killed_is_known_to_a_takeover(tmp_path, monkeypatch):
    ours, layout = made(tmp_path / "model.onnx")
    dest, said = tmp_path / "models", []
    publish(replace(layout, shared={"config.pbtxt": b"one"}), dest, "tiny")
    control = Served(dest)
    control.load("tiny")
    (dest / "tiny" / "config.pbtxt").write_bytes(b"two")  # renamed, and not the list
    (dest / "tiny" / ".attar-new-abcdefgh").mkdir()
    (dest / "tiny" / ".attar-new-abcdefgh" / LAYOUT).write_bytes(render({"config.pbtxt": b"two"}))
    monkeypatch.setattr(takeover, "_prove", lambda *_: None)
    third = replace(layout, shared={"config.pbtxt": b"three"})
    takeover.proven(ours, third, layout, ".attar-candidate-tiny", dest, control, said.append)
    assert (dest / "tiny" / "config.pbtxt").read_bytes() == b"three"


class Served:
    """The control of a server that loads the newest version that lies there, when it is told to."""

    url = "http://127.0.0.1:9"

    def __init__(self, dest):
        self.dest, self.asked, self.serves = dest, [], {}

    def serving(self, name):
        return (self.serves[name],) if name in self.serves else ()

    def load(self, name):
        self.serves[name] = max(int(path.name) for path in (self.dest / name).iterdir() if path.name.isdigit())
        self.asked.append(f"load {name} {self.serves[name]}")

    def unload(self, name):
        self.serves.pop(name, None)
        self.asked.append(f"unload {name}")


@pytest.fixture
def wrong(monkeypatch):
    """The error that comes once the version serves."""
    errors = [DeviceError("answers otherwise")]

    def prove(ours, layout, control, name, version):
        if name == "tiny":
            raise errors[0]

    monkeypatch.setattr(takeover, "_prove", prove)
    return errors


@pytest.fixture
def run(tmp_path):
    """(asked of the server, versions on disk, what was said) of a takeover that fails, and its error."""

    def go(kind):
        ours, layout = made(tmp_path / "model.onnx")
        dest, said = tmp_path / "models", []
        publish(layout, dest, "tiny")
        control = Served(dest)
        control.load("tiny")
        with pytest.raises(kind) as caught:
            takeover.proven(ours, layout, layout, ".attar-candidate-tiny", dest, control, said.append)
        asked = [each for each in control.asked if "candidate" not in each]
        versions = sorted(path.name for path in (dest / "tiny").iterdir() if path.name.isdigit())
        return asked, versions, "\n".join(said), str(caught.value)

    return go


def test_the_version_before_is_loaded_again(run, wrong):
    asked, versions, _, error = run(DeviceError)
    assert (asked, versions) == (["load tiny 1", "load tiny 2", "load tiny 1"], ["1"])
    assert "answers otherwise\n   version 2 was taken away again: version 1 serves" in error


def test_a_version_that_cannot_be_taken_away_is_not_served(run, wrong, monkeypatch):
    def stuck(folder, undo):
        raise InputError(f"{folder}: could not be taken away again: Permission denied")

    monkeypatch.setattr(takeover, "retract", stuck)
    asked, versions, _, error = run(DeviceError)
    assert (asked, versions) == (["load tiny 1", "load tiny 2", "unload tiny"], ["1", "2"])
    assert "answers otherwise" in error
    assert "could not be taken away again: Permission denied\n   nothing of it is served" in error


def test_a_server_that_died_is_not_said_to_serve(run, wrong, monkeypatch):
    def dead(self, name):
        raise DeviceError("nothing listens there")

    def prove(*_):
        monkeypatch.setattr(Served, "serving", dead)
        monkeypatch.setattr(Served, "load", dead)
        raise wrong[0]

    monkeypatch.setattr(takeover, "_prove", prove)
    asked, versions, _, error = run(DeviceError)
    assert (asked, versions) == (["load tiny 1"], ["1"])
    assert "answers otherwise\n   it was not published: the server does not answer any more; version 1 is" in error


def test_what_a_kill_left_unproven_is_taken_away_first(tmp_path, monkeypatch):
    ours, layout = made(tmp_path / "model.onnx")
    dest, said = tmp_path / "models", []
    publish(layout, dest, "tiny")
    control = Served(dest)
    control.load("tiny")
    killed = []

    def prove(ours, layout, control, name, version):
        if name == "tiny" and not killed:
            killed.append(version)
            monkeypatch.setattr(takeover, "_undone", lambda *_: "")  # as a kill: nothing is put right
            raise KeyboardInterrupt

    monkeypatch.setattr(takeover, "_prove", prove)
    undone = takeover._undone
    with pytest.raises(KeyboardInterrupt):
        takeover.proven(ours, layout, layout, ".attar-candidate-tiny", dest, control, said.append)
    assert (dest / "tiny" / "2" / takeover.UNPROVEN).exists()
    monkeypatch.setattr(takeover, "_undone", undone)
    into, _, before = takeover.proven(ours, layout, layout, ".attar-candidate-tiny", dest, control, said.append)
    assert "version 2 was taken away again: version 1 serves" in said
    assert (into.name, before) == ("2", 1)
    asked = [each for each in control.asked if "candidate" not in each]
    assert asked == ["load tiny 1", "load tiny 2", "load tiny 1", "load tiny 2"]
    assert not list(dest.rglob(".attar*"))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What a killed takeover leaves: control, repository, a call for the next one, what lay there before, a layout."""
    ours, layout = made(tmp_path / "model.onnx")
    dest, said = tmp_path / "models", []
    publish(replace(layout, shared={"config.pbtxt": b"one", "empty.txt": b""}), dest, "tiny")
    before = files(dest)
    control = Served(dest)
    control.load("tiny")
    second = replace(layout, shared={"config.pbtxt": b"two", "labels.txt": b"two", "empty.txt": b"two"})
    with alone(dest):
        undo = changes(second, dest, "tiny")
        place(replace(second, version={**layout.version, takeover.UNPROVEN: noted(undo, dest)}), dest, "tiny")
    monkeypatch.setattr(takeover, "_prove", lambda *_: (_ for _ in ()).throw(DeviceError("answers otherwise")))

    def again(kind=DeviceError):
        control.asked.clear()
        with pytest.raises(kind) as caught:
            takeover.proven(ours, layout, layout, ".attar-candidate-tiny", dest, control, said.append)
        return [each for each in control.asked if "candidate" not in each], "\n".join(said), str(caught.value)

    return control, dest, again, before, layout


@pytest.mark.parametrize("serves", [1, 2])
def test_what_a_killed_takeover_changed_is_put_back(left, serves):
    control, dest, again, before, _ = left
    control.serves["tiny"] = serves
    asked, said, error = again()
    assert files(dest) == before
    assert asked == ["load tiny 1"]
    assert "version 2 was taken away again: version 1 serves" in said
    assert "it was not published: version 1 serves" in error


def test_a_model_that_was_not_served_is_not_served_once_it_is_cleared(left):
    control, dest, again, before, _ = left
    control.unload("tiny")
    asked, said, _ = again()
    assert files(dest) == before
    assert asked == []
    assert "version 2 was taken away again: nothing of it is served" in said


@pytest.mark.parametrize("serves", [1, 2])
def test_a_version_that_nobody_had_loaded_is_not_loaded_when_a_killed_takeover_is_cleared(left, serves):
    control, dest, again, _, layout = left
    publish(layout, dest, "tiny")
    control.serves["tiny"] = serves
    before = files(dest)
    asked, said, error = again(InputError)
    assert (asked, said, files(dest)) == ([], "", before)
    assert (
        "version 3 lies there and is not what serves, which is 1: the server would load 3 if the new one fai" in error
    )
    control.load("tiny")
    assert again()[0] == ["load tiny 3"]


@pytest.mark.parametrize(
    "note", [b"", b"{}", b"[1]", b'[["../up", null, ""]]', b'[["a\\u0000", null, ""]]', b"[" * 10**5]
)
def test_a_mark_that_is_none_is_told(left, note):
    _, dest, again, *_ = left
    (dest / "tiny" / "2" / takeover.UNPROVEN).write_bytes(note)
    before = files(dest)
    asked, said, error = again(InputError)
    assert (asked, said, files(dest)) == ([], "", before)
    assert "2/.attar-unproven: is not as attar wrote it" in error
    assert "by hand, and load the model again" in error


def test_a_version_that_lies_there_and_does_not_serve_is_never_loaded_by_accident(tmp_path):
    ours, layout = made(tmp_path / "model.onnx")
    dest, said = tmp_path / "models", []
    control = Served(dest)
    publish(layout, dest, "tiny")
    control.load("tiny")
    publish(layout, dest, "tiny")
    before = files(dest)
    what = r"version 2 lies there and is not what serves, which is 1: .*\n.*load 2 yourself: .*/load`; or take it away"
    with pytest.raises(InputError, match=what):
        takeover.proven(ours, layout, layout, ".attar-candidate-tiny", dest, control, said.append)
    assert (control.asked, files(dest)) == (["load tiny 1"], before)


def test_a_server_that_serves_the_model_from_another_folder_is_told_before_anything_is_written(tmp_path):
    ours, layout = made(tmp_path / "model.onnx")
    control = Served(tmp_path / "there")
    control.serves["tiny"] = 3
    what = r"holds no version, and version 3 serves: does that server read .*elsewhere\?\n.*/models/tiny/unload`"
    with pytest.raises(InputError, match=what):
        takeover.proven(ours, layout, layout, ".attar-candidate-tiny", tmp_path / "elsewhere", control, print)
    assert not (tmp_path / "elsewhere").exists()


def test_an_interruption_just_after_it_was_published_leaves_nothing(run, monkeypatch):
    monkeypatch.setattr(takeover, "_prove", lambda *_: None)
    place = takeover.place

    def interrupted(layout, dest, name, version=None):
        place(layout, dest, name, version)
        if name == "tiny":
            raise KeyboardInterrupt

    monkeypatch.setattr(takeover, "place", interrupted)
    asked, versions, said, _ = run(KeyboardInterrupt)
    assert (asked, versions) == (["load tiny 1", "load tiny 1"], ["1"])
    assert "version 2 was taken away again: version 1 serves" in said


@pytest.mark.parametrize("lies", [0, 1])
@pytest.mark.parametrize("step", ["take_away", "write", "restore", "sync", "_back"])
def test_what_a_kill_took_away_before_the_server_was_told_is_not_served_on(tmp_path, wrong, monkeypatch, step, lies):
    """Of a takeover that fails, just before that step; the first one, or the one after version 1."""
    ours, layout = made(tmp_path / "model.onnx")
    dest, said = tmp_path / "models", []
    control = Served(dest)

    def take_over(text, kind):
        new = replace(layout, shared={"config.pbtxt": text})
        with pytest.raises(kind):
            takeover.proven(ours, new, layout, ".attar-candidate-tiny", dest, control, said.append)

    def killed(*_):
        raise KeyboardInterrupt

    if lies:
        publish(replace(layout, shared={"config.pbtxt": b"one"}), dest, "tiny")
        control.load("tiny")
    with monkeypatch.context() as killing:
        killing.setattr(takeover if step == "_back" else undo, step, killed)
        take_over(b"two", KeyboardInterrupt)
    number = lies + 1
    assert (control.serves["tiny"], newest(dest / "tiny")) == (number, lies or None)
    control.asked.clear()
    take_over(b"three", DeviceError)
    now = f"version {lies} serves" if lies else "nothing of it is served"
    assert f"version {number}, which was never proven, was taken away again: {now}" in said
    assert control.asked[0] == ("load tiny 1" if lies else "unload tiny")
    assert (control.serves.get("tiny"), newest(dest / "tiny")) == (lies or None, lies or None)
    assert not list(dest.rglob(".attar*"))
