"""NVIDIA Triton Inference Server: a model repository, with its ONNX Runtime backend.

    DEST/<name>/config.pbtxt          names, types, shapes, batching, instances, threads
    DEST/<name>/labels.txt            with it, Triton's classification extension answers by name
    DEST/<name>/warmup/golden_sample  one real input, raw, which Triton runs before it says that it is ready
    DEST/<name>/<version>/model.onnx

Formats:
    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
    https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
    https://github.com/triton-inference-server/onnxruntime_backend#readme  (threads, accelerators)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from targets.artifact import Value
from targets.servers.common import datatype, described, fixed_batch, refuse, version_files
from targets.servers.neighbours import CONFIG
from targets.servers.shipment import Layout, Options, Shipment
from targets.target import Runtime

__all__ = ["WARMUP", "layout", "on_gpu"]

WARMUP = "golden_sample"

_TYPES = {
    "bool": "TYPE_BOOL",
    "bfloat16": "TYPE_BF16",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

_KINDS = {
    "CPUExecutionProvider": "KIND_CPU",
    "OpenVINOExecutionProvider": "KIND_CPU",
    "CUDAExecutionProvider": "KIND_GPU",
    "TensorrtExecutionProvider": "KIND_GPU",
}
"""Providers that Triton's backend is built with, and where they run."""

# What the backend calls options of the TensorRT provider otherwise than onnxruntime does; see its README.
_TENSORRT = {"trt_max_workspace_size": "max_workspace_size_bytes"} | {
    f"trt_int8_{name}": f"int8_{name}" for name in ("calibration_table_name", "use_native_calibration_table")
}
_PRECISION = {"trt_int8_enable": "INT8", "trt_bf16_enable": "BF16", "trt_fp16_enable": "FP16"}


def layout(shipment: Shipment, options: Options) -> Layout:
    """The repository of one model.

    Raises:
        InputError: the graph has a type that Triton does not know; its batch is fixed and batching was asked for; the
            target's provider is not in Triton.
    """
    runtime = shipment.target.runtime
    if runtime.provider not in _KINDS:
        raise refuse(
            shipment.model,
            f"was made for {shipment.target.name}, which runs on {runtime.provider}; "
            f"Triton's ONNX Runtime has {', '.join(_KINDS)}",
            "make an artifact for a target with one of these, see `attar targets`; or ship to mlserver",
        )
    fixed = fixed_batch(shipment.model, options, "Triton")
    # One input of a fixed shape at a time is all that such a target takes.
    most = 0 if fixed else 1 if runtime.fixed_shapes else options.max_batch
    text = "\n".join([*_config(shipment, options, most, fixed), ""])
    shared = {CONFIG: text.encode(), **described(shipment)}
    if _warms(shipment):
        shared[f"warmup/{WARMUP}"] = _golden(shipment, fixed).tobytes()
    return Layout(
        version_files(shipment),
        shared,
        kept=frozenset({CONFIG} if options.keep_config else ()),
        batch=fixed or (1 if options.keep_config else most),  # its owner's own limit is not known here
        # With explicit control a model is loaded by request, too: `attar ship --load`.
        start=lambda dest: f"tritonserver --model-repository={dest} --model-control-mode=explicit --load-model='*'",
        port=8000,
        notes=tuple(_notes(shipment, options, fixed, most)),
    )


def on_gpu(runtime: Runtime) -> bool:
    """Whether Triton runs it on a GPU."""
    return _KINDS[runtime.provider] == "KIND_GPU"


def _config(shipment: Shipment, options: Options, most: int, fixed: int) -> Iterator[str]:
    """Lines of config.pbtxt. `most`: the largest batch, 0 where the graph's own shapes are all that is served."""
    runtime = shipment.target.runtime
    yield f"name: {json.dumps(shipment.name)}"
    yield 'platform: "onnxruntime_onnx"'
    yield f"max_batch_size: {most}"
    for value in shipment.model.inputs:
        yield f"input {{ {_tensor(shipment, value, most)} }}"
    for i, value in enumerate(shipment.model.outputs):
        named = i == 0 and shipment.labels and value.shape[-1] in (len(shipment.labels), *_open(value))
        label = ' label_filename: "labels.txt"' if named else ""
        yield f"output {{ {_tensor(shipment, value, most)}{label} }}"
    yield "version_policy { latest { num_versions: 1 } }"
    if most > 1:
        yield f"dynamic_batching {{ max_queue_delay_microseconds: {options.delay_us} }}"
    yield f"instance_group {{ count: {options.instances} kind: {_KINDS[runtime.provider]} }}"
    if accelerator := _accelerator(runtime):
        yield f"optimization {{ execution_accelerators {{ {accelerator} }} }}"
    yield f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{runtime.threads}" }} }}'
    if _warms(shipment):
        value = shipment.model.inputs[0]
        sizes = shipment.sample.shape[1:] if most else _golden(shipment, fixed).shape
        # The file's place is the folder `warmup` of the model.
        tensor = f'data_type: {_TYPES[value.dtype]} {_dims(sizes or (1,))} input_data_file: "{WARMUP}"'
        inputs = f"inputs {{ key: {json.dumps(value.name)} value {{ {tensor} }} }}"
        yield f'model_warmup {{ name: "golden sample" batch_size: {min(most, 1)} {inputs} }}'


def _tensor(shipment: Shipment, value: Value, most: int) -> str:
    """Name, type and dims; the batch is not among them where Triton may choose it."""
    known = datatype(shipment.model, value, _TYPES, "Triton")
    start = f"name: {json.dumps(value.name, ensure_ascii=False)} data_type: {known}"
    if most and len(value.shape) == 1:  # nothing but the batch; an empty `dims` is not allowed
        return f"{start} dims: [ 1 ] reshape {{ shape: [ ] }}"
    return f"{start} {_dims(value.sizes[1:] if most else value.sizes)}"


def _dims(sizes: Iterable[int]) -> str:
    return f"dims: [ {', '.join(map(str, sizes))} ]"


def _open(value: Value) -> tuple[int | str, ...]:
    """The last size of a value, if it is open: any number of classes agrees with it."""
    return tuple(size for size in value.shape[-1:] if not isinstance(size, int))


def _warms(shipment: Shipment) -> bool:
    """Whether the golden sample is an input: it is there, and the graph takes one float32 tensor."""
    inputs = shipment.model.inputs
    return len(shipment.sample) > 0 and len(inputs) == 1 and inputs[0].dtype == "float32"


def _golden(shipment: Shipment, fixed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(batch, *input shape): the first real input, or as many as a fixed batch takes, over and over if need be."""
    count = max(fixed, 1)
    chosen = np.arange(count) % len(shipment.sample)
    return np.ascontiguousarray(shipment.sample[chosen], dtype="<f4")


def _accelerator(runtime: Runtime) -> str:
    """The provider and its options, where it is not what the backend takes by itself."""
    if runtime.provider == "OpenVINOExecutionProvider":  # the backend hands it no options
        return 'cpu_execution_accelerator { name: "openvino" }'
    if runtime.provider == "TensorrtExecutionProvider":
        found = {_TENSORRT.get(k, k): v for k, v in runtime.options.items() if k not in _PRECISION}
        if precision := [name for key, name in _PRECISION.items() if _yes(runtime.options.get(key, ""))]:
            found["precision_mode"] = precision[0]
        return f'gpu_execution_accelerator {{ name: "tensorrt"{_parameters(found)} }}'
    if runtime.provider == "CUDAExecutionProvider" and runtime.options:
        return f'gpu_execution_accelerator {{ name: "cuda"{_parameters(runtime.options)} }}'
    return ""


def _yes(word: str) -> bool:
    return word.lower() in ("1", "true")


def _parameters(options: Mapping[str, str]) -> str:
    return "".join(
        f" parameters {{ key: {json.dumps(key)} value: {json.dumps(value)} }}" for key, value in sorted(options.items())
    )


def _notes(shipment: Shipment, options: Options, fixed: int, most: int) -> Iterator[str]:
    runtime = shipment.target.runtime
    if options.keep_config:
        yield f"a {CONFIG} that is there stays as it is: batching, instances, threads and warm-up are what it says"
    elif fixed:
        yield f"the graph's batch is fixed at {fixed}: Triton takes requests of exactly that, and builds no batches"
    elif most > 1:
        yield f"Triton may join single requests into batches of up to {most}, and takes no larger request"
    elif runtime.fixed_shapes:
        yield f"{shipment.target.name} needs fixed shapes: Triton takes one example per request"
    if runtime.provider == "OpenVINOExecutionProvider" and runtime.options:
        given = ", ".join(sorted(runtime.options))
        yield f"Triton's backend hands no options to OpenVINO: {given} of {shipment.target.name} do not reach it"
    if not _warms(shipment):
        yield "no warm-up: there is no golden sample, or the graph takes more than one float32 input"
