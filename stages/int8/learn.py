"""Quantization-aware training: the network learns to live with the rounding of the best int8 graph so far.

twin       the captured network, rounding where that graph rounds (fake.py), from its weights on
training   with the teacher's soft targets
back       the trained weights, put into the torch network and exported as before, give a new float graph; with the
           same ranges and rules the artifact rounds as the twin did, which is looked at on real inputs
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stages.base import Candidate
from stages.distill import Distillation
from stages.int8.bench import Attempt, Bench, Setup
from stages.int8.fake import FakeQuantized
from stages.int8.twin import begin, write_back
from stages.network import build
from stages.settings import DistillConfig, QatConfig, TrainConfig
from stages.training import Batch, train
from targets.errors import StageError
from targets.files import write_atomically

__all__ = ["learn"]

SHARE = 0.8  # of the time left; the rest is for export and for looking
FORWARD = 0.4  # of a training step's time


def learn(bench: Bench, best: Attempt, config: QatConfig, folder: Path) -> Setup:
    """Trains, and returns the network in its new form. A killed run goes on from `folder`.

    Args:
        folder: takes checkpoints, and `weights.safetensors` of the trained network.

    Raises:
        StageError: torch cannot be made to round where the graph does, there is no time for one epoch, training failed,
            or the artifact would not be what was trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    twin = begin(bench, best)
    loss = _loss(twin.rounding, config, bench)
    basis = hashlib.sha256(twin.int8.SerializeToString(deterministic=True))
    teacher = _teacher(bench).weights
    assert teacher is not None
    basis.update(teacher.read_bytes() + config.model_dump_json().encode())
    epochs = _affordable(twin.rounding, loss, config, bench, folder / f"plan-{basis.hexdigest()[:16]}.json")
    shorter = config.model_copy(update={"epochs": epochs})
    context = replace(bench.context, scratch=folder)
    train(twin.rounding, shorter, context.data, loss, context, "int8 training", basis.hexdigest())
    setup = write_back(bench, twin, folder / "weights.safetensors")
    cut = () if epochs == config.epochs else (f"trained {epochs} of {config.epochs} epochs, for want of time",)
    return replace(setup, notes=(*cut, *setup.notes))


def _teacher(bench: Bench) -> Candidate:
    """The teacher; the float candidate, where there is none in torch."""
    teacher = bench.context.teacher
    return bench.candidate if teacher is None or teacher.weights is None else teacher


def _loss(rounding: FakeQuantized, config: QatConfig, bench: Bench) -> Distillation:
    teacher = build(_teacher(bench)).requires_grad_(False)
    if len(bench.context.data.input_shape) == 3:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as its inputs will be
    shared = config.model_dump(include={*TrainConfig.model_fields, "temperature", "soft_weight"})
    return Distillation(rounding, teacher, DistillConfig(**shared, label_weight=1 - config.soft_weight), bench.context)


def _affordable(rounding: FakeQuantized, loss: Distillation, config: QatConfig, bench: Bench, plan: Path) -> int:
    """How many epochs there is time for. It is decided once: a killed run goes on with what the file `plan` says."""
    try:
        return int(json.loads(plan.read_text())["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    epochs = config.epochs
    if math.isfinite(bench.seconds_left()):
        epoch_s = _epoch_s(rounding, loss, config, bench)
        left = max(0.0, bench.seconds_left())
        epochs = min(epochs, int(SHARE * left / epoch_s))
        if epochs < 1:
            raise StageError(
                f"an epoch takes about {epoch_s:.3g} s, and only {left:.3g} s are left: nothing was trained"
            )
    write_atomically(plan, json.dumps({"epochs": epochs}).encode())
    return epochs


def _epoch_s(rounding: FakeQuantized, loss: Distillation, config: QatConfig, bench: Bench) -> float:
    """Seconds of one epoch, by the second of two steps: the first one wakes libraries."""
    train, validation = bench.context.data.train, bench.context.data.validation
    index = np.arange(min(config.batch_size, len(train)))
    x, labels = torch.from_numpy(train.inputs(index)), torch.from_numpy(np.asarray(train.labels[index], np.int64))
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        started = time.monotonic()
        loss(rounding, Batch(x, labels, torch.from_numpy(index))).backward()
        took = time.monotonic() - started
    rounding.zero_grad()
    return took * (max(1, len(train) // config.batch_size) + FORWARD * len(validation) / len(index))
