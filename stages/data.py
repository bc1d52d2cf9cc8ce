"""Data as stages see it: three splits of arrays, and the one preprocessing that training, calibration and the
device's accuracy check all share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from targets.documents import Frozen

__all__ = ["Preprocessing", "Split", "Splits"]


class Preprocessing(Frozen):
    """From a raw image to the network's input. Written into the manifest so that a server can repeat it.

    In this order: resize (bilinear) to `image_size`, repeat or average to `channels`, divide by `divide_by`,
    subtract `mean`, divide by `std`; the layout becomes (batch, channels, height, width), float32.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="height and width, pixels")
    channels: Annotated[int, Field(ge=1, le=4)] | None = Field(None, description="1 or 3; grey is repeated")
    divide_by: Annotated[float, Field(gt=0)] = Field(255.0, description="the value that becomes 1.0")
    mean: tuple[float, ...] = Field((0.0,), description="per channel, after the division")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), description="per channel, after the division")
    resize: Literal["bilinear, antialiased (Pillow)"] = "bilinear, antialiased (Pillow)"
    colours: Literal["RGB"] = "RGB"
    layout: Literal["batch, channels, height, width"] = "batch, channels, height, width"
    order: Literal["resize, channels, divide_by, mean, std, layout"] = "resize, channels, divide_by, mean, std, layout"

    def normalize(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """The part after resizing. Images (batch, height, width, channels) become (batch, channels, height, width);
        arrays of any other rank keep their layout."""
        x: NDArray[Any] = np.asarray(raw, np.float32) / np.float32(self.divide_by)
        if x.ndim == 4:
            if self.channels == 3 and x.shape[-1] == 4:
                x = x[..., :3]  # alpha
            elif self.channels is not None and x.shape[-1] != self.channels:
                x = np.repeat(x.mean(-1, keepdims=True), self.channels, -1)
            x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
            x = x.transpose(0, 3, 1, 2)
        else:
            x = (x - np.float32(self.mean[0])) / np.float32(self.std[0])
        return np.ascontiguousarray(x, np.float32)


@dataclass(frozen=True)
class Split:
    """Raw examples (already resized) and labels; batches are normalized when they are asked for.

    Attributes:
        raw: (n, height, width, channels), uint8 or float; or (n, ...) for what is no image.
        labels: (n,), int64.
    """

    raw: NDArray[np.generic]
    labels: NDArray[np.int64]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.float32]:
        """Network inputs (batch, channels, height, width) for these examples."""
        return self.preprocessing.normalize(self.raw[index])

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Batches in order, never more than `limit` examples: memory is one batch."""
        n = len(self) if limit is None else min(limit, len(self))
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            yield self.inputs(part), self.labels[part]


@dataclass(frozen=True)
class Splits:
    """Train for learning and calibration, validation for choices, test for the one verdict at the end."""

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    digest: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one network input without the batch axis."""
        return tuple(self.train.inputs(slice(0, 1)).shape[1:])
