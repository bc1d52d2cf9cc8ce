"""Networks to start from, built by name: "stages.zoo:seed_cnn", "stages.zoo:resnet", "stages.zoo:mobile"."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from targets.errors import InputError

__all__ = ["MobileNet", "ResNet", "SeedCNN", "mobile", "resnet", "seed_cnn"]


class SeedCNN(nn.Module):
    """Three 3x3 convolutions, each with ReLU and 2x2 max pooling, then two linear layers."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv3 = nn.Conv2d(128, 256, 3, padding=1)
        self.hidden = nn.Linear(256 * 4 * 4, 128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, 32, 32) -> logits (batch, classes)."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        x = F.relu(self.hidden(x.flatten(1)))
        return self.head(x)  # type: ignore[no-any-return]


def seed_cnn(classes: int = 256, in_channels: int = 3) -> SeedCNN:
    """The small network of the project's founding article, for 32x32 images.

    Args:
        classes: number of logits.
        in_channels: channels of the image.
    """
    return SeedCNN(classes, in_channels)


Shortcut = Literal["projection", "padded"]


class PaddedShortcut(nn.Module):
    """Halves height and width by striding, and fills up the missing channels with zeros (option A of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.missing = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, h / stride, w / stride)."""
        before = self.missing // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.missing - before))


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a way around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "padded":
                self.shortcut = PaddedShortcut(in_channels, out_channels, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three stages of residual blocks, global average pooling, one linear layer."""

    def __init__(self, blocks: int, classes: int, in_channels: int, shortcut: Shortcut, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages = []
        before = width
        for stage in range(3):
            after = width * 2**stage
            first = Block(before, after, 1 if stage == 0 else 2, shortcut)
            stages.append(nn.Sequential(first, *(Block(after, after, 1, shortcut) for _ in range(blocks - 1))))
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> logits (batch, classes)."""
        x = self.stages(self.stem(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def resnet(
    depth: int = 20, classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "projection", width: int = 16
) -> ResNet:
    """Residual network for small images (He et al., CVPR 2016, section 4.2; arXiv:1512.03385).

    Args:
        depth: layers with weights on the main path: 6n + 2, that is 8, 14, 20, 32, 44, 56, 110...
        classes: number of logits.
        in_channels: channels of the image; any height and width of at least 4.
        shortcut: where the shape changes, "projection" is a 1x1 convolution, "padded" has no weights (option A).
        width: channels of the first stage; the next two have twice and four times as many.

    Raises:
        InputError: an argument outside of what is said above.
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"depth {depth} must be 6n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, ...")
    if shortcut not in ("projection", "padded"):
        raise InputError(f"shortcut {shortcut!r} must be 'projection' or 'padded'")
    if width < 1:
        raise InputError(f"width {width} must be at least 1")
    return ResNet((depth - 2) // 6, classes, in_channels, shortcut, width)


class InvertedBlock(nn.Module):
    """Widens with a 1x1 convolution, looks around with a 3x3 one on each channel alone, narrows again without ReLU; and
    a way around them where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.widen = _conv(in_channels, inner, 1)
        self.depthwise = _conv(inner, inner, 3, stride, groups=inner)
        self.narrow = nn.Sequential(nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.around = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, h / stride, w / stride)."""
        y: Tensor = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.around else y


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class MobileNet(nn.Module):
    """Stem, three stages of inverted residual blocks, a 1x1 convolution, global average pooling, one linear layer."""

    def __init__(self, blocks: int, classes: int, in_channels: int, width: int, expansion: int) -> None:
        super().__init__()
        self.stem = _conv(in_channels, width, 3)
        stages = []
        before = width
        for stage in range(3):
            after = width * 2**stage
            first = InvertedBlock(before, after, 1 if stage == 0 else 2, expansion)
            rest = (InvertedBlock(after, after, 1, expansion) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            before = after
        self.stages = nn.Sequential(*stages)
        self.last = _conv(before, 4 * before, 1)
        self.head = nn.Linear(4 * before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> logits (batch, classes)."""
        x = self.last(self.stages(self.stem(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def mobile(blocks: int = 3, classes: int = 10, in_channels: int = 3, width: int = 16, expansion: int = 6) -> MobileNet:
    """Depthwise-separable network (MobileNet: Howard et al. 2017, arXiv:1704.04861) of inverted residual blocks
    (MobileNetV2: Sandler et al., CVPR 2018, arXiv:1801.04381), with the strides of networks for small images: it
    halves them twice, not five times.

    Args:
        blocks: per stage, of three stages; each block has three layers with weights.
        classes: number of logits.
        in_channels: channels of the image; any height and width of at least 4.
        width: channels of the first stage; the next two have twice and four times as many.
        expansion: how many times wider a block is inside.

    Raises:
        InputError: an argument outside of what is said above.
    """
    for name, value in (("blocks", blocks), ("width", width), ("expansion", expansion)):
        if value < 1:
            raise InputError(f"{name} {value} must be at least 1")
    return MobileNet(blocks, classes, in_channels, width, expansion)
