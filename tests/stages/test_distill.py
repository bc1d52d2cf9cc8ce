from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from stages import losses
from stages.base import Origin, Surgery
from stages.distill import Distillation, distill
from stages.network import build, construct, macs
from stages.settings import DistillConfig, Student
from stages.structure.blocks import removable, shorten
from stages.structure.trial import examples
from stages.testing import context, digest_of, tiny_splits, tiny_teacher
from stages.training import Batch, accuracy
from targets.errors import InputError, StageError

DATA = tiny_splits()
RESNET = {"depth": 20, "classes": 4, "in_channels": 1, "width": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / "a", DATA, epochs=5)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("deep") / "a", DATA, "stages.zoo:resnet", epochs=2, **RESNET)


def config(**more):
    return DistillConfig(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.02} | more)


def run(folder, candidate, settings, teacher=None, **more):
    ctx = context(folder, DATA, teacher=teacher or candidate, **more)
    return distill(candidate, settings, ctx), ctx


def first_batch():
    index = torch.arange(16)
    labels = torch.from_numpy(DATA.train.labels[:16])
    return Batch(torch.from_numpy(DATA.train.inputs(slice(0, 16))), labels, index)


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
def test_a_subset_of_channels_learns_from_the_teacher(teacher, tmp_path, loss):
    student, ctx = run(tmp_path / "a", teacher, config(students=(Student(keep=0.5),), loss=loss, epochs=4))
    assert student.name == "keep 0.5"
    assert student.origin == teacher.origin
    assert {(c.module, c.kind): len(c.indexes) for c in student.surgery} == {
        ("0", "out"): 4,
        ("1", "norm"): 4,
        ("4", "in"): 4,
        ("4", "out"): 8,
        ("5", "norm"): 8,
        ("9", "in"): 8,
    }
    step = student.steps[-1]
    net = build(student)
    assert step.stage == "distill"
    assert step.metrics["validation_accuracy"] == accuracy(net, DATA.validation) > 0.9
    assert step.metrics["teacher_validation_accuracy"] == accuracy(build(teacher), DATA.validation)
    assert step.metrics["macs"] == macs(net, (1, 8, 8)) < teacher.steps[0].metrics["macs"] / 2
    assert set(digest_of(ctx.out)) == {"weights.safetensors"}


def test_a_subset_inherits_the_best_channels_weights(teacher, tmp_path):
    """With a learning rate of next to nothing, what is written are the teacher's own numbers."""
    student, _ = run(
        tmp_path / "a", teacher, config(students=(Student(keep=0.5),), learning_rate=1e-12, epochs=1, weight_decay=0)
    )
    gone = next(set(c.indexes) for c in student.surgery if (c.module, c.kind) == ("0", "out"))
    kept = [i for i in range(8) if i not in gone]
    torch.testing.assert_close(build(student).get_submodule("0").weight, build(teacher).get_submodule("0").weight[kept])


def test_all_of_the_teacher_learns_on_from_its_weights(teacher, tmp_path):
    student, _ = run(tmp_path / "a", teacher, config(students=(Student(keep=1.0),)))
    assert student.name == "keep 1"
    assert student.surgery == ()
    before, after = (build(c).get_submodule("9").weight for c in (teacher, student))
    assert not torch.equal(before, after)
    assert F.cosine_similarity(before.flatten(), after.flatten(), 0) > 0.9


def test_a_subset_of_blocks(deep, tmp_path):
    student, _ = run(tmp_path / "a", deep, config(students=(Student(keep=0.34, by="blocks"),), epochs=1))
    assert student.name == "keep 0.34 of blocks"
    gone = ["stages.0.0", "stages.0.2", "stages.1.1", "stages.1.2", "stages.2.1", "stages.2.2"]
    assert student.surgery == tuple(Surgery(name, "identity") for name in gone)
    net = build(student)
    assert isinstance(net.get_submodule("stages.0.0"), nn.Identity)
    assert macs(net, (1, 8, 8)) == macs(construct(Origin("stages.zoo:resnet", RESNET | {"depth": 8})), (1, 8, 8))
    assert student.steps[-1].notes == (f"removed blocks: {', '.join(gone)}",)


def test_blocks_then_channels(deep, tmp_path):
    short, _ = run(tmp_path / "a", deep, config(students=(Student(keep=0.5, by="blocks"),), epochs=1))
    narrow, _ = run(tmp_path / "b", short, config(students=(Student(keep=0.5),), epochs=1), teacher=deep)
    assert narrow.surgery[: len(short.surgery)] == short.surgery
    assert build(narrow).get_submodule("stem.0").out_channels == 2
    assert [s.stage for s in narrow.steps] == ["teacher", "distill", "distill"]


def test_removable_blocks_are_those_with_a_way_around():
    net = construct(Origin("stages.zoo:resnet", RESNET))
    assert removable(net, examples(DATA)) == [
        *("stages.0.0", "stages.0.1", "stages.0.2"),
        *("stages.1.1", "stages.1.2", "stages.2.1", "stages.2.2"),
    ]
    padded = construct(Origin("stages.zoo:resnet", RESNET | {"shortcut": "padded"}))
    assert removable(padded, examples(DATA)) == removable(net, examples(DATA))


@pytest.mark.parametrize(
    ("keep", "left"),
    [(0.99, 9 + 9 + 9), (0.5, 5 + 5 + 5), (0.25, 2 + 2 + 2), (0.01, 1 + 1 + 1)],
)
def test_blocks_are_kept_evenly(keep, left):
    net = construct(Origin("stages.zoo:resnet", RESNET | {"depth": 56}))
    cut = shorten(net, examples(DATA), keep)
    assert sum(len(list(stage)) for stage in net.stages) - len(cut.surgery) == left
    if keep == 0.5:
        assert [c.module for c in cut.surgery if c.module.startswith("stages.1")] == [
            f"stages.1.{i}" for i in (1, 3, 5, 7)
        ]


def test_a_network_without_such_blocks_says_what_to_do(teacher, tmp_path):
    with pytest.raises(
        StageError, match=r"no block can be removed: .*use `by: channels`, or a student with a `source`"
    ):
        run(tmp_path / "a", teacher, config(students=(Student(keep=0.5, by="blocks"),)))


def test_runs_too_short_to_lose_a_block_say_so():
    net = construct(Origin("stages.zoo:resnet", RESNET | {"depth": 8}))
    cut = shorten(net, examples(DATA), 0.4)
    assert cut.surgery == ()
    assert cut.notes == ("keep 0.4 removes no block: the runs of blocks are too short",)


def test_a_model_of_its_own(teacher, tmp_path):
    own = Student(source="stages.testing:tiny_cnn", args={"width": 3}, name="small")
    student, _ = run(tmp_path / "a", teacher, config(students=(own,), epochs=6, learning_rate=0.1))
    assert (student.name, student.surgery) == ("small", ())
    assert student.origin == Origin("stages.testing:tiny_cnn", {"width": 3})
    assert build(student).get_submodule("0").out_channels == 3
    assert student.steps[-1].metrics["validation_accuracy"] > 0.7
    assert [s.stage for s in student.steps] == ["teacher", "distill"]


def test_a_pruned_candidates_surgery_does_not_stick_to_a_model_of_its_own(teacher, tmp_path):
    half, _ = run(tmp_path / "a", teacher, config(students=(Student(keep=0.5),), epochs=1))
    own, _ = run(
        tmp_path / "b", half, config(students=(Student(source="stages.testing:tiny_concat"),), epochs=1), teacher
    )
    assert own.surgery == ()
    build(own)


def test_a_model_that_does_not_fit_the_data(teacher, tmp_path):
    wrong = Student(source="stages.testing:tiny_cnn", args={"classes": 7})
    with pytest.raises(InputError, match="gives 7 outputs, the data has 4 classes"):
        run(tmp_path / "a", teacher, config(students=(wrong,)))


def test_recovery_keeps_name_and_surgery(teacher, tmp_path):
    half, _ = run(tmp_path / "a", teacher, config(students=(Student(keep=0.25),), epochs=1, learning_rate=1e-6))
    again, _ = run(tmp_path / "b", half, config(epochs=6), teacher)
    assert (again.name, again.surgery, again.origin) == (half.name, half.surgery, half.origin)
    assert again.steps[-1].metrics["validation_accuracy"] > half.steps[-1].metrics["validation_accuracy"]


def test_several_students_are_branches_of_the_plan(teacher, tmp_path):
    two = config(students=(Student(keep=0.5), Student(keep=0.25)))
    with pytest.raises(StageError, match="one student at a time and got 2: give each its own branch"):
        run(tmp_path / "a", teacher, two)


def test_a_teacher_is_needed(teacher, tmp_path):
    with pytest.raises(StageError, match="distill needs a teacher with torch weights"):
        distill(teacher, config(), context(tmp_path / "a", DATA))


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ValidationError, match="nothing to learn from"):
        config(soft_weight=0, label_weight=0)


def test_the_loss_is_the_weighted_sum_of_its_parts(teacher, tmp_path):
    taught = build(teacher)
    net = construct(Origin("stages.testing:tiny_cnn"), 8).eval()
    settings = config(
        soft_weight=0.7, label_weight=0.2, temperature=3.0, features={"4": 0.5}, attention={"0": 2.0}, augment="shift"
    )
    loss = Distillation(net, taught, settings, context(tmp_path / "a", DATA))
    assert list(loss.parameters()) == []
    batch = first_batch()
    first, second = net[:1](batch.inputs), net[:5](batch.inputs)
    expected = (
        0.7 * losses.kd(net(batch.inputs), taught(batch.inputs), 3.0)
        + 0.2 * F.cross_entropy(net(batch.inputs), batch.labels)
        + 0.5 * F.mse_loss(second, taught[:5](batch.inputs))
        + 2.0 * losses.attention(first, taught[:1](batch.inputs))
    )
    torch.testing.assert_close(loss(net, batch), expected)


@pytest.mark.parametrize("augment", ["none", "shift"])
def test_remembered_logits_are_the_teachers(teacher, tmp_path, augment):
    """Without augmentation the teacher is asked once; both ways give the same loss for the same inputs."""
    taught = build(teacher)
    net = construct(Origin("stages.testing:tiny_cnn"), 8).eval()
    loss = Distillation(net, taught, config(augment=augment), context(tmp_path / "a", DATA))
    calls = []
    taught.register_forward_hook(lambda *_: calls.append(1))
    batch = first_batch()
    batch = Batch(batch.inputs.flip(0), batch.labels.flip(0), batch.index.flip(0))
    got = loss(net, batch)
    assert len(calls) == (0 if augment == "none" else 1)
    expected = 0.9 * losses.kd(net(batch.inputs), taught(batch.inputs), 4.0)
    expected = expected + 0.1 * F.cross_entropy(net(batch.inputs), batch.labels)
    torch.testing.assert_close(got, expected)


def test_features_of_other_widths_get_a_projection_that_is_trained_and_thrown_away(teacher, tmp_path):
    settings = config(students=(Student(keep=0.5),), features={"4": 1.0, "9": 0.0}, soft_weight=0, label_weight=0)
    student, ctx = run(tmp_path / "a", teacher, settings)
    (checkpoint,) = ctx.scratch.glob("*.safetensors")
    assert b"loss.projections.4.weight" in checkpoint.read_bytes()
    assert b"projections" not in student.weights.read_bytes()
    cut = Distillation(build(student), build(teacher), settings, ctx)
    assert cut.projections["4"].weight.shape == (16, 8, 1, 1)


def test_projections_depend_on_the_seed_alone(teacher, tmp_path):
    settings = config(students=(Student(keep=0.5),), features={"4": 1.0})
    first, _ = run(tmp_path / "a", teacher, settings)
    torch.manual_seed(123)
    second, _ = run(tmp_path / "b", teacher, settings)
    assert first.weights.read_bytes() == second.weights.read_bytes()


def test_features_behind_a_removed_block_and_of_vectors(deep, tmp_path):
    settings = config(
        students=(Student(keep=0.5, by="blocks"),), epochs=1, features={"head": 0.1}, attention={"stages.?": 100.0}
    )
    student, _ = run(tmp_path / "a", deep, settings)
    assert student.steps[-1].metrics["validation_accuracy"] > 0.3


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"features": {"11": 1.0}}, InputError, r"features, in the student: pattern '11' matches no module"),
        ({"attention": {"9": 1.0}}, StageError, r"9 gives \(2, 4\) in .*attention maps need \(batch, channels"),
    ],
)
def test_patterns_that_do_not_fit(teacher, tmp_path, more, error, said):
    with pytest.raises(error, match=said):
        run(tmp_path / "a", teacher, config(**more))


def test_modules_that_the_teacher_lacks_are_named(teacher, tmp_path):
    own = Student(source="stages.testing:tiny_concat")
    with pytest.raises(InputError, match=r"features, mix: the teacher has no module 'mix'"):
        run(tmp_path / "a", teacher, config(students=(own,), features={"mix": 1.0}))


def test_features_of_other_sizes_cannot_be_matched(tmp_path):
    class Net(nn.Module):
        def __init__(self, stride):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride)
            self.idle = nn.Linear(1, 1)
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    ctx = context(tmp_path / "a", DATA)
    said = r"conv gives \(2, 4, 6, 6\) in the student and \(2, 4, 3, 3\) in the teacher: only the number of channels"
    with pytest.raises(StageError, match=said):
        Distillation(Net(1), Net(2), config(features={"conv": 1.0}), ctx)
    with pytest.raises(StageError, match="idle cannot be matched: it is not run"):
        Distillation(Net(1), Net(1), config(features={"idle": 1.0}), ctx)


def test_the_teacher_is_left_alone(teacher, tmp_path):
    before = digest_of(teacher.weights.parent)
    taught = build(teacher)
    run(tmp_path / "a", teacher, config(features={"4": 1.0}))
    assert digest_of(teacher.weights.parent) == before
    for name, tensor in build(teacher).state_dict().items():
        assert torch.equal(tensor, taught.state_dict()[name])


def test_another_teacher_teaches_something_else(teacher, tmp_path):
    """Even from the same scratch folder, whose checkpoint was made under the first teacher."""
    other = tiny_teacher(tmp_path / "other", tiny_splits(seed=1), epochs=2)
    _, ctx = run(tmp_path / "a", teacher, config())
    fresh, _ = run(tmp_path / "b", teacher, config(), other)
    again = distill(teacher, config(), replace(ctx, teacher=other))
    assert again.weights.read_bytes() == fresh.weights.read_bytes()


def test_an_interrupted_student_ends_bit_equal(teacher, tmp_path, monkeypatch):
    settings = config(students=(Student(keep=0.5),), features={"4": 1.0}, augment="shift", epochs=4)
    undisturbed, _ = run(tmp_path / "a", teacher, settings)

    class Killed(BaseException):
        pass

    calls = []

    def strike(student, teacher):
        calls.append(1)
        if len(calls) == 25:  # ten batches an epoch
            raise Killed
        return F.mse_loss(student, teacher)

    ctx = context(tmp_path / "b", DATA, teacher=teacher)
    monkeypatch.setattr(losses, "feature", strike)
    with pytest.raises(Killed):
        distill(teacher, settings, ctx)
    monkeypatch.undo()
    heard = []
    again = distill(teacher, settings, replace(ctx, say=heard.append))
    assert heard == ["keep 0.5: goes on after epoch 2 of 4"]
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.25])
def test_subsets_of_the_articles_network_survive_the_default_settings(tmp_path, keep):
    """No batch norm and a temperature of 4: without clipped gradients these end at chance, or as NaN."""
    data = tiny_splits(32, 3, train=640)
    teacher = tiny_teacher(tmp_path / "t", data, "stages.zoo:seed_cnn", epochs=6, classes=4)
    ctx = context(tmp_path / "a", data, teacher=teacher)
    student = distill(teacher, DistillConfig(students=(Student(keep=keep),), epochs=4), ctx)
    assert student.steps[-1].metrics["validation_accuracy"] > 0.9
