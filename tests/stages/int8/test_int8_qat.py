"""Training for int8: is what is trained what will run, does it help, does it go on, stop and refuse as it should?"""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages import graph
from stages.base import Origin
from stages.export import export
from stages.int8 import learn as learning
from stages.int8 import placement
from stages.int8.bench import Bench, Setup
from stages.int8.equalize import cross_layer
from stages.int8.learn import learn
from stages.int8.qat import qat
from stages.int8.twin import begin, off_by
from stages.network import build
from stages.settings import ExportConfig, QatConfig, QuantizeConfig
from stages.testing import context, tiny_splits, tiny_teacher
from stages.training import Batch
from stages.vendors import ort_quantizer
from targets.errors import StageError
from targets.target import Int8Rules

DATA = tiny_splits()
ONE_STEP = 1.001  # float32
RULES = {
    "u8 per channel": Int8Rules(),
    "per tensor": Int8Rules(per_channel=False),
    "reduced": Int8Rules(reduce_range=True),
    "s8 symmetric": Int8Rules(activations="int8", symmetric_activations=True),
}
SHORT = QatConfig(epochs=2, batch_size=32)


class Mixed(nn.Module):
    """What the others lack: in place, ReLU6, a batch norm without shift, one behind a shared value, transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding="same"), nn.BatchNorm2d(6, affine=False)
        self.act, self.six = nn.ReLU(inplace=True), nn.ReLU6()
        self.up, self.after = nn.ConvTranspose2d(6, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        x = self.six(self.after(self.up(x)))
        y = self.deep(F.max_pool2d(x, 2))
        x = y + self.after(y)
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


def mixed():
    return Mixed()


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(64, 4)

    def forward(self, x):
        return self.head(F.relu(self.mix(x.squeeze(1))).flatten(1))


def tokens():
    return Tokens()


def at(candidate, data, folder, rules=None, **config):
    """A bench, and the attempt with min-max ranges."""
    ctx, rules = context(folder, data), rules or Int8Rules()
    folded = ort_quantizer.fold(graph.read(candidate.onnx), ctx.scratch)
    settings = QuantizeConfig(samples=64, **config)
    bench = Bench(candidate, settings, ctx, rules, folded, ort_quantizer.operators(rules))
    return bench, bench.attempt("min-max", Setup(folded, bench.calibrated(folded)))


SOURCES = {
    "mobile": ("stages.zoo:mobile", {"blocks": 1, "classes": 4, "in_channels": 1, "width": 8}),
    "tiny_mobile": ("stages.testing:tiny_mobile", {}),
    "tiny_concat": ("stages.testing:tiny_concat", {}),
    "mixed": (f"{__name__}:mixed", {}),
    "tokens": (f"{__name__}:tokens", {}),
}


class Networks(dict):
    """Name -> (exported network, its data); made when first asked for."""

    def __missing__(self, name):
        source, args = SOURCES[name]
        teacher = tiny_teacher(self.folder / name, DATA, source, epochs=1, **args)
        self[name] = export(teacher, ExportConfig(), context(self.folder / f"{name} onnx", DATA)), DATA
        return self[name]


@pytest.fixture(scope="module")
def networks(tmp_path_factory, exported, digits):
    made = Networks({name: (candidate, digits) for name, candidate in exported.items()})
    made.folder = tmp_path_factory.mktemp("qat")
    return made


@pytest.mark.parametrize(
    ("name", "rules"),
    [("projection", "u8 per channel"), ("tiny_mobile", "per tensor"), ("mixed", "s8 symmetric")]
    + [
        pytest.param(name, rules, marks=pytest.mark.slow)
        for name, rules in [
            *((name, rules) for name in ("projection", "tiny_mobile", "mixed") for rules in RULES),
            *((name, "u8 per channel") for name in ("seed_cnn", "padded", "mobile", "tiny_concat")),
        ]
    ],
)
def test_the_twin_gives_what_the_int8_graph_gives(networks, tmp_path, name, rules):
    candidate, data = networks[name]
    bench, best = at(candidate, data, tmp_path / "b", RULES[rules])
    twin = begin(bench, best)
    inputs = data.validation.inputs(slice(0, 80))
    assert off_by(twin, best.int8, inputs) <= ONE_STEP
    assert off_by(twin, best.int8, inputs, fused=True) <= ONE_STEP
    assert off_by(twin, bench.folded, inputs) > ONE_STEP  # rounding is no trifle here
    assert twin.setup is best.setup


def test_excluded_nodes_stay_float_in_the_twin(networks, tmp_path):
    candidate, data = networks["mixed"]
    bench, best = at(candidate, data, tmp_path / "b", RULES["per tensor"])
    names = frozenset(node.name for node in bench.folded.graph.node if node.name.startswith(("deep", "add", "head")))
    assert len(names) == 3
    less = bench.attempt("less", replace(best.setup, exclude=names))
    inputs = data.validation.inputs(slice(0, 80))
    twin = begin(bench, less)
    assert off_by(twin, less.int8, inputs) <= ONE_STEP
    assert graph.tally(less.int8).int8 < graph.tally(best.int8).int8
    setup = learn(bench, less, SHORT, tmp_path / "training")
    assert setup.exclude == names
    assert graph.tally(bench.place(setup)) == graph.tally(less.int8)


@pytest.mark.parametrize(
    "name", ["mixed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("projection", "tiny_mobile", "tiny_concat"))]
)
def test_what_was_trained_is_what_runs(networks, tmp_path, monkeypatch, name):
    candidate, data = networks[name]
    bench, best = at(candidate, data, tmp_path / "b")
    trained = []
    monkeypatch.setattr(
        learning,
        "write_back",
        lambda b, twin, path, to=learning.write_back: (trained.append(twin), to(b, twin, path))[1],
    )
    setup = learn(bench, best, SHORT, tmp_path / "training")
    int8, inputs = bench.place(setup), data.validation.inputs(slice(0, 80))
    assert off_by(trained[0], int8, inputs, fused=True) <= ONE_STEP
    assert off_by(trained[0], best.int8, inputs) > ONE_STEP  # it has learned something
    assert placement.read(int8) == placement.read(best.int8)
    assert (graph.opset_of(setup.model), setup.model.ir_version) == (
        graph.opset_of(bench.folded),
        bench.folded.ir_version,
    )
    twin = build(replace(candidate, weights=setup.weights))
    with torch.no_grad():
        expected = twin(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(graph.predict(graph.session(setup.model), inputs), expected, atol=1e-3)
    before = build(candidate).state_dict()
    for key, value in twin.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key]), key
    assert setup.notes[-1].startswith("the trained network and its int8 graph differ by at most")


def test_training_wins_back_most_of_what_int8_lost(bench):
    """Depthwise channels of very different sizes, and one scale for all of them."""
    made = bench("unbalanced a little", Int8Rules(per_channel=False))
    best = made.attempt("min-max", Setup(made.folded, made.calibrated(made.folded)))
    (step,) = qat(made, best)
    after = made.attempt(step.title, step.make())
    assert step.title == "training with the teacher"
    whole, lost = made.float_score.accuracy, best.score.accuracy
    assert whole - lost > 0.01
    assert after.score.accuracy - lost >= 0.5 * (whole - lost)


def test_it_begins_with_the_weights_of_the_best(bench, tmp_path):
    made = bench("unbalanced", Int8Rules(per_channel=False))
    plain = made.attempt("min-max", Setup(made.folded, made.calibrated(made.folded)))
    best = next(made.attempt(step.title, step.make()) for step in cross_layer(made, plain))
    assert best.score.accuracy > plain.score.accuracy + 0.3
    twin = begin(made, best)
    assert off_by(twin, best.int8, made.context.data.validation.inputs(slice(0, 80))) <= ONE_STEP
    setup = learn(made, best, SHORT, tmp_path / "training")
    assert made.attempt("training", setup).score.accuracy >= best.score.accuracy - 0.01


def test_a_graph_that_the_network_cannot_hold(networks, tmp_path):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    other = type(bench.folded)()
    other.CopyFrom(bench.folded)
    slopes = next(t for t in other.graph.initializer if t.name == other.graph.node[1].input[1])
    slopes.CopyFrom(graph.onnx.numpy_helper.from_array(2 * graph.onnx.numpy_helper.to_array(slopes), slopes.name))
    twin = begin(bench, bench.attempt("other", replace(best.setup, model=other)))
    assert twin.setup.model is bench.folded
    assert off_by(twin, twin.int8, data.validation.inputs(slice(0, 80))) <= ONE_STEP


def test_a_killed_training_goes_on_and_ends_the_same(networks, tmp_path, monkeypatch):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    whole = learn(bench, best, SHORT, tmp_path / "whole")

    steps = iter(range(7))
    step = learning.Distillation.forward

    def until_killed(self, *args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(learning.Distillation, "forward", until_killed)
        with pytest.raises(KeyboardInterrupt):
            learn(bench, best, SHORT, tmp_path / "killed")
    told = []
    going_on = replace(bench, context=replace(bench.context, say=told.append))
    again = learn(going_on, best, SHORT, tmp_path / "killed")
    assert told == ["int8 training: goes on after epoch 1 of 2"]
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert bench.place(again).SerializeToString(deterministic=True) == bench.place(whole).SerializeToString(
        deterministic=True
    )


def test_time_decides_on_epochs_once(networks, tmp_path, monkeypatch):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    monkeypatch.setattr(learning, "_epoch_s", lambda *_: 10.0)
    config = QatConfig(epochs=3, batch_size=32)
    bench.seconds_left = lambda: 12.0
    with pytest.raises(StageError, match=r"an epoch takes about 10 s, and only 12 s are left: nothing was trained"):
        learn(bench, best, config, tmp_path / "none")
    bench.seconds_left = lambda: 30.0
    setup = learn(bench, best, config, tmp_path / "two")
    assert setup.notes[0] == "trained 2 of 3 epochs, for want of time"
    bench.seconds_left = lambda: 12.0
    again = learn(bench, best, config, tmp_path / "two")
    assert again.notes == setup.notes
    assert again.weights.read_bytes() == setup.weights.read_bytes()


def test_the_measured_epoch_is_near_the_real_one(networks, tmp_path):
    candidate, data = networks["projection"]
    bench, best = at(candidate, data, tmp_path / "b")
    seen = []
    bench.seconds_left = lambda: seen.append(1) or 1e6
    twin = begin(bench, best)
    loss = learning._loss(twin.rounding, QatConfig(), bench)
    guess = learning._epoch_s(twin.rounding, loss, QatConfig(), bench)
    assert all(p.grad is None for p in twin.rounding.parameters())
    started = learning.time.monotonic()
    learning.train(twin.rounding, QatConfig(epochs=1), data, loss, bench.context, "x")
    took = learning.time.monotonic() - started
    assert took / 4 < guess < 4 * took


def test_gradients_pass_rounding_and_stop_at_the_ends(networks, tmp_path):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    twin = begin(bench, bench.attempt("narrow", replace(best.setup, ranges=best.setup.ranges | {"input": (-0.5, 0.5)})))
    x = torch.from_numpy(data.train.inputs(slice(0, 8))).requires_grad_()
    twin.rounding(x).square().sum().backward()
    inside = x.detach().abs() < 0.49
    assert (x.grad[inside] != 0).float().mean() > 0.9
    assert not x.grad[x.detach().abs() > 0.51].any()
    assert all(weight.grad.any() for weight in twin.rounding.weights)


def test_it_learns_from_the_teacher_if_that_is_torch(networks, tmp_path):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    twin = begin(bench, best)
    x = torch.from_numpy(data.train.inputs(slice(0, 16)))
    batch = Batch(x, torch.from_numpy(data.train.labels[:16]), torch.arange(16))
    teacher = networks["tiny_concat"][0]
    config = QatConfig(soft_weight=1.0)

    def loss(of):
        at_work = replace(bench, context=replace(bench.context, teacher=of))
        return float(learning._loss(twin.rounding, config, at_work)(lambda _: build(candidate)(x), batch).detach())

    assert loss(None) == pytest.approx(0, abs=1e-5)  # its own logits
    assert loss(replace(teacher, weights=None)) == pytest.approx(0, abs=1e-5)
    assert loss(teacher) > 0.1


def test_what_torch_cannot_be_made_to_round(networks, tmp_path):
    candidate, data = networks["tokens"]
    bench, best = at(candidate, data, tmp_path / "b")
    says = r"torch cannot be made to round as node 'linear' \(Add\) does: it takes a constant that became int8"
    (step,) = qat(bench, best)
    with pytest.raises(StageError, match=says):
        step.make()


def test_values_and_weights_that_torch_does_not_have(networks, tmp_path):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    twin = begin(bench, best)
    with pytest.raises(StageError, match="torch cannot be made to round value 'val_7' of the int8 graph"):
        twin.parts.node("val_7")
    with pytest.raises(StageError, match=r"torch cannot be made to round the weights of 'relu': aten\.relu\.default"):
        twin.parts.weighted(placement.Layer("relu", "relu", "w", "", transposed=False))


def test_nothing_to_try_and_why(networks, tmp_path, monkeypatch):
    candidate, data = networks["tiny_mobile"]
    bench, best = at(candidate, data, tmp_path / "b")
    told = []
    bench.context = replace(bench.context, say=told.append)
    assert not list(qat(replace(bench, config=QuantizeConfig(qat=None)), best))
    users = replace(candidate, weights=None, origin=Origin("mine.onnx"))
    assert not list(qat(replace(bench, candidate=users), best))
    find = importlib.util.find_spec
    monkeypatch.setattr("stages.int8.qat.find_spec", lambda name: None if name == "torch" else find(name))
    assert not list(qat(bench, best))
    assert told == [
        "no training for int8: qat is null",
        "no training for int8: teacher comes from mine.onnx and has no torch network",
        "no training for int8: torch is not installed: pip install 'attar[compress]'",
    ]
