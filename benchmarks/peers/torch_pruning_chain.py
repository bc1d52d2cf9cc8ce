"""What a person does by hand with torch-pruning (https://github.com/VainF/Torch-Pruning): prune by a ratio, fine-tune
on the labels, export. Tuned weights are kept, so that the same comparison trains nothing twice."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from stages import graph
from stages.base import Candidate, Context
from stages.data import Splits
from stages.export import CHATTER, TREESPEC
from stages.network import build, load_weights, macs, save_weights
from stages.quiet import quiet
from stages.settings import TrainConfig
from stages.structure.trial import examples
from stages.training import Batch, accuracy, train

__all__ = ["Tuned", "exported", "pruned", "tuned"]

OPSET = 20  # as attar exports: the same operators for everyone


@dataclass(frozen=True)
class Tuned:
    """A network that was pruned and fine-tuned, and what that took."""

    module: nn.Module
    fewer_macs: float
    validation_accuracy: float
    seconds: float


def pruned(module: nn.Module, inputs: Tensor, ratio: float, round_to: int | None = None) -> nn.Module:
    """Removes `ratio` of the channels of every group in place, by the group's L2 norm, as its README shows it."""
    pruner = tp.pruner.BasePruner(
        module,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[module.head],
        round_to=round_to,
        # Their defaults are dicts that all pruners share and write into.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )
    pruner.step()
    return module


def tuned(
    teacher: Candidate,
    data: Splits,
    seed: int,
    ratio: float,
    config: TrainConfig,
    keep: Path,
    round_to: int | None = None,
    progress: Callable[[float, str], None] = lambda share, what: None,
) -> Tuned:
    """The teacher, pruned by a ratio and fine-tuned; by ratio 0, the teacher as it is.

    Args:
        keep: folder that tuned weights are taken from, or written to.
    """
    assert teacher.weights is not None
    module = build(teacher)
    before = macs(module, data.input_shape)
    if ratio == 0:
        return Tuned(module, 1.0, accuracy(module, data.validation), 0.0)
    pruned(module.requires_grad_(True), examples(data), ratio, round_to)
    fewer = before / macs(module, data.input_shape)
    told = {
        "teacher": hashlib.sha256(teacher.weights.read_bytes()).hexdigest(),
        "data": data.digest,
        "seed": seed,
        "ratio": ratio,
        "round_to": round_to,
        "train": config.model_dump(mode="json"),
        "libraries": {name: version(name) for name in ("torch", "torch-pruning")},
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    record, weights = keep / f"{digest}.json", keep / f"{digest}.safetensors"
    if not record.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        scratch, start = keep / f"{digest}.scratch", time.perf_counter()  # a kill costs one epoch
        train(module, config, data, _labels, Context(data, keep, scratch, seed, progress=progress), f"ratio {ratio:g}")
        seconds = time.perf_counter() - start
        save_weights(module, weights)
        record.write_text(json.dumps({**told, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(scratch, ignore_errors=True)
    load_weights(module, weights)
    seconds = json.loads(record.read_text(encoding="utf-8"))["seconds"]
    return Tuned(module.eval(), fewer, accuracy(module, data.validation), seconds)


def exported(module: nn.Module, data: Splits, path: Path) -> Path:
    """Written by torch.onnx as its documentation shows it, with an open batch; without the stack traces that it leaves
    in every node, which would count as size."""
    batch = torch.export.Dim("batch", min=1)
    with quiet(CHATTER, [TREESPEC]):
        made = torch.onnx.export(
            module.eval(),
            (examples(data, 2),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
        )
    assert made is not None
    model = made.model_proto  # made anew each time it is asked for
    graph.strip(model)
    graph.write(model, path)
    return path


def _labels(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch.inputs), batch.labels)
