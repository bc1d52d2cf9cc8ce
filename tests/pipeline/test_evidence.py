"""An artifact's folder is as its run left it, or the fault names the file."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from nobody import as_nobody
from papers import attar

from pipeline import evidence, lists
from targets.errors import InputError
from targets.sha256sums import render


@pytest.fixture
def artifact(finished, tmp_path):
    """A copy of a real run's artifact, to be changed."""
    return shutil.copytree(finished[0] / "runs/tiny/quick", tmp_path / "quick")


def whats(faults):
    return [fault.what for fault in faults]


def resealed(folder, change):
    """Changes the manifest, and its digest with it: as whoever may write into the folder can."""
    path = folder / evidence.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    (folder / evidence.SUMS).write_bytes(evidence.sums(folder))


def linked(path):
    """Moves a file out of its folder, and leaves a symbolic link to it."""
    path.symlink_to(path.replace(path.parents[1] / "elsewhere"))


def old(folder):
    """As an attar without SHA256SUMS left it."""
    (folder / evidence.SUMS).unlink()
    path = folder / evidence.MANIFEST
    manifest = json.loads(path.read_text())
    for key in ("sums", "teacher", "baseline", "made_on"):
        del manifest[key]
    del manifest["model"]["branches"]
    path.write_text(json.dumps(manifest))


def test_a_run_leaves_all_that_evidence_needs(artifact):
    assert evidence.verified(artifact) == ()
    done = subprocess.run(["sha256sum", "-c", "--strict", evidence.SUMS], cwd=artifact, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name}: OK" for name in ("manifest.json", "measurements.json", "model.onnx", "reference.npz")
    ]


def test_the_manifest_names_everything_by_digest(finished, artifact):
    manifest = evidence.manifest(artifact)
    digests = {name: hashlib.sha256((artifact / name).read_bytes()).hexdigest() for name in manifest["files"]}
    assert manifest["files"] == digests
    assert set(digests) == {"model.onnx", "measurements.json", "reference.npz"}
    teacher = next(step for step in manifest["lineage"] if step["stage"] == "teacher")
    assert manifest["teacher"] == {"source": "stages.testing:tiny_cnn", "weights": None, "files": teacher["files"]}
    lock = json.loads((finished[0] / "runs/tiny/recipe.lock").read_text())
    exported = {step["files"].get("model.onnx") for step in lock["steps"] if step["stage"] == "export"}
    assert manifest["baseline"]["sha256"] in exported
    assert manifest["verdict"] == "met"
    assert manifest["target"]["budget"]["size_mb"] == 1.0
    assert len(manifest["data"]["digest"]) == len(manifest["recipe"]["digest"]) == 64
    assert manifest["made_on"]["python"].startswith("3.")
    assert manifest["libraries"]["onnx"] != "absent"
    assert manifest["libraries"]["safetensors"] != "absent"


@pytest.mark.parametrize("name", ["SHA256SUMS", "manifest.json", "measurements.json", "model.onnx", "reference.npz"])
def test_a_flipped_bit_is_found_wherever_it_is(artifact, name):
    path = artifact / name
    good = path.read_bytes()
    chance = random.Random(7)
    every = range(len(good))
    for at in every if len(good) < 2000 else chance.sample(every, 600):
        bit = chance.randrange(8)
        flipped = bytearray(good)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        faults = evidence.verified(artifact)
        assert faults, f"bit {bit} of byte {at}"
        assert any(name in (fault.file, fault.file.rpartition("/")[2]) for fault in faults) or name == "SHA256SUMS"
    path.write_bytes(good)
    assert evidence.verified(artifact) == ()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda f: (f / "model.onnx").unlink(), "model.onnx: is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: is missing"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: is missing, and the manifest says that it was written"),
        (lambda f: (f / "notes.txt").write_text(""), "notes.txt: is in no list: it was added later"),
        (lambda f: (f / "more").mkdir(), "more: is in no list"),
        (lambda f: (f / ".hidden").write_text(""), ".hidden: is in no list"),
        (lambda f: (f / ".attar-unproven").write_text(""), "was never proven .*\n.* ship the model again with --load"),
        (lambda f: (f / "model.onnx").write_bytes(b""), "model.onnx: was changed"),
        (lambda f: os.link(f / "model.onnx", f.parent / "again"), r"model.onnx: has 2 names \(hard links\)"),
        (lambda f: os.link(f / "SHA256SUMS", f.parent / "again"), r"SHA256SUMS: has 2 names"),
        (lambda f: linked(f / "model.onnx"), "model.onnx: is a symbolic link"),
        (lambda f: linked(f / "SHA256SUMS"), "SHA256SUMS: is a symbolic link"),
        (lambda f: (f / "model.sig").symlink_to(f.parent / "s"), "model.sig: is a symbolic link"),
        (lambda f: (f / "model.onnx").unlink() or (f / "model.onnx").mkdir(), "model.onnx: is no regular file"),
        (lambda f: (f / "model.onnx").unlink() or os.mkfifo(f / "model.onnx"), "model.onnx: is no regular file"),
    ],
)  # fmt: skip
def test_a_changed_folder_does_not_hold(artifact, change, what):
    change(artifact)
    code, _, err = attar("verify", artifact)
    assert code == 1, err
    assert re.search(what, err), err
    assert err.rstrip().endswith("does not hold")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["files"].update({"model.onnx": "0" * 64}), "names other files, or other digests"),
        (lambda m: m["files"].update({"else": "0" * 64}), "names other files, or other digests"),
        (lambda m: m["model"].update(sha256="0" * 64), "says something else of model.onnx than the file itself"),
        (lambda m: m["model"].update(opset=9), "says something else of model.onnx"),
        (lambda m: m["recipe"]["settings"].update(seed=99), "holds a recipe that has not the digest it says"),
        (lambda m: m["recipe"]["settings"].update(seed=float("nan")), "holds a recipe that has not the digest"),
        (lambda m: m["recipe"]["settings"].update(seed="\ud800"), "holds a recipe that has not the digest"),
        (lambda m: m["model"].pop("sha256"), "says something else of model.onnx"),
    ],
)
def test_a_manifest_that_contradicts_itself_does_not_hold_even_with_new_digests(artifact, change, what):
    resealed(artifact, change)
    (found,) = whats(evidence.verified(artifact))
    assert what in found


def test_a_folder_that_cannot_be_looked_into_is_a_fault(artifact, monkeypatch):
    (artifact / "attar_runtime.py").write_text("")
    (artifact / evidence.LAYOUT).write_bytes(render({"attar_runtime.py": b""}))
    (artifact / evidence.CACHE).mkdir()
    (artifact / evidence.CACHE / "attar_runtime.cpython-311.pyc").write_bytes(b"")
    assert evidence.verified(artifact) == ()
    monkeypatch.chdir(artifact)
    artifact.chmod(0o755)
    folder = Path()
    for mode in (0o000, 0o444):
        (folder / evidence.CACHE).chmod(mode)
        try:
            with as_nobody():
                faults = evidence.verified(folder)
        finally:
            (artifact / evidence.CACHE).chmod(0o755)
        assert [str(fault).partition("\n")[0] for fault in faults] == [
            "__pycache__: cannot be looked into: Permission denied"
        ]


def test_what_is_taken_is_what_was_checked(artifact, monkeypatch):
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    opened = lists.opened

    def then_changed(path):
        """Whatever is opened is changed just after it was read."""
        file = opened(path)
        data = file.read()
        file.close()
        if path.name != evidence.MODEL:
            path.write_bytes(b"changed")
        return io.BytesIO(data)

    monkeypatch.setattr(lists, "opened", then_changed)
    found = evidence.taken(artifact)
    model = before.pop(evidence.MODEL)
    assert (found.papers, found.model()) == (before, model)
    assert set(found.digests) == {*before, evidence.MODEL} - {evidence.SUMS}
    monkeypatch.undo()
    (artifact / evidence.MODEL).write_bytes(b"changed")
    with pytest.raises(InputError, match=r"model\.onnx: was changed meanwhile"):
        found.model()
    with pytest.raises(InputError, match="SHA256SUMS: is not as attar wrote it"):
        evidence.taken(artifact)


def test_another_model_with_new_digests_must_still_be_a_model(artifact):
    (artifact / "model.onnx").write_bytes(b"not a model")
    digest = hashlib.sha256(b"not a model").hexdigest()
    resealed(artifact, lambda m: (m["files"].update({"model.onnx": digest}), m["model"].update(sha256=digest)))
    (found,) = whats(evidence.verified(artifact))
    assert "is no valid ONNX model" in found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "does not list manifest.json"),
        (b"nonsense\n", "is not as attar wrote it"),
        (b"\xff\xfe\n", "is not as attar wrote it"),
        (b"0" * 64 + b"  ../model.onnx\n", "is not as attar wrote it"),
        (b"0" * 64 + b"  model.onnx\n" + b"0" * 64 + b"  manifest.json\n", "is not as attar wrote it"),
        (b"0" * 64 + b"  manifest.json\n", "does not list model.onnx"),
    ],
)
def test_a_list_is_taken_to_the_letter(artifact, text, what):
    (artifact / evidence.SUMS).write_bytes(text)
    (found,) = whats(evidence.verified(artifact))
    assert what in found


def test_a_folder_from_before_there_were_lists_is_held_against_its_manifest(artifact):
    old(artifact)
    code, _, err = attar("verify", artifact)
    assert code == 0, err
    assert "no SHA256SUMS: made by an older attar, so nothing vouches for manifest.json itself" in err
    (artifact / "reference.npz").write_bytes(b"other")
    code, _, err = attar("verify", artifact)
    assert code == 1
    assert "reference.npz: was changed" in err


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/passwd", "..", ".", "a\0b", "a\ud800", "a\x1b[2J", "a/b"])
def test_names_in_an_old_manifest_do_not_lead_out_of_the_folder(artifact, name):
    old(artifact)
    (artifact.parent / "elsewhere").write_bytes(b"")
    path = artifact / evidence.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"][name] = hashlib.sha256(b"").hexdigest()
    path.write_text(json.dumps(manifest))
    (found,) = whats(evidence.verified(artifact))
    assert "lists what it cannot: " in found
    assert "cannot be the name of an artifact's file" in found


def test_a_manifest_of_another_form_holds_if_its_digests_do(artifact):
    resealed(artifact, lambda m: m.update(target="x"))
    code, _, err = attar("verify", artifact)
    assert (code, "verdict met, on the target x" in err) == (0, True), err
    (artifact / evidence.MANIFEST).write_text("[" * 100_000)
    (artifact / evidence.SUMS).write_bytes(evidence.sums(artifact))
    (found,) = whats(evidence.verified(artifact))
    assert "is no manifest: no JSON object" in found


def test_a_target_may_be_called_by_a_number(finished, tmp_path):
    shutil.copytree(finished[0] / "runs/tiny", tmp_path / "tiny")
    artifact = (tmp_path / "tiny/quick").replace(tmp_path / "tiny/2024")
    assert attar("verify", artifact)[0] == 0
    (artifact / "more.txt").write_text("")
    assert attar("verify", artifact)[0] == 1


def test_a_number_as_its_name_excuses_no_file(artifact):
    version = artifact.replace(artifact.parent / "3")
    assert attar("verify", version)[0] == 0
    (version / "model-settings.json").write_text("{}")
    code, out, err = attar("verify", version, "--json")
    assert (code, "model-settings.json: is in no list: it was added later" in err) == (1, True), err
    assert json.loads(out)["holds"] is False


def test_a_manifest_that_speaks_in_several_lines_makes_no_note_of_its_own(artifact):
    about = evidence.manifest(artifact) | {"verdict": "met\n  signed by ours.pub.pem"}
    (artifact / evidence.MANIFEST).write_text(json.dumps(about))
    (artifact / evidence.SUMS).write_bytes(evidence.sums(artifact))
    code, _, err = attar("verify", artifact)
    assert (code, "  signed by" in err.replace("\ufffd  ", ""), "verdict met\ufffd" in err) == (0, False, True), err


def test_what_is_found_is_one_object_for_machines(artifact):
    code, out, _ = attar("verify", artifact, "--json")
    found = json.loads(out)
    assert (code, found["holds"], found["signature"], found["faults"]) == (0, True, "none", [])
    assert found["files"] == evidence.listed(artifact)
    assert found["notes"][0] == "verdict met, on the target quick"
    assert "not where it comes from" in found["notes"][1]
    (artifact / "model.onnx").write_bytes(b"x")
    code, out, _ = attar("verify", artifact, "--json")
    found = json.loads(out)
    assert (code, found["holds"]) == (1, False)
    assert found["faults"][0]["file"] == str(artifact / "model.onnx")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("nowhere", "cannot be looked into: No such file or directory"),
        ("empty", "holds no artifact: no manifest.json, no SHA256SUMS"),
        (".", "did you mean .*quick"),
        ("quick/model.onnx", "cannot be looked into: Not a directory"),
        ("n" * 300, "cannot be looked into: File name too long"),
    ],
)
def test_a_folder_without_an_artifact_is_unusable_input(artifact, place, what):
    (artifact.parent / "empty").mkdir()
    with pytest.raises(InputError, match=what):
        evidence.verified(artifact.parent / place)
    assert attar("verify", artifact.parent / place)[0] == 2
