"""Triton's model control, and servers that answer something else. The real one is in tests/servers/test_reload.py."""

import socket
import ssl
import subprocess
import threading
import time
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
        Control(f"http://{place}").serving("a")


def test_an_answer_without_end_is_not_read_to_its_end(oip, monkeypatch):
    monkeypatch.setattr(control, "_MOST", 2**20)
    oip.instead = {INDEX: (200, b" " * (2**20 + 1))}
    with oip_server.http(oip) as place, pytest.raises(DeviceError, match="answered more than 1 MB to /v2/repository/"):
        Control(f"http://{place}").serving("a")


def test_grpc_is_refused():
    with pytest.raises(InputError, match="models are loaded over HTTP"):
        Control("grpc://127.0.0.1:8001")


LIVE, LATE, MUTE = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b"",
)
BOTH = LATE + LIVE


@contextmanager
def owing(says, tls=None):
    """The address of a server that owes an answer. To whether it lives it says each of `says` in turn: b"" is nothing,
    while it holds the connection; None is its end, while the connection that waits is held, as children would; LATE is
    the answer that was owed; BOTH is that, and then that it lives: the next connection is owed an answer anew. With the
    context `tls` it speaks TLS."""
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept():
        taken = listening.accept()[0]
        held.append(tls.wrap_socket(taken, server_side=True) if tls else taken)

    def serve():
        with suppress(OSError), listening:
            accept()
            owed = held[-1]
            for said in says:
                if said is None:
                    break
                accept()
                if said in (LATE, BOTH):
                    owed.sendall(LATE)
                if said is BOTH:
                    held[-1].sendall(LIVE)
                    accept()
                    owed = held[-1]
                elif said is not LATE:
                    held[-1].sendall(said)

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


def test_one_that_says_that_it_lives_once_it_owes_nothing_may_be_mute_again(monkeypatch):
    """It has a single HTTP thread: first it gives the answer that it owed, then it turns to who waits."""
    monkeypatch.setattr(control, "_STEP_S", 0.1)
    monkeypatch.setattr(control, "_HEALTH_S", 0.05)
    with owing([BOTH, *[MUTE] * 4, LATE]) as place:
        there = Control(f"http://{place}", timeout_s=20)
        there.load("tiny")
        there.load("tiny")


def test_it_is_not_waited_for_without_end(impatient):
    with (
        owing([LIVE] * 9) as place,
        pytest.raises(DeviceError, match=r"did not answer within 0.03 s"),
    ):
        Control(f"http://{place}", timeout_s=0.03).load("tiny")


def test_an_answer_that_drips_is_not_waited_for_without_end(impatient):
    over = threading.Event()

    def drip():
        with suppress(OSError), listening.accept()[0] as wire:
            wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
            for _ in range(200):
                if over.wait(0.02):
                    break
                wire.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with pytest.raises(DeviceError, match=r"did not answer within 0.1 s"):
                Control(url, timeout_s=0.1).load("tiny")
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server's side of TLS, and the certificate by which it is known."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=here -days 2 -addext"
    command = (*command.split(), "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate)
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, str(certificate)


@pytest.mark.parametrize("says", [[None], [LIVE, LIVE, None]])
def test_one_that_dies_is_not_waited_for_over_tls_either(says, tls, monkeypatch):
    monkeypatch.setattr(control, "_STEP_S", 0.01)
    monkeypatch.setenv("SSL_CERT_FILE", tls[1])
    start = time.monotonic()
    with owing(says, tls[0]) as place, pytest.raises(DeviceError, match=r"stopped answering while /v2/.*/tiny/load"):
        Control(f"https://{place}", timeout_s=20).load("tiny")
    assert time.monotonic() - start < 15


def test_one_that_lives_is_waited_for_over_tls_too(tls, monkeypatch):
    monkeypatch.setattr(control, "_STEP_S", 0.01)
    monkeypatch.setattr(control, "_HEALTH_S", 0.5)
    monkeypatch.setenv("SSL_CERT_FILE", tls[1])
    with owing([LIVE, LIVE, LIVE, LATE], tls[0]) as place:
        Control(f"https://{place}", timeout_s=20).load("tiny")


@pytest.mark.parametrize(
    ("scheme", "said", "what"),
    [
        (
            "http",
            b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03",
            r"broke off .* \(BadStatusLine\)\n.*gRPC port: give its HTTP",
        ),
        ("http", b"", r"broke off without an answer over HTTP \(RemoteDisconnected\)\n"),
        (
            "https",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            r"does not speak HTTPS .*\n.*plain HTTP: http://127.0.0.1:[0-9]+$",
        ),
        ("https", b"", r"broke off without an answer over HTTP \("),
    ],
)
def test_what_speaks_something_else_is_told_in_words(scheme, said, what):
    def speak():
        with suppress(OSError), listening.accept()[0] as wire:
            wire.recv(4096)
            wire.sendall(said)
            wire.shutdown(socket.SHUT_WR)
            while wire.recv(4096):  # what is closed with something unread is reset
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=speak)
        thread.start()
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(DeviceError, match=what) as caught:
                Control(f"{scheme}://{place}/v2/models/tiny").load("tiny")
        finally:
            thread.join()
    assert str(caught.value).startswith(f"{scheme}://{place}: ")
    assert "_ssl.c" not in str(caught.value)
    assert str(caught.value).isascii()


UNTRUSTED = r"the certificate of 127.0.0.1:[0-9]+ is not trusted: .*\n.*SSL_CERT_FILE=FILE names"


def test_a_certificate_that_nobody_vouches_for_is_refused(tls):
    with owing([], tls[0]) as place, pytest.raises(DeviceError, match=UNTRUSTED):
        Control(f"https://{place}", timeout_s=20).load("tiny")
