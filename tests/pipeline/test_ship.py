"""`attar ship` writes a repository for every server, and ships nothing that was changed or did not meet its budget."""

import hashlib
import json
import re
import shlex
import shutil
import socket

import oip_server
import pytest
from shipping import artifact_from, attar_ship

from pipeline import evidence, published
from pipeline.manifest import of
from pipeline.registries import oci
from pipeline.ship import ship
from pipeline.shipments import shipment
from targets.errors import InputError
from targets.servers import SERVERS


@pytest.fixture(scope="module")
def met(finished, tmp_path_factory):
    return artifact_from(finished[0], tmp_path_factory.mktemp("met") / "quick")


@pytest.fixture(scope="module")
def missed(finished, tmp_path_factory):
    return artifact_from(finished[0], tmp_path_factory.mktemp("missed") / "quick", verdict="missed")


def test_a_shipment_holds_all_that_a_server_wants_to_know(met):
    found = shipment(met)
    assert (found.name, found.target.name) == ("tiny", "quick")
    assert found.model.sha256 == hashlib.sha256((met / "model.onnx").read_bytes()).hexdigest()
    assert found.sample.shape[1:] == (1, 8, 8)
    assert found.answers.shape == (len(found.sample), 4)
    assert found.preprocessing["mean"] == [0.5]
    assert {*found.papers} == {path.name for path in met.iterdir()} - {"model.onnx"}
    assert shipment(met, "other").name == "other"
    with pytest.raises(InputError, match="'a/b' must be letters, digits"):
        shipment(met, "a/b")


@pytest.mark.parametrize("server", SERVERS)
def test_each_server_gets_versions_that_still_hold(met, tmp_path, server):
    dest = tmp_path / "models"
    for version in (1, 2):
        code, out, err = attar_ship(met, dest, "--to", server, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert (found["server"], found["name"], found["model_version"]) == (server, "tiny", version)
        assert found["folder"] == str(dest / "tiny" / str(version))
        assert f"tiny version {version} lies in {dest}" in err
        port = {"mlserver": 8080, "kserve": None}.get(server, 8000)
        assert found["url"] == (f"http://localhost:{port}/v2/models/tiny" if port else "")
        assert f": attar probe {found['url'] or 'URL/v2/models/tiny'} --artifact {met}" in err
        assert f'["localhost:{port or 8000}", ' in (dest / "tiny" / "client.py").read_text(encoding="utf-8")
        assert "DEST" not in err
        folder = dest / "tiny" / str(version)
        assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == found["sha256"]
        if found["sha256"] == shipment(met).model.sha256:  # else: converted, for the Triton that KServe brings
            assert (folder / "manifest.json").read_bytes() == (met / "manifest.json").read_bytes()
        assert evidence.verified(folder) == ()


@pytest.mark.parametrize("server", SERVERS)
def test_what_is_to_be_copied_can_be_copied(met, tmp_path, server):
    dest = tmp_path / "it's my models"
    folder = met.replace(tmp_path / "my run")
    try:
        code, _, err = attar_ship(folder, dest, "--to", server, "--name", "a" * 100, "--server-version", "2027.01")
    finally:
        folder.replace(met)
    assert code == 0, err
    start, after = (line.partition(": ")[2] for line in err.splitlines() if "start it with" in line or "next" in line)
    assert str(dest) in "".join(shlex.split(start)), "one word of a shell's"
    assert shlex.split(after)[-1] == str(folder)
    assert ("changes nothing" if server == "mlserver" else "2027.01 is newer than what is known here") in err


@pytest.mark.parametrize("server", ["triton", "kserve"])
def test_a_name_that_reads_like_a_placeholder_is_left_alone(met, tmp_path, server):
    code, out, err = attar_ship(met, tmp_path / "models", "--to", server, "--name", "DEST-1", "--json")
    assert code == 0, err
    found = json.loads(out)
    if server == "kserve":
        assert any(note.startswith("fill in storageUri in DEST-1.inferenceservice.yaml: ") for note in found["notes"])
        assert found["start"] == f"kubectl apply -f {tmp_path}/models/DEST-1.inferenceservice.yaml"
    else:
        assert found["start"].startswith(f"tritonserver --model-repository={tmp_path}/models --model-control-mode=")
    assert f"start it with: {found['start']}" in err
    assert "/v2/models/DEST-1 " in err


def test_an_address_that_is_none_is_told_before_the_artifact_is_looked_at(tmp_path):
    code, _, err = attar_ship(tmp_path / "none", tmp_path / "models", "--to", "triton", "--load", "grpc://there:1")
    assert (code, "grpc://there:1: models are loaded over HTTP" in err) == (2, True), err


def test_what_did_not_meet_its_budget_stays_unless_it_is_named(missed, tmp_path):
    dest = tmp_path / "models"
    code, _, err = attar_ship(missed, dest, "--to", "triton")
    assert (code, "its verdict is missed, not met" in err) == (2, True), err
    assert f"\n      attar ship {missed} {dest} --to triton --even-if missed" in err
    given = ("--to", "triton", "--name", "a", "--keep-config", "--max-batch", "8")
    code, _, err = attar_ship("--json", missed, tmp_path / "it's here", *given)
    words = shlex.split(err.splitlines()[-1])
    assert words == [
        *("attar", "ship", str(missed), f"{tmp_path}/it's here", "--to", "triton", "--name", "a", "--max-batch", "8"),
        *("--keep-config", "--json", "--even-if", "missed"),
    ]
    code, _, err = attar_ship(missed, dest, "--to", "triton", "--even-if", "inconclusive")
    assert (code, "its verdict is missed, not inconclusive" in err) == (2, True), err
    code, _, err = attar_ship(missed, dest, "--to", "triton", "--even-if", "fine")
    assert (code, "'fine' must be inconclusive or missed" in err) == (2, True), err
    code, _, err = attar_ship(missed, "127.0.0.1:1/tiny:v1", "--to", "oci")
    assert (code, "its verdict is missed, not met" in err) == (2, True), err
    assert not dest.exists()

    code, _, err = attar_ship(missed, dest, "--to", "triton", "--even-if", "missed")
    assert code == 0, err
    assert "its verdict is missed: its manifest says so" in err
    found = json.loads((dest / "tiny" / "1" / "manifest.json").read_text(encoding="utf-8"))
    assert found["shipped_as"] == {"name": "tiny", "server": "triton", "verdict": "missed"}
    assert evidence.verified(dest / "tiny" / "1") == ()


def test_a_model_that_was_converted_for_an_old_server_says_where_it_comes_from(met, tmp_path):
    dest = tmp_path / "models"
    opset = shipment(met).model.opset
    code, out, err = attar_ship(met, dest, "--to", "triton", "--server-version", "23.05", "--json")
    assert code == 0, err
    before = json.loads((met / "manifest.json").read_text(encoding="utf-8"))["model"]
    found = json.loads((dest / "tiny" / "1" / "manifest.json").read_text(encoding="utf-8"))
    assert found["shipped_as"]["converted_from"] == before
    assert found["model"]["opset"] < opset
    assert found["model"]["sha256"] == json.loads(out)["sha256"] != before["sha256"]
    assert evidence.verified(dest / "tiny" / "1") == ()
    steps = rf"converted from opset {opset} to {found['model']['opset']} and IR version \d+ to \d+"
    examples = len(shipment(met).sample)
    words = rf"  {steps}, proven bit-equal on the golden sample \({examples} examples\): Triton 23.05 .* at most\n"
    assert re.search(words, err), err
    code, _, err = attar_ship(dest / "tiny" / "1", tmp_path / "on", "--to", "triton", "--server-version", "23.05")
    assert (code, "converted" in err) == (0, False), err


def test_where_a_signature_stays_behind_is_told_with_the_way_to_a_new_one(finished, tmp_path):
    folder = artifact_from(finished[0], tmp_path / "quick")
    dest = tmp_path / "my models"
    for signed in (False, True):
        if signed:
            (folder / evidence.SIGNATURE).write_text("{}")
        for to, version in (("23.05", 1), ("", 1)):
            into = dest / f"{signed}-{to}" / "tiny" / str(version)
            code, _, err = attar_ship(folder, into.parent.parent, "--to", "triton", "--server-version", to)
            assert code == 0, err
            told = "signature stays behind, for it covers other files than were shipped"
            assert (f"{told}: `attar sign '{into}' --key KEY`" in err) == (signed and to != ""), err
            assert (into / evidence.SIGNATURE).exists() == (signed and to == "")


def test_what_was_changed_is_not_shipped(finished, tmp_path):
    folder = artifact_from(finished[0], tmp_path / "quick")
    with (folder / "measurements.json").open("a") as file:
        file.write(" ")
    code, _, err = attar_ship(folder, tmp_path / "models", "--to", "triton")
    assert (code, "measurements.json: was changed" in err) == (2, True), err
    assert not (tmp_path / "models").exists()
    code, _, err = attar_ship(tmp_path, tmp_path / "models", "--to", "triton")
    assert (code, "holds no artifact" in err) == (2, True), err


@pytest.mark.parametrize("to", ["triton", "oci"])
def test_what_was_checked_is_what_is_shipped(finished, tmp_path, monkeypatch, to):
    """Whoever may write into the folder changes it after it was checked."""
    folder = artifact_from(finished[0], tmp_path / "quick", verdict="missed")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    taken = evidence.taken

    def then_changed(place):
        found = taken(place)
        manifest = json.loads(before["manifest.json"]) | {"verdict": "met"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for name in ("measurements.json", "reference.npz", "SHA256SUMS"):
            (folder / name).write_bytes(b"else")
        return found

    monkeypatch.setattr(evidence, "taken", then_changed)
    if to == "oci":
        found = evidence.taken(folder)
        files = oci._files(found, of(found))
        assert files == {f"quick/{name}": data for name, data in before.items()}
    else:
        shipped = ship(folder, to, tmp_path / "models", even_if="missed")
        assert shipped.verdict == "missed"
        assert evidence.verified(tmp_path / "models" / "tiny" / "1") == ()
        kept = tmp_path / "models" / "tiny" / "1" / "reference.npz"
        assert kept.read_bytes() == before["reference.npz"]


def test_a_model_that_is_changed_after_it_was_checked_is_not_shipped(finished, tmp_path, monkeypatch):
    folder = artifact_from(finished[0], tmp_path / "quick")
    other = artifact_from(finished[0], tmp_path / "other", bias=1.0)
    taken = evidence.taken

    def then_changed(place):
        found = taken(place)
        shutil.copyfile(other / "model.onnx", folder / "model.onnx")
        return found

    monkeypatch.setattr(evidence, "taken", then_changed)
    code, _, err = attar_ship(folder, tmp_path / "models", "--to", "triton")
    assert (code, "model.onnx: was changed while it was being shipped" in err) == (2, True), err
    assert not (tmp_path / "models").exists()


def test_words_that_fit_nothing_are_told(met, tmp_path):
    for words, said in (
        (("--to", "tritn"), "did you mean 'triton'?"),
        (("--to", "mlserver", "--load", "http://127.0.0.1:1"), "--load: mlserver takes no request to load a model"),
        (("--to", "mlflow", "--load", "http://127.0.0.1:1"), "--load: means nothing to mlflow, which is a registry"),
        (("--to", "oci", "--name", "other"), "--name: means nothing to oci, where HOST/NAME:TAG names the model"),
        (("--to", "mlflow", "--max-batch", "4"), "--max-batch: means nothing to mlflow"),
        (("--to", "triton", "--insecure"), "--insecure: means nothing to triton, which is no OCI registry"),
        (("--to", "mlflow", "--insecure"), "--insecure: means nothing to mlflow, which is no OCI registry"),
        (("--to", "triton", "--load", "grpc://127.0.0.1:8001"), "models are loaded over HTTP"),
        (("--to", "triton", "--load", "127.0.0.1:8000"), "must begin with http:// or https://\n   help: --load takes"),
        (("--to", "triton", "--load", "http://127.0.0.1:1/v2/models/a"), "a: has a path that names a model\n   help"),
        (("--to", "triton", "--load", "http://127.0.0.1:1/v2/a?b"), "has something after ? or #\n   help: --load"),
        (("--to", "openvino", "--max-batch", "4"), "--max-batch: means nothing to openvino, which joins no requests"),
        (("--to", "openvino", "--delay-us", "4"), "--delay-us: means nothing to openvino, which joins no requests"),
        (("--to", "mlserver", "--keep-config"), "--keep-config: means nothing to mlserver, which has no config.pbtxt"),
        (("--to", "openvino", "--keep-config"), "--keep-config: means nothing to openvino, which has no config"),
        (("--to", "oci", "--keep-config"), "--keep-config: means nothing to oci, which is a registry and no server"),
        (("--to", "triton", "--name", "../up"), "--name: '../up' must be letters"),
        (("--to", "kserve", "--name", "a" * 101), f"'{'a' * 40}'... (101 characters) must be letters, digits, - _ and"),
        (("--to", "mlflow", "--name", "a" * 300), "(300 characters) must be letters, digits, - _ and ., a letter"),
        (("--to", "triton", "--name", ""), "--name: '' must be letters"),
        (("--to", "mlflow", "--name", ""), "--name: '' must be letters"),
        (("--to", "oci", "--name", ""), "--name: means nothing to oci"),
        ((), "--to"),
    ):
        code, _, err = attar_ship(met, tmp_path / "models", *words)
        assert (code, said in err) == (2, True), (words, err)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("dest", "said"),
    [
        ("run/quick", "run/quick: is an artifact's folder: a model repository in it would spoil it"),
        ("run/quick/deep/models", "run/quick: is an artifact's folder"),
        ("run/link/models", "run/quick: is an artifact's folder"),
        ("lock/models", "lock: is a run's folder"),
        (".", "tiny: is a run's folder"),
        ("models/shipped/1", "models/shipped/1: is an artifact's folder"),
        ("models/shipped", "models/shipped: is the folder of a published model"),
    ],
)
def test_a_repository_spoils_no_folder_whose_files_are_accounted_for(finished, tmp_path, dest, said):
    folder = artifact_from(finished[0], tmp_path / "run" / "quick")
    (tmp_path / "run" / "link").symlink_to("quick")
    for run in ("lock", "tiny"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "recipe.lock").write_text("{}")
    assert attar_ship(folder, tmp_path / "models", "--to", "triton", "--name", "shipped")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    for server in ("triton", "mlserver"):
        code, _, err = attar_ship(folder, tmp_path / dest, "--to", server)
        assert (code, f"{tmp_path}/{said}" in err, "such as models/" in err) == (2, True, True), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("server", [*SERVERS, "oci", "mlflow"])
def test_nothing_is_no_place_to_ship_to(met, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    for dest in ("", " "):
        code, _, err = attar_ship(met, dest, "--to", server)
        assert (code, "DEST: is empty" in err) == (2, True), err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("dest", "said"),
    [
        ("s3://bucket/models", "is an address, and a server's model repository is a .*\n.*--load URL has a running"),
        ("http://127.0.0.1:8000", "is an address"),
        ("127.0.0.1:5000/digits:v1", "looks like a place in a registry.*\n.*did you mean --to oci?.*: ./127.0.0.1:50"),
        ("localhost:8000", "looks like a place in a registry"),
        ("ghcr.io/me/digits:v1", "looks like a place in a registry"),
    ],
)
def test_an_address_does_not_become_a_folder(met, tmp_path, monkeypatch, dest, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = attar_ship(met, dest, "--to", "triton")
    assert (code, bool(re.search(f"^{dest}: {said}", err))) == (2, True), err
    assert not [*tmp_path.iterdir()]
    if "://" not in dest:
        (tmp_path / dest).mkdir(parents=True)
        assert attar_ship(met, dest, "--to", "triton")[0] == 0
        shutil.rmtree(dest)
        assert attar_ship(met, f"./{dest}", "--to", "triton")[0] == 0


def test_a_config_that_its_owner_tuned_stays_if_it_is_named(met, tmp_path):
    config = tmp_path / "models" / "tiny" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text("mine")
    code, _, err = attar_ship(met, tmp_path / "models", "--to", "triton")
    assert (code, f"{config}: is not as attar wrote it" in err, "--keep-config" in err) == (2, True, True), err
    for server in ("triton", "kserve"):
        code, _, err = attar_ship(met, tmp_path / "models", "--to", server, "--keep-config")
        assert (code, "a config.pbtxt that is there stays as it is: " in err, "join" in err) == (0, True, False), err
    assert config.read_text() == "mine"
    assert published.verified(config.parent) == ()


def test_an_mlserver_is_no_triton(met, tmp_path):
    oip = oip_server.Oip(met / "model.onnx")
    oip.instead = {("GET", "/v2"): (200, {"name": "mlserver", "version": "1.7.1", "extensions": []})}
    with oip_server.http(oip) as place:
        code, _, err = attar_ship(met, tmp_path / "models", "--to", "triton", "--load", f"http://{place}")
    assert (code, f"http://{place}: is an MLServer, and no Triton\n" in err) == (3, True), err
    assert not (tmp_path / "models").exists()


def test_two_kinds_of_server_are_not_given_one_model(met, tmp_path):
    assert attar_ship(met, tmp_path / "models", "--to", "mlserver")[0] == 0
    code, _, err = attar_ship(met, tmp_path / "models", "--to", "kserve")
    assert (code, "models/tiny: was shipped for MLServer before" in err) == (2, True), err
    assert attar_ship(met, tmp_path / "storage", "--to", "kserve")[0] == 0
    code, _, err = attar_ship(met, tmp_path / "storage", "--to", "kserve", "--name", "other")
    assert (code, "storage/tiny: is another model" in err, "KServe hands" in err) == (2, True, True), err
    assert not (tmp_path / "storage" / "other").exists()


def test_a_server_that_is_down_or_no_triton_is_told_before_anything_is_written(met, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        code, _, err = attar_ship(met, tmp_path / "models", "--to", "triton", "--load", url)
    assert (code, "nothing listens on 127.0.0.1" in err) == (3, True), err
    assert not (tmp_path / "models").exists()
