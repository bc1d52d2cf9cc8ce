"""The client that travels beside an artifact: a few lines of Python that prepare one example and ask for its class.

It stands alone: numpy, Pillow and tritonclient, nothing of attar. What it does to an image is what happened to those
that the artifact was trained and judged on, to the last bit.
"""

from __future__ import annotations

import pprint
from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

from targets.servers.common import labels
from targets.servers.neighbours import SETTINGS
from targets.servers.shipment import Layout, Shipment

__all__ = ["source"]

_FILE = Template('''\
"""Asks a server for the class of one example. Needs: pip install numpy pillow 'tritonclient[http]'

    python client.py EXAMPLE [HOST:PORT [MODEL]]

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


if not 2 <= len(sys.argv) <= 4:
    sys.exit(__doc__)
path, url, model = sys.argv[1:] + ["localhost:8000", $model][len(sys.argv) - 2 :]
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
    text = _FILE.substitute(
        _JSON if by_json else _BINARY,
        example=_example(shipment, image),
        imports="from PIL import Image\n" if image else "",
        labels=f"LABELS = {names}\n" if shipment.labels else "",
        steps="\n".join(f"    {line}" for line in (_image if image else _array)(shipment)),
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
    white = float(shipment.preprocessing.get("divide_by", 1.0))
    told = "an image file, or a .npy file (height, width[, channels]) of raw values."
    return (
        told
        if white == 255
        else f"{told}\nRaw values are those of training: {white:g} becomes 1.0, not the 255 of a file."
    )


def _image(shipment: Shipment) -> Iterable[str]:
    """What `stages.data.Preprocessing` says, for one image: resize, channels, divide_by, mean, std, layout."""
    told = shipment.preprocessing
    size, channels = (None if told.get(key) is None else int(told[key]) for key in ("image_size", "channels"))
    # Files are read as RGB, as attar reads them; a network of one channel that was trained on grey arrays takes grey.
    mode = "L" if channels is None and shipment.sample.shape[1] == 1 else "RGB"
    yield f'raw = np.load(path) if path.endswith(".npy") else np.asarray(Image.open(path).convert("{mode}"))'
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


def _array(shipment: Shipment) -> Iterable[str]:
    told = shipment.preprocessing
    yield f"x = np.load(path).astype(np.float32) / np.float32({float(told.get('divide_by', 1.0))!r})"
    yield from _normalized(told)
    yield "return np.ascontiguousarray(x[None], np.float32)"


def _normalized(told: Mapping[str, Any]) -> Iterable[str]:
    mean, std = ([float(value) for value in told.get(key, [plain])] for key, plain in (("mean", 0.0), ("std", 1.0)))
    if any(mean) or any(value != 1 for value in std):
        yield f"x = (x - np.asarray({mean!r}, np.float32)) / np.asarray({std!r}, np.float32)"
