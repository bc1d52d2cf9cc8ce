"""What blocks and channels are worth to a network: how much its loss grows without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Worth"]


@dataclass(frozen=True)
class Worth:
    """Growth of the mean loss per example when one unit leaves, all in the same unit, so that they can be weighed
    against each other. Never below zero.

    Attributes:
        blocks: by block name.
        channels: by strand name: of each of its channels.
    """

    blocks: Mapping[str, float]
    channels: Mapping[str, tuple[float, ...]]
