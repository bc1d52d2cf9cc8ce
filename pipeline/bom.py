"""An artifact's bill of materials: CycloneDX 1.6, JSON, with a model card.

Made from the manifest alone, and the same for the same manifest: no clock, and the serial number follows from the
manifest's digest. The format: https://cyclonedx.org/docs/1.6/json/; model cards: https://cyclonedx.org/capabilities/mlbom/.
It is written as plain JSON: cyclonedx-python-lib has no model card, and serves as the judge in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pipeline import evidence
from pipeline.manifest import Manifest, of
from pipeline.report import words
from pipeline.report.model import CheckRow

__all__ = ["of_artifact", "of_manifest"]


def of_artifact(found: evidence.Taken) -> str:
    """The bill of materials of an artifact that was taken.

    Raises:
        InputError: its manifest has not the form that this version of attar writes.
    """
    made = of_manifest(of(found), found.digests[evidence.MANIFEST])
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def of_manifest(manifest: Manifest, sha256: str) -> dict[str, Any]:
    """The bill of materials as plain values.

    Args:
        sha256: of the manifest's file.
    """
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{UUID(hex=sha256[:32], version=5)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "attar", "version": manifest.attar}]},
            "component": _model(manifest, sha256),
        },
        "components": [
            _library(name, version)
            for name, version in sorted(manifest.libraries.items())
            if version != "absent" and name != "attar"
        ],
    }


def _model(manifest: Manifest, sha256: str) -> dict[str, Any]:
    """The model as a component: what it is, what it was made of and from, how it was judged."""
    model, recipe, target = manifest.model, manifest.recipe, manifest.target
    files = {**manifest.files, evidence.MANIFEST: sha256}
    return {
        "type": "machine-learning-model",
        "bom-ref": f"sha256:{model.sha256}",
        "name": recipe.name,
        "version": model.sha256[:12],
        "description": f"{' -> '.join(step.title for step in manifest.lineage)}, for the target {target.name}",
        "mime-type": "application/onnx",
        "hashes": _sha256(model.sha256),
        "pedigree": {"ancestors": _ancestors(manifest)},
        "modelCard": {
            "modelParameters": _parameters(manifest),
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(manifest))},
            "considerations": _considerations(manifest),
        },
        "properties": _properties(
            {
                "attar:recipe:sha256": recipe.digest,
                "attar:opset": model.opset,
                "attar:ir_version": model.ir_version,
                "attar:size_bytes": model.size_bytes,
                "attar:target": target.name,
                "attar:verdict": manifest.verdict,
                **{f"attar:file:{name}:sha256": digest for name, digest in sorted(files.items())},
            }
        ),
    }


def _ancestors(manifest: Manifest) -> list[dict[str, Any]]:
    """The teacher, as it was when it taught, and its float ONNX file."""
    teacher, baseline = manifest.teacher, manifest.baseline
    found = []
    if teacher:
        digests = {f"attar:file:{name}:sha256": digest for name, digest in sorted(teacher.files.items())}
        found.append({"type": "machine-learning-model", "name": teacher.source, "properties": _properties(digests)})
    if baseline:
        named = {"type": "machine-learning-model", "name": baseline.name, "mime-type": "application/onnx"}
        found.append({**named, "hashes": _sha256(baseline.sha256)})
    return found


def _parameters(manifest: Manifest) -> dict[str, Any]:
    data, settings = manifest.data, manifest.recipe.settings
    examples = ", ".join(f"{count} {split}" for split, count in data.examples.items())
    about = {
        "attar:sha256": data.digest,
        "attar:preprocessing": json.dumps(data.preprocessing, sort_keys=True),
    }
    return {
        "approach": {"type": "supervised"},
        "task": settings.task,
        "modelArchitecture": settings.model.source,
        "datasets": [
            {
                "type": "dataset",
                "name": data.source,
                "description": f"examples: {examples}" if examples else "",
                "contents": {"properties": _properties(about)},
            }
        ],
        **{
            side: [{"format": f"{v.name}: {v.dtype} ({', '.join(map(str, v.shape))})"} for v in values]
            for side, values in (("inputs", manifest.model.inputs), ("outputs", manifest.model.outputs))
        },
    }


def _metrics(manifest: Manifest) -> Iterable[dict[str, Any]]:
    """Every number of the manifest with its interval; the slice says what it was taken on."""
    for where, numbers in (("test split", manifest.test), ("", manifest.measured)):
        for name, number in sorted(numbers.items()):
            on_data = words.unit(name) == "%" or name.endswith("_points")
            yield {
                "type": name,
                "value": str(number.value),
                "slice": where or ("validation split" if on_data else f"target {manifest.target.name}"),
                "confidenceInterval": {"lowerBound": str(number.low), "upperBound": str(number.high)},
            }


def _considerations(manifest: Manifest) -> dict[str, Any]:
    target = manifest.target
    estimates = sorted(name for name, n in manifest.measured.items() if n.instrument.startswith("estimate"))
    limits = [f"judged for the target {target.name} ({target.summary}): other hardware needs a verdict of its own"]
    if manifest.verdict != "met":
        limits.insert(0, f"the verdict is {manifest.verdict}: it was not shown to hold its budget")
    if estimates:
        limits.append(f"estimated, not measured: {', '.join(estimates)}")
    return {
        "technicalLimitations": limits,
        "performanceTradeoffs": [
            f"{check.metric}: limit {check.limit:g}, found {_found(check)}: {check.verdict}"
            for check in manifest.checks
        ],
    }


def _found(check: CheckRow) -> str:
    if check.value is None or check.low is None or check.high is None:
        return "nothing"
    return f"{check.value:g} ({check.low:g} to {check.high:g})"


def _library(name: str, version: str) -> dict[str, Any]:
    """A library that had a part in making or judging the model. https://github.com/package-url/purl-spec"""
    purl = f"pkg:pypi/{name.lower()}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]
