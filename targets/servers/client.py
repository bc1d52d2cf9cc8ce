"""The client that travels beside an artifact: a few lines of Python that prepare one example and ask for its class.

It stands alone: numpy, Pillow and tritonclient, nothing of attar. What it does to an image is what happened to those
that the artifact was trained and judged on, to the last bit. An image file's white is 255: where a network learned from
arrays of another range, a file is brought to that first; where their white is not known, files are refused.
"""

from __future__ import annotations

import pprint
import re
from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

import numpy as np

from targets.servers.common import labels
from targets.servers.neighbours import SETTINGS
from targets.servers.shipment import Layout, Shipment

__all__ = ["source"]

_FILE = Template('''\
"""Asks a server for the class of one example.

    python client.py EXAMPLE [HOST:PORT [MODEL]]

Needs: pip install numpy pillow 'tritonclient[http]'

EXAMPLE is $example
"""

import sys

import numpy as np
import tritonclient.http as http
$imports
$labels

def prepared(path):
    """One input of the network, with its batch axis: as in training."""
$steps


if {"-h", "--help"} & set(sys.argv):
    print(__doc__)
    sys.exit()
if not 2 <= len(sys.argv) <= 4:
    sys.exit(__doc__)
path, url, model = sys.argv[1:] + ["localhost:$port", $model][len(sys.argv) - 2 :]
try:
    x = prepared(path)$whole
except Exception as error:
    sys.exit(f"{path} cannot be read as an example: {' '.join(str(error).split())}")
tensor = http.InferInput($source, x.shape, "FP32")
tensor.set_data_from_numpy(x$by_json)
wanted = http.InferRequestedOutput($target$by_json)
try:
    client = http.InferenceServerClient(url.removeprefix("http://"))
    answer = client.infer(
        model, [tensor], outputs=[wanted], request_id="1"$headers
    )
except Exception as error:
    sys.exit(f"{url} gave no answer of {model!r}: {' '.join(str(error).split())}")
print($told)
''')

_FUNCTION = re.compile(r"[\w.]+:\w+")  # a source of data that is none of files
_ROUNDED = 1e-4
_JSON = {"by_json": ", binary_data=False", "headers": ', headers={"Content-Type": "application/json"}'}
_BINARY = {"by_json": "", "headers": ""}


def source(shipment: Shipment, layout: Layout) -> bytes:
    """The text of client.py.

    Args:
        layout: of the server that it will ask: MLServer takes no binary tensors.
    """
    model = shipment.model
    by_json = SETTINGS in layout.added
    image = len(model.inputs[0].shape) == 4
    names = pprint.pformat(list(labels(shipment)), width=116, compact=True)
    batch = model.inputs[0].shape[0]
    number = f"answer.as_numpy({model.outputs[0].name!r})[0].argmax()"
    steps = "\n".join(f"    {line}" for line in (_image if image else _array)(shipment))
    text = _FILE.substitute(
        _JSON if by_json else _BINARY,
        example=_example(shipment, image),
        imports="from PIL import Image\n" if image and "Image." in steps else "",
        labels=f"LABELS = {names}\n" if shipment.labels else "",
        steps=steps,
        port=layout.port or 8000,
        model=repr(shipment.name),
        source=repr(model.inputs[0].name),
        target=repr(model.outputs[0].name),
        whole=f".repeat({batch}, 0)  # it takes no fewer at once" if isinstance(batch, int) and batch > 1 else "",
        told=f"LABELS[{number}]" if shipment.labels else number,
    )
    return text.encode()


def _example(shipment: Shipment, image: bool) -> str:
    if not image:
        shape = ", ".join(map(str, shipment.sample.shape[1:]))
        return f"a .npy file with one raw example of shape ({shape})."
    white, shape = _white(shipment), "(height, width[, channels])"
    if white is None:
        why = "Image files are refused: which of these values is white is not known."
        return f"a .npy file of shape {shape}: raw values, as in training.\n{why}"
    told = f"an image file, or a .npy file of shape {shape}:\nraw values from 0 to {white:.9g}, as in training."
    return told if white == 255 else f"{told} An image file's 255 becomes {white:.9g}."


def _white(shipment: Shipment) -> float | None:
    """The raw value that is white, black being 0; None where examples that lie with the artifact were beyond it.

    Those that were read from files, or as bytes of IDX files, have their range whatever they are divided by. Of arrays,
    white is what becomes 1.0.
    """
    source = shipment.source
    if source and source != "digits" and not source.endswith(".npz") and not _FUNCTION.fullmatch(source):
        return 255.0
    told = shipment.preprocessing
    white = float(told.get("divide_by", 1.0))
    if not len(shipment.sample):
        return white if white == 255 else None
    mean, std = (np.asarray(told.get(key, [plain])).reshape(-1, 1, 1) for key, plain in (("mean", 0.0), ("std", 1.0)))
    of_white = shipment.sample * std + mean
    return white if of_white.min() > -_ROUNDED and of_white.max() < 1 + _ROUNDED else None


def _image(shipment: Shipment) -> Iterable[str]:
    """What `stages.data.Preprocessing` says, for one image: resize, channels, divide_by, mean, std, layout."""
    told, white = shipment.preprocessing, _white(shipment)
    size, channels = (None if told.get(key) is None else int(told[key]) for key in ("image_size", "channels"))
    yield 'if path.endswith(".npy"):'
    yield "    raw = np.load(path)"
    yield "    if raw.ndim not in (2, 3) or not 1 <= (*raw.shape, 1)[2] <= 4:"
    yield '        raise ValueError(f"its shape is {raw.shape}, and must be (height, width[, 1 to 4 channels])")'
    if white is not None:
        yield f"    if not 0 <= raw.min() <= raw.max() <= {white:.9g}:"
        yield f'        raise ValueError(f"it holds {{raw.min()}} to {{raw.max()}}, and must hold 0 to {white:.9g}")'
    yield "else:"
    yield from (f"    {line}" for line in _file(shipment, white, channels))
    yield "raw = raw if raw.dtype == np.uint8 else raw.astype(np.float32)"
    yield "raw = raw.reshape(*raw.shape[:2], -1)  # height, width, channels"
    if size is not None:
        yield "layers = [Image.fromarray(np.ascontiguousarray(raw[..., c])) for c in range(raw.shape[-1])]"
        yield f"raw = np.stack([layer.resize(({size}, {size}), Image.Resampling.BILINEAR) for layer in layers], -1)"
    yield f"x = raw.astype(np.float32) / np.float32({float(told.get('divide_by', 1.0))!r})"
    if channels == 3:
        yield "x = x[..., :3]  # no transparency"
    if channels is not None:
        yield f"x = x if x.shape[-1] == {channels} else np.repeat(x.mean(-1, keepdims=True), {channels}, -1)"
    yield from _normalized(told)
    yield "return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)"


def _file(shipment: Shipment, white: float | None, channels: int | None) -> Iterable[str]:
    """How an image file becomes raw values, as attar reads it."""
    if white is None:
        yield 'raise ValueError("image files are refused: give raw values, as in training, in a .npy file")'
        return
    # RGB, as attar reads files; a network of one channel that was trained on grey arrays takes grey.
    mode = "L" if channels is None and shipment.sample.shape[1] == 1 else "RGB"
    yield "with Image.open(path) as image:"
    yield '    if image.mode[0] in "IF":'
    yield '        raise ValueError(f"it has more than 8 bits per channel (mode {image.mode})")'
    yield f'    raw = np.asarray(image.convert("{mode}"))'
    if white != 255:
        yield f"raw = raw.astype(np.float32) / np.float32(255) * np.float32({white!r})  # white, as in training"


def _array(shipment: Shipment) -> Iterable[str]:
    told = shipment.preprocessing
    yield f"x = np.load(path).astype(np.float32) / np.float32({float(told.get('divide_by', 1.0))!r})"
    yield from _normalized(told)
    yield "return np.ascontiguousarray(x[None], np.float32)"


def _normalized(told: Mapping[str, Any]) -> Iterable[str]:
    mean, std = ([float(value) for value in told.get(key, [plain])] for key, plain in (("mean", 0.0), ("std", 1.0)))
    if any(mean) or any(value != 1 for value in std):
        yield f"x = (x - np.asarray({mean!r}, np.float32)) / np.asarray({std!r}, np.float32)"
