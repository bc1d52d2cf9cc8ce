"""Pruned networks against originals with silenced channels, worked out here from the surgery alone."""

import warnings
from dataclasses import replace

import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional as F

from stages import STAGES
from stages.base import Origin, Surgery, perform
from stages.network import build, construct, macs, parameters
from stages.prune import prune
from stages.settings import PruneConfig
from stages.structure.channels import narrowing
from stages.structure.trial import examples, fault, merged
from stages.testing import context, digest_of, tiny_splits, tiny_teacher
from stages.vendors.torch_pruning import groups
from targets.errors import InputError, StageError
from targets.target import Target

DATA = tiny_splits()
NETS = {
    "cnn": ("stages.testing:tiny_cnn", {}),
    "concat": ("stages.testing:tiny_concat", {}),
    "depthwise": ("stages.testing:tiny_mobile", {}),
    "grouped": ("stages.testing:tiny_mobile", {"groups": 2}),
    "projection": ("stages.zoo:resnet", {"depth": 14, "classes": 4, "in_channels": 1, "width": 8}),
    "padded": ("stages.zoo:resnet", {"depth": 14, "classes": 4, "in_channels": 1, "width": 8, "shortcut": "padded"}),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {name: tiny_teacher(folder / name, DATA, source, epochs=1, **args) for name, (source, args) in NETS.items()}


def silenced(candidate, surgery):
    """The uncut network with zeros where removed channels are read."""
    net = build(candidate)
    with torch.no_grad():
        for cut in surgery:
            if cut.kind == "in":
                net.get_submodule(cut.module).weight[:, list(cut.indexes)] = 0
    return net


def inputs():
    return torch.from_numpy(DATA.validation.inputs())


@pytest.mark.parametrize("importance", ["l2", "taylor"])
@pytest.mark.parametrize("name", NETS)
def test_the_pruned_network_is_the_silenced_one(teachers, tmp_path, name, importance):
    teacher = teachers[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = prune(teacher, PruneConfig(keep=0.5, importance=importance), context(tmp_path / "a", DATA))
    with torch.no_grad():
        expected = silenced(teacher, pruned.surgery)(inputs())
        torch.testing.assert_close(build(pruned)(inputs()), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, build(teacher)(inputs()))
    metrics = pruned.steps[-1].metrics
    assert metrics["parameters"] < metrics["parameters_before"] == parameters(build(teacher))
    assert metrics["macs"] == macs(build(pruned), (1, 8, 8)) < metrics["macs_before"]
    assert pruned.steps[-1].changed
    assert build(pruned)(inputs()).shape == (80, 4)


def widths(candidate):
    net = build(candidate)
    return {n: m.out_channels for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def test_everything_that_hangs_together_is_halved(teachers, tmp_path):
    half = PruneConfig(keep=0.5)
    assert widths(prune(teachers["cnn"], half, context(tmp_path / "a", DATA))) == {"0": 4, "4": 8}
    assert widths(prune(teachers["concat"], half, context(tmp_path / "b", DATA))) == {"left": 3, "right": 4, "mix": 3}
    mobile = prune(teachers["depthwise"], half, context(tmp_path / "c", DATA))
    assert widths(mobile) == {"0": 4, "3": 4, "6": 8}
    assert build(mobile).get_submodule("3").groups == 4
    projection = widths(prune(teachers["projection"], half, context(tmp_path / "d", DATA)))
    assert projection == {name: width // 2 for name, width in widths(teachers["projection"]).items()}


def test_padded_shortcuts_keep_their_stream_whole_and_say_why(teachers, tmp_path):
    pruned = prune(teachers["padded"], PruneConfig(keep=0.5), context(tmp_path / "a", DATA))
    before, after = widths(teachers["padded"]), widths(pruned)
    for name, width in before.items():
        assert after[name] == (width // 2 if name.endswith("conv1") else width)
    (note,) = [note for note in pruned.steps[-1].notes if "stays whole" in note]
    assert note.startswith("stem.0 stays whole: a shortcut fills it up with channels of zeros")


def test_torch_pruning_itself_breaks_padded_shortcuts():
    """Why every cut is tried: the library cuts this network without a word, and it no longer runs."""
    net = construct(Origin(*NETS["padded"]))
    x = torch.zeros(1, 1, 8, 8)
    graph = torch_pruning.DependencyGraph().build_dependency(net, [x])
    graph.get_pruning_group(net.stem[0], torch_pruning.prune_conv_out_channels, [0, 1]).prune()
    with pytest.raises(RuntimeError):
        net(x)


def test_grouped_convolutions_stay_whole_and_say_why(teachers, tmp_path):
    pruned = prune(teachers["grouped"], PruneConfig(keep=0.5), context(tmp_path / "a", DATA))
    assert widths(pruned) == {"0": 8, "3": 8, "6": 8}
    assert any(
        n == "0 stays whole: it reaches 3, a grouped Conv2d, which cannot lose single channels"
        for n in pruned.steps[-1].notes
    )


def test_the_least_important_channels_leave(teachers, tmp_path):
    """Of two layers that share channels, those with the smallest squared weights on both sides together."""
    net = build(teachers["cnn"])
    (cut,) = [c for c in narrowing(net, examples(DATA)).cut(0.75).surgery if (c.module, c.kind) == ("0", "out")]
    made, norm, read = net.get_submodule("0").weight, net.get_submodule("1").weight, net.get_submodule("4").weight
    energy = made.pow(2).sum((1, 2, 3)) + norm.pow(2) + read.pow(2).sum((0, 2, 3))
    assert set(cut.indexes) == set(energy.argsort()[:2].tolist())


def test_taylor_scores_are_weight_times_gradient():
    net = construct(Origin("stages.testing:tiny_cnn"), 4)
    loss = F.cross_entropy(net(inputs()), torch.from_numpy(DATA.validation.labels))
    loss.backward()
    scores = {g.name: torch.tensor(g.scores) for g in groups(net, examples(DATA), "taylor")}
    made, read = net.get_submodule("0").weight, net.get_submodule("4").weight
    by_hand = (made * made.grad).abs().sum((1, 2, 3)) + (read * read.grad).abs().sum((0, 2, 3))
    torch.testing.assert_close(scores["0"], (by_hand / by_hand.mean()).detach())


def test_what_comes_back_from_the_library_is_whole():
    """Every layer's channels are in exactly one group per side, except the network's inputs."""
    for source, args in NETS.values():
        net = construct(Origin(source, args))
        sides = [
            (m.module, m.kind, i) for g in groups(net, examples(DATA)) for m in g.members for at in m.at for i in at
        ]
        assert len(set(sides)) == len(sides)


@pytest.mark.parametrize(("multiple", "expected"), [(1, 4), (3, 6), (4, 4), (8, 8), (16, 8)])
def test_channel_counts_are_rounded_up_to_the_targets_multiple(teachers, tmp_path, multiple, expected):
    ctx = replace(context(tmp_path / "a", DATA), target=Target(name="t", channel_multiple=multiple))
    pruned = prune(teachers["cnn"], PruneConfig(keep=0.45), ctx)
    assert widths(pruned)["0"] == expected


def test_excluded_modules_stay_whole_with_all_inside(teachers, tmp_path):
    pruned = prune(teachers["projection"], PruneConfig(keep=0.5, exclude=("stages.1",)), context(tmp_path / "a", DATA))
    before, after = widths(teachers["projection"]), widths(pruned)
    assert all(after[n] == before[n] for n in before if n.startswith("stages.1."))
    assert all(after[n] == before[n] // 2 for n in ("stages.0.0.conv1", "stages.2.1.conv2"))
    assert after["stages.0.1.conv2"] == before["stages.0.1.conv2"]  # read by an excluded block
    with pytest.raises(InputError, match=r"'stage.1' matches no module[^$]*did you mean"):
        prune(teachers["projection"], PruneConfig(keep=0.5, exclude=("stage.1",)), context(tmp_path / "b", DATA))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["cnn", "padded"])
def test_a_speedup_is_reached_and_not_overshot(teachers, tmp_path, name, steps):
    config = PruneConfig(speedup=1.7, steps=steps)
    pruned = prune(teachers[name], config, context(tmp_path / "a", DATA))
    metrics = pruned.steps[-1].metrics
    assert 1.7 <= metrics["macs_before"] / metrics["macs"] < 2.2
    assert "asked: 1.7 times" in pruned.steps[-1].notes[0]


def test_a_speedup_out_of_reach_is_an_error_that_says_why(teachers, tmp_path):
    with pytest.raises(StageError, match=r"90 times fewer MACs cannot be reached, at most 11.63. stem.0 stays whole"):
        prune(teachers["padded"], PruneConfig(speedup=90), context(tmp_path / "a", DATA))


def test_rounds_end_where_one_round_ends(teachers, tmp_path):
    once = prune(teachers["concat"], PruneConfig(keep=0.3), context(tmp_path / "a", DATA))
    rounds = prune(teachers["concat"], PruneConfig(keep=0.3, steps=3), context(tmp_path / "b", DATA))
    assert widths(once) == widths(rounds)
    assert len(rounds.surgery) > len(once.surgery)


def test_pruning_goes_on_from_a_pruned_network(teachers, tmp_path):
    once = prune(teachers["cnn"], PruneConfig(keep=0.5), context(tmp_path / "a", DATA))
    twice = prune(once, PruneConfig(keep=0.5), context(tmp_path / "b", DATA))
    assert widths(twice) == {"0": 2, "4": 4}
    assert twice.surgery[: len(once.surgery)] == once.surgery


def test_nothing_to_remove_is_news(teachers, tmp_path):
    heard = []
    ctx = replace(context(tmp_path / "a", DATA), say=heard.append)
    same = perform(STAGES["prune"], teachers["cnn"], PruneConfig(keep=1.0), ctx)
    assert not same.steps[-1].changed
    assert same.surgery == ()
    assert heard == ["prune changed nothing in teacher"]
    assert digest_of(ctx.out)["weights.safetensors"] == digest_of(teachers["cnn"].weights.parent)["weights.safetensors"]


def test_a_linear_classifier_has_nothing_to_give(tmp_path, monkeypatch):
    (tmp_path / "only_head.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    teacher = tiny_teacher(tmp_path / "t", DATA, "only_head:net", epochs=1)
    assert not prune(teacher, PruneConfig(keep=0.1), context(tmp_path / "a", DATA)).steps[-1].changed


def test_a_convolution_whose_channels_are_the_outputs_stays_whole():
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    cut = narrowing(net, examples(DATA)).cut(0.5)
    assert {c.module: c.kind for c in cut.surgery} == {"0": "out", "2": "in"}
    assert cut.notes == ()


class Mixing(nn.Module):
    """Averages over channels: without some of them, the mean is another one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = self.second(x - x.mean(1, keepdim=True))
        return self.head(F.relu(x).mean((2, 3)))


def test_a_cut_that_runs_but_answers_otherwise_is_caught():
    torch.manual_seed(0)
    cut = narrowing(Mixing().eval(), examples(DATA)).cut(0.5)
    assert {c.module for c in cut.surgery} == {"second", "head"}
    (note,) = cut.notes
    assert note.startswith("first stays whole: the cut network answers otherwise than with silenced channels")


class Norming(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.norm = norm
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x))).mean((2, 3)))


def test_a_norm_over_channels_stays_whole():
    cut = narrowing(Norming(nn.GroupNorm(4, 8)).eval(), examples(DATA)).cut(0.5)
    assert cut.surgery == ()
    assert cut.notes == ("first stays whole: it reaches norm, a GroupNorm, which cannot lose single channels",)


def test_an_instance_norm_is_cut():
    cut = narrowing(Norming(nn.InstanceNorm2d(8, affine=True)).eval(), examples(DATA)).cut(0.5)
    assert {(c.module, c.kind) for c in cut.surgery} == {("first", "out"), ("norm", "norm"), ("head", "in")}


def test_squeeze_and_excitation_is_cut():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 8, 3)
            self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.first(x)
            gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.head((x * gate).mean((2, 3)))

    cut = narrowing(Gated().eval(), examples(DATA)).cut(0.5)
    assert cut.notes == ()
    assert (cut.module.first.out_channels, cut.module.down.out_channels, cut.module.up.out_channels) == (4, 1, 4)


def test_a_shift_behind_a_removed_channel_does_not_leak(teachers):
    """A batch norm that moves silence to 5 would wake the channel, were it silenced where it is made."""
    net = build(teachers["cnn"])
    with torch.no_grad():
        net.get_submodule("1").bias.fill_(5.0)
    right = tuple(narrowing(net, examples(DATA)).cut(0.5).surgery)
    assert fault(net, right, examples(DATA)) == ""
    assert right


def test_wrong_surgery_has_a_fault(teachers):
    net = build(teachers["cnn"])
    x = examples(DATA)
    crossed = (Surgery("0", "out", (0,)), Surgery("1", "norm", (1,)), Surgery("4", "in", (0,)))
    assert "answers otherwise than with silenced channels" in fault(net, crossed, x)
    assert "the cut network fails" in fault(net, crossed[:2], x)
    outputs = (Surgery("9", "out", (0,)),)
    assert "gives outputs of shape (4, 3), not (4, 4)" in fault(net, outputs, x)


def test_cuts_of_one_layer_unite():
    parts = [(Surgery("a", "in", (3, 1)),), (Surgery("a", "in", (2,)), Surgery("a", "out", (0,)))]
    assert merged(parts) == (Surgery("a", "in", (1, 2, 3)), Surgery("a", "out", (0,)))


def test_a_network_that_cannot_be_traced_is_a_stage_error():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, x):
            return self.head(x.flatten(1)).detach()

    with pytest.raises(StageError, match="torch-pruning cannot follow the network: autograd sees no layer"):
        narrowing(Detached().eval(), examples(DATA))


def test_frozen_weights_are_no_obstacle_and_stay_frozen():
    net = construct(Origin("stages.testing:tiny_cnn")).requires_grad_(False)
    assert narrowing(net, examples(DATA)).cut(0.5).surgery
    assert not any(p.requires_grad for p in net.parameters())


def test_the_library_prints_nothing(teachers, tmp_path, capfd):
    prune(teachers["padded"], PruneConfig(keep=0.5, importance="taylor"), context(tmp_path / "a", DATA))
    assert capfd.readouterr() == ("", "")
