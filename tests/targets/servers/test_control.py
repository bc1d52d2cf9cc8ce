"""Triton's model control, and servers that answer something else. The real one is in tests/servers/test_reload.py."""

import socket
import threading
from contextlib import contextmanager, suppress

import oip_server
import pytest

from targets.errors import DeviceError, InputError
from targets.servers import control
from targets.servers.control import Control
from targets.testing import tiny_onnx

INDEX = ("POST", "/v2/repository/index")


@pytest.fixture(scope="module")
def oip(tmp_path_factory):
    return oip_server.Oip(tiny_onnx(tmp_path_factory.mktemp("model") / "model.onnx"))


def test_what_is_there_is_told(oip):
    rows = [{"name": "a", "version": version, "state": "READY"} for version in ("2", "1", "x", "\u00b2", "9" * 5000)]
    oip.instead = {INDEX: (200, [*rows, {"name": "b"}])}
    with oip_server.http(oip) as place:
        assert Control(f"http://{place}").serving("a") == (1, 2)
        assert Control(f"http://{place}").serving("b") == ()


@pytest.mark.parametrize("found", [b"", ["x"], {"error": "busy"}, {}, 3, b"[" * 100_000])
def test_an_index_of_another_shape_is_one_clear_fault(oip, found):
    oip.instead = {INDEX: (200, found)}
    with (
        oip_server.http(oip) as place,
        pytest.raises(DeviceError, match="no model control there\n   help: give the HTTP"),
    ):
        Control(f"http://{place}").index()


def test_grpc_is_refused():
    with pytest.raises(InputError, match="models are loaded over HTTP"):
        Control("grpc://127.0.0.1:8001")


LIVE, LATE, MUTE = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b"",
)


@contextmanager
def owing(says):
    """The address of a server that owes an answer. To whether it lives it says each of `says` in turn: b"" is nothing,
    while it holds the connection; None is its end, while the connection that waits is held, as children would; LATE is
    the answer that was owed."""
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve():
        with suppress(OSError), listening:
            held.append(listening.accept()[0])
            for said in says:
                if said is None:
                    break
                held.append(listening.accept()[0])
                (held[0] if said is LATE else held[-1]).sendall(said)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # wakes it
        thread.join()
        for each in held:
            each.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(control, "_STEP_S", 0.01)
    monkeypatch.setattr(control, "_HEALTH_S", 0.05)


@pytest.mark.parametrize("says", [[None], [LIVE, LIVE, None], [LIVE, MUTE, LIVE, *[MUTE] * 5, LATE]])
def test_a_server_that_dies_while_it_owes_an_answer_is_not_waited_for(says, impatient):
    with (
        owing(says) as place,
        pytest.raises(DeviceError, match=r"stopped answering while /v2/.*/tiny/load was awaited"),
    ):
        Control(f"http://{place}", timeout_s=20).load("tiny")


@pytest.mark.parametrize("says", [[LIVE] * 5, [LIVE, MUTE, MUTE, LIVE, MUTE], [MUTE] * 5])
def test_one_that_lives_is_waited_for(says, impatient):
    """Also where it never says so: with a single HTTP thread it cannot."""
    with owing([*says, LATE]) as place:
        Control(f"http://{place}", timeout_s=20).load("tiny")


def test_it_is_not_waited_for_without_end(impatient):
    with (
        owing([LIVE] * 9) as place,
        pytest.raises(DeviceError, match=r"did not answer: nothing within 0.03 s"),
    ):
        Control(f"http://{place}", timeout_s=0.03).load("tiny")
