"""`attar validate`: the artifact of a real run, judged again."""

import hashlib
import io
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from tiny_run import attar, attar_process, write_tiny

from pipeline import evidence, reference
from targets.errors import InputError


@pytest.fixture
def ran(finished):
    """The folder in which the tiny recipe ran."""
    return finished[0]


@pytest.fixture
def artifact(ran, tmp_path):
    """A copy of the artifact's folder, to be changed."""
    return shutil.copytree(ran / "runs/tiny/quick", tmp_path / "quick")


def change_manifest(folder, change):
    """And its digest with it: as whoever may write into the folder can."""
    path = folder / evidence.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    (folder / evidence.SUMS).write_bytes(evidence.sums(folder))


def test_an_artifact_is_still_what_it_was(ran, artifact):
    done = attar_process("validate", artifact, "--json", cwd=ran)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["verdict_then"]) == ("met", "met")
    assert [check["metric"] for check in found["checks"]] == [check["metric"] for check in found["then"]]
    assert found["measured"]["parity_percent"]["value"] == 100, "the same file on the same machine"
    now, then = found["measured"]["accuracy"], found["before"]["accuracy"]
    assert (now["value"], now["samples"]) == (then["value"], then["samples"]), "all 200 test examples fit"
    assert found["changed"] == []
    assert found["raw"]["models"]["artifact"]["latency_ms"], "raw samples are handed out"
    report = done.stderr[done.stderr.index("MET") :]
    assert all(len(line) <= 100 for line in report.splitlines())


def test_the_recipe_gives_the_whole_test_split(ran, artifact):
    done = attar("validate", artifact, "--recipe", "tiny.yaml", "--json", cwd=ran)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["examples"] == "the whole test split, 200 examples"
    for name in ("accuracy", "accuracy_drop_points"):
        assert found["measured"][name]["value"] == pytest.approx(found["before"][name]["value"])


def test_a_budget_that_no_longer_holds_is_missed(ran, artifact):
    change_manifest(artifact, lambda m: m["target"]["budget"].update(size_mb=1e-6))
    done = attar("validate", artifact, "--json", cwd=ran)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["verdict_then"]) == ("missed", "met")


def test_an_artifact_slower_than_the_float_model_is_caught(ran, artifact, tmp_path):
    """The float model here is one that does less: the artifact is slower than it, whatever the machine."""
    from targets.testing import tiny_onnx

    shape = np.load(artifact / "reference.npz")["inputs"].shape[1:]
    fast = tiny_onnx(tmp_path / "fast.onnx", shape=shape, width=1, classes=4)
    change_manifest(artifact, lambda m: m["target"]["budget"].update(speedup_p50=1.0))
    done = attar("validate", artifact, "--against", fast, "--json", cwd=ran)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    (check,) = (check for check in found["checks"] if check["metric"] == "speedup_p50")
    assert check["verdict"] == "missed"
    assert any(told.startswith("slower than the float teacher: its p50 is") for told in found["findings"])


def test_without_the_float_model_a_limit_on_speedup_is_open(ran, artifact):
    change_manifest(artifact, lambda m: m["target"]["budget"].update(speedup_p50=1.0))
    done = attar("validate", artifact, cwd=ran)
    assert done.returncode == 4
    assert "give that with --against" in " ".join(done.stderr.split())


def test_another_target_is_judged_by_the_same_budget(ran, artifact):
    (ran / "two.yaml").write_text((ran / "quick.yaml").read_text().replace("name: quick", "name: two"))
    done = attar("validate", artifact, "--target", "two.yaml", "--json", cwd=ran)
    found = json.loads(done.stdout)
    assert found["target"] == "two"
    assert [check["metric"] for check in found["checks"]] == ["accuracy_drop_points", "latency_p50_ms", "size_mb"]


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (
            lambda f: [(f / name).unlink() for name in ("manifest.json", "SHA256SUMS")],
            "holds no artifact: no manifest.json, no SHA256SUMS\n   help: give the folder of an artifact",
        ),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: is missing"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json: was changed"),
        (
            lambda f: change_manifest(f, lambda m: m.pop("candidate")),
            "candidate: is no manifest that this attar reads: Field required\n   help: another version",
        ),
        (lambda f: (f / "model.onnx").write_bytes(b"other"), "model.onnx: was changed"),
        (lambda f: (f / "model.onnx").unlink(), "model.onnx: is missing"),
        (lambda f: (f / "reference.npz").write_bytes(b"other"), "reference.npz: was changed"),
        (lambda f: (f / "more").write_text(""), "more: is in no list"),
    ],
)
def test_what_is_no_artifact_is_one_clear_fault(ran, artifact, break_it, told):
    break_it(artifact)
    done = attar("validate", artifact, cwd=ran)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def change_reference(folder, **changes):
    """And all digests with it."""
    path = folder / reference.NAME
    arrays = vars(parsed(path))
    np.savez(path, **{name: changes.get(name, lambda a: a)(array) for name, array in arrays.items()})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(folder, lambda m: m["files"].update({reference.NAME: digest}))
    assert evidence.verified(folder) == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": lambda a: a + 99}, "holds labels from 99 to 102, and answers of 4 classes"),
        (
            {"outputs": lambda a: np.concatenate([a, a], 1)},
            "outputs of shape (8) for each example, and the model's are (4)",
        ),
        ({"inputs": lambda a: a[..., :3]}, "holds inputs of shape "),
    ],
)
def test_examples_that_are_none_of_this_model_are_refused_before_it_is_measured(ran, artifact, changes, told):
    change_reference(artifact, **changes)
    done = attar("validate", artifact, cwd=ran)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert not {"Traceback", "measuring"} & set(done.stderr.split())


def test_data_that_changed_are_refused(ran, artifact, tmp_path):
    write_tiny(tmp_path)
    with np.load(tmp_path / "tiny.npz") as found:
        arrays = dict(found)
    arrays["x_test"] = arrays["x_test"] ^ 1
    np.savez(tmp_path / "tiny.npz", **arrays)
    done = attar("validate", artifact, "--recipe", tmp_path / "tiny.yaml", cwd=ran)
    assert done.returncode == 2
    assert "its data are not those that the artifact was judged on" in done.stderr


# ---- the file of reference examples


def kept(k=8, n=10, shape=(3, 4, 4)):
    random = np.random.default_rng(0)
    inputs = random.standard_normal((k, *shape)).astype(np.float32)
    outputs = random.standard_normal((k, 5)).astype(np.float32)
    return reference.Reference(inputs, np.arange(k) % 5, outputs, np.arange(n) % 2 == 0)


def test_a_reference_survives_its_file(tmp_path):
    reference.save(kept(), tmp_path / "a.npz")
    reference.save(kept(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = parsed(tmp_path / "a.npz")
    for name in ("inputs", "labels", "outputs", "baseline_right"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept(), name))


def test_a_reference_is_cut_to_size(tmp_path):
    reference.save(kept(64, 100, (3, 128, 128)), tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size <= 4_000_000
    found = parsed(tmp_path / "a.npz")
    assert len(found.labels) == 16, "64 examples have 12 MB of noise, 16 have 3"
    assert len(found.baseline_right) == 100


def zipped(data, at=None, value=0, **options):
    """Bytes of a .npz file; `at`: where each entry's header, in the directory and in its place, gets another value."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, content in data.items():
            file.writestr(f"{name}.npy", content)
    found = bytearray(buffer.getvalue())
    for start, shift in ((b"PK\1\2", 2), (b"PK\3\4", 0)) if at else ():
        for match in re.finditer(re.escape(start), bytes(found)):
            found[match.start() + at + shift] = value
    return bytes(found)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def parsed(path):
    return reference.parse(path.read_bytes(), path)


def no_references():
    """Bytes that are none, by what numpy or zipfile raise for them."""
    found = kept(2, 3, (3, 4))
    good = {name: npy(getattr(found, name)) for name in ("inputs", "labels", "outputs", "baseline_right")}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    deflated = bytearray(zipped(good | {"inputs": npy(np.arange(9000))}, compression=zipfile.ZIP_DEFLATED))
    deflated[60:100] = b"\xff" * 40
    return {
        "BadZipFile": b"PK\x03\x04 nothing",
        "BadZipFile: File is not": b"",
        "BadZipFile: .* not a zip file": good["inputs"],
        "KeyError|is not a file in the archive": zipped({"inputs": good["inputs"]}),
        "error: Error -3|BadZipFile": bytes(deflated),
        "NotImplementedError": zipped(good, at=8, value=99),
        "RuntimeError: .*encrypted": zipped(good, at=6, value=1),
        "unpacks to 4,295 MB, and 1,000 MB is the most": zipped(good, at=25, value=0x40),
        "MemoryError": zipped(good | {"inputs": header.getvalue()}),
        "holds labels of int64 \\(\\), and they are int64 in one dim": zipped(good | {"labels": npy(np.int64(3))}),
        "holds labels of float64 ": zipped(good | {"labels": npy(np.zeros(2))}),
        "holds inputs of float64 .* float32 in two": zipped(good | {"inputs": npy(np.zeros((2, 3, 4)))}),
        "holds outputs of float32 \\(2,\\)": zipped(good | {"outputs": npy(np.zeros(2, np.float32))}),
        "holds baseline_right of int64": zipped(good | {"baseline_right": npy(np.ones(2, np.int64))}),
        "arrays of different lengths": zipped(good | {"labels": npy(np.zeros(1, np.int64))}),
        "outputs of float32 \\(2, 1, 5\\), and they are float32 in two dim": zipped(
            good | {"outputs": npy(found.outputs[:, None])}
        ),
        "labels from 0 to 5, and answers of 5 classes": zipped(good | {"labels": npy(np.int64([0, 5]))}),
        "labels from -1 to 3": zipped(good | {"labels": npy(np.int64([3, -1]))}),
        "answers that are no finite numbers": zipped(good | {"outputs": npy(found.outputs * np.float32("nan"))}),
    }


@pytest.mark.parametrize("said", no_references())
def test_what_is_no_reference(tmp_path, said):
    (tmp_path / "a.npz").write_bytes(no_references()[said])
    with pytest.raises(InputError, match=said) as caught:
        parsed(tmp_path / "a.npz")
    (fault,) = caught.value.faults
    assert (fault.file, bool(fault.help)) == (str(tmp_path / "a.npz"), True)


def test_a_reference_that_would_unpack_to_too_much_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_MAX_UNPACKED", 150_000)
    found = kept(64, 64, (3, 16, 16))
    reference.save(reference.Reference(found.inputs * 0, *list(vars(found).values())[1:]), tmp_path / "a.npz")
    assert len(parsed(tmp_path / "a.npz").labels) == 32, "64 examples have 200 kB of zeros, which take a kilobyte"
