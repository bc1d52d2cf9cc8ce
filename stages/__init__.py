"""What changes a model. `STAGES` is the whole list: a new stage is a file, its settings, and one row here."""

from __future__ import annotations

from collections.abc import Mapping

from stages.base import Stage
from stages.settings import DistillConfig, ExportConfig, PruneConfig, QuantizeConfig

__all__ = ["STAGES"]

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
            summary="structured pruning: whole channels leave, and every layer that reads them shrinks",
            Config=PruneConfig,
            run="stages.prune:prune",
            takes="torch",
            gives="torch",
            sees=("channel_multiple",),
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
    )
}
