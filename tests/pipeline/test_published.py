"""What a server's layout adds to an artifact is vouched for: one flipped bit anywhere in a published model is found."""

import json
import random
import shutil
import subprocess

import pytest
from nobody import as_nobody
from papers import attar
from shipping import artifact_from, attar_ship

from pipeline import evidence, published
from targets.servers import SERVERS
from targets.sha256sums import LAYOUT, parsed, render


@pytest.fixture(scope="module")
def shipped(finished, tmp_path_factory):
    """The folder of a model for each server, with two versions. Not to be changed."""
    above = tmp_path_factory.mktemp("shipped")
    artifact = artifact_from(finished[0], above / "quick")
    for server in SERVERS:
        for _ in (1, 2):
            code, _, err = attar_ship(artifact, above / server, "--to", server)
            assert code == 0, err
    return {server: above / server / "tiny" for server in SERVERS}


@pytest.fixture
def model(shipped, tmp_path):
    """A copy of MLServer's."""
    return shutil.copytree(shipped["mlserver"], tmp_path / "tiny")


def listed(path):
    """A file that is said to be the layout's, as whoever may write into the folder can."""
    path.write_text("")
    there = parsed((path.parent / LAYOUT).read_bytes(), deep=True)
    (path.parent / LAYOUT).write_bytes(render({**there, path.name: b""}, deep=True))


def whats(folder):
    return [f"{fault.file.removeprefix(f'{folder}/')}: {fault.what}" for fault in published.verified(folder)]


@pytest.mark.parametrize("server", SERVERS)
def test_a_flipped_bit_is_found_in_every_file(shipped, tmp_path, server):
    folder, chance = shutil.copytree(shipped[server], tmp_path / "tiny"), random.Random(3)
    assert published.verified(folder) == ()
    every = [path for path in folder.rglob("*") if path.is_file()]
    assert {"client.py", "LAYOUT.SHA256SUMS", "model.onnx"} <= {path.name for path in every}
    for path in every:
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        assert published.verified(folder), path
        path.write_bytes(good)
    assert published.verified(folder) == ()


@pytest.mark.parametrize("server", ["triton", "mlserver"])
def test_the_lists_are_checked_without_attar(shipped, server):
    lists = list(shipped[server].rglob("*SHA256SUMS"))
    assert len(lists) == (5 if server == "mlserver" else 3)
    for path in lists:
        subprocess.run(["sha256sum", "-c", "--strict", "--quiet", path.name], cwd=path.parent, check=True)


def test_the_command_says_what_it_checked(shipped):
    folder = shipped["mlserver"]
    code, out, err = attar("verify", folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    unlisted = {name for name in names if name.endswith("SHA256SUMS")}
    assert set(found["files"]) == names - unlisted
    assert f"holds: {len(names - unlisted)} files, 3 of them what its versions share (versions: 1, 2)," in err
    assert "version 2: verdict met, on the target quick" in err
    assert (found["holds"], found["signature"]) == (True, "none")
    code, out, err = attar("verify", folder / "2", "--json")
    assert {"attar_runtime.py", "model-settings.json", "model.onnx"} <= set(json.loads(out)["files"]), err


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda f: (f / "client.py").unlink(), "client.py: is missing"),
        (lambda f: (f / "more.py").write_text(""), "more.py: is in no list"),
        (lambda f: (f / "__pycache__").mkdir(), "__pycache__: is in no list"),
        (lambda f: (f / "other").mkdir(), "other: is in no list"),
        (lambda f: [shutil.rmtree(f / n) for n in "12"], ": is the folder of a model, and holds no version of it"),
        (lambda f: listed(f / "model-settings.json"), "model-settings.json: is what MLServer serves a folder by"),
        (lambda f: (f / "7").mkdir(), "7: holds no artifact"),
        (lambda f: (f / "8").write_text(""), "8: cannot be looked into: Not a directory"),
        (lambda f: (f / "9").symlink_to(f / "1"), "9: is a symbolic link"),
        (lambda f: (f / "2" / "attar_runtime.py").unlink(), "2/attar_runtime.py: is missing"),
        (lambda f: (f / "2" / "LAYOUT.SHA256SUMS").unlink(), "2/attar_runtime.py: is in no list"),
        (
            lambda f: (f / "LAYOUT.SHA256SUMS").unlink(),
            "LAYOUT.SHA256SUMS: is missing: it lists what the versions share",
        ),
        (lambda f: (f / "LAYOUT.SHA256SUMS").write_text("x"), "LAYOUT.SHA256SUMS: is not as attar wrote it"),
        (lambda f: (f / "2" / "LAYOUT.SHA256SUMS").write_text("x"), "2/LAYOUT.SHA256SUMS: is not as attar wrote it"),
        (
            lambda f: (f / "2" / "LAYOUT.SHA256SUMS").write_bytes((f / "2" / "SHA256SUMS").read_bytes()),
            "2/model.onnx: is no file that both SHA256SUMS and LAYOUT.SHA256SUMS may speak of",
        ),
    ],
)
def test_a_changed_model_does_not_hold(model, change, what):
    change(model)
    code, _, err = attar("verify", model)
    assert (code, f"{model}/{what}".replace("/:", ":") in err) == (1, True), err


def test_a_model_without_its_list_is_no_other_folder(model):
    (model / LAYOUT).unlink()
    (model / "client.py").write_text("import os")
    assert whats(model) == [f"{LAYOUT}: is missing: it lists what the versions share"]
    shutil.rmtree(model / "1")
    (model / "2" / evidence.MANIFEST).unlink()
    assert whats(model)[1:] == ["2/manifest.json: is missing"]
    shutil.rmtree(model / "2")
    code, _, err = attar("verify", model)
    assert (code, "holds no artifact: no manifest.json, no SHA256SUMS" in err) == (2, True), err


def test_hints_name_what_is_checked_whole(model):
    dest = model.parent
    for name in ("a model", ".hidden", "two\nlines"):
        shutil.copytree(model, dest / name)
    shutil.copytree(model / "1", dest / "z" / "taken")

    def hint(command, folder, *more):
        code, _, err = attar(command, folder, *more)
        assert (code, "holds no artifact" in err) == (2, True), err
        return err.partition("help: ")[2]

    assert hint("verify", dest) == f"did you mean '{dest}/a model' or {dest}/tiny or {dest}/z/taken?"
    assert hint("bom", dest / "a model") == f"did you mean '{dest}/a model/1' or '{dest}/a model/2'?"
    shutil.copytree(model, dest / "b")
    assert hint("verify", dest) == f"did you mean '{dest}/a model' or {dest}/b or {dest}/tiny or ...?"


def test_what_was_an_artifact_is_no_models_folder(model):
    """Its own papers taken away, and the layout's list written anew."""
    for left in ((evidence.MANIFEST, evidence.SUMS), (evidence.MODEL,), ("measurements.json", "reference.npz")):
        for name in left:
            (model / "2" / name).unlink()
        (model / "2" / "attar_runtime.py").write_text("import os")
        (model / "2" / LAYOUT).unlink()
        (model / "2" / LAYOUT).write_bytes(render({p.name: p.read_bytes() for p in (model / "2").iterdir()}))
        code, _, err = attar("verify", model / "2")
        assert code != 0, err
    assert "holds no version of it" in err
    (model / "1").rename(model / "2" / "1")
    code, _, err = attar("verify", model / "2")
    assert (code, "model-settings.json: is what MLServer serves a folder by" in err) == (1, True), err


def test_a_models_folder_that_cannot_be_looked_into(model, monkeypatch):
    monkeypatch.chdir(model)
    for mode, code, what in ((0o711, 2, ".: cannot be looked into: Permission denied"), (0o755, 1, "2: cannot be")):
        model.chmod(mode)
        (model / "2").chmod(0)
        try:
            with as_nobody():
                found, _, err = attar("verify", ".")
        finally:
            (model / "2").chmod(0o755)
            model.chmod(0o755)
        assert (found, what in err) == (code, True), err


def test_a_folder_in_one_that_may_not_be_entered_is_unusable_input(model, monkeypatch):
    monkeypatch.chdir(model)
    (model / "2").chmod(0)
    try:
        with as_nobody():
            code, _, err = attar("verify", "2/nothing")
    finally:
        (model / "2").chmod(0o755)
    assert (code, "2/nothing: cannot be looked into: Permission denied" in err) == (2, True), err


def test_folders_of_shared_files_are_looked_into(shipped, tmp_path):
    model = shutil.copytree(shipped["triton"], tmp_path / "tiny")
    (model / "warmup" / "another").write_bytes(b"")
    assert whats(model) == ["warmup/another: is in no list: it was added later"]
    shutil.move(model / "warmup", tmp_path / "elsewhere")
    (model / "warmup").symlink_to(tmp_path / "elsewhere")
    assert whats(model) == ["warmup: is a symbolic link", "warmup: is in no list: it was added later"]


def test_a_version_holds_under_any_name(model, tmp_path):
    copy = shutil.copytree(model / "2", tmp_path / "copy of it")
    code, _, err = attar("verify", copy)
    assert code == 0, err
    assert "holds: 6 files" in err
    (copy / "attar_runtime.py").write_text("import os")
    code, _, err = attar("verify", copy)
    assert (code, "attar_runtime.py: was changed" in err) == (1, True), err


def test_what_the_servers_python_wrote_is_told(model):
    cache = model / "2" / evidence.CACHE
    cache.mkdir()
    (cache / "attar_runtime.cpython-311.pyc").write_bytes(b"")
    code, _, err = attar("verify", model / "2")
    assert (code, "__pycache__ was written by the server's Python, and is in no list" in err) == (0, True), err
    (cache / "model.cpython-311.pyc").write_bytes(b"")
    assert whats(model) == ["2/__pycache__: is in no list: it was added later"]


def test_a_cache_beside_no_code_is_in_no_list(shipped, tmp_path):
    model = shutil.copytree(shipped["triton"], tmp_path / "tiny")
    (model / "2" / evidence.CACHE).mkdir()
    assert whats(model) == ["2/__pycache__: is in no list: it was added later"]


def test_a_bill_of_materials_is_not_written_among_what_is_listed(model):
    (model / "warmup").mkdir()
    for place in (".", "1", "2", "2/deep/er", "warmup"):
        code, _, err = attar("bom", model / "2", "-o", model / place / "bom.json")
        assert (code, "would count as tampering" in err) == (2, True), (place, err)
    assert not list(model.parent.rglob("bom.json"))
    code, out, err = attar("bom", model / "2")
    assert (code, json.loads(out)["bomFormat"]) == (0, "CycloneDX"), err
