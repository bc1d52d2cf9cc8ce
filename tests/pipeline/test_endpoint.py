"""`attar probe`: an artifact behind servers that serve it well, and behind some that do not."""

import hashlib
import json
import re
import shutil
import threading
import time
from dataclasses import asdict, replace

import numpy as np
import oip_server
import onnxruntime
import pytest
import typer
from rich.console import Console
from tiny_run import attar

from pipeline import digests, reference
from pipeline.cli import app
from pipeline.cli.endpoint import probe as command
from pipeline.endpoint import _verdict, probe
from pipeline.report.endpoint import render
from pipeline.report.endpoint_model import Probed, numbers
from pipeline.shipments import shipment
from targets import artifact
from targets.errors import DeviceError, InputError
from targets.servers.agreement import Agreement
from targets.servers.turns import Rate
from targets.target import load
from targets.testing import tiny_onnx

SECONDS = 1


def made(folder, *, examples=6, change=lambda manifest: None, **model):
    """An artifact's folder as a run leaves it, as far as it is read here."""
    folder.mkdir()
    path = tiny_onnx(folder / "model.onnx", **model)
    sample = np.random.default_rng(1).standard_normal((examples, 3, 4, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": sample})[0] if examples else np.zeros((0, 10), np.float32)
    kept = reference.Reference(sample, np.zeros(examples, np.int64), outputs, np.ones(examples, bool))
    reference.save(kept, folder / reference.NAME)
    settings = {"task": "classification", "model": {"source": "none"}}
    manifest = {
        "version": 1,
        "attar": "0",
        "verdict": "met",
        "candidate": "float",
        **{name: {} for name in ("test", "measured", "environment", "libraries")},
        **{name: [] for name in ("checks", "lineage")},
        "target": load("local").model_dump(mode="json"),
        "model": {**asdict(artifact.load(path)), "path": "model.onnx"},
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()},
        "recipe": {"name": "tiny", "settings": settings, "digest": digests.of_json(settings)},
        "data": {"source": "none", "digest": "", "classes": list("0123456789"), "preprocessing": {}},
    }
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("run") / "local")


@pytest.fixture
def oip(folder):
    return oip_server.Oip(folder / "model.onnx")


@pytest.fixture(autouse=True)
def with_the_command(monkeypatch):
    """The command, whether or not the application has it."""
    if "probe" not in [known.name or known.callback.__name__ for known in app.app.registered_commands]:
        own = typer.Typer(rich_markup_mode=None, add_completion=False)
        own.registered_commands = [*app.app.registered_commands]
        own.command()(command)
        monkeypatch.setattr(app, "app", own)


def rendered(found):
    """As a terminal of 80 columns shows it."""
    with (terminal := Console(width=80, no_color=True)).capture() as caught:
        terminal.print(render(found))
    return caught.get()


# ---- servers that serve it well


@pytest.mark.parametrize(
    ("kind", "how"), [("binary", "HTTP, binary tensors"), ("json", "HTTP, JSON"), ("grpc", "gRPC")]
)
def test_equal_answers(folder, oip, tmp_path, kind, how):
    oip.binary = kind != "json"
    with (oip_server.grpc if kind == "grpc" else oip_server.http)(oip) as place:
        url = f"grpc://{place}/tiny" if kind == "grpc" else f"http://{place}"
        done = attar(
            *("probe", url, "--artifact", folder, "--seconds", SECONDS, "--clients", 2, "--json"),
            cwd=tmp_path,
            env={"COLUMNS": "80"},
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["how"], found["serves"]) == ("equal", how, "oip 1.0")
    assert [found[key]["ulps"] for key in ("bare", "loaded")] == [0, 0], "the same runtime, one example at a time"
    assert found["stored"]["verdict"] == "equal"
    assert found["artifact"] == str(folder)
    for side in ("server", "measured_bare"):
        assert found[side]["latency_p50_ms"]["low"] <= found[side]["latency_p50_ms"]["value"]
        assert found[side]["throughput_per_s"]["value"] > 0
    adds = found["adds"]
    assert adds["latency_p50_ms"]["value"] > 0, "a server is never free"
    assert adds["latency_p50_times"]["low"] > 1 > adds["throughput_times"]["value"]
    assert len(found["raw"]["latency_ms"]["server"]) == len(found["raw"]["latency_ms"]["bare"]) == 12
    report = done.stderr[done.stderr.index("EQUAL") :]
    assert "bit-equal in all 6 examples" in report
    assert "the server adds" in report
    assert all(len(line) <= 80 for line in report.splitlines())
    assert Probed.model_validate_json(done.stdout).clients == 2


def test_a_model_with_a_fixed_batch_of_one(tmp_path):
    one = made(tmp_path / "local", batch=1, examples=1)
    oip = oip_server.Oip(one / "model.onnx")
    with oip_server.http(oip) as place:
        assert probe(f"http://{place}", one, seconds=SECONDS, clients=1).verdict == "equal"


def test_another_name_on_the_server(folder, oip, tmp_path):
    oip.name = "other"
    with oip_server.http(oip) as place:
        found = probe(f"http://{place}", folder, model="other", seconds=SECONDS, clients=1)
        assert found.url == f"http://{place}/v2/models/other"
        done = attar("probe", f"http://{place}", "--artifact", folder, cwd=tmp_path)
        assert done.returncode == 2
        assert "the server has no model 'tiny'" in done.stderr


def test_where_the_bare_runtime_cannot_run_it_is_left_out(tmp_path, oip):
    def cuda(manifest):
        manifest["target"]["runtime"]["provider"] = "CUDAExecutionProvider"

    folder = made(tmp_path / "local", change=cuda)
    with oip_server.http(oip) as place:
        found = probe(f"http://{place}", folder, seconds=SECONDS, clients=1)
    assert (found.verdict, found.bare, found.measured_bare, found.adds) == ("equal", None, {}, {})
    assert any("has no CUDAExecutionProvider here" in note for note in found.notes)
    assert "-" in rendered(found), "what was not measured is a dash"


# ---- servers that do not


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda y: y + 1, "DIFFERS by up to 1; same class in all 6"),
        (lambda y: y[:, ::-1], "another class in"),
        (lambda y: np.full_like(y, np.nan), "not finite"),
        (lambda y: y * np.float32(1 + 1e-6), "DIFFERS|close"),
    ],
)
def test_other_answers_are_told(folder, oip, tmp_path, spoil, told):
    oip.spoil = spoil
    with oip_server.http(oip) as place:
        words = ("probe", f"http://{place}", "--artifact", folder, "--seconds", SECONDS, "--clients", 1, "--json")
        done = attar(*words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "differs"
    assert re.search(told, found["bare"]["told"])
    assert "DIFFERS  the server does not answer as the artifact does" in done.stderr


def test_answers_that_are_others_under_load_are_found(folder, oip):
    """A server that mixes up two requests that come at once."""
    lock = threading.Lock()

    def mixed(y):
        if lock.acquire(blocking=False):
            try:
                time.sleep(0.002)
                return y
            finally:
                lock.release()
        return y[:, ::-1].copy()

    oip.spoil = mixed
    with oip_server.http(oip) as place:
        found = probe(f"http://{place}", folder, seconds=SECONDS, clients=3)
    assert (found.bare.verdict, found.loaded.verdict, found.verdict) == ("equal", "differs", "differs")
    assert any(note.startswith("while 3 clients asked at once some answers were others") for note in found.notes)
    assert re.search(r"its own, asked alone +with 3 clients at once: DIFFERS", rendered(found))
    int8 = found.stored.model_copy(update={"difference": 1.0, "steps": 5.0, "told": "by 5 output steps (1)"})
    shown = " ".join(rendered(found.model_copy(update={"stored": int8})).split())
    assert "one output step of this int8 model is 0.200; in brackets stands the difference itself" in shown
    assert "output step" not in rendered(found)


def test_another_model_is_refused_before_anything_is_asked(folder, tmp_path):
    other = oip_server.Oip(tiny_onnx(tmp_path / "m.onnx", shape=(3, 8, 8)))
    with oip_server.http(other) as place, pytest.raises(InputError, match="serves another model: its input is x FP32"):
        probe(f"http://{place}/v2/models/tiny", folder)
    other = oip_server.Oip(tiny_onnx(tmp_path / "m.onnx", classes=4))
    with oip_server.http(other) as place, pytest.raises(InputError, match="its output is y FP32"):
        probe(f"http://{place}/v2/models/tiny", folder)


def test_a_model_that_is_not_ready(folder, oip):
    oip.instead = {("GET", "/v2/models/tiny/ready"): (503, {})}
    with (
        oip_server.http(oip) as place,
        pytest.raises(DeviceError, match=r"is there, and not ready\n   help: "),
    ):
        probe(f"http://{place}", folder)


def test_a_server_that_dies_meanwhile(folder, oip, tmp_path):
    asked = []

    def dies(y):
        asked.append(1)
        if len(asked) > 40:
            oip.hang_up = 100
        return y

    oip.spoil = dies
    with oip_server.http(oip) as place:
        done = attar("probe", f"http://{place}", "--artifact", folder, "--seconds", SECONDS, cwd=tmp_path)
    assert done.returncode == 3
    assert "broke off without an answer" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("http://127.0.0.1:9/v2/models/tiny",), 3, "nothing listens on 127.0.0.1:9\n   help: start the server"),
        (("tiny",), 2, "must begin with http://, https:// or grpc://"),
        (("http://127.0.0.1:9", "--seconds", "0"), 2, "--seconds: 0 must be from 1 to 3600"),
        (("http://127.0.0.1:9", "--clients", "65"), 2, "--clients: 65 must be from 1 to 64"),
    ],
)
def test_bad_words(folder, tmp_path, words, code, told):
    done = attar("probe", *words, "--artifact", folder, cwd=tmp_path)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_artifact(folder, tmp_path):
    done = attar("probe", "http://127.0.0.1:9", "--artifact", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"other")
    done = attar("probe", "http://127.0.0.1:9", "--artifact", broken, cwd=tmp_path)
    assert done.returncode == 2
    assert "model.onnx" in done.stderr
    empty = made(tmp_path / "empty", examples=0)
    done = attar("probe", "http://127.0.0.1:9", "--artifact", empty, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no examples to ask with" in done.stderr


def test_a_fixed_batch_of_many_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(InputError, match="has a fixed batch of 2, and examples are asked for one at a time"):
        probe("http://127.0.0.1:9", made(tmp_path / "local", batch=2, examples=2))


def test_answers_of_another_shape_under_load_are_a_fault(folder, oip):
    asked = []

    def shrinks(y):
        asked.append(1)
        return y if len(asked) <= 6 else y[:, :3]

    oip.spoil = shrinks
    with oip_server.http(oip) as place, pytest.raises(DeviceError, match=r"answered shape \(1, 3\) under load"):
        probe(f"http://{place}", folder, seconds=SECONDS, clients=1)


@pytest.mark.parametrize(
    "told", [{"image_size": "1),print('PWNED'),(1"}, {"channels": "3"}, {"divide_by": "x"}, {"mean": 0.5}]
)
def test_a_manifest_cannot_say_what_is_no_preprocessing(tmp_path, told):
    hostile = made(tmp_path / "local", change=lambda manifest: manifest["data"].update(preprocessing=told))
    if told == {"channels": "3"}:  # a number all the same
        assert shipment(hostile).preprocessing == {"channels": 3}
        return
    with pytest.raises(InputError, match=r"data\.preprocessing\..*: is no manifest that this attar reads"):
        shipment(hostile)


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        (np.zeros((2, 3, 4, 5), np.float32), np.zeros((2, 10), np.float32), r"inputs of shape \(3, 4, 5\)"),
        (np.zeros((2, 3, 4, 5), np.float32), np.zeros((2, 10), np.float32), r"and the model's are \(3, 4, 4\)"),
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 7), np.float32), r"outputs of shape \(7\)"),
    ],
)
def test_a_golden_sample_of_another_model_is_refused(tmp_path, inputs, outputs, told):
    path = tmp_path / "local" / reference.NAME

    def other(manifest):
        reference.save(reference.Reference(inputs, np.zeros(2, np.int64), outputs, np.ones(2, bool)), path)
        manifest["files"][reference.NAME] = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(InputError, match=told):
        shipment(made(tmp_path / "local", change=other))


def test_no_rate_is_below_0_however_busy_the_machine_was():
    rates = [Rate(per_s, 100, 0.5) for per_s in (3000, 2900, 12, 3100, 15, 2950)]
    found = numbers([[1.0] * 5], rates, 0.99)["throughput_per_s"]
    assert 0 < found.low < found.value < found.high
    assert found.samples == 600


# ---- the verdict


EQUAL = Agreement("equal", 4, 0, 0.0, 0.0, 0, 0)
CLOSE, DIFFERS = replace(EQUAL, verdict="close"), replace(EQUAL, verdict="differs")


@pytest.mark.parametrize(
    ("here", "stored", "bare", "loaded", "verdict"),
    [
        (True, EQUAL, EQUAL, EQUAL, "equal"),
        (True, CLOSE, EQUAL, EQUAL, "equal"),  # the artifact was made on another machine
        (True, CLOSE, CLOSE, EQUAL, "differs"),  # the same runtime on the same machine, and other answers
        (False, CLOSE, CLOSE, EQUAL, "close"),
        (False, EQUAL, CLOSE, EQUAL, "equal"),  # the server is where it was made
        (False, DIFFERS, DIFFERS, EQUAL, "differs"),
        (False, CLOSE, None, EQUAL, "close"),
        (True, EQUAL, EQUAL, DIFFERS, "differs"),
        (True, EQUAL, EQUAL, CLOSE, "equal"),  # batches of another size
    ],
)
def test_the_verdict(here, stored, bare, loaded, verdict):
    assert _verdict(here, stored, bare, loaded) == verdict
