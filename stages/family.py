"""The family: subsets of one network that learn at once and share their weights.

    each step:  the largest member                learns from the labels and the teacher, as in `distill`
                the smallest, and two others      learn from the largest's answers of this very step
                drawn anew
    each weight of the uncut network exists once; a member picks those that its surgery left it
    norms and their statistics are each member's own

The sandwich rule and in-place distillation of universally slimmable networks (Yu and Huang, ICCV 2019,
arXiv:1903.05134), the norms of slimmable ones (Yu et al., ICLR 2019, arXiv:1812.08928); members of any depth and width,
as in Once-for-all (Cai et al., ICLR 2020, arXiv:1908.09791), but a list of them instead of a space.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from stages.base import Candidate, Context, Step
from stages.distill import Distillation, begin, teaching
from stages.network import build, construct, plain, prove_rebuilt
from stages.settings import DistillConfig
from stages.slimmable import Slimmable
from stages.structure.trial import examples
from stages.teacher import measured
from stages.training import Batch, Loss, accuracy, train
from targets.errors import Fault, InputError, StageError

__all__ = ["family", "member", "sandwich"]

LIST = "members.json"


def family(members: Sequence[Candidate], config: DistillConfig, context: Context) -> tuple[Candidate, ...]:
    """Trains all members at once.

    Writes `<i>.safetensors` for each, and `members.json`, from which `member` makes one an ordinary candidate. The
    metrics of each one's step are those of `distill`.

    Args:
        members: subsets of one network, in any relation to each other; one network if `config.students` are to be cut
            from it.

    Raises:
        InputError: a student or a member does not come from the one network, or features are to be matched.
        StageError: there is no teacher, no member, the network has no such subset, or training failed.
    """
    teacher, basis = teaching(context)
    begun = _begun(members, config, context)
    candidates = [candidate for candidate, _, _ in begun]
    whole = construct(candidates[0].origin)
    nets = Slimmable(whole, [(net, candidate.surgery) for candidate, net, _ in begun])
    loss = sandwich(config, Distillation(nets, teacher, config, context))
    # Equal weights may belong to other cuts: a checkpoint of those is not taken.
    cuts = json.dumps([[candidate.name, [asdict(cut) for cut in candidate.surgery]] for candidate in candidates])
    train(nets, config, context.data, loss, context, f"family of {len(begun)}", f"{basis}; {cuts}")
    taught = accuracy(teacher, context.data.validation)
    others = len(begun) - 1
    shared = f"trained together with {others} other{'s' if others > 1 else ''}, weights shared"
    done = []
    for i, (candidate, _, notes) in enumerate(begun):
        weights = context.out / f"{i}.safetensors"
        weights.write_bytes(safetensors.torch.save(plain(nets.member(i).state())))
        metrics = measured(build(replace(candidate, weights=weights)), context.data)
        metrics["teacher_validation_accuracy"] = taught
        step = Step("distill", notes=(*notes, shared) if others else notes, metrics=metrics)
        done.append(candidate.then(step, weights=weights, onnx=None))
        prove_rebuilt(nets.member(i), done[i], examples(context.data))
    states = [asdict(result) | {"weights": "weights.safetensors"} for result in done]
    (context.out / LIST).write_text(json.dumps(states, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return tuple(done)


def member(folder: Path, i: int, out: Path) -> Candidate:
    """One of a family as a candidate with files of its own.

    Args:
        folder: what `family` wrote.
        i: its place in the family, from 0.
        out: takes `weights.safetensors` and `candidate.json`.

    Raises:
        StageError: there is no such family or member.
    """
    try:
        states = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{folder} holds no family: there is no {LIST}") from None
    if not 0 <= i < len(states):
        raise StageError(f"the family has {len(states)} members, 0 to {len(states) - 1}, and no member {i}")
    shutil.copyfile(folder / f"{i}.safetensors", out / "weights.safetensors")
    (out / "candidate.json").write_text(json.dumps(states[i]), encoding="utf-8")
    found = Candidate.load(out)
    found.save(out)  # in the form that all candidates have
    return found


def sandwich(config: DistillConfig, distillation: Distillation) -> Loss:
    """The loss of a step: the sum over the largest, the smallest, and up to two others that torch's generator draws.

    The smaller ones match the largest's logits, which are held fixed for that, by `config.loss`, with the weight of the
    soft targets and of the labels together.
    """
    weight = config.soft_weight + config.label_weight

    def loss(nets: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(nets, Slimmable)
        largest, *others = nets.drawn()
        logits = largest(batch.inputs)
        total = distillation.answers(logits, batch)
        for other in others:
            total = total + weight * distillation.soft(other(batch.inputs), logits.detach(), batch.labels)
        return total

    return loss


def _begun(
    members: Sequence[Candidate], config: DistillConfig, context: Context
) -> list[tuple[Candidate, nn.Module, tuple[str, ...]]]:
    """For each member: (it before training, its network, notes)."""
    alone = "leave `together` out, or train it in a distill of its own"
    faults = [
        Fault(f"{what} cannot be matched in a family: its members differ inside", what, help="leave `together` out")
        for what in ("features", "attention")
        if getattr(config, what)
    ]
    for i, student in enumerate(config.students):
        if student.source is not None:
            what = f"{student.title} is a network of its own and has no weights to share with subsets of another"
            faults.append(Fault(what, f"students[{i}].source", help=alone))
    faults += [
        Fault(
            f"{other.name} comes from {_origin(other)} and {members[0].name} from {_origin(members[0])}: only subsets "
            "of one network can share weights",
            help=alone,
        )
        for other in members
        if other.origin != members[0].origin
    ]
    if faults:
        raise InputError(faults)
    if not members or (config.students and len(members) > 1):
        wanted = "one network to cut its students from" if config.students else "members"
        raise StageError(f"a family needs {wanted} and got {len(members)}")
    if not config.students:
        return [(candidate, build(candidate), ()) for candidate in members]
    module = build(members[0])
    return [begin(members[0], module, student, context) for student in config.students]


def _origin(candidate: Candidate) -> str:
    origin = candidate.origin
    return f"{origin.source} {dict(origin.args)}" if origin.args else origin.source
