"""Distillation: a student learns from the teacher's outputs, from the labels, and, if asked, from features inside.

The student is a subset of what comes in (its best channels, or some of its blocks, with their weights), or another
network with fresh weights; without a student, what comes in learns on: so a network recovers from any other stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages import losses
from stages.base import Candidate, Context, Origin, Step
from stages.network import build, construct, matching, prove_rebuilt, save_weights, seeded
from stages.settings import DistillConfig, Student
from stages.structure.blocks import shorten
from stages.structure.channels import narrowing
from stages.structure.trial import examples
from stages.teacher import check_fit, measured
from stages.training import Batch, accuracy, predict, train
from targets.errors import Fault, InputError, StageError, nearest

__all__ = ["Distillation", "begin", "distill", "teaching"]

CACHED = 50_000_000  # logits that may be kept in memory: 200 MB


def distill(candidate: Candidate, config: DistillConfig, context: Context) -> Candidate:
    """Trains one student, or the incoming network if there is none.

    The step's metrics are those of `stages.teacher.measured`, and `teacher_validation_accuracy`.

    Raises:
        InputError: the student's source or a module pattern does not fit.
        StageError: there is no teacher, there are several students (each is a branch of its own), the network has no
            such subset, features do not fit, or training failed.
    """
    teacher, basis = teaching(context)
    if len(config.students) > 1:
        raise StageError(
            f"distill makes one student at a time and got {len(config.students)}: give each its own branch"
        )
    student, module = candidate, build(candidate)
    notes: tuple[str, ...] = ()
    if config.students:
        student, module, notes = begin(candidate, module, config.students[0], context)
    loss = Distillation(module, teacher, config, context)
    train(module, config, context.data, loss, context, student.name, basis)
    save_weights(module, context.out / "weights.safetensors")
    metrics = measured(module, context.data)
    metrics["teacher_validation_accuracy"] = accuracy(teacher, context.data.validation)
    step = Step("distill", notes=notes, metrics=metrics)
    result = student.then(step, weights=context.out / "weights.safetensors", onnx=None)
    prove_rebuilt(module, result, examples(context.data))
    return result


def teaching(context: Context) -> tuple[nn.Module, str]:
    """(the teacher's network in eval mode and without gradients, the digest of its weights).

    Raises:
        StageError: there is no teacher with torch weights.
    """
    if context.teacher is None or context.teacher.weights is None:
        raise StageError("distill needs a teacher with torch weights")
    teacher = build(context.teacher).requires_grad_(False)
    if len(context.data.input_shape) == 3:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as its inputs will be
    return teacher, hashlib.sha256(context.teacher.weights.read_bytes()).hexdigest()


def begin(
    candidate: Candidate, module: nn.Module, student: Student, context: Context
) -> tuple[Candidate, nn.Module, tuple[str, ...]]:
    """(the student before training, its network, notes); `candidate` and `module`, its network, stay as they are."""
    if student.source is not None:
        origin = Origin(student.source, student.args)
        own = construct(origin, context.seed)
        check_fit(own, context.data)
        return replace(candidate, name=student.title, origin=origin, surgery=()), own, ()
    assert student.keep is not None
    inputs = examples(context.data)
    if student.by == "blocks":
        cut = shorten(module, inputs, student.keep)
    else:
        cut = narrowing(module, inputs).cut(student.keep)
    begun = replace(candidate, name=student.title, surgery=(*candidate.surgery, *cut.surgery))
    return begun, cut.module, cut.notes


class Distillation(nn.Module):
    """The loss of a student: soft targets, labels, features, attention, each with its weight.

    Its only parameters are the projections that bring the student's features to the teacher's channels; they are
    trained along and thrown away.

    Args:
        student: only looked at, to find out which features it has.
        teacher: in eval mode, without gradients.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DistillConfig, context: Context) -> None:
        super().__init__()
        self._config = config
        self._teacher = (teacher,)  # in a tuple it is no submodule: neither trained nor saved along
        self._features = _weights("features", config.features, student, teacher)
        self._attention = _weights("attention", config.attention, student, teacher)
        self._names = [*dict.fromkeys([*self._features, *self._attention])]
        self.projections = nn.ModuleDict()
        if self._names:
            with seeded(context.seed):
                self._compare(student, teacher, examples(context.data, 2))
        # Inputs that never change need the teacher once, not once an epoch.
        few = len(context.data.train) * len(context.data.classes) <= CACHED
        fixed = config.augment == "none" and not self._names and few
        self._known = predict(teacher, context.data.train) if fixed and config.soft_weight else None

    def forward(self, student: nn.Module, batch: Batch) -> Tensor:
        """A network in train mode and a batch -> a scalar."""
        with _watched(student, self._names) as ours:
            logits = student(batch.inputs)
        total, theirs = self._answers(logits, batch)
        for name, weight in self._features.items():
            total = total + weight * losses.feature(self._projected(name, ours[name]), theirs[name])
        for name, weight in self._attention.items():
            total = total + weight * losses.attention(ours[name], theirs[name])
        return total

    def answers(self, logits: Tensor, batch: Batch) -> Tensor:
        """The part of the loss that looks at a student's logits (batch, classes) alone: labels and soft targets."""
        return self._answers(logits, batch)[0]

    def _answers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(that part, the teacher's features if any are asked for)."""
        config = self._config
        theirs: dict[str, Tensor] = {}
        if self._known is not None:
            taught = self._known[batch.index]
        elif config.soft_weight or self._names:
            with torch.no_grad(), _watched(self._teacher[0], self._names) as theirs:
                taught = self._teacher[0](batch.inputs)
        total = config.label_weight * F.cross_entropy(logits, batch.labels)
        if config.soft_weight:
            total = total + config.soft_weight * self.soft(logits, taught, batch.labels)
        return total, theirs

    def soft(self, logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
        """How far logits (batch, classes) are from those of whoever teaches, by the loss that the settings name."""
        match self._config.loss:
            case "kd":
                return losses.kd(logits, taught, self._config.temperature)
            case "dkd":
                return losses.dkd(logits, taught, labels, self._config.temperature)
            case "dist":
                return losses.dist(logits, taught, self._config.temperature)

    def _projected(self, name: str, features: Tensor) -> Tensor:
        key = name.replace(".", "/")
        return self.projections[key](features) if key in self.projections else features

    def _compare(self, student: nn.Module, teacher: nn.Module, inputs: Tensor) -> None:
        """Looks at all features once: what differs in channels only gets a projection, anything else is an error."""
        with torch.no_grad(), _watched(student, self._names) as ours, _watched(teacher, self._names) as theirs:
            student.eval()(inputs)
            teacher(inputs)
        for name in self._names:
            if name not in ours or name not in theirs:
                raise StageError(f"{name} cannot be matched: it is not run, or it gives more than one tensor")
            mine, its = tuple(ours[name].shape), tuple(theirs[name].shape)
            pair = f"{name} gives {mine} in the student and {its} in the teacher"
            axis = 1 if len(its) == 4 else -1
            if len(mine) != len(its) or _without(mine, axis) != _without(its, axis) or len(its) > 4:
                raise StageError(f"{pair}: only the number of channels may differ")
            if name in self._attention and len(its) != 4:
                raise StageError(f"{pair}: attention maps need (batch, channels, height, width)")
            if name in self._features and mine != its:
                a, b = mine[axis], its[axis]
                self.projections[name.replace(".", "/")] = (
                    nn.Conv2d(a, b, 1, bias=False) if axis == 1 else nn.Linear(a, b, bias=False)
                )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size for i, size in enumerate(shape) if i != axis % len(shape))


def _weights(setting: str, patterns: Mapping[str, float], student: nn.Module, teacher: nn.Module) -> dict[str, float]:
    """Weight by module name, for all modules of the student that a pattern matches.

    Raises:
        InputError: a pattern matches nothing in the student, or the teacher has no module of that name.
    """
    found, faults = {}, []
    names = {name for name, _ in teacher.named_modules()}
    for pattern, weight in patterns.items():
        try:
            matched = matching(student, [pattern])
        except InputError as error:
            faults += [replace(fault, key=f"{setting}, in the student") for fault in error.faults]
            continue
        for name in matched:
            if name not in names:
                help = nearest(name, names - {""})
                faults.append(Fault(f"the teacher has no module {name!r}", key=f"{setting}, {pattern}", help=help))
            found[name] = weight
    if faults:
        raise InputError(faults)
    return found


@contextmanager
def _watched(module: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collects what the named modules give while the network runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            seen[name] = output

    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _m, _x, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
