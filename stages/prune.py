"""Structured pruning: whole channels leave, and every layer that reads them shrinks.

to a budget: see `stages.structure.budget`; by a ratio:

for each round:
    importance of every channel, taken on the network as it is now
    keep: given, or the share that reaches the wanted speedup, found by bisection
    the least important channels of each group leave; the cut network is tried against the silenced one
write the weights, build the network anew from origin + surgery + weights, compare: equal to the last bit
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stages.base import Candidate, Context, Step
from stages.network import build, channels, macs, parameters, prove_rebuilt, save_weights
from stages.settings import PruneConfig
from stages.structure.channels import narrowing
from stages.structure.trial import examples
from stages.teacher import measured

__all__ = ["prune"]


def prune(candidate: Candidate, config: PruneConfig, context: Context) -> Candidate:
    """Removes channels from a torch network, and blocks where a budget decides; recovery is a `distill` that follows.

    The step's metrics are those of `stages.teacher.measured`, `parameters_before`, `macs_before`, and `channels_kept`:
    the share (0..1) of all layers' output channels that is left.

    Raises:
        InputError: a pattern in `exclude` matches nothing, or the budget cannot be reached.
        StageError: the network cannot be traced, the speedup cannot be reached, or the network that was cut and the one
            that is built again differ.
    """
    if config.to == "budget":
        from stages.structure.budget import to_budget  # what measures structures is needed by nothing else here

        return to_budget(candidate, config, context)
    module = before = build(candidate)
    inputs = examples(context.data)
    shape = candidate.signature.input_shape
    multiple = context.target.channel_multiple if context.target else 1
    surgery, whole = candidate.surgery, None
    notes: tuple[str, ...] = ()
    share = 1.0
    rounds = config.steps or 1
    for i in range(rounds):
        context.progress(i / rounds, f"pruning, round {i + 1} of {rounds}")
        if config.importance == "taylor":
            _gradients(module, context, config.samples)
        round_ = narrowing(module, inputs, config.importance or "l2", multiple, config.exclude, whole)
        whole = round_.whole
        done = (i + 1) / rounds
        if config.keep is not None:
            share = config.keep**done
        else:
            assert config.speedup is not None
            already = macs(before, shape) / macs(module, shape)
            round_ = round_.tested()
            share = round_.share_for(max(1.0, config.speedup**done / already))
        cut = round_.cut(share)
        module, notes = cut.module, cut.notes
        surgery += cut.surgery
    changed = surgery != candidate.surgery
    told = []
    if changed:
        faster = macs(before, shape) / macs(module, shape)
        asked = f"asked: {config.speedup:g} times; " if config.speedup else ""
        told.append(f"{faster:.3g} times fewer MACs ({asked}keep {share:.3g} of the channels)")
    result = candidate.then(
        Step(
            "prune",
            changed,
            (*told, *notes),
            measured(module, context.data)
            | {
                "parameters_before": parameters(before),
                "macs_before": macs(before, shape),
                "channels_kept": channels(module) / channels(before),
            },
        ),
        surgery=surgery,
        weights=context.out / "weights.safetensors",
    )
    save_weights(module, context.out / "weights.safetensors")
    prove_rebuilt(module, result, inputs)
    return result


def _gradients(module: nn.Module, context: Context, samples: int) -> None:
    """Leaves the gradients of the mean label loss over `samples` training examples in the module."""
    module.requires_grad_(True)
    module.zero_grad()
    count = min(samples, len(context.data.train))
    for x, labels in context.data.train.batches(64, count):
        logits = module(torch.from_numpy(x))
        loss = F.cross_entropy(logits, torch.from_numpy(labels), reduction="sum") / count
        loss.backward()  # type: ignore[no-untyped-call]
