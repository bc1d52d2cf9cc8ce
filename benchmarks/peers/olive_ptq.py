"""Olive's static quantization of an ONNX file (https://github.com/microsoft/Olive).

    python olive_ptq.py FLOAT.onnx CALIBRATION.npz OUT.onnx defaults|u8s8

Runs in an environment that has olive-ai, requests and onnxruntime; attar is not needed there. `u8s8` asks for u8
activations and s8 weights, per channel, as x86-64 with VNNI likes them. Prints versions on its last line.
"""

import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

source, calibration, out, choice = sys.argv[1:]
images = np.load(calibration)["input"]


class Images:
    def __len__(self):
        return len(images)

    def __getitem__(self, index):
        return {"input": images[index]}, 0


@Registry.register_dataset()
def calibration_images(**_):
    return Images()


config = {"type": "OnnxStaticQuantization", "data_config": "calibration"}
if choice == "u8s8":
    config |= {"precision": "int8", "activation_type": "uint8", "per_channel": True}
with tempfile.TemporaryDirectory() as folder:
    run(
        {
            "input_model": {"type": "OnnxModel", "model_path": source},
            "data_configs": [
                {
                    "name": "calibration",
                    "load_dataset_config": {"type": "calibration_images"},
                    "dataloader_config": {"batch_size": 32, "drop_last": False},
                }
            ],
            "passes": {"quantize": config},
            "systems": {
                "here": {
                    "type": "LocalSystem",
                    "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                }
            },
            "host": "here",
            "target": "here",
            "no_artifacts": True,
            "cache_dir": str(Path(folder) / "cache"),
            "output_dir": str(Path(folder) / "out"),
            "log_severity_level": 3,
        }
    )
    (found,) = Path(folder, "out").rglob("*.onnx")
    shutil.copyfile(found, out)
print(f"Olive {version('olive-ai')}, with onnx {version('onnx')} and onnxruntime {version('onnxruntime')}")
