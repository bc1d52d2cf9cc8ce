"""The one training loop. Labels, teachers and features all come in as a loss; nothing else differs.

    for epoch in epochs not yet in the checkpoint:
        seed(run's seed, epoch)                  # order, augmentation, dropout: an epoch does not care what came before
        for batch in shuffled train split:
            learning rate = warm-up, then cosine
            loss -> gradients, clipped -> SGD with Nesterov        # a loss that is not finite ends the run here
        validation accuracy
        checkpoint: written aside, fsync, rename

A killed run goes on after its last whole epoch and ends with the same bits as an undisturbed one. The last epoch's
weights are the result: with the learning rate at zero they have settled, and picking an epoch would spend the
validation split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stages.base import Context
from stages.checkpoint import Checkpoint
from stages.data import Split, Splits
from stages.network import seeded
from stages.settings import TrainConfig
from targets.errors import StageError

__all__ = ["Batch", "Epoch", "Loss", "TrainResult", "accuracy", "augmented", "predict", "train"]

WARM_UP = 0.05  # share of all steps
# Largest norm of all gradients together (Pascanu et al., ICML 2013). A subset without batch norm starts far off, and
# soft targets at a high temperature then send gradients that kill it: seen on the founding article's network.
CLIP = 2.0


@dataclass(frozen=True)
class Batch:
    """What a loss gets to see.

    Attributes:
        inputs: (batch, ...), float32, augmented; images in channels_last memory format.
        labels: (batch,), int64.
        index: (batch,), int64: positions in the train split.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor


# From a network in train mode and a batch to a scalar. A loss that is an `nn.Module` is trained along.
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Epoch:
    """Mean training loss, and accuracy on the validation split (0..1), of one epoch."""

    train_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class TrainResult:
    """History of a run; the weights are in the module."""

    history: tuple[Epoch, ...]

    @property
    def validation_accuracy(self) -> float:
        """Accuracy (0..1) after the last epoch."""
        return self.history[-1].validation_accuracy


def train(
    module: nn.Module, config: TrainConfig, data: Splits, loss: Loss, context: Context, what: str, basis: str = ""
) -> TrainResult:
    """Trains `module` in place and leaves it in eval mode.

    Args:
        what: what is trained, for messages: "teacher".
        basis: names whatever else the loss depends on (a teacher's digest): a checkpoint made on another is not taken.

    Raises:
        StageError: the loss or a weight became infinite or NaN, or the augmentation does not fit the data.
    """
    inputs = data.input_shape
    if config.augment != "none" and len(inputs) != 3:
        raise StageError(f"{what}: augment: {config.augment} needs images, and inputs have the shape {inputs}")
    if len(inputs) == 3:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = [part for part in (module, loss) if isinstance(part, nn.Module)]
    weights = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(
        weights,
        lr=0.0,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    # An incomplete last batch is left out, others follow in the next epoch: batch norm dislikes a batch of one.
    batches = max(1, len(data.train) // config.batch_size)
    settings = f"{type(config).__name__} {config.model_dump_json()}"
    identity = f"{what}; seed {context.seed}; data {data.digest}; {settings}; {basis}"
    checkpoint = Checkpoint(context.scratch, module, loss, optimizer, identity)
    history = [Epoch(**epoch) for epoch in checkpoint.restore()]
    if history:
        context.say(f"{what}: goes on after epoch {len(history)} of {config.epochs}")
    tell = _seldom(context.progress)
    with _deterministic():
        for epoch in range(len(history), config.epochs):
            total = 0.0
            module.train()
            with seeded(context.seed, epoch) as generator:
                for i, batch in enumerate(_shuffled(data.train, config, batches, generator)):
                    done = (epoch * batches + i) / (config.epochs * batches)
                    rate = _rate(config.learning_rate, done)
                    value = loss(module, batch)
                    where = f"{what}: epoch {epoch + 1} of {config.epochs}, batch {i + 1} of {batches}"
                    if not math.isfinite(value.item()):
                        raise StageError(
                            f"{where}: the loss is {value.item()} at learning rate {rate:.3g}; "
                            f"lower learning_rate (now {config.learning_rate:g})"
                        )
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    optimizer.zero_grad()
                    value.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(weights, CLIP)
                    optimizer.step()
                    total += value.item()
                    tell(done, where)
            broken = [n for n, p in module.named_parameters() if not torch.isfinite(p).all()]
            if broken:
                raise StageError(
                    f"{what}: epoch {epoch + 1} of {config.epochs}: {broken[0]} is no longer finite; "
                    f"lower learning_rate (now {config.learning_rate:g})"
                )
            history.append(Epoch(total / batches, accuracy(module, data.validation)))
            checkpoint.keep([asdict(e) for e in history])
    module.eval()
    return TrainResult(tuple(history))


def predict(module: nn.Module, split: Split, limit: int | None = None, size: int = 256) -> Tensor:
    """Logits (n, classes) of a split in order, in eval mode, without gradients."""
    module.eval()
    with torch.no_grad(), _deterministic():
        return torch.cat([module(torch.from_numpy(x)) for x, _ in split.batches(size, limit)])


def accuracy(module: nn.Module, split: Split) -> float:
    """Share of the examples (0..1) whose largest logit is at the label."""
    return float((predict(module, split).argmax(1).numpy() == split.labels).mean())


def augmented(images: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to an eighth of its height and width, repeating its edge, and mirrors every second one.

    Args:
        images: (batch, channels, height, width).
        augment: "none", "shift" or "shift-flip".
    """
    if augment == "none":
        return images
    n, _, height, width = images.shape

    def moved(size: int) -> Tensor:
        reach = max(1, size // 8)
        shift = torch.randint(-reach, reach + 1, (n, 1), generator=generator)
        return (torch.arange(size) + shift).clamp(0, size - 1)

    rows, columns = moved(height), moved(width)
    if augment == "shift-flip":
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(n)[:, None, None]
    # The two slices around the channel axis move it last: (batch, height, width, channels).
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shuffled(split: Split, config: TrainConfig, batches: int, generator: torch.Generator) -> Iterator[Batch]:
    order = torch.randperm(len(split), generator=generator)
    for i in range(batches):
        index = order[i * config.batch_size : (i + 1) * config.batch_size]
        x = augmented(torch.from_numpy(split.inputs(index.numpy())), config.augment, generator)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        yield Batch(x, torch.from_numpy(np.asarray(split.labels[index.numpy()], np.int64)), index)


def _rate(peak: float, done: float) -> float:
    """Learning rate after a share `done` (0..1) of all steps: linear up to the peak, then half a cosine down to 0."""
    if done < WARM_UP:
        return peak * (0.05 + 0.95 * done / WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _seldom(progress: Callable[[float, str], None], every_s: float = 0.25) -> Callable[[float, str], None]:
    last = -math.inf

    def tell(fraction: float, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            progress(fraction, what)

    return tell


@contextmanager
def _deterministic() -> Iterator[None]:
    """Only algorithms that give the same bits each time; the process's own choice is put back afterwards."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
