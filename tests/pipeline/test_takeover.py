"""Where a version is wrong once it serves, it does not go on serving, whatever else fails."""

from types import SimpleNamespace

import numpy as np
import oip_server
import onnxruntime
import pytest

from pipeline import takeover
from targets import artifact
from targets.errors import DeviceError, InputError
from targets.servers.publish import publish
from targets.servers.shipment import Layout, Shipment
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
        control = SimpleNamespace(url=f"http://{place}")
        assert takeover._prove(ours, layout, control, "tiny", "1").verdict == "equal"
        oip.spoil = lambda y: y + 1
        with pytest.raises(DeviceError, match="does not answer as the artifact did"):
            takeover._prove(ours, layout, control, "tiny", "1")


class Served:
    """The control of a server that loads whatever it is told to."""

    url = "http://127.0.0.1:9"

    def __init__(self, dest):
        self.dest, self.asked = dest, []

    def index(self):
        return ()

    def serving(self, name):
        return () if not self.asked or self.asked[-1].startswith("unload") else (self.newest(name),)

    def newest(self, name):
        return max(int(path.name) for path in (self.dest / name).iterdir() if path.name.isdigit())

    def load(self, name):
        self.asked.append(f"load {name} {self.newest(name)}")

    def unload(self, name):
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
        control.asked.append("load tiny 1")
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
    killed = []

    def prove(ours, layout, control, name, version):
        if name == "tiny" and not killed:
            killed.append((dest / "tiny" / version / takeover.UNPROVEN).read_bytes())
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
    assert [each for each in control.asked if "candidate" not in each] == ["load tiny 2", "load tiny 1", "load tiny 2"]
    assert not list(dest.rglob(".attar*"))


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
