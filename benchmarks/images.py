"""CIFAR-10 as JPEG files, end to end in one .npz file: data for a recipe, as "images:cifar10"."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["cifar10"]


def cifar10(train: str, test: str, first: int | None = None) -> dict[str, Any]:
    """Both splits, decoded.

    Args:
        train, test: .npz files with `jpeg` (bytes of all images), `offsets` (n + 1), `labels` (n) and `classes`, in an
            order of which each beginning is a fair sample.
        first: take so many of each file, not all.
    """
    classes = np.load(train)["classes"].tolist()
    return {"train": _decoded(train, first), "test": _decoded(test, first), "classes": classes}


def _decoded(path: str, first: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(images (n, 32, 32, 3), labels)."""
    with np.load(path) as file:
        data, ends, labels = file["jpeg"].tobytes(), file["offsets"].tolist(), file["labels"][:first]
    images = (Image.open(io.BytesIO(data[ends[i] : ends[i + 1]])).convert("RGB") for i in range(len(labels)))
    return np.stack([np.asarray(image) for image in images]), labels.astype(np.int64)
