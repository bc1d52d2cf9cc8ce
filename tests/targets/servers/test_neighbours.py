"""One model's folder is for one kind of server, and KServe's storage for one model."""

import shutil

import pytest
from test_publish import files, net

from targets.errors import InputError
from targets.servers.disk import alone
from targets.servers.neighbours import SERVICE, SETTINGS
from targets.servers.publish import place, publish
from targets.servers.shipment import Layout


@pytest.fixture
def layouts(tmp_path):
    """A layout of each kind of server, as far as it matters here."""
    version = {"model.onnx": net(tmp_path / "net.onnx")}
    return {
        "triton": Layout(version, {"config.pbtxt": b""}),
        "openvino": Layout(version, {"client.py": b""}, root={"config.json": lambda before: b"{}"}),
        "mlserver": Layout(version, {"client.py": b""}, added={SETTINGS: b"{}"}),
        "kserve": Layout(version, {"config.pbtxt": b""}, alone="all of it is handed on"),
        "service": Layout(version, {"config.pbtxt": b""}, root={f"net{SERVICE}": lambda _: b""}, alone="all of it is"),
    }


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("triton", "mlserver", r"was shipped for another server than MLServer before: config.pbtxt, 1 there"),
        ("openvino", "mlserver", r"was shipped for another server than MLServer before: 1 there"),
        ("mlserver", "triton", r"was shipped for MLServer before: 1 there"),
        ("mlserver", "kserve", r"was shipped for MLServer before: 1 there"),
        ("mlserver", "openvino", r"was shipped for MLServer before: 1 there"),
    ],
)
def test_two_kinds_of_server_do_not_share_a_model(layouts, tmp_path, first, second, shown):
    dest = tmp_path / "models"
    publish(layouts[first], dest, "net")
    before = files(dest)
    with pytest.raises(InputError, match=rf"models/net: {shown}.*\n.*another --name"):
        publish(layouts[second], dest, "net")
    assert files(dest) == before
    publish(layouts[first], dest, "net")
    publish(layouts["openvino" if second == "kserve" else second], dest, "other")


def test_servers_of_one_shape_share_a_model(layouts, tmp_path):
    for server in ("triton", "openvino", "kserve", "triton"):
        publish(layouts[server], tmp_path / "models", "net")
    assert (tmp_path / "models" / "net" / "4").is_dir()


def test_a_server_that_takes_one_model_gets_no_second(layouts, tmp_path):
    dest = tmp_path / "models"
    (dest / "notes").mkdir(parents=True)
    publish(layouts["kserve"], dest, "net")
    publish(layouts["kserve"], dest, "net")
    before = files(dest)
    with pytest.raises(InputError, match=r"models/net: is another model, and 'other' .*: all of it is handed on"):
        publish(layouts["kserve"], dest, "other")
    assert files(dest) == before
    with alone(dest):  # what a takeover left that was killed is none
        place(layouts["triton"], dest, ".attar-candidate-net")
    publish(layouts["kserve"], dest, "net")


def test_what_kserve_hands_on_as_a_whole_gets_no_second_model(layouts, tmp_path):
    dest = tmp_path / "models"
    publish(layouts["service"], dest, "net")
    shutil.rmtree(dest / "net")
    before = files(dest)
    with pytest.raises(InputError, match=rf"models/net{SERVICE}: hands all .*'other' cannot be there, too\n.*DEST of"):
        publish(layouts["kserve"], dest, "other")
    assert files(dest) == before


@pytest.mark.parametrize(
    ("server", "name"),
    [
        *(("triton", name) for name in ("net", "other", ".attar-candidate-net")),
        *(("openvino", "net"), ("openvino", "other"), ("mlserver", "other")),
    ],
)
def test_a_folder_of_kserves_takes_nothing_for_another_server(layouts, tmp_path, server, name):
    dest = tmp_path / "models"
    publish(layouts["service"], dest, "net")
    before = files(dest)
    with (
        alone(dest),
        pytest.raises(InputError, match=rf"models/net{SERVICE}: is there: KServe serves .*\n.*--to kserve, or give an"),
    ):
        place(layouts[server], dest, name)
    assert files(dest) == before
    publish(layouts["service"], dest, "net")
