"""NNCF's post-training quantization of an ONNX file (https://github.com/openvinotoolkit/nncf).

    python nncf_ptq.py FLOAT.onnx CALIBRATION.npz OUT.onnx performance|mixed

Runs in an environment that has nncf, onnx and onnxruntime; attar is not needed there. One image at a time, as its
documentation has it: its ranges are statistics over batches. Prints versions on its last line.
"""

import sys
from importlib.metadata import version

import nncf
import numpy as np
import onnx

source, calibration, out, preset = sys.argv[1:]
images = np.load(calibration)["input"]
model = onnx.load(source)
name = model.graph.input[0].name
dataset = nncf.Dataset([{name: images[i : i + 1]} for i in range(len(images))])
quantized = nncf.quantize(
    model,
    dataset,
    preset=nncf.QuantizationPreset(preset),
    target_device=nncf.TargetDevice.CPU,
    subset_size=len(images),
)
onnx.save(quantized, out)
print(f"NNCF {version('nncf')}, with onnx {version('onnx')} and onnxruntime {version('onnxruntime')}")
