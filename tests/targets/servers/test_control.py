"""Triton's model control, and servers that answer something else. The real one is in tests/servers/test_reload.py."""

import oip_server
import pytest

from targets.errors import DeviceError, InputError
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
