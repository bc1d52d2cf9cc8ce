"""Target: one kind of place where a model runs, and what it charges and allows there.

A target is a YAML profile: the shipped ones are in `targets/profiles/`, a user's own lies beside the recipe and may
`extends:` a shipped one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from targets.budget import Budget
from targets.documents import Frozen

__all__ = ["Int8Rules", "Meter", "Runtime", "Target"]


class Runtime(Frozen):
    """The engine that runs the model on the target."""

    provider: str = Field("CPUExecutionProvider", description="onnxruntime execution provider")
    options: dict[str, str] = Field(default_factory=dict, description="options of that provider")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="threads for one inference")


class Int8Rules(Frozen):
    """How int8 must look to be right and fast on the target."""

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = Field(True, description="one weight scale per output channel")
    reduce_range: bool = Field(False, description="7-bit weights, where u8 x s8 products saturate 16 bits")
    symmetric_activations: bool = False
    op_types: tuple[str, ...] = Field((), description="operators worth quantizing; empty: all that the quantizer can")


class Meter(Frozen):
    """How long and how often to measure."""

    warmup_s: Annotated[float, Field(ge=0, le=600)] = 0.3
    samples: Annotated[int, Field(ge=30, le=1_000_000)] = Field(600, description="latencies kept per model, at least")
    blocks: Annotated[int, Field(ge=3, le=1000)] = Field(12, description="turns that each model takes")
    max_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(60, description="bound on measuring one model")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(0.95, description="of every printed interval")
    throughput_batch: Annotated[int, Field(ge=1, le=4096)] = 32


class Target(Frozen):
    """One kind of hardware with its runtime, its rules and its default limits."""

    name: str
    summary: str = ""
    device: Literal["local"] = Field("local", description="how the device is reached")
    runtime: Runtime = Runtime()
    int8: Int8Rules = Int8Rules()
    opset: Annotated[int, Field(ge=13, le=30)] = Field(21, description="highest ONNX opset that the runtime takes")
    ir_version: Annotated[int, Field(ge=7, le=20)] = Field(10, description="highest ONNX IR version it takes")
    channel_multiple: Annotated[int, Field(ge=1, le=256)] = Field(1, description="channel counts are rounded to this")
    meter: Meter = Meter()
    budget: Budget = Budget()
