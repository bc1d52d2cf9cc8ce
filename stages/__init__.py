"""What changes a model. `STAGES` is the whole list: a new stage is a file, its settings, and one row here."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import Stage
from stages.settings import CascadeConfig, DistillConfig, ExportConfig, PruneConfig, QuantizeConfig
from targets.budget import COSTS, METRICS
from targets.target import MEASURED_BY

__all__ = ["COSTS_SEE", "STAGES"]

COSTS_SEE = (*MEASURED_BY, "connection", "int8", "opset", "ir_version", "channel_multiple")
"""Fields of `Target` that what structures cost depends on."""

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="distill",
            summary="teacher to student: subsets of the teacher or other models learn from it; also recovery",
            Config=DistillConfig,
            run="stages.distill:distill",
            takes="torch",
            gives="torch",
            libraries=("torch", "torch-pruning"),
            needs_teacher=True,
        ),
        Stage(
            name="prune",
            summary="structured pruning: blocks and channels leave until a budget or a ratio holds",
            Config=PruneConfig,
            run="stages.prune:prune",
            takes="torch",
            gives="torch",
            sees=("channel_multiple",),
            sees_if={"to": (*COSTS_SEE, *(f"budget.{metric}" for metric in METRICS if metric in COSTS))},
            libraries=("torch", "torch-pruning"),
        ),
        Stage(
            name="export",
            summary="torch to one self-contained ONNX file, compared with torch on real inputs",
            Config=ExportConfig,
            run="stages.export:export",
            takes="torch",
            gives="onnx",
            sees=("opset", "ir_version"),
            libraries=("torch", "onnx", "onnxscript", "onnxruntime"),
        ),
        Stage(
            name="quantize",
            summary="float to int8 that holds its accuracy, and pays, on the target",
            Config=QuantizeConfig,
            run="stages.quantize:quantize",
            takes="onnx",
            gives="onnx",
            sees=("int8", "budget.accuracy_drop_points"),
            sees_if={"pays": ("device", "connection", "machine", "has_any", "has_none", "runtime")},
            needs_teacher=True,
            libraries=("onnx", "onnxruntime", "torch", "neural-compressor", "torchao"),
            extra=None,
        ),
        Stage(
            name="cascade",
            summary="two branches in one graph: the small one answers where it is sure, the large one elsewhere",
            Config=CascadeConfig,
            run="stages.cascade:cascade",
            takes="onnx",
            gives="onnx",
            libraries=("onnx", "onnxruntime"),
            extra=None,
        ),
    )
}
