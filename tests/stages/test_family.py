from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages import family as rooms
from stages import losses
from stages.base import Candidate, Origin, Surgery
from stages.distill import Distillation, distill
from stages.family import family, member, sandwich
from stages.network import build, construct, save_weights
from stages.settings import DistillConfig, Student
from stages.slimmable import Slimmable, places
from stages.structure.blocks import shorten
from stages.structure.channels import narrowing
from stages.structure.surgery import operate
from stages.structure.trial import examples
from stages.teacher import teach
from stages.testing import context, digest_of, tiny_splits, tiny_teacher
from stages.training import Batch, accuracy, predict
from targets.errors import InputError, StageError

DATA = tiny_splits()
RESNET = {"depth": 14, "classes": 4, "in_channels": 1, "width": 4}
FIVE = tuple(Student(keep=keep) for keep in (0.5, 1.0, 0.75, 0.625, 0.25))
# Four gradients add up in each step, and fifty steps are few: at a high rate such small nets do not settle.
LONGER = {"epochs": 5, "learning_rate": 0.03, "label_weight": 1.0, "temperature": 1.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / "a", DATA, epochs=2, width=16)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("deep") / "a", DATA, "stages.zoo:resnet", epochs=2, **RESNET)


def config(**more):
    return DistillConfig(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "together": True} | more)


def first_batch():
    index = torch.arange(16)
    return Batch(torch.from_numpy(DATA.train.inputs(slice(0, 16))), torch.from_numpy(DATA.train.labels[:16]), index)


def subsets(whole, *surgeries):
    return Slimmable(whole, [(operate(deepcopy(whole), surgery), surgery) for surgery in surgeries])


CUT = (Surgery("0", "out", (1, 3)), Surgery("1", "norm", (1, 3)), Surgery("4", "in", (1, 3)))
OTHER = (Surgery("4", "out", (0, 9)), Surgery("5", "norm", (0, 9)), Surgery("9", "in", (0, 9)))


@pytest.mark.parametrize("source", ["tiny_cnn", "tiny_concat", "tiny_mobile", "tiny_residual", "tiny_tokens"])
def test_a_member_is_the_cut_network(source):
    whole = construct(Origin(f"stages.testing:{source}"), 3)
    surgery = narrowing(whole, examples(DATA), importance="l2").cut(0.5).surgery
    assert surgery
    family = subsets(whole, surgery, ())
    for i, cut in enumerate((surgery, ())):
        alone = operate(deepcopy(whole), cut)
        state = alone.state_dict()
        assert state.keys() == family.member(i).state().keys()
        assert all(torch.equal(state[name], weight) for name, weight in family.member(i).state().items())
        assert torch.equal(predict(family.member(i), DATA.validation), predict(alone, DATA.validation))


def test_a_member_without_some_blocks_and_channels():
    whole = construct(Origin("stages.zoo:resnet", RESNET), 3)
    short = shorten(whole, examples(DATA), 0.5)
    surgery = (*short.surgery, *narrowing(short.module, examples(DATA)).cut(0.5).surgery)
    family = subsets(whole, surgery)
    assert torch.equal(predict(family, DATA.validation), predict(operate(deepcopy(whole), surgery), DATA.validation))
    gone = [cut.module for cut in short.surgery]
    assert gone
    assert not [key for key in family.shared if key.replace("/", ".").startswith(tuple(gone))]


def test_gradients_reach_exactly_the_elements_that_a_member_uses():
    whole = construct(Origin("stages.testing:tiny_cnn"), 3)
    family = subsets(whole, CUT, OTHER)
    batch = first_batch()
    family.member(0)(batch.inputs).square().sum().backward()
    kept = [i for i in range(8) if i not in (1, 3)]
    used = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in whole.named_parameters()}
    used["0.weight"][[1, 3]] = False
    used["0.bias"][[1, 3]] = False
    used["4.weight"][:, [1, 3]] = False
    assert sorted(family.shared) == ["0/bias", "0/weight", "4/bias", "4/weight", "9/bias", "9/weight"]
    for key, weight in family.shared.items():
        assert torch.equal(weight.grad != 0, used[key.replace("/", ".")].flatten()), key
    alone = operate(deepcopy(whole), CUT)
    alone(batch.inputs).square().sum().backward()
    got = family.shared["4/weight"].grad.view(16, 8, 3, 3)[:, kept]
    torch.testing.assert_close(got, alone.get_parameter("4.weight").grad)
    torch.testing.assert_close(
        family.member(0).net.get_parameter("1.weight").grad, alone.get_parameter("1.weight").grad
    )
    assert all(weight.grad is None for weight in family.member(1).parameters())  # its norms


def test_shared_weights_begin_with_the_largest_and_what_it_lacks_with_the_next():
    """Not nested: each has channels that the other lacks."""
    one, two = (construct(Origin("stages.testing:tiny_cnn"), seed) for seed in (1, 2))
    nets = [(operate(deepcopy(two), CUT), CUT), (operate(deepcopy(one), OTHER), OTHER)]
    small, large = (sum(weight.numel() for weight in net.parameters()) for net, _ in nets)
    assert small < large
    family = Slimmable(one, nets)
    weight = family.shared["4/weight"].view(16, 8, 3, 3)
    kept = [i for i in range(8) if i not in (1, 3)]
    rest = [i for i in range(16) if i not in (0, 9)]
    assert torch.equal(weight[rest], one.get_parameter("4.weight")[rest])
    assert torch.equal(weight[[0, 9]][:, kept], two.get_parameter("4.weight")[[0, 9]][:, kept])
    assert not weight[[0, 9]][:, [1, 3]].any()  # in no member


class Tied(nn.Module):
    """Weights that are one in two places, a parameter of no layer, and an LSTM, which keeps a list of its weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.place = nn.Parameter(torch.ones(8))
        self.walk = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.second(torch.tanh(self.first(x.squeeze(1) + self.place)))
        return self.head(self.walk(x)[0][:, -1])


def test_tied_weights_and_parameters_of_any_module_are_shared():
    torch.manual_seed(0)
    whole = Tied()
    family = subsets(whole, (), ())
    assert "second/weight" not in family.shared
    assert {"place", "walk/weight_hh_l0"} <= set(family.shared)
    batch = first_batch()
    for i in range(2):
        assert torch.equal(family.member(i)(batch.inputs), whole(batch.inputs))
        assert torch.equal(family.member(i).state()["second.weight"], whole.first.weight)
    family(batch.inputs).sum().backward()
    whole(batch.inputs).sum().backward()
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(family.shared[name.replace(".", "/")].grad.view(weight.shape), weight.grad)


def test_numbers_are_of_the_uncut_network():
    whole = construct(Origin("stages.testing:tiny_cnn"))
    at = places(whole, CUT)
    assert at["4.weight"].dtype == torch.int64
    assert at["4.weight"].shape == (16, 6, 3, 3)
    assert at["4.weight"][0, :, 0, 0].tolist() == [9 * i for i in (0, 2, 4, 5, 6, 7)]
    assert whole.get_parameter("4.weight").shape == (16, 8, 3, 3)


def test_each_step_has_the_largest_the_smallest_and_two_others():
    whole = construct(Origin("stages.testing:tiny_cnn"))
    cuts = [narrowing(whole, examples(DATA)).cut(student.keep).surgery for student in FIVE]
    family = subsets(whole, *cuts)
    seen = set()
    torch.manual_seed(0)
    for _ in range(30):
        drawn = [next(i for i in range(5) if family.member(i) is one) for one in family.drawn()]
        assert drawn[:2] == [1, 4]
        assert len(set(drawn)) == 4
        seen |= set(drawn)
    assert seen == set(range(5))
    assert subsets(whole, ()).drawn()[0] is not None
    four = subsets(whole, *cuts[:4])
    torch.manual_seed(0)
    assert set(map(id, four.drawn())) == set(map(id, four.members))  # all: nothing is left to chance


def test_the_loss_is_distillation_for_the_largest_and_its_answers_for_the_others(teacher, tmp_path):
    taught = build(teacher)
    settings = config(soft_weight=0.7, label_weight=0.2, temperature=3.0)
    family = subsets(construct(Origin("stages.testing:tiny_cnn"), 8), CUT, ())
    distillation = Distillation(family, taught, settings, context(tmp_path / "a", DATA))
    batch = first_batch()
    family.eval()
    family.zero_grad()
    loss = sandwich(settings, distillation)(family, batch)
    loss.backward()
    got = {name: weight.grad.clone() for name, weight in family.named_parameters()}
    family.zero_grad()
    small, large = (one(batch.inputs) for one in family.members)
    expected = distillation(family, batch) + 0.9 * losses.kd(small, large.detach(), 3.0)
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for name, weight in family.named_parameters():
        torch.testing.assert_close(got[name], weight.grad)


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):
    """(the context, the members) of five subsets, trained together."""
    ctx = context(tmp_path_factory.mktemp("family") / "a", DATA, teacher=teacher)
    return ctx, family([teacher], config(students=FIVE, **LONGER), ctx)


def test_all_members_learn(teacher, trained, tmp_path):
    _, members = trained
    nearly_none = config(students=FIVE, learning_rate=1e-12, epochs=1, momentum=0)
    begun = family([teacher], nearly_none, context(tmp_path / "a", DATA, teacher=teacher))
    assert [one.name for one in members] == [student.title for student in FIVE]
    for before, after in zip(begun, members, strict=True):
        metrics = after.steps[-1].metrics
        assert metrics["validation_accuracy"] == accuracy(build(after), DATA.validation)
        assert metrics["teacher_validation_accuracy"] == accuracy(build(teacher), DATA.validation)
        assert metrics["validation_accuracy"] > before.steps[-1].metrics["validation_accuracy"]
        assert after.steps[-1].stage == "distill"
        assert after.steps[-1].notes == ("trained together with 4 others, weights shared",)
        assert [step.stage for step in after.steps] == ["teacher", "distill"]
        assert after.surgery == before.surgery


def test_weights_are_shared_and_norms_are_each_members_own(trained):
    _, members = trained
    half, whole = build(members[0]), build(members[1])
    gone = {(cut.module, cut.kind): set(cut.indexes) for cut in members[0].surgery}
    ins, outs = ([i for i in range(n) if i not in gone["4", kind]] for n, kind in ((16, "in"), (32, "out")))
    assert torch.equal(half.get_parameter("4.weight"), whole.get_parameter("4.weight")[outs][:, ins])
    for name in ("weight", "bias", "running_mean", "running_var"):
        mine, its = (net.state_dict()[f"5.{name}"] for net in (half, whole))
        assert not torch.equal(mine, its[outs]), name
    assert half.state_dict()["5.num_batches_tracked"] < whole.state_dict()["5.num_batches_tracked"]  # drawn less often


def test_a_member_becomes_a_candidate_with_files_of_its_own(trained, tmp_path):
    ctx, members = trained
    assert set(digest_of(ctx.out)) == {"members.json", *(f"{i}.safetensors" for i in range(5))}
    found = member(ctx.out, 2, tmp_path)
    assert found == replace(members[2], weights=tmp_path / "weights.safetensors")
    assert found.weights.read_bytes() == members[2].weights.read_bytes()
    assert Candidate.load(tmp_path) == found
    recovered = distill(found, config(epochs=1), context(tmp_path / "again", DATA, teacher=found))
    assert recovered.surgery == found.surgery


def test_what_is_no_member(trained, tmp_path):
    ctx, _ = trained
    with pytest.raises(StageError, match="the family has 5 members, 0 to 4, and no member 5"):
        member(ctx.out, 5, tmp_path)
    with pytest.raises(StageError, match=r"holds no family: there is no members\.json"):
        member(tmp_path, 0, tmp_path)


class Killed(BaseException):
    pass


def test_an_interrupted_family_ends_bit_equal(teacher, trained, tmp_path, monkeypatch):
    """Also says that the same settings give the same bytes, whatever was drawn outside before."""
    undisturbed, _ = trained
    settings = config(students=FIVE, **LONGER)
    ctx = context(tmp_path / "a", DATA, teacher=teacher)
    calls = 0

    def killer(config, distillation):
        loss = sandwich(config, distillation)

        def strike(nets, batch):
            nonlocal calls
            calls += 1
            if calls == 25:  # ten batches an epoch
                raise Killed
            return loss(nets, batch)

        return strike

    monkeypatch.setattr(rooms, "sandwich", killer)
    with pytest.raises(Killed):
        family([teacher], settings, ctx)
    monkeypatch.undo()
    torch.manual_seed(123)
    heard = []
    family([teacher], settings, replace(ctx, say=heard.append))
    assert heard == ["family of 5: goes on after epoch 2 of 5"]
    assert digest_of(ctx.out) == digest_of(undisturbed.out)


def test_members_from_different_stages_that_are_not_nested(deep, tmp_path):
    """As two targets give them: one short, one narrow."""
    one_epoch = {"epochs": 1, "learning_rate": 1e-6, "together": False}
    short, narrow = (
        distill(deep, config(students=(student,), **one_epoch), context(tmp_path / student.by, DATA, teacher=deep))
        for student in (Student(keep=0.5, by="blocks"), Student(keep=0.5))
    )
    ctx = context(tmp_path / "family", DATA, teacher=deep)
    together = family([short, narrow], config(epochs=3, learning_rate=0.05), ctx)
    for before, after in zip((short, narrow), together, strict=True):
        assert (after.name, after.surgery, after.origin) == (before.name, before.surgery, before.origin)
        assert after.steps[:-1] == before.steps
        assert after.steps[-1].notes == ("trained together with 1 other, weights shared",)
        assert after.steps[-1].metrics["validation_accuracy"] > before.steps[-1].metrics["validation_accuracy"]
    narrow_net, short_net = build(together[1]), build(together[0])
    gone = next(set(cut.indexes) for cut in narrow.surgery if (cut.module, cut.kind) == ("stem.0", "out"))
    kept = [i for i in range(4) if i not in gone]
    assert torch.equal(narrow_net.stem[0].weight, short_net.stem[0].weight[kept])


def plain():
    """No norms: all that the members have is shared."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))


def test_a_checkpoint_of_other_cuts_is_not_taken(tmp_path):
    """Also where all weights begin alike."""
    whole = teach(Origin("test_family:plain"), None, None, context(tmp_path / "teacher", DATA))

    def run(unit, ctx):
        cuts = (Surgery("1", "out", (unit,)), Surgery("3", "in", (unit,)))
        save_weights(operate(build(whole), cuts), tmp_path / f"{unit}.safetensors")
        part = replace(whole, name="part", surgery=cuts, weights=tmp_path / f"{unit}.safetensors")
        family([whole, part], config(), ctx)
        return digest_of(ctx.out)

    first, second = (context(tmp_path / name, DATA, teacher=whole) for name in ("first", "second"))
    assert run(0, first) != run(1, first) == run(1, second)


def test_one_member_alone_learns_as_in_distill(teacher, tmp_path):
    alone = config(students=(Student(keep=1.0),), augment="shift")
    (one,) = family([teacher], alone, context(tmp_path / "a", DATA, teacher=teacher))
    other = distill(teacher, alone, context(tmp_path / "b", DATA, teacher=teacher))
    assert one.steps == other.steps
    mine, its = build(one).state_dict(), build(other).state_dict()
    assert all(torch.allclose(mine[name], its[name], rtol=1e-4, atol=1e-5) for name in its)


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (
            {"students": (Student(keep=1.0), Student(source="stages.testing:tiny_concat", name="own"))},
            InputError,
            r"students\[1\].source: own is a network of its own and has no weights to share[\s\S]*leave `together` out",
        ),
        ({"features": {"4": 1.0}}, InputError, "features cannot be matched in a family: its members differ inside"),
        ({"attention": {"4": 1.0}}, InputError, "attention cannot be matched in a family"),
        ({"students": FIVE}, StageError, "one network to cut its students from and got 2"),
        (
            {},
            InputError,
            r"other comes from \S+:tiny_cnn {'width': 3} and teacher from \S+:tiny_cnn {'width': 16}: only",
        ),
    ],
)
def test_what_is_no_family(teacher, tmp_path, more, error, said):
    members = [teacher, replace(teacher, name="other", origin=Origin("stages.testing:tiny_cnn", {"width": 3}))]
    if "students" in more:
        members = members[:1] if error is InputError else [teacher, teacher]
    with pytest.raises(error, match=said):
        family(members, config(**more), context(tmp_path / "a", DATA, teacher=teacher))


def test_a_family_needs_members_and_a_teacher(teacher, tmp_path):
    with pytest.raises(StageError, match="a family needs members and got 0"):
        family([], config(), context(tmp_path / "a", DATA, teacher=teacher))
    with pytest.raises(StageError, match="needs a teacher with torch weights"):
        family([teacher], config(), context(tmp_path / "b", DATA))
