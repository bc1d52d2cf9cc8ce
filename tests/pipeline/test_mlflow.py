"""An artifact as a version of a registered model, in a real database."""

import http.server
import os
import shutil
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
from shipping import attar_ship

from pipeline import evidence
from pipeline.manifest import of
from pipeline.registries import mlflow
from targets.errors import DeviceError, InputError
from targets.sha256sums import digest, render


@pytest.fixture
def artifact(finished, tmp_path):
    return shutil.copytree(finished[0] / "runs/tiny/quick", tmp_path / "quick")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow  # the database alone takes MLflow five seconds
@pytest.mark.filterwarnings("ignore")  # its own, in threads as well
def test_a_version_carries_files_metrics_verdict_and_digests(artifact, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="pip install 'attar[mlflow]'")
    monkeypatch.chdir(tmp_path)
    uri, told = f"sqlite:///{tmp_path}/track.db", []
    assert mlflow.register(artifact, uri, "digits", say=told.append) == "1"
    assert mlflow.register(artifact, uri, "digits", say=told.append) == "1"
    assert told == [f"registered digits, version 1: {uri}", "digits has it already: version 1"]
    from mlflow import MlflowClient

    client, manifest = MlflowClient(uri, uri), of(evidence.taken(artifact))
    version = client.get_model_version("digits", "1")
    assert version.tags["attar.verdict"] == "met"
    assert version.tags["attar.file.model_onnx"] == manifest.model.sha256
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(mlflow.metrics(manifest))
    copy = tmp_path / "mlartifacts" / version.run_id / "artifacts/model"
    assert names(copy) == names(artifact)
    assert evidence.verified(copy) == ()
    (artifact / "manifest.json").write_bytes((artifact / "manifest.json").read_bytes() + b" ")
    (artifact / evidence.SUMS).write_bytes(evidence.sums(artifact))
    assert mlflow.register(artifact, uri, "digits") == "2"
    assert mlflow.register(artifact, uri) == "1", "under the recipe's name"
    (artifact / evidence.SIGNATURE).write_bytes(b"by somebody")
    assert [mlflow.register(artifact, uri, "digits") for _ in range(2)] == ["3", "3"], "signed after it was registered"
    signed = client.get_model_version("digits", "3").run_id
    assert (tmp_path / "mlartifacts" / signed / "artifacts/model" / evidence.SIGNATURE).read_bytes() == b"by somebody"
    (artifact / evidence.SIGNATURE).unlink()
    code, _, err = attar_ship(artifact, uri, "--to", "mlflow")
    assert (code, "has it already: version 1" in err) == (0, True), err
    assert f"next: MLFLOW_TRACKING_URI={uri} mlflow artifacts download -u models:/tiny/1 -d NEWDIR\n" in err
    assert names(tmp_path) == ["mlartifacts", "quick", "track.db"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"


def test_metrics_end_with_their_units(artifact):
    found, manifest = mlflow.metrics(of(evidence.taken(artifact))), evidence.manifest(artifact)
    assert found["latency_p50_ms"] == manifest["measured"]["latency_p50_ms"]["value"]
    assert found["test/accuracy_percent"] == manifest["test"]["accuracy"]["value"]
    assert found["test/accuracy_percent/low"] == manifest["test"]["accuracy"]["low"]
    assert found["accuracy_percent"] == manifest["measured"]["accuracy"]["value"]


def test_every_digest_is_a_tag(artifact):
    taken = evidence.taken(artifact)
    found = mlflow.tags(taken)
    every = {f"attar.file.{name.replace('.', '_')}" for name in names(artifact)}
    assert every == {name for name in found if name.startswith("attar.file.")}
    (artifact / evidence.SIGNATURE).write_bytes(b"by somebody")
    assert mlflow.tags(evidence.taken(artifact)) == found | {"attar.file.model_sig": digest(b"by somebody")}
    (artifact / "attar_runtime.py").write_text("code")
    (artifact / evidence.LAYOUT).write_bytes(render({"attar_runtime.py": b"code"}))
    taken = evidence.taken(artifact)
    assert mlflow.tags(taken)["attar.file.attar_runtime_py"] == digest(b"code")
    assert {"attar.verdict", "attar.recipe.sha256", "attar.data.sha256"} <= set(found)


@pytest.mark.parametrize(
    ("uri", "name", "what"),
    [
        ("somewhere", "", "'somewhere' is no place of MLflow's"),
        ("file:///tmp/mlruns", "", "is no place of MLflow's"),
        ("http://127.0.0.1:9", "a/b", "'a/b' cannot be the name of a registered model"),
        ("http://127.0.0.1:9", "it's", "cannot be the name"),
        ("http://127.0.0.1:9/a@b", "a/b", "cannot be the name"),
        ("https://ann:secret@h.example/", "", "holds a user or a password.*\n.*MLFLOW_TRACKING_PASSWORD"),
        ("http://ann@h.example?x", "", "holds a user or a password"),
        ("sqlite:////nowhere/at/all.db", "", "there is no folder for this database"),
    ],
)
def test_an_address_or_a_name_that_will_not_do(artifact, uri, name, what):
    with pytest.raises(InputError, match=what) as caught:
        mlflow.register(artifact, uri, name)
    assert "secret" not in str(caught.value)


def test_a_folder_that_does_not_hold_is_not_registered(artifact):
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="was changed"):
        mlflow.register(artifact, "http://127.0.0.1:9")


def test_without_the_extra_it_is_named(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"pip install 'attar\[mlflow\]'"):
        mlflow.register(artifact, "http://127.0.0.1:9")


@pytest.mark.slow  # MLflow takes two seconds to wake
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_database_of_mlflows(artifact, tmp_path):
    pytest.importorskip("mlflow", reason="pip install 'attar[mlflow]'")
    (tmp_path / "no.db").write_text("no database at all, but longer than its header would be" * 20)
    with pytest.raises(InputError, match=r"MLflow cannot use this database: .*not a database"):
        mlflow.register(artifact, f"sqlite:///{tmp_path}/no.db")


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that wants a login."""

    def do_GET(self):
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words): ...


@pytest.mark.slow  # MLflow takes two seconds to wake
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_not_there_or_refuses(artifact, monkeypatch):
    pytest.importorskip("mlflow", reason="pip install 'attar[mlflow]'")
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        uri = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with pytest.raises(
                DeviceError, match=r"refuses it: it wants a login .*\n   help: set MLFLOW_TRACKING_USERNA"
            ):
                mlflow.register(artifact, uri)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "x")
            with pytest.raises(DeviceError, match=r"it does not take the login of 'ann' \(HTTP 401\)"):
                mlflow.register(artifact, uri)
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(DeviceError) as caught:
        mlflow.register(artifact, uri)
    help = "is the server up, and the address right?"
    assert str(caught.value) == f"{uri} does not answer: Connection refused\n   help: {help}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_went_wrong_first_is_told_where_the_run_cannot_be_closed(artifact):
    class Gone:
        """A server that goes away once a run is begun."""

        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id="1")

        def create_run(self, *words, **more):
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def log_batch(self, *words):
            raise OSError("first")

        def set_terminated(self, *words):
            raise RuntimeError("second")

    pytest.importorskip("mlflow", reason="pip install 'attar[mlflow]'")
    with pytest.raises(OSError, match="first"):
        mlflow._registered(Gone(), evidence.taken(artifact), "http://h", "n", {}, {}, print)


@pytest.mark.slow  # MLflow takes two seconds to wake
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_not_up(artifact):
    pytest.importorskip("mlflow", reason="pip install 'attar[mlflow]'")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(DeviceError, match="is the server up"):
        mlflow.register(artifact, f"http://127.0.0.1:{port}")
