"""Which ONNX a server's version takes."""

import pytest
from shipments import shipment

from targets.errors import InputError
from targets.servers import SERVERS, versions
from targets.servers.lowering import fitted
from targets.servers.versions import assumed, ceiling, requirement, triton_in_kserve


@pytest.mark.parametrize(
    ("server", "asked", "opset", "ir_version", "words"),
    [
        ("triton", "", 21, 10, "Triton 26.07 (onnxruntime 1.27)"),
        ("triton", "25.10", 21, 10, "Triton 25.10 (onnxruntime 1.23)"),
        ("triton", "24.04", 20, 9, "Triton 24.04 (onnxruntime 1.17)"),
        ("triton", "v23.05-py3", 19, 8, "Triton 23.05 (onnxruntime 1.15)"),
        ("triton", "22.12", 17, 8, "Triton 22.12 (onnxruntime 1.13)"),
        ("triton", "30.01", 21, 10, "Triton 30.01 (onnxruntime 1.27)"),
        ("kserve", "", 19, 8, "KServe's Triton 23.05 (onnxruntime 1.15)"),
        ("kserve", "0.15.2", 19, 8, "KServe's Triton 23.05 (onnxruntime 1.15)"),
        ("kserve", "25.10", 21, 10, "Triton 25.10 (onnxruntime 1.23)"),
        ("openvino", "", 21, None, "OpenVINO Model Server 2025.2"),
        ("openvino", "2024.5", 16, None, "OpenVINO Model Server 2024.5"),
    ],
)
def test_the_table(server, asked, opset, ir_version, words):
    found = ceiling(server, asked)
    assert (found.opset, found.ir_version, found.server) == (opset, ir_version, words)
    assert found.source.startswith("https://github.com/")


def test_every_server_has_a_row():
    assert set(versions.SERVERS) == set(SERVERS)


@pytest.mark.parametrize("server", sorted(SERVERS))
def test_a_version_that_is_none_is_refused(server):
    with pytest.raises(InputError, match=r"'latest' is no version of that server(.|\n)*for example"):
        ceiling(server, "latest")


@pytest.mark.parametrize(
    ("server", "asked", "first"),
    [
        *(("triton", "22.01", "22.07"), ("triton", "2.51.0", "22.07")),
        *(("kserve", "0.8", "0.11"), ("openvino", "2021.4", "2022.3")),
    ],
)
def test_a_version_before_the_table_is_refused(server, asked, first):
    with pytest.raises(InputError, match=f"is older than what is known of it, which starts at {first}\n"):
        ceiling(server, asked)


def test_what_must_be_installed(tmp_path):
    assert requirement(shipment(tmp_path).model) == "onnxruntime>=1.18"
    assert requirement(fitted(shipment(tmp_path), "triton", "23.05").model) == "onnxruntime>=1.14"


def test_which_triton_runs_in_kserve():
    assert [triton_in_kserve(asked) for asked in ("", "0.20", "25.10", "24.1")] == ["", "", "25.10", "24.01"]


@pytest.mark.parametrize(
    ("server", "asked", "told"),
    [
        ("triton", "", ""),
        ("triton", "26.07", ""),
        ("triton", "26.12", "26.12 is newer than what is known here; assumed: Triton 26.07 (onnxruntime 1.27) takes"),
        ("kserve", "0.20.1", ""),
        ("kserve", "0.25", "assumed: KServe's Triton 23.05 (onnxruntime 1.15) takes ONNX opset 19"),
        ("kserve", "25.10", ""),
        ("kserve", "99.99", "assumed: Triton 26.07"),
        ("openvino", "2026.3", ""),
        ("openvino", "2027.1", "assumed: OpenVINO Model Server 2026.3 takes ONNX opset 21 at most"),
        ("mlserver", "", ""),
        ("mlserver", "1.7", "version 1.7 changes nothing"),
    ],
)
def test_what_is_assumed_of_a_version_is_told(server, asked, told):
    found = assumed(server, asked)
    assert told in found
    assert bool(told) == bool(found)
