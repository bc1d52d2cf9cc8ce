"""Signatures by model-signing: made, verified, and not fooled."""

import base64
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from papers import attar, key_pair, openssl
from shipping import attar_ship

from pipeline import evidence, signing
from pipeline.keys import public
from targets.errors import InputError
from targets.sha256sums import render

pytest.importorskip("model_signing", reason="pip install 'attar[sign]'")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Keys of every kind, by name."""
    folder = tmp_path_factory.mktemp("keys")
    key_pair(folder, "ours")
    key_pair(folder, "other")
    key_pair(folder, "p384", curve="P-384")
    key_pair(folder, "k1", curve="secp256k1")
    key_pair(folder, "old", curve="secp112r1")
    key_pair(folder, "ed", algorithm="ED25519")
    key_pair(folder, "rsa", algorithm="RSA")
    key_pair(folder, "locked ", cipher=("-aes256", "-pass", "pass:secret"))
    openssl("pkey", "-in", folder / "ours.pem", "-outform", "DER", "-out", folder / "der.pem")
    (folder / "text.pem").write_text("no key")
    return folder


@pytest.fixture
def artifact(finished, tmp_path):
    return shutil.copytree(finished[0] / "runs/tiny/quick", tmp_path / "quick")


@pytest.fixture
def signed(artifact, keys):
    signing.sign(artifact, keys / "ours.pem")
    return artifact


def unsigned(folder, key):
    return signing.unsigned(folder, public(key))


def test_signed_then_verified(artifact, keys):
    code, out, err = attar("sign", artifact, "--key", keys / "ours.pem", "--json")
    assert code == 0, err
    assert json.loads(out)["signature"] == "made"
    assert f"  and checks it with: attar verify {artifact} --key key.pub.pem\n" in err
    code, out, err = attar("verify", artifact, "--key", keys / "ours.pub.pem", "--json")
    assert (code, json.loads(out)["signature"]) == (0, "valid"), err
    assert f"signed by {keys / 'ours.pub.pem'}" in err
    code, out, err = attar("verify", artifact, "--json")
    assert (code, json.loads(out)["signature"]) == (0, "unchecked")
    assert "unchecked: give the signer's public key" in err


def test_signing_again_replaces_the_signature(signed, keys):
    signing.sign(signed, keys / "p384.pem")
    assert unsigned(signed, keys / "p384.pub.pem") == ()
    (fault,) = unsigned(signed, keys / "ours.pub.pem")
    assert "was made with another key" in fault.what
    path = signed / evidence.SIGNATURE
    hint = json.loads(path.read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    path.write_bytes(path.read_bytes().replace(hint.encode(), b"x\\nholds"))
    (fault,) = unsigned(signed, keys / "ours.pub.pem")
    assert (fault.what.startswith(r"was made with another key: 'x\nholds', and"), "\n" in fault.what) == (True, False)


def test_a_moved_folder_stays_signed(signed, keys):
    code, _, err = attar("verify", signed.replace(signed.parent / "1"), "--key", keys / "ours.pub.pem")
    assert code == 0, err


def test_a_signature_travels_to_a_published_version_and_says_what_it_does_not_cover(signed, keys, tmp_path):
    code, _, err = attar_ship(signed, tmp_path / "models", "--to", "mlserver")
    assert code == 0, err
    told = "the artifact's signature does not cover attar_runtime.py, model-settings.json, which the server runs by"
    assert told in err
    version = tmp_path / "models" / "tiny" / "1"
    code, out, err = attar("verify", version, "--key", keys / "ours.pub.pem", "--json")
    found = json.loads(out)
    assert (code, found["holds"], found["signature"]) == (1, False, "invalid"), err
    assert [(fault["file"], fault["what"]) for fault in found["faults"]] == [
        (str(version / name), "is not covered by the signature")
        for name in ("LAYOUT.SHA256SUMS", "attar_runtime.py", "model-settings.json")
    ]
    assert f"once you trust it: attar sign {version} --key KEY" in err
    assert attar("verify", version)[0] == 0, "by digests alone it holds"
    code, _, err = attar("sign", version, "--key", keys / "ours.pem")
    assert code == 0, err
    code, _, err = attar("verify", version, "--key", keys / "ours.pub.pem")
    assert code == 0, err
    (version / evidence.SIGNATURE).write_bytes((signed / evidence.SIGNATURE).read_bytes())
    code, _, err = attar("verify", version, "--key", keys / "ours.pub.pem")
    assert (code, "attar_runtime.py: is not covered by the signature" in err) == (1, True), err
    code, _, err = attar_ship(signed, tmp_path / "others", "--to", "triton")
    assert (code, "signature does not cover" in err) == (0, False), err
    code, out, err = attar("verify", tmp_path / "others" / "tiny", "--key", keys / "ours.pub.pem", "--json")
    found = json.loads(out)
    assert (code, found["signature"]) == (0, "valid"), err
    assert found["uncovered"] == sorted(
        path.relative_to(tmp_path / "others" / "tiny").as_posix()
        for path in (tmp_path / "others" / "tiny").rglob("*")
        if path.is_file() and path.parent.name != "1"
    )
    (version / "more.py").write_text("")
    code, _, err = attar("verify", version, "--key", keys / "ours.pub.pem")
    assert (code, "more.py: is in no list" in err) == (1, True), err


def test_a_published_version_that_is_signed_is_signed_with_what_the_server_wanted(artifact, keys, tmp_path):
    code, _, err = attar_ship(artifact, tmp_path / "models", "--to", "mlserver")
    assert code == 0, err
    version, runtime = tmp_path / "models" / "tiny" / "1", tmp_path / "models" / "tiny" / "1" / "attar_runtime.py"
    (version / "__pycache__").mkdir()
    (version / "__pycache__" / "attar_runtime.cpython-311.pyc").write_bytes(b"by the server's Python")
    assert attar("sign", version, "--key", keys / "ours.pem")[0] == 0
    code, _, err = attar("verify", tmp_path / "models" / "tiny", "--key", keys / "ours.pub.pem")
    assert (code, "__pycache__: is not covered by the signature, and Python may run" in err) == (1, True), err
    shutil.rmtree(version / "__pycache__")
    code, _, err = attar("verify", tmp_path / "models" / "tiny", "--key", keys / "ours.pub.pem")
    assert code == 0, err
    assert "what its versions share is covered by digests alone, by no signature: LAYOUT.SHA256SUMS, client.py" in err
    good, listing = runtime.read_bytes(), (version / evidence.LAYOUT).read_bytes()
    runtime.write_bytes(good + b"# and more")
    old, new = (hashlib.sha256(data).hexdigest().encode() for data in (good, good + b"# and more"))
    (version / evidence.LAYOUT).write_bytes(listing.replace(old, new))
    assert evidence.verified(version) == (), "digests alone do not show it"
    (fault,) = unsigned(version, keys / "ours.pub.pem")
    assert "does not hold" in fault.what

    runtime.write_bytes(good)
    (version / evidence.LAYOUT).write_bytes(listing)
    code, _, err = attar_ship(version, tmp_path / "others", "--to", "triton")
    assert code == 0, err
    names = {path.name for path in (tmp_path / "others" / "tiny" / "1").iterdir()}
    assert names == {path.name for path in artifact.iterdir()}, "the artifact alone: the signature was of more"
    assert evidence.verified(tmp_path / "others" / "tiny" / "1") == ()


def test_code_beside_a_signed_artifact_is_not_taken_for_signed(signed, keys):
    (signed / "attar_runtime.py").write_text("import os")
    (signed / evidence.LAYOUT).write_bytes(render({"attar_runtime.py": b"import os"}))
    assert evidence.verified(signed) == (), "digests alone do not show it"
    code, out, err = attar("verify", signed, "--key", keys / "ours.pub.pem", "--json")
    found = json.loads(out)
    assert (code, found["holds"], found["signature"]) == (1, False, "invalid"), err
    assert "attar_runtime.py: is not covered by the signature" in err


def test_nothing_that_is_not_signed_passes_by_a_key(artifact, keys, tmp_path):
    assert attar_ship(artifact, tmp_path / "models", "--to", "mlserver")[0] == 0
    model = tmp_path / "models" / "tiny"
    version, key = model / "1", keys / "ours.pub.pem"
    attar("sign", version, "--key", keys / "ours.pem")
    genuine = shutil.copytree(version, tmp_path / "genuine")
    evil = shutil.copytree(version, tmp_path / "evil")
    for name in (evidence.MANIFEST, evidence.SUMS, evidence.SIGNATURE):
        (evil / name).unlink()
    (evil / "attar_runtime.py").write_text("import os")
    for inside in ((), ("1",)):
        for name in inside:
            genuine.rename(evil / name)
        (evil / evidence.LAYOUT).unlink()
        files = {path.name: path.read_bytes() for path in evil.iterdir() if path.is_file()}
        (evil / evidence.LAYOUT).write_bytes(render(files))
        assert attar("verify", evil, "--key", key)[0] != 0
        (evil / evidence.MODEL).rename(evil / "renamed.onnx")
        (evil / evidence.LAYOUT).write_bytes(render({**files, "renamed.onnx": files[evidence.MODEL]}))
        assert attar("verify", evil, "--key", key)[0] != 0
        (evil / "renamed.onnx").rename(evil / evidence.MODEL)
    shutil.rmtree(version)
    code, out, err = attar("verify", model, "--key", key, "--json")
    assert (code, json.loads(out)["signature"], "holds no version of it" in err) == (1, "invalid", True), err
    assert attar("verify", model, "--key", keys / "none.pem")[0] == 2, "a key that is missing is told first"
    (tmp_path / "link").symlink_to(artifact)
    assert attar("verify", tmp_path / "link", "--key", key)[0] == 1


@pytest.mark.parametrize("name", [evidence.LAYOUT, evidence.SUMS, evidence.MANIFEST])
@pytest.mark.parametrize("again", [False, True])
def test_a_damaged_list_hides_no_other_fault_from_a_key(signed, keys, tmp_path, name, again):
    assert attar_ship(signed, tmp_path / "models", "--to", "mlserver")[0] == 0
    model = tmp_path / "models" / "tiny"
    if again:
        signing.sign(model / "1", keys / "ours.pem")
    (model / "1" / name).write_text("x")
    (model / "client.py").write_text("")
    for folder in (model, model / "1"):
        code, out, err = attar("verify", folder, "--key", keys / "ours.pub.pem", "--json")
        found = json.loads(out)
        assert (code, found["signature"]) == (1, "invalid"), err
        about = [(fault["file"].removeprefix(f"{model}/"), fault["what"]) for fault in found["faults"]]
        assert len(set(about)) == len(about)
        wrong = {f"1/{name}", "1/model.sig"} if again or name != evidence.LAYOUT else {f"1/{name}"}
        assert wrong <= {file for file, _ in about}
        assert (folder == model) == ("client.py" in {file for file, _ in about})


def test_a_signature_over_the_layouts_list_alone_is_not_enough(artifact, keys, tmp_path):
    from model_signing import hashing
    from model_signing import signing as library

    assert attar_ship(artifact, tmp_path / "models", "--to", "mlserver")[0] == 0
    version = tmp_path / "models" / "tiny" / "1"
    some = hashing.Config().set_ignored_paths(paths=["attar_runtime.py", evidence.SIGNATURE])
    config = library.Config().use_elliptic_key_signer(private_key=keys / "ours.pem").set_hashing_config(some)
    config.sign(version, version / evidence.SIGNATURE)
    (fault,) = unsigned(version, keys / "ours.pub.pem")
    assert (fault.file, fault.what) == (str(version / "attar_runtime.py"), "is not covered by the signature")


def test_the_tool_of_model_signing_verifies_ours_and_we_verify_its(signed, keys):
    def theirs(*words):
        command = [sys.executable, "-m", "model_signing", *map(str, words)]
        subprocess.run(command, check=True, capture_output=True)

    signature = signed / evidence.SIGNATURE
    theirs("verify", "key", signed, "--signature", signature, "--public_key", keys / "ours.pub.pem")
    signature.unlink()
    theirs("sign", "key", signed, "--signature", signature, "--private_key", keys / "ours.pem")
    assert unsigned(signed, keys / "ours.pub.pem") == ()


def test_a_flipped_bit_of_the_signature_is_found(signed, keys):
    path = signed / evidence.SIGNATURE
    good = path.read_bytes()
    chance = random.Random(5)
    ends = [at for at in range(len(good)) if good[at : at + 1] in b'="' or at > len(good) - 160]
    for at in {*ends, *chance.sample(range(len(good)), 300)}:
        flipped = bytearray(good)
        flipped[at] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        assert unsigned(signed, keys / "ours.pub.pem"), f"byte {at}"
    path.write_bytes(good)
    assert unsigned(signed, keys / "ours.pub.pem") == ()


def test_a_signature_of_another_form_is_damaged(signed, keys):
    path = signed / evidence.SIGNATURE
    good = json.loads(path.read_bytes())
    deep, odd = json.loads(json.dumps(good)), json.loads(json.dumps(good))
    deep["dsseEnvelope"]["payload"] = base64.b64encode(b"[" * 100_000).decode()
    odd["verificationMaterial"]["publicKey"]["hint"] = "\ud800"
    for text in ("[" * 100_000, *(json.dumps(each, separators=(",", ":"), ensure_ascii=False) for each in (deep, odd))):
        path.write_bytes(text.encode(errors="surrogatepass"))
        (fault,) = unsigned(signed, keys / "ours.pub.pem")
        assert "is damaged" in fault.what or "does not hold" in fault.what
        assert signing.named(path.read_bytes()) == frozenset()


def test_what_was_changed_and_got_new_digests_is_still_found(signed, keys):
    path = signed / evidence.MANIFEST
    path.write_text(path.read_text().replace('"seconds"', '"Seconds"') + " ")
    (signed / evidence.SUMS).write_bytes(evidence.sums(signed))
    assert evidence.verified(signed) == (), "digests alone do not show it"
    (fault,) = unsigned(signed, keys / "ours.pub.pem")
    assert "does not hold" in fault.what
    code, out, err = attar("verify", signed, "--key", keys / "ours.pub.pem", "--json")
    assert (code, json.loads(out)["signature"]) == (1, "invalid"), err


def test_a_signature_over_some_of_the_files_is_not_enough(artifact, keys):
    from model_signing import hashing
    from model_signing import signing as library

    some = hashing.Config().set_ignored_paths(paths=["model.onnx", evidence.SIGNATURE])
    config = library.Config().use_elliptic_key_signer(private_key=keys / "ours.pem").set_hashing_config(some)
    config.sign(artifact, artifact / evidence.SIGNATURE)
    (fault,) = unsigned(artifact, keys / "ours.pub.pem")
    assert (fault.file, fault.what) == (str(artifact / "model.onnx"), "is not covered by the signature")


def test_verifying_by_key_wants_a_signature(artifact, keys):
    code, _, err = attar("verify", artifact, "--key", keys / "ours.pub.pem")
    assert code == 1
    assert "model.sig: is missing: nobody signed this folder" in err


def test_a_link_among_what_a_server_added_is_not_signed(artifact, keys):
    version = artifact.replace(artifact.parent / "1")
    (version / "more").symlink_to(version / "model.onnx")
    with pytest.raises(InputError, match=r"1: cannot be signed: .*\n.*take what is none out of the folder"):
        signing.sign(version, keys / "ours.pem")
    assert not (version / evidence.SIGNATURE).exists()


def test_what_does_not_hold_is_not_signed(artifact, keys):
    (artifact / "measurements.json").write_text("{}")
    code, _, err = attar("sign", artifact, "--key", keys / "ours.pem")
    assert code == 1
    assert "measurements.json: was changed" in err
    assert not (artifact / evidence.SIGNATURE).exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none.pem", "cannot be read: No such file.*\n.*takes the private key .*:\n +openssl genpkey [^;]*$"),
        ("ours.pub.pem", "is a public key; signing takes the private one"),
        ("text.pem", "holds no private key in PEM form"),
        ("der.pem", "holds no private key in PEM form"),
        (
            "locked .pem",
            "is encrypted\n.*take it off in a safe place:\n +openssl pkey -in '[^']*/locked .pem' -out key.pem$",
        ),
        (
            "ed.pem",
            r"is a key of kind Ed25519; .* takes ECDSA .*\n.*:\n +openssl genpkey .*\n +openssl pkey [^;]*$",
        ),
        ("rsa.pem", "is a key of kind RSA"),
        ("k1.pem", "is on the curve secp256k1"),
        ("old.pem", "is of no kind that is known here .*model-signing takes ECDSA"),
    ],
)
def test_a_key_that_cannot_sign_is_named_with_the_way_to_one_that_can(artifact, keys, name, what):
    with pytest.raises(InputError, match=what) as caught:
        signing.sign(artifact, keys / name)
    assert "openssl " in str(caught.value)
    assert len(caught.value.faults) == 1
    assert attar("sign", artifact, "--key", keys / name)[0] == 2


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "none.pem",
            "cannot be read: No such file.*\n.*takes the public key of who signed it, .*:\n +openssl pkey [^;]*$",
        ),
        ("ours.pem", "is a private key; verifying takes the public one"),
        ("text.pem", "holds no public key in PEM form"),
        ("ed.pub.pem", "is a key of kind Ed25519"),
        ("old.pub.pem", "is of no kind that is known here .*model-signing takes ECDSA"),
        ("rsa.pub.pem", "is a key of kind RSA"),
    ],
)
def test_a_key_that_cannot_verify_is_named(signed, keys, name, what):
    with pytest.raises(InputError, match=what) as caught:
        unsigned(signed, keys / name)
    assert "openssl " in str(caught.value)
    assert attar("verify", signed, "--key", keys / name)[0] == 2


def test_without_the_extra_digests_are_verified_and_signatures_name_it(artifact, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert attar("verify", artifact)[0] == 0
    for command, key in (("sign", "ours.pem"), ("verify", "ours.pub.pem")):
        code, _, err = attar(command, artifact, "--key", keys / key)
        assert code == 2
        assert "pip install 'attar[sign]'" in err


@contextmanager
def piped(path):
    """A file's bytes as `<(cat FILE)` gives them: once."""
    reads, writes = os.pipe()
    os.write(writes, path.read_bytes())
    os.close(writes)
    yield f"/dev/fd/{reads}"
    os.close(reads)


def test_a_public_key_is_read_once(artifact, keys, tmp_path):
    assert attar_ship(artifact, tmp_path / "models", "--to", "triton")[0] == 0
    assert attar_ship(artifact, tmp_path / "models", "--to", "triton")[0] == 0
    for version in ("1", "2"):
        signing.sign(tmp_path / "models/tiny" / version, keys / "ours.pem")
    with piped(keys / "ours.pub.pem") as key:
        code, _, err = attar("verify", tmp_path / "models/tiny", "--key", key)
    assert (code, f"signed by {key}" in err) == (0, True), err


def test_a_private_key_in_a_pipe_is_refused(artifact, keys):
    with piped(keys / "ours.pem") as key:
        code, _, err = attar("sign", artifact, "--key", key)
    assert (code, f"{key}: is no regular file, and is read twice" in err) == (2, True), err
