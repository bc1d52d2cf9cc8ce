"""An artifact through a container registry: Debian's docker-registry runs for the tests marked `server`."""

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest
from papers import attar, key_pair
from shipping import attar_ship

from pipeline import evidence
from pipeline.manifest import of
from pipeline.registries import distribution, oci
from pipeline.registries.ref import Ref, parse
from targets.errors import DeviceError, InputError

# user "ann", password "secret"; bcrypt, the one form that the registry takes
HTPASSWD = "ann:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@pytest.fixture
def artifact(finished, tmp_path):
    """A real run's artifact with the run's report above it."""
    shutil.copytree(finished[0] / "runs/tiny", tmp_path / "tiny")
    return tmp_path / "tiny/quick"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running(folder, auth=None):
    """The registry, with an empty store in `folder`; yields its address."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("docker-registry is not installed: apt-get install -y docker-registry")
    folder.mkdir()
    host = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
        "http": {"addr": host},
        **({"auth": auth} if auth else {}),
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log)
        try:
            for _ in range(300):
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", int(host.partition(":")[2]))) == 0:
                        break
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield host
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry") / "open"
    with running(folder) as host:
        yield host, folder / "store"


@contextmanager
def listening(handler):
    """A server on a port of its own, whose requests a handler answers; yields its host."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def tokens(token):
    """A server that hands out one token, and keeps what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            text = json.dumps({"token": token}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words):
            pass

    with listening(Handler) as host:
        yield f"http://{host}/token", asked


@contextmanager
def answering(answer):
    """A registry that answers each request with a code and headers: `answer(method, headers)`; yields its host."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            code, headers = answer(self.command, self.headers)
            self.send_response(code)
            for name, value in (*headers, ("Content-Length", "0")):
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST = do_HEAD  # noqa: N815

        def log_message(self, *words):
            pass

    with listening(Handler) as host:
        yield host


@contextmanager
def serving(manifest, blobs):
    """A registry that gives out one manifest, and blobs by their digests; yields its host."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = blobs.get(self.path.rpartition("/")[2], manifest)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    with listening(Handler) as host:
        yield host


def same(one, other):
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


@pytest.mark.server
def test_pushed_and_pulled_by_tag_and_by_digest_it_is_the_same(registry, artifact, tmp_path):
    host, _ = registry
    pytest.importorskip("model_signing", reason="pip install 'attar[sign]'")
    from pipeline.signing import sign

    private, public = key_pair(tmp_path, "key")
    sign(artifact, private)
    told = []
    digest = oci.push(artifact, f"{host}/models/tiny:v1", insecure=True, say=told.append)
    assert told[0].endswith(f"{host}/models/tiny:v1@{digest}")
    assert oci.push(artifact, f"{host}/models/tiny:v1", insecure=True, say=told.append) == digest
    assert told[1].startswith("it is there already")
    for n, ref in enumerate((f"{host}/models/tiny:v1", f"{host}/models/tiny@{digest}")):
        found, fetched = oci.pull(ref, tmp_path / f"pulled{n}", insecure=True)
        assert (found, fetched) == (tmp_path / f"pulled{n}/quick", digest)
        assert same(artifact, found)
        assert (tmp_path / f"pulled{n}/report.html").read_bytes() == (artifact.parent / "report.html").read_bytes()
    ref = f"{host}/models/tiny:v1"
    code, out, err = attar("pull", ref, tmp_path / "command", "--insecure", "--json")
    assert code == 0, err
    files = evidence.listed(artifact)
    folder = str(tmp_path / "command/quick")
    assert json.loads(out) == {"version": 1, "ref": ref, "digest": digest, "folder": folder, "files": files}
    assert f"who made it? next: attar verify {folder} --key PUBLIC_KEY" in err
    (artifact / evidence.SIGNATURE).unlink()
    oci.push(artifact, f"{host}/models/tiny:unsigned", insecure=True)
    code, _, err = attar("pull", f"{host}/models/tiny:unsigned", tmp_path / "unsigned", "--insecure")
    assert (code, "--key" in err, "not signed: digests show" in err) == (0, False, True), err
    assert attar("verify", tmp_path / "command/quick", "--key", public)[0] == 0
    assert not list(tmp_path.glob(".*")), "nothing is left beside"


@pytest.mark.server
def test_a_published_version_is_pushed_as_it_lies(registry, artifact, tmp_path):
    host, _ = registry
    pytest.importorskip("model_signing", reason="pip install 'attar[sign]'")
    from pipeline.signing import sign

    private, public = key_pair(tmp_path, "key")
    code, _, err = attar_ship(artifact, tmp_path / "models", "--to", "mlserver")
    assert code == 0, err
    version = tmp_path / "models/tiny/1"
    sign(version, private)
    oci.push(version, f"{host}/models/version:v1", insecure=True)
    oci.pull(f"{host}/models/version:v1", tmp_path / "pulled", insecure=True)
    assert same(version, tmp_path / "pulled/quick")
    assert (tmp_path / "pulled/quick/attar_runtime.py").exists()
    assert attar("verify", tmp_path / "pulled/quick", "--key", public)[0] == 0
    code, _, err = attar_ship(tmp_path / "pulled/quick", tmp_path / "others", "--to", "triton")
    assert code == 0, err
    assert evidence.verified(tmp_path / "others/tiny/1") == ()


@pytest.mark.server
def test_what_lies_in_the_registry_has_the_media_types_of_a_model(registry, artifact):
    host, _ = registry
    digest = oci.push(artifact, f"{host}/models/types:v1", insecure=True)
    accept = {"Accept": distribution.MANIFEST}
    request = urllib.request.Request(f"http://{host}/v2/models/types/manifests/{digest}", headers=accept)
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Content-Type"] == distribution.MANIFEST
        manifest = json.load(answer)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    types = {layer["annotations"]["org.opencontainers.image.title"]: layer["mediaType"] for layer in manifest["layers"]}
    assert types["quick/model.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert types["quick/manifest.json"] == types["report.html"] == "application/vnd.cncf.model.doc.v1.raw"
    assert manifest["annotations"]["attar.verdict"] == "met"
    with urllib.request.urlopen(f"http://{host}/v2/models/types/blobs/{manifest['config']['digest']}") as answer:
        config = json.load(answer)
    assert config["config"] == {"format": "onnx"}
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]


@pytest.mark.server
def test_a_tag_that_is_taken_is_never_moved(registry, artifact, tmp_path):
    host, _ = registry
    digest = oci.push(artifact, f"{host}/models/taken:v1", insecure=True)
    (artifact.parent / "report.md").write_text("another")
    with pytest.raises(InputError, match=rf"taken:v1 stands for something else there: {digest}"):
        oci.push(artifact, f"{host}/models/taken:v1", insecure=True)
    oci.pull(f"{host}/models/taken:v1", tmp_path / "still", insecure=True)
    assert (tmp_path / "still/report.md").read_text() != "another"
    assert oci.push(artifact, f"{host}/models/taken:v2", insecure=True) != digest


@pytest.mark.server
def test_a_byte_changed_in_the_registrys_own_store_is_found(registry, artifact, tmp_path):
    host, store = registry
    digest = oci.push(artifact, f"{host}/models/spoiled:v1", insecure=True)
    model = evidence.listed(artifact)["model.onnx"]
    blob = next(store.rglob(f"{model}/data"))
    good = blob.read_bytes()
    try:
        blob.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
        with pytest.raises(InputError, match=f"what came for sha256:{model} is something else"):
            oci.pull(f"{host}/models/spoiled:v1", tmp_path / "pulled", insecure=True)
        blob.write_bytes(good[:-1])
        with pytest.raises((InputError, DeviceError)):
            oci.pull(f"{host}/models/spoiled:v1", tmp_path / "pulled", insecure=True)
    finally:
        blob.write_bytes(good)
    manifest = next(store.rglob(f"{digest.removeprefix('sha256:')}/data"))
    manifest.write_bytes(manifest.read_bytes().replace(b'"attar.verdict":"met"', b'"attar.verdict":"MET"'))
    for ref in ("spoiled:v1", f"spoiled@{digest}"):
        with pytest.raises((InputError, DeviceError)):  # the registry notices as well, in some versions
            oci.pull(f"{host}/models/{ref}", tmp_path / "pulled", insecure=True)
    assert not (tmp_path / "pulled").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.server
def test_what_is_not_there_or_not_ours_is_named(registry, tmp_path):
    host, _ = registry
    with pytest.raises(InputError, match=r"has nothing at .*nothing:v9"):
        oci.pull(f"{host}/models/nothing:v9", tmp_path / "pulled", insecure=True)
    image = distribution.Registry(host, "models/image", insecure=True)
    image.put_blob(b"{}")
    layer = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": distribution.digest_of(b"{}"),
        "size": 2,
    }
    image.put_manifest(
        "v1",
        json.dumps(
            {"schemaVersion": 2, "mediaType": distribution.MANIFEST, "config": layer, "layers": [layer]}
        ).encode(),
    )
    with pytest.raises(InputError, match="is no artifact that attar pushed"):
        oci.pull(f"{host}/models/image:v1", tmp_path / "pulled", insecure=True)
    with pytest.raises(DeviceError, match="speaks plain HTTP: --insecure"):
        oci.pull(f"{host}/models/image:v1", tmp_path / "pulled")


@pytest.mark.server
def test_a_login_is_asked_for_and_given(artifact, tmp_path, monkeypatch):
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with running(tmp_path / "closed", {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}) as host:
        ref = f"{host}/models/tiny:v1"
        with pytest.raises(DeviceError, match=r"it wants a login \(HTTP 401\)"):
            oci.push(artifact, ref, insecure=True)
        monkeypatch.setenv(distribution.USER, "ann")
        monkeypatch.setenv(distribution.PASSWORD, "wrong")
        with pytest.raises(DeviceError, match="it does not take the login of 'ann'"):
            oci.push(artifact, ref, insecure=True)
        monkeypatch.setenv(distribution.PASSWORD, "secret")
        oci.push(artifact, ref, insecure=True)
        assert same(artifact, oci.pull(ref, tmp_path / "pulled", insecure=True)[0])


@pytest.mark.server
def test_a_registry_that_takes_tokens_gets_one(artifact, tmp_path, monkeypatch):
    """The registry's auth "silly" asks for a token as large registries do, and takes any."""
    monkeypatch.setenv(distribution.USER, "ann")
    monkeypatch.setenv(distribution.PASSWORD, "secret")
    with (
        tokens("abc") as (realm, asked),
        running(tmp_path / "closed", {"silly": {"realm": realm, "service": "here"}}) as host,
    ):
        ref = f"{host}/models/tiny:v1"
        oci.push(artifact, ref, insecure=True)
        assert same(artifact, oci.pull(ref, tmp_path / "pulled", insecure=True)[0])
    assert all(given == "Basic YW5uOnNlY3JldA==" for _, given in asked)
    assert asked[0][0].startswith("/token?service=here&scope=")


def test_a_registry_that_is_not_up_is_told_and_nothing_is_left(artifact, tmp_path):
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(DeviceError, match=f"{host} does not answer: .*refused"):
        oci.push(artifact, f"{host}/models/tiny:v1", insecure=True)
    code, _, err = attar("pull", f"{host}/models/tiny:v1", tmp_path / "pulled", "--insecure")
    assert code == 3
    assert "is the registry up" in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


NO_REFS = """
tiny models/tiny h/Models/tiny:v1 h/m: h/m:v1:v2 h/../m:v1 http://h/m:v1 h/m@sha256:12 h:123456/m:v1 h/m
a..b/m:v1 a-/m:v1
"""


@pytest.mark.parametrize("ref", NO_REFS.split())
def test_what_is_no_reference_is_refused(ref):
    with pytest.raises(InputError, match="must look like HOST"):
        parse(ref)


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.b", "[::1", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_told(host):
    with pytest.raises(DeviceError, match="does not answer"):
        distribution.Registry(host, "m", insecure=True).has_blob("sha256:0")


def test_a_place_to_upload_to_that_is_none_is_told():
    def answer(method, headers):
        return (404, ()) if method == "HEAD" else (202, [("Location", "http://[::1")])

    with answering(answer) as host, pytest.raises(DeviceError, match="names no place to upload to"):
        distribution.Registry(host, "m", insecure=True).put_blob(b"x")


@pytest.mark.parametrize("realm", ["http://[::1", "http://a..b/token", "ftp://h/token", "/token"])
def test_a_place_for_tokens_that_is_none_is_as_no_login(realm):
    with (
        answering(lambda *_: (401, [("WWW-Authenticate", f'Bearer realm="{realm}"')])) as host,
        pytest.raises(DeviceError, match="it wants a login"),
    ):
        distribution.Registry(host, "m", insecure=True).has_blob("sha256:0")


BOTH = f"{distribution.USER} and {distribution.PASSWORD}"


@pytest.mark.parametrize(
    ("status", "user", "password", "said"),
    [
        (401, "", "", f"it wants a login (HTTP 401)\n   help: set {BOTH}, for this command alone"),
        (403, "", "x", f"it wants a login (HTTP 403)\n   help: set {BOTH}, for"),
        (401, "ann", "", f"'ann' gave no password (HTTP 401)\n   help: set {distribution.PASSWORD}, too"),
        (401, "ann", "x", "it does not take the login of 'ann' (HTTP 401)\n   help: is the password in"),
        (403, "ann", "x", "'ann' may not do this there (HTTP 403)\n   help: ask who runs it"),
    ],
)
def test_who_is_refused_is_told_what_to_do_about_it(tmp_path, monkeypatch, status, user, password, said):
    monkeypatch.setenv(distribution.USER, user)
    monkeypatch.setenv(distribution.PASSWORD, password)
    with answering(lambda *_: (status, ())) as host:
        code, _, err = attar("pull", f"{host}/m:v1", tmp_path / "new", "--insecure")
    assert code == 3
    assert err.startswith(f"{host}/m: the server refuses it: {said}")


def test_a_registry_that_breaks_sends_to_its_log():
    with (
        answering(lambda *_: (500, ())) as host,
        pytest.raises(DeviceError, match=r"answered 500 .*\n   help: its own log says why; is its disk full\?"),
    ):
        distribution.Registry(host, "m", insecure=True).has_blob("sha256:0")


def test_a_login_is_found_among_several_ways(monkeypatch):
    monkeypatch.setenv(distribution.USER, "ann")

    def answer(method, headers):
        ways = [("WWW-Authenticate", way) for way in ("Negotiate", 'Basic realm="r"')]
        return (200, ()) if "Authorization" in headers else (401, ways)

    with answering(answer) as host:
        assert distribution.Registry(host, "m", insecure=True).has_blob("sha256:0")


def test_a_redirect_keeps_to_https():
    follow = distribution._Redirects().redirect_request
    asked = urllib.request.Request("https://h.example/v2/m/blobs/x")
    assert follow(asked, None, 307, "", {}, "https://store.example/x?key=1").full_url == "https://store.example/x?key=1"
    with pytest.raises(InputError, match=r"h\.example sends on to http://store\.example/x: another protocol"):
        follow(asked, None, 307, "", {}, "http://store.example/x?key=1")
    with (
        answering(lambda *_: (302, [("Location", "ftp://127.0.0.1:9/x")])) as host,
        pytest.raises(InputError, match="sends on to ftp:"),
    ):
        distribution.Registry(host, "m", insecure=True).manifest("v1")


def test_references_are_read():
    digest = f"sha256:{'a' * 64}"
    assert parse("h.example:5000/a/b-c_d.e:v1") == Ref("h.example:5000", "a/b-c_d.e", "v1")
    assert parse(f"oci://localhost/m@{digest}") == Ref("localhost", "m", "", digest)
    assert str(parse(f"[::1]:5000/m:v1@{digest}")) == f"[::1]:5000/m:v1@{digest}"
    with pytest.raises(InputError, match="must have a tag, and no digest"):
        oci.push(None, f"localhost/m@{digest}")


def test_a_folder_that_does_not_hold_is_not_pushed(artifact):
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.onnx: was changed"):
        oci.push(artifact, "127.0.0.1:9/models/tiny:v1", insecure=True)


def test_a_folder_with_something_in_it_is_not_pulled_into(tmp_path):
    (tmp_path / "mine").write_text("")
    for into in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="exists already"):
            oci.pull("127.0.0.1:9/models/tiny:v1", into, insecure=True)
    for name, to in (("empty", tmp_path / "new"), ("dangling", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(to)
        with pytest.raises(InputError, match=f"{name}: is a symbolic link"):
            oci.pull("127.0.0.1:9/models/tiny:v1", tmp_path / name, insecure=True)
    with pytest.raises(InputError, match="cannot be looked into: File name too long"):
        oci.pull("127.0.0.1:9/models/tiny:v1", tmp_path / ("a" * 300), insecure=True)


def test_a_report_is_taken_from_a_runs_folder_or_a_pulled_one_alone(artifact):
    def sent():
        taken = evidence.taken(artifact)
        return sorted(name for name in oci._files(taken, of(taken)) if "/" not in name)

    run = artifact.parent
    assert sent() == ["report.html", "report.md"]
    (run / "recipe.lock").unlink()
    assert sent() == [], "any other folder: these may be anybody's"
    for path in run.iterdir():
        if path.is_file() and path.name not in ("report.html", "report.md"):
            path.unlink()
    assert sent() == ["report.html", "report.md"], "as a pull leaves it"


def test_a_manifest_of_another_form_is_not_pushed(artifact):
    path = artifact / evidence.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target": "x"}))
    (artifact / evidence.SUMS).write_bytes(evidence.sums(artifact))
    assert evidence.verified(artifact) == ()
    with pytest.raises(InputError, match=r"manifest\.json: target: is no manifest that this attar reads"):
        oci.push(artifact, "127.0.0.1:9/models/tiny:v1", insecure=True)


ELSEWHERE = [
    "../model.onnx",
    "/model.onnx",
    "a/b/model.onnx",
    "./x",
    "a\\model.onnx",
    "quick/model.onnx",
    "..",
    "",
    "a\x1b[2J",
    "a\ud800",
    "recipe.lock",
    ".bashrc",
    "model.onnx",
    "other/evil.py",
    "other/model.onnx",
    "other/report.html",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_that_leads_elsewhere_is_refused(name):
    layers = [
        {"digest": f"sha256:{'0' * 64}", "size": 1, "annotations": {"org.opencontainers.image.title": title}}
        for title in ("quick/model.onnx", name)
    ]
    manifest = {"artifactType": oci.ARTIFACT_TYPE, "mediaType": distribution.MANIFEST, "layers": layers}
    of = parse("h/m:v1")
    with pytest.raises(InputError, match="is no artifact that attar pushed"):
        oci._layers(of, json.dumps(manifest).encode())


@pytest.mark.parametrize("target", [".git", "-rf", "recipe.lock", "report.html", "a b"])
def test_a_target_that_attar_would_not_name_so_is_refused(target):
    title = {"org.opencontainers.image.title": f"{target}/model.onnx"}
    layer = {"digest": f"sha256:{'0' * 64}", "size": 1, "annotations": title}
    manifest = {"artifactType": oci.ARTIFACT_TYPE, "mediaType": distribution.MANIFEST, "layers": [layer]}
    with pytest.raises(InputError, match="is no artifact that attar pushed"):
        oci._layers(parse("h/m:v1"), json.dumps(manifest).encode())


def test_an_artifact_of_another_target_than_its_folder_says_is_not_kept(artifact, tmp_path):
    blobs = {distribution.digest_of(data): data for data in (path.read_bytes() for path in artifact.iterdir())}
    layers = [
        {
            "digest": distribution.digest_of(path.read_bytes()),
            "size": path.stat().st_size,
            "annotations": {"org.opencontainers.image.title": f"other/{path.name}"},
        }
        for path in artifact.iterdir()
    ]
    manifest = {"artifactType": oci.ARTIFACT_TYPE, "mediaType": distribution.MANIFEST, "layers": layers}
    with (
        serving(json.dumps(manifest).encode(), blobs) as host,
        pytest.raises(InputError, match="lies in a folder 'other', and was judged for 'quick'"),
    ):
        oci.pull(f"{host}/m:v1", tmp_path / "new", insecure=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_the_target_is_the_folder_of_the_model():
    names = ["report.html", "quick/.hidden", "quick/model.onnx", "report.md"]
    layers = [
        {"digest": f"sha256:{'0' * 64}", "size": 1, "annotations": {"org.opencontainers.image.title": title}}
        for title in names
    ]
    manifest = {"artifactType": oci.ARTIFACT_TYPE, "mediaType": distribution.MANIFEST, "layers": layers}
    target, found = oci._layers(parse("h/m:v1"), json.dumps(manifest).encode())
    assert (target, list(found)) == ("quick", names)
    with pytest.raises(InputError, match="is no artifact that attar pushed"):
        oci._layers(parse("h/m:v1"), b"[" * 100_000)
