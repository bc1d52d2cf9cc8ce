import numpy as np
import pytest
import torch
from torch import nn

from stages.base import Candidate, Origin
from stages.network import build, construct, macs, parameters, save_weights
from stages.settings import TrainConfig
from stages.teacher import check_fit, teach
from stages.testing import context, digest_of, tiny_splits
from stages.training import accuracy
from targets.errors import InputError

DATA = tiny_splits()
TINY = Origin("stages.testing:tiny_cnn")
CONFIG = TrainConfig(epochs=5, batch_size=16)


def test_it_trains_measures_and_saves(tmp_path):
    ctx = context(tmp_path / "a", DATA)
    teacher = teach(TINY, None, CONFIG, ctx)
    assert Candidate.load(ctx.out) == teacher
    assert set(digest_of(ctx.out)) == {"candidate.json", "weights.safetensors"}
    assert (teacher.name, teacher.form, teacher.surgery) == ("teacher", "torch", ())
    assert (teacher.signature.input_shape, teacher.signature.outputs) == ((1, 8, 8), 4)
    (step,) = teacher.steps
    net = build(teacher)
    assert step.metrics == {
        "validation_accuracy": accuracy(net, DATA.validation),
        "parameters": parameters(net),
        "macs": macs(net, (1, 8, 8)),
    }
    assert step.metrics["validation_accuracy"] > 0.9
    assert step.notes == ()


def test_the_same_bytes_twice_and_others_from_another_seed(tmp_path):
    folders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folders.append(context(tmp_path / name, DATA, seed=seed))
        teach(TINY, None, CONFIG, folders[-1])
    a, b, c = (digest_of(ctx.out) for ctx in folders)
    assert a == b
    assert a["weights.safetensors"] != c["weights.safetensors"]


def test_given_weights_are_taken_as_they_are(tmp_path):
    net = construct(TINY, seed=9)
    save_weights(net, tmp_path / "mine.safetensors")
    ctx = context(tmp_path / "a", DATA)
    teacher = teach(TINY, tmp_path / "mine.safetensors", None, ctx)
    assert (ctx.out / "weights.safetensors").read_bytes() == (tmp_path / "mine.safetensors").read_bytes()
    assert teacher.steps[0].metrics["validation_accuracy"] == accuracy(net, DATA.validation)
    assert teacher.steps[0].notes == ()


def test_weights_may_be_trained_on(tmp_path):
    save_weights(construct(TINY, seed=9), tmp_path / "mine.safetensors")
    first = context(tmp_path / "a", DATA)
    teach(TINY, tmp_path / "mine.safetensors", CONFIG, first)
    second = context(tmp_path / "b", DATA)
    teach(TINY, None, CONFIG, second)
    assert digest_of(first.out) != digest_of(second.out)


def test_untrained_is_said(tmp_path):
    teacher = teach(TINY, None, None, context(tmp_path / "a", DATA))
    assert teacher.steps[0].notes == ("untrained: the weights are those that stages.testing:tiny_cnn gave it",)


def test_a_wrong_number_of_classes_is_said_with_the_way_out(tmp_path):
    said = r"the model gives 256 outputs, the data has 4 classes[^$]*args: \{classes: 4\}"
    with pytest.raises(InputError, match=said):
        teach(Origin("stages.zoo:seed_cnn"), None, CONFIG, context(tmp_path / "a", tiny_splits(32, 3)))
    assert not list((tmp_path / "a/out").iterdir())


def test_inputs_that_do_not_fit_are_said(tmp_path):
    with pytest.raises(InputError, match=r"cannot take inputs of shape \(2, 1, 8, 8\): .*[^$]*data.image_size"):
        teach(Origin("stages.zoo:seed_cnn", {"classes": 4}), None, CONFIG, context(tmp_path / "a", DATA))


class Gives(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: (x, x), "gives a tuple, where logits"),
        (lambda x: torch.zeros(len(x)), r"outputs of shape \(2,\), expected \(2, 4\)"),
        (lambda x: torch.zeros(1, 4), r"outputs of shape \(1, 4\), expected \(2, 4\)"),
        (lambda x: torch.full((len(x), 4), torch.nan), "NaN or infinite"),
    ],
)
def test_outputs_that_are_no_logits_are_said(make, said):
    with pytest.raises(InputError, match=said):
        check_fit(Gives(make), DATA)


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights(construct(Origin("stages.testing:tiny_cnn", {"width": 5})), tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=r"0.weight: expected \(8, 1, 3, 3\), found \(5, 1, 3, 3\)"):
        teach(TINY, tmp_path / "mine.safetensors", None, context(tmp_path / "a", DATA))


def test_the_test_split_is_never_read(tmp_path):
    class Closed:
        def __getattr__(self, name):
            raise AssertionError(f"read test.{name}")

        def __len__(self):
            raise AssertionError("read len(test)")

    data = type(DATA)(DATA.train, DATA.validation, Closed(), DATA.classes, DATA.digest)
    teach(TINY, None, CONFIG, context(tmp_path / "a", data))


def test_a_network_for_what_is_no_image(tmp_path, monkeypatch):
    (tmp_path / "flat_net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(64, 4)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def flat(split):
        return type(split)(np.ascontiguousarray(split.raw.reshape(len(split), -1)), split.labels, split.preprocessing)

    data = type(DATA)(*(flat(s) for s in (DATA.train, DATA.validation, DATA.test)), DATA.classes, DATA.digest)
    teacher = teach(Origin("flat_net:net"), None, CONFIG, context(tmp_path / "a", data))
    assert teacher.signature.input_shape == (64,)
    assert teacher.steps[0].metrics["validation_accuracy"] > 0.9
    assert teacher.steps[0].metrics["macs"] == 256
