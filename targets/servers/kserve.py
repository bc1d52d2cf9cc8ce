"""KServe: an InferenceService for Kubernetes, and the storage that its ONNX runtime reads.

    DEST/<name>.inferenceservice.yaml  `kubectl apply -f` it; what you change in it stays when you ship again
    DEST/<name>/...                    a Triton model repository: KServe serves ONNX by `kserve-tritonserver`

KServe copies all that lies at storageUri into the container as Triton's repository, so that the address is DEST's own:
one model per DEST, and a second one is refused.

Formats:
    https://kserve.github.io/website/docs/reference/crd-api  (InferenceService, serving.kserve.io/v1beta1)
    https://github.com/kserve/kserve/blob/v0.20.0/config/runtimes/kserve-tritonserver.yaml  (what it does with onnx)
    https://github.com/kserve/kserve/blob/v0.20.0/config/crd/full/serving.kserve.io_inferenceservices.yaml  (the schema)
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import yaml

from targets.documents import overlaid
from targets.errors import Fault, InputError
from targets.servers import triton
from targets.servers.neighbours import SERVICE
from targets.servers.shipment import Layout, Options, Shipment
from targets.servers.versions import triton_in_kserve

__all__ = ["STORAGE", "layout"]

STORAGE = "pvc://FILL-IN-A-CLAIM/FOLDER"
"""Stands in the YAML until its owner says where DEST is."""

_ALONE = "KServe hands all of DEST to one Triton"

_HEAD = """\
# Put the folder that this file lies in where the cluster can read it, write its address into storageUri, and:
#     kubectl apply -f {file}
# storageUri may begin with pvc:// s3:// gs:// https:// hdfs:// oci://
"""


def layout(shipment: Shipment, options: Options) -> Layout:
    """A Triton repository, and the InferenceService that serves it.

    Raises:
        InputError: as for Triton; a server's version that is not known. From the root file's function: what is there is
            no InferenceService.
    """
    theirs = triton.layout(shipment, options)
    file = shipment.name + SERVICE
    notes = (
        *theirs.notes,
        f"fill in storageUri in {file}: the address of the folder that it lies in, which must hold this model alone",
        f"clients ask for the model {shipment.name!r} by the v2 protocol; "
        f"`kubectl get inferenceservice {_label(shipment.name)}` says at which URL",
    )
    root = {file: _over(_service(shipment, options), file)}
    return dataclasses.replace(
        theirs, root=root, alone=_ALONE, start=lambda dest: f"kubectl apply -f {dest}/{file}", port=0, notes=notes
    )


def _service(shipment: Shipment, options: Options) -> dict[str, Any]:
    runtime = shipment.target.runtime
    limits = {"cpu": str(runtime.threads * options.instances), "memory": "2Gi"}  # 2Gi: what KServe's runtimes ask for
    if triton.on_gpu(runtime):
        limits["nvidia.com/gpu"] = "1"
    model: dict[str, Any] = {
        "modelFormat": {"name": "onnx", "version": "1"},
        "runtime": "kserve-tritonserver",  # kserve-openvino takes onnx too, and answers otherwise
        "protocolVersion": "v2",
        "storageUri": STORAGE,
        "resources": {"requests": dict(limits), "limits": limits},
    }
    if release := triton_in_kserve(options.server_version):
        model["runtimeVersion"] = f"{release}-py3"  # the tag of the image, instead of the runtime's own
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _label(shipment.name), "annotations": {"attar/sha256": shipment.model.sha256}},
        "spec": {"predictor": {"minReplicas": 1, "model": model}},
    }


def _label(name: str) -> str:
    """A name that Kubernetes takes for a service: small letters, digits and dashes, a letter first, 63 at most.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#rfc-1035-label-names
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:63].rstrip("-")


def _over(service: dict[str, Any], file: str) -> Callable[[bytes | None], bytes]:
    """The service over what is there: its owner's address, resources and replicas stay, and so does all else."""

    def merged(there: bytes | None) -> bytes:
        old = _read(there, file)
        new = overlaid(copy.deepcopy(service), old)
        # What follows from this shipment is the shipment's.
        new["metadata"]["annotations"]["attar/sha256"] = service["metadata"]["annotations"]["attar/sha256"]
        mine, model = service["spec"]["predictor"]["model"], new["spec"]["predictor"]["model"]
        for key in ("modelFormat", "runtime", "runtimeVersion", "protocolVersion"):
            model.pop(key, None)
            if key in mine:
                model[key] = mine[key]
        return (_HEAD.format(file=file) + yaml.safe_dump(new, sort_keys=False)).encode()

    return merged


def _read(there: bytes | None, file: str) -> dict[str, Any]:
    if there is None:
        return {}
    try:
        found = yaml.safe_load(there)
        metadata = found.get("metadata") or {}
        annotations = metadata.get("annotations") or {}
        if (
            found["kind"] == "InferenceService"
            and isinstance(found["spec"]["predictor"]["model"], dict)
            and isinstance(annotations, dict)
        ):
            return {**found, "metadata": {**metadata, "annotations": annotations}}  # either may be there and empty
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError):
        pass
    what = "is there and is no InferenceService with a model as predictor"
    raise InputError(Fault(what, file=file, help="move it away, or give another DEST"))
