"""Servers that an artifact can be shipped to, and what each wants on disk.

`SERVERS` is the whole list. To add one: write a module with `layout(shipment, options) -> Layout` (see `shipment`; it
only says what the files are), add its row here and in `versions.SERVERS`, and a section in docs/shipping.md. A test
starts the real server wherever it can be installed, and compares its answers with onnxruntime's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from targets.servers import kserve, mlserver, openvino, triton
from targets.servers.shipment import Layout, Options, Shipment

__all__ = ["SERVERS"]

SERVERS: Mapping[str, Callable[[Shipment, Options], Layout]] = MappingProxyType(
    {
        "triton": triton.layout,
        "mlserver": mlserver.layout,
        "kserve": kserve.layout,
        "openvino": openvino.layout,
    }
)
"""Server -> what it wants of a shipment."""
