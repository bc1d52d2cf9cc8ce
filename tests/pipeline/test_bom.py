"""The bill of materials, judged by CycloneDX's own validator."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from papers import attar

from pipeline import bom, evidence
from pipeline.manifest import parse
from targets.errors import InputError


@pytest.fixture
def artifact(finished, tmp_path):
    return shutil.copytree(finished[0] / "runs/tiny/quick", tmp_path / "quick")


def made(folder, manifest=None):
    """The bill of materials of an artifact, or of one with another manifest."""
    found = evidence.taken(folder)
    return bom.of_artifact(replace(found, papers={evidence.MANIFEST: manifest}) if manifest else found)


def complaint(text):
    pytest.importorskip("cyclonedx", reason="pip install 'cyclonedx-python-lib[validation]'")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_it_is_valid_and_a_stray_key_would_not_be(artifact):
    text = made(artifact)
    assert complaint(text) is None
    spoiled = json.loads(text)
    spoiled["metadata"]["component"]["modelCard"]["speed"] = "high"
    assert complaint(json.dumps(spoiled)) is not None


def test_it_says_what_the_manifest_says(artifact):
    found, manifest = json.loads(made(artifact)), evidence.manifest(artifact)
    model = found["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [
        {"alg": "SHA-256", "content": hashlib.sha256((artifact / "model.onnx").read_bytes()).hexdigest()}
    ]
    card = model["modelCard"]
    assert card["modelParameters"]["task"] == "classification"
    (data,) = card["modelParameters"]["datasets"]
    assert {"name": "attar:sha256", "value": manifest["data"]["digest"]} in data["contents"]["properties"]
    assert card["modelParameters"]["inputs"] == [{"format": "input: float32 (batch, 1, 8, 8)"}]
    metrics = {(m["type"], m["slice"]): m for m in card["quantitativeAnalysis"]["performanceMetrics"]}
    accuracy = manifest["test"]["accuracy"]
    assert metrics["accuracy", "test split"]["value"] == str(accuracy["value"])
    assert metrics["accuracy", "test split"]["confidenceInterval"]["lowerBound"] == str(accuracy["low"])
    assert ("accuracy", "validation split") in metrics
    assert ("latency_p50_ms", "target quick") in metrics
    assert any("estimated, not measured: energy_mj" in text for text in card["considerations"]["technicalLimitations"])
    assert len(card["considerations"]["performanceTradeoffs"]) == len(manifest["checks"])
    properties = {p["name"]: p["value"] for p in model["properties"]}
    digest = hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
    assert properties["attar:file:manifest.json:sha256"] == digest
    assert properties["attar:verdict"] == "met"
    baseline = model["pedigree"]["ancestors"][1]
    assert baseline["hashes"][0]["content"] == manifest["baseline"]["sha256"]
    assert any(one["purl"].startswith("pkg:pypi/onnxruntime@") for one in found["components"])
    assert not any(one["version"] == "absent" for one in found["components"])


def test_a_missed_verdict_is_the_first_limitation(artifact):
    manifest = evidence.manifest(artifact) | {"verdict": "missed"}
    check = manifest["checks"][0] | {"value": None, "low": None, "high": None, "verdict": "inconclusive"}
    changed = json.dumps(manifest | {"checks": [check]}).encode()
    found = bom.of_manifest(parse(changed, artifact), "0" * 64)
    assert complaint(json.dumps(found)) is None
    considerations = found["metadata"]["component"]["modelCard"]["considerations"]
    assert considerations["technicalLimitations"][0].startswith("the verdict is missed")
    assert considerations["performanceTradeoffs"][0].endswith("found nothing: inconclusive")


def test_the_same_manifest_makes_the_same_bytes_and_another_one_another_serial_number(artifact):
    first = made(artifact)
    assert made(artifact) == first
    assert "timestamp" not in first
    path = artifact / "manifest.json"
    path.write_text(path.read_text() + " ")
    (artifact / evidence.SUMS).write_bytes(evidence.sums(artifact))
    assert json.loads(made(artifact))["serialNumber"] != json.loads(first)["serialNumber"]


def test_the_command_writes_it_beside_the_folder(artifact, tmp_path):
    code, _, err = attar("bom", artifact, "-o", tmp_path / "quick.cdx.json")
    assert code == 0, err
    assert (tmp_path / "quick.cdx.json").read_text() == made(artifact)
    assert attar("bom", artifact)[1] == made(artifact)
    code, _, err = attar("bom", artifact, "-o", artifact / "bom.json")
    assert code == 2
    assert "would count as tampering" in err
    (tmp_path / "link").symlink_to(tmp_path / "quick.cdx.json")
    os.mkfifo(tmp_path / "pipe")
    for place, what in (
        ("quick.cdx.json/bom", "bom: cannot be written: (Not a directory|File exists)\n"),
        ("n" * 300, "n: cannot be written: File name too long\n"),
        (".", ": is no regular file, and not written over\n"),
        ("pipe", "pipe: is no regular file"),
        ("link", "link: is no regular file"),
    ):
        code, _, err = attar("bom", artifact, "-o", tmp_path / place)
        assert (code, bool(re.search(what, err))) == (2, True), err
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "recipe.lock").write_text("{}")
    assert attar("bom", artifact, "-o", tmp_path / "in a run's folder.json")[0] == 0
    (artifact / "model.onnx").write_bytes(b"")
    assert attar("bom", artifact)[0] == 1


def test_a_manifest_of_another_form_is_unusable_input(artifact):
    good = json.loads((artifact / "manifest.json").read_text())
    wrong = [
        ({"version": 1}, "attar"),
        (good | {"target": "x"}, "target"),
        (good | {"checks": [good["checks"][0] | {"limit": "high"}]}, "checks.0.limit"),
        (good | {"measured": {"size_mb": {}}}, "measured.size_mb.value"),
        (good | {"recipe": good["recipe"] | {"name": "\ud800"}}, ""),
        ([], ""),
    ]
    for manifest, where in wrong:
        with pytest.raises(InputError, match="is no manifest that this attar reads") as caught:
            made(artifact, json.dumps(manifest).encode())
        assert caught.value.faults[0].key == where
