"""The Open Inference Protocol, spoken to a small server of this process: over HTTP in both ways, over gRPC, and to
servers that go wrong. Real servers are asked in tests/servers and tests/pipeline/test_endpoint.py."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import oip_server
import pytest

from targets.errors import DeviceError, InputError
from targets.servers.protocol import Address, Tensor, connect
from targets.testing import tiny_onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_onnx(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def oip(model):
    return oip_server.Oip(model)


def inputs(k=2):
    return np.random.default_rng(k).standard_normal((k, 3, 4, 4)).astype(np.float32)


# ---- addresses


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://127.0.0.1:8000/v2/models/digits", "http://127.0.0.1:8000/v2/models/digits"),
        ("http://h:1/v2/models/a/versions/2/", "http://h:1/v2/models/a/versions/2"),
        ("http://h:1/v2/models/a/infer", "http://h:1/v2/models/a"),
        ("http://h", "http://h:80/v2/models/given"),
        ("http://h:1/v2/", "http://h:1/v2/models/given"),
        ("https://gate/serving/team/v2/models/a", "https://gate:443/serving/team/v2/models/a"),
        ("grpc://[::1]:8001/digits/2", "grpc://[::1]:8001/digits/2"),
        ("grpc://h:1", "grpc://h:1/given"),
    ],
)
def test_an_address_is_read(url, whole):
    endpoint = connect(url, model="given")
    assert endpoint.url == whole
    endpoint.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("digits", "must begin with http://, https:// or grpc://"),
        ("ftp://h/digits", "must begin with"),
        ("http://h:1", "names no model"),
        ("http://h:1/v2/foo", "has the path /v2/foo"),
        ("http://h:99999/v2/models/a", "is no URL: Port out of range"),
        ("http:///v2/models/a", "names no host"),
        ("http://a..b/v2/models/a", "is no URL"),
        (f"grpc://{'a' * 70}:1/a", "is no URL"),
        ("http://h:1/v2/models/a?x=1", "something after"),
        ("grpc://h/digits", "names no port"),
    ],
)
def test_what_is_no_address(url, told):
    with pytest.raises(InputError, match=told) as caught:
        connect(url)
    assert "help: an endpoint is http://HOST:PORT/v2/models/NAME" in str(caught.value)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="none is taken") as caught:
        connect("http://me:secret@h:1/v2/models/a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("host", "here"), [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("h", False)])
def test_an_address_tells_whether_the_server_is_here(host, here):
    assert Address.of(f"http://{host}:1").here == here


# ---- answers


@pytest.mark.parametrize("binary", [True, False])
def test_http_answers_as_the_runtime_does(oip, binary):
    oip.binary = binary
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny")
        assert endpoint.ready()
        found = endpoint.metadata()
        assert found.inputs == (Tensor("x", "FP32", (-1, 3, 4, 4)),)
        assert (found.server, found.versions) == ("oip 1.0", ("1",))
        for k in (1, 2, 5):
            got = endpoint.infer(inputs(k))
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, oip.infer(inputs(k)))
        assert endpoint.how == ("HTTP, binary tensors" if binary else "HTTP, JSON")
        endpoint.close()
    assert oip.connections == 1, "one connection is kept"
    kinds = [kind for _, path, kind in oip.asked if path.endswith("/infer")]
    assert kinds == (
        ["application/octet-stream"] * 3 if binary else ["application/octet-stream", *3 * ["application/json"]]
    )


def test_numbers_that_json_rounds_are_exact_yet(oip):
    oip.binary = False
    exact = np.asarray([[np.float32(1) / 3, 1e-45, -0.0, 3.4e38, 16777217, np.nextafter(np.float32(1), 2)]], np.float32)
    oip.spoil = lambda y: exact
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny")
        assert endpoint.infer(inputs(1)).tobytes() == exact.tobytes()
        endpoint.close()


def test_grpc_answers_as_the_runtime_does(oip):
    with oip_server.grpc(oip) as place:
        endpoint = connect(f"grpc://{place}/tiny")
        assert endpoint.ready()
        assert endpoint.metadata().inputs == (Tensor("x", "FP32", (-1, 3, 4, 4)),)
        for k in (1, 5):
            np.testing.assert_array_equal(endpoint.infer(inputs(k)), oip.infer(inputs(k)))
        with pytest.raises(DeviceError, match=r"refused inputs of shape \(2, 3, 4, 5\): .*invalid dimensions"):
            endpoint.infer(np.zeros((2, 3, 4, 5), np.float32))
        endpoint.close()
        other = connect(f"grpc://{place}/tinyy")
        assert not other.ready()
        with pytest.raises(
            InputError, match=r"no model 'tinyy': no tinyy here \(NOT_FOUND\)\n   help: did you mean 'tiny'"
        ):
            other.metadata()
        other.close()


def test_a_version_is_asked_for(oip):
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny/versions/1")
        endpoint.infer(inputs())
        endpoint.close()
        assert oip.asked[-1][1] == "/v2/models/tiny/versions/1/infer"
        other = connect(f"http://{place}/v2/models/tiny/versions/7")
        with pytest.raises(InputError, match=r"does not serve version '7' of 'tiny': no /v2/models/tiny/\S+ here"):
            other.infer(inputs())
        other.close()


def test_a_kept_connection_that_the_server_ended_is_made_anew(oip):
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny")
        endpoint.infer(inputs())
        oip.hang_up = 1
        np.testing.assert_array_equal(endpoint.infer(inputs()), oip.infer(inputs()))
        assert oip.connections == 2
        oip.hang_up = 2
        with pytest.raises(DeviceError, match="broke off without an answer"):
            endpoint.infer(inputs())
        endpoint.close()


# ---- servers that go wrong


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/v2/models/tiny", "grpc://127.0.0.1:{}/tiny"])
def test_nothing_listens(url):
    url = url.format(free_port())
    endpoint = connect(url, timeout_s=5)
    for ask in (endpoint.ready, endpoint.metadata):
        with pytest.raises(DeviceError, match=r"(nothing listens on|no gRPC server answers on) .*\n   help: start the"):
            ask()
    endpoint.close()


def test_a_server_of_plain_http_that_is_asked_by_https(oip):
    with oip_server.http(oip) as place:
        endpoint = connect(f"https://{place}/v2/models/tiny")
        with pytest.raises(
            DeviceError, match=r"does not speak HTTPS \(\w+\)\n   help: if it .* HTTP: http://127\S+/tiny$"
        ):
            endpoint.metadata()
        endpoint.close()


def test_a_certificate_that_is_not_trusted(tmp_path):
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout key -out cert"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    def greet():
        wire, _ = server.accept()
        with wire, suppress(OSError):
            context.wrap_socket(wire, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet)
        thread.start()
        endpoint = connect(f"https://localhost:{server.getsockname()[1]}/v2/models/tiny")
        with pytest.raises(DeviceError, match=r"is not trusted: self.signed .*\n   help: SSL_CERT_FILE"):
            endpoint.ready()
        endpoint.close()
        thread.join()


def test_a_host_that_is_none():
    endpoint = connect("http://nowhere.invalid:1/v2/models/a")
    with pytest.raises(DeviceError, match=r"nowhere\.invalid:1 cannot be reached"):
        endpoint.ready()
    endpoint.close()


def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = connect(f"http://127.0.0.1:{silent.getsockname()[1]}/v2/models/a", timeout_s=0.2)
        start = time.monotonic()
        with pytest.raises(DeviceError, match=r"did not answer within 0\.2 s"):
            endpoint.ready()
        assert time.monotonic() - start < 2
        endpoint.close()


def test_a_port_that_speaks_something_else():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def hello():
            wire, _ = other.accept()
            wire.recv(1000)
            wire.sendall(b"\x00\x00\x18\x04\x00\x00\x00\n\n")
            wire.close()

        thread = threading.Thread(target=hello)
        thread.start()
        endpoint = connect(f"http://127.0.0.1:{other.getsockname()[1]}/v2/models/a")
        with pytest.raises(DeviceError, match=r"\n   help: .*if this is its gRPC port: grpc://"):
            endpoint.ready()
        endpoint.close()
        thread.join()


INFER = ("POST", "/v2/models/tiny/infer")
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [2, 2]}


@pytest.mark.parametrize(
    ("instead", "error", "told"),
    [
        ({("GET", "/v2"): (404, b"<html>")}, DeviceError, "answered by 404: no Open Inference Protocol v2"),
        ({("GET", "/v2"): (200, b"hello")}, DeviceError, "where a JSON object was expected"),
        (
            {("GET", "/v2/models/tiny"): (503, {"error": "loading"})},
            DeviceError,
            r"does not serve it now: loading .*\n.*`attar ship DIR DEST --to triton --load http://127\.0\.0\.1:\d+`",
        ),
        (
            {("GET", "/v2/models/tiny"): (200, {"name": "tiny", "inputs": [3]})},
            DeviceError,
            "not in the protocol's form",
        ),
        ({("GET", "/v2/models/tiny"): (200, {"name": "tiny"})}, InputError, "takes no inputs, where one input of FP32"),
        ({INFER: (500, {"error": "out of memory"})}, DeviceError, r"refused inputs .*: out of memory \(HTTP 500\)"),
        ({INFER: (200, b"")}, DeviceError, "where a JSON object was expected"),
        ({INFER: (200, {"outputs": []})}, DeviceError, "its answer holds no output 'y'"),
        ({INFER: (200, {"outputs": 3})}, DeviceError, "not in the protocol's form"),
        ({INFER: (200, b"[" * 100_000)}, DeviceError, "where a JSON object was expected"),
        ({("GET", "/v2"): (200, {"name": "a", "extensions": 5})}, DeviceError, "not in the protocol's form"),
        ({INFER: (200, {"outputs": [OUTPUT]})}, DeviceError, "not in the protocol's form: KeyError"),
        ({INFER: (200, {"outputs": [OUTPUT | {"data": [1, 2, 3]}]})}, DeviceError, r"no array of shape \(2, 2\)"),
        ({INFER: (200, {"outputs": [OUTPUT | {"data": [1, 2, 3, "x"]}]})}, DeviceError, r"no array of shape \(2, 2\)"),
        ({INFER: (200, {"outputs": [OUTPUT | {"datatype": "INT64", "data": [1]}]})}, DeviceError, "answered INT64"),
        ({INFER: (200, {"outputs": [OUTPUT | {"shape": [1, 4], "data": [1]}]})}, DeviceError, "to 2 inputs"),
    ],
)
def test_a_server_that_goes_wrong_is_one_clear_fault(oip, instead, error, told):
    oip.instead = instead
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny")
        with pytest.raises(error, match=told) as caught:
            endpoint.infer(inputs())
        endpoint.close()
    assert str(caught.value).startswith(f"http://{place}/v2/models/tiny: ")
    assert "\n   help: " in str(caught.value)


def test_a_server_without_extensions_is_asked_all_the_same(oip):
    oip.extensions = None
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny")
        np.testing.assert_array_equal(endpoint.infer(inputs()), oip.infer(inputs()))
        endpoint.close()


def test_grpc_with_an_answer_that_is_no_array_is_one_clear_fault(oip):
    oip.datatype = "INT64"  # of twice as many bytes
    with oip_server.grpc(oip) as place:
        endpoint = connect(f"grpc://{place}/tiny")
        with pytest.raises(DeviceError, match="its answer is not in the protocol's form: ValueError"):
            endpoint.infer(inputs())
        endpoint.close()


def test_an_unknown_model_is_told_beside_those_that_are_there(oip):
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tinyy")
        assert not endpoint.ready()
        with pytest.raises(InputError, match=r"has no model 'tinyy': .*\n   help: did you mean 'tiny'\?"):
            endpoint.infer(inputs())
        endpoint.close()


def test_inputs_that_do_not_fit_are_refused_in_the_servers_words(oip):
    with oip_server.http(oip) as place:
        endpoint = connect(f"http://{place}/v2/models/tiny")
        with pytest.raises(DeviceError, match=r"refused inputs of shape \(1, 3, 4, 5\): .*invalid dimensions"):
            endpoint.infer(np.zeros((1, 3, 4, 5), np.float32))
        np.testing.assert_array_equal(endpoint.infer(inputs()), oip.infer(inputs()))
        endpoint.close()


def test_grpc_without_tritonclient_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(InputError, match=r"gRPC needs tritonclient.*\n   help: pip install 'attar\[serve\]'"):
        connect("grpc://h:1/a")


def test_http_needs_nothing_but_numpy():
    script = "import sys\nfrom targets.servers.protocol_http import HttpEndpoint\nprint(*sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"tritonclient", "grpc", "onnxruntime", "torch"} & set(done.stdout.split())
