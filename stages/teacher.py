"""The teacher: where every chain begins. Not a stage, for it takes no candidate; it makes the first one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base import Candidate, Context, Origin, Signature, Step
from stages.data import Splits
from stages.network import construct, load_weights, macs, parameters, prove_rebuilt, save_weights
from stages.settings import TrainConfig
from stages.structure.trial import examples
from stages.training import Batch, accuracy, train
from targets.errors import InputError

__all__ = ["check_fit", "measured", "teach"]


def teach(origin: Origin, weights: Path | None, config: TrainConfig | None, context: Context) -> Candidate:
    """Builds the network, loads `weights` if there are any, trains on the labels if `config` says so, and saves it.

    With neither, the network stays as the function built it (one that brings its own weights).

    Raises:
        InputError: the network cannot be built, does not fit the data, or the weights do not fit it.
        StageError: training failed.
    """
    module = construct(origin, context.seed)
    if weights is not None:
        load_weights(module, weights)
    check_fit(module, context.data)
    notes = () if weights or config else (f"untrained: the weights are those that {origin.source} gave it",)
    if config is not None:
        train(module, config, context.data, _labels, context, "teacher")
    save_weights(module, context.out / "weights.safetensors")
    data = context.data
    teacher = Candidate(
        "teacher",
        origin,
        Signature(data.input_shape, len(data.classes)),
        steps=(Step("teacher", notes=notes, metrics=measured(module, data)),),
        weights=context.out / "weights.safetensors",
    )
    prove_rebuilt(module, teacher, examples(data))
    teacher.save(context.out)
    return teacher


def _labels(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch.inputs), batch.labels)


def measured(module: nn.Module, data: Splits) -> dict[str, float]:
    """What every step on a torch network reports: accuracy on the validation split (0..1), parameters, and
    multiply-accumulates of one input."""
    return {
        "validation_accuracy": accuracy(module, data.validation),
        "parameters": parameters(module),
        "macs": macs(module, data.input_shape),
    }


def check_fit(module: nn.Module, data: Splits) -> None:
    """Feeds real inputs and looks at what comes out.

    Raises:
        InputError: the network cannot take the inputs, or does not answer with finite logits (batch, classes).
    """
    x = torch.from_numpy(data.train.inputs(slice(0, 2)))
    try:
        with torch.no_grad():
            y = module.eval()(x)
            module(x[:1])  # a batch of another length must do too
    except Exception as error:
        what = f"the model cannot take inputs of shape {tuple(x.shape)}: {str(error).splitlines()[0]}"
        help = "data.image_size and data.channels set the input; the model's args set what it expects"
        raise InputError(what, help=help) from error
    classes = len(data.classes)
    if not isinstance(y, Tensor):
        raise InputError(f"the model gives a {type(y).__name__}, where logits (batch, {classes}) are expected")
    if y.ndim == 2 and len(y) == len(x) and y.shape[1] != classes:
        what = f"the model gives {y.shape[1]} outputs, the data has {classes} classes"
        raise InputError(what, help=f"set the model's own argument, often args: {{classes: {classes}}}")
    if y.shape != (len(x), classes):
        raise InputError(f"the model gives outputs of shape {tuple(y.shape)}, expected {(len(x), classes)}")
    if not torch.isfinite(y).all():
        raise InputError("the model gives outputs that are NaN or infinite", help="are these the right weights?")
