"""A real Triton, or `attar ship --load`, is killed in the middle: what is served stays right, as does the folder."""

import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from running import triton
from shipping import answers, attar_ship, kept_in
from tiny_run import attar_started

from pipeline import published, takeover
from targets.servers.control import Control
from targets.servers.protocol import connect

pytestmark = pytest.mark.server
TRIAL, TAKEOVER = ".attar-candidate-tiny:1", "tiny:2"


@pytest.fixture
def held(tmp_path):
    """Makes a version of a model wait when it is loaded ("load tiny:2") or asked ("answer tiny:2")."""
    folder = tmp_path / "held"
    folder.mkdir()

    @contextmanager
    def hold(what):
        (folder / what).touch()
        try:
            yield lambda: until((folder / f"{what}.here").exists)
        finally:
            (folder / what).unlink()

    hold.folder = folder
    return hold


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def asked(http, folder):
    """What the server answers to the golden sample of an artifact."""
    inputs = kept_in(folder).inputs
    with closing(connect(f"http://{http}/v2/models/tiny")) as endpoint:
        return np.concatenate([endpoint.infer(inputs[i : i + 1]) for i in range(len(inputs))])


def answered(folder):
    return answers(folder, kept_in(folder).inputs)


def lies(repository):
    """Versions of the model, and what else lies there; all is whole."""
    model = repository / "tiny"
    assert not [fault for fault in published.verified(model) if not fault.file.endswith(takeover.UNPROVEN)]
    others = [path.name for path in (*repository.iterdir(), *model.glob(".*"), *model.glob("*/.*")) if path != model]
    return sorted(path.name for path in model.iterdir() if path.name.isdigit()), sorted(others)


@pytest.fixture
def shipped(artifacts, tmp_path):
    """The command that ships an artifact, and a folder where the first one serves."""
    repository = tmp_path / "models"
    repository.mkdir()
    return repository, lambda name, http: (artifacts[name], repository, "--to", "triton", "--load", f"http://{http}")


LOADING = "stopped answering while /v2/repository/models/{}/load was awaited"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (f"load {TRIAL}", LOADING.format(".attar-candidate-tiny")),
        (f"load {TAKEOVER}", LOADING.format("tiny")),
        (f"answer {TRIAL}", "/v2/models/.attar-candidate-tiny/versions/1: "),  # told at once, in either of two ways
    ],
)
def test_a_server_that_dies_ends_the_command(what, said, artifacts, shipped, held):
    repository, words = shipped
    lost = []
    with triton(repository, explicit=True, hold=held.folder) as server:
        assert attar_ship(*words("first", server.http))[0] == 0
        before = (repository / "tiny" / "config.pbtxt").read_bytes()
        with held(what) as waits:

            def lose():
                waits()
                server.lose()
                lost.append(time.monotonic())

            thread = threading.Thread(target=lose)
            thread.start()
            code, _, err = attar_ship(*words("second", server.http), "--max-batch", 4)
            took = time.monotonic() - lost[0]
            thread.join()
    assert code == 3
    assert "Traceback" not in err
    assert "the server does not answer any more; version 1 is what it would load" in err
    assert said in err
    assert took < 15
    assert lies(repository) == (["1"], [])
    assert (repository / "tiny" / "config.pbtxt").read_bytes() == before
    with triton(repository) as server:
        until(lambda: Control(f"http://{server.http}").serving("tiny") == (1,))
        assert np.array_equal(asked(server.http, artifacts["first"]), answered(artifacts["first"]))


@pytest.mark.parametrize("what", [f"load {TRIAL}", f"load {TAKEOVER}", f"answer {TAKEOVER}"])
def test_a_command_that_is_killed_leaves_what_the_next_one_puts_right(what, artifacts, shipped, held):
    repository, words = shipped
    with triton(repository, explicit=True, hold=held.folder) as server:
        control = Control(f"http://{server.http}")
        assert attar_ship(*words("first", server.http))[0] == 0
        before = (repository / "tiny" / "config.pbtxt").read_bytes()
        with held(what) as waits:
            command = ("ship", *words("second", server.http), "--max-batch", "4")
            process = attar_started(*command, cwd=repository.parent)
            try:
                waits()
            finally:
                process.kill()
                process.wait()
            if what.startswith("load"):
                assert control.serving("tiny") == (1,)
                assert np.array_equal(asked(server.http, artifacts["first"]), answered(artifacts["first"]))
            left = ([".attar-candidate-tiny"], ["1"]) if TRIAL in what else ([".attar-unproven"], ["1", "2"])
            assert lies(repository) == (left[1], [*left[0], ".attar.lock"])
        code, _, err = attar_ship(*words("wrong", server.http))
        assert (code, "it was not published: version 1 serves" in err) == (3, True), err
        assert ("version 2 was never proven: its `attar ship --load` was killed" in err) == (TAKEOVER in what)
        assert ("version 2 was taken away again: version 1 serves" in err) == (TAKEOVER in what)
        assert lies(repository) == (["1"], [])
        assert (repository / "tiny" / "config.pbtxt").read_bytes() == before
        assert np.array_equal(asked(server.http, artifacts["first"]), answered(artifacts["first"]))
        code, _, err = attar_ship(*words("second", server.http))
        assert code == 0, err
        assert control.serving("tiny") == (2,)
        assert np.array_equal(asked(server.http, artifacts["second"]), answered(artifacts["second"]))
        assert lies(repository) == (["1", "2"], [])
        assert control.serving(".attar-candidate-tiny") == ()


@pytest.mark.parametrize("proven", [True, False])
def test_a_kill_before_the_server_was_told_is_made_good_by_the_next_command(proven, artifacts, shipped, monkeypatch):
    """The version is taken away on disk, and still serves; it is the only one, or there is one before."""
    repository, words = shipped
    number = 1 + proven

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with triton(repository, explicit=True, disturb=f"tiny:{number}") as server:
        control = Control(f"http://{server.http}")
        if proven:
            assert attar_ship(*words("first", server.http))[0] == 0
        with monkeypatch.context() as killing:
            killing.setattr(takeover, "_back", killed)
            with pytest.raises(Killed):
                attar_ship(*words("second", server.http))
        assert control.serving("tiny") == (number,)
        assert [path.name for path in (repository / "tiny").glob(".*")] == [".attar-gone"]
        code, _, err = attar_ship(*words("wrong", server.http))
        now = "version 1 serves" if proven else "nothing of it is served"
        assert (code, f"version {number}, which was never proven, was taken away again: {now}" in err) == (3, True), err
        assert control.serving("tiny") == (1,) * proven
        if proven:
            assert np.array_equal(asked(server.http, artifacts["first"]), answered(artifacts["first"]))
            assert lies(repository) == (["1"], [])
        else:
            assert not list(repository.iterdir())
