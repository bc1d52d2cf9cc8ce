"""Narrowed networks against networks in which the same channels are silenced, worked out here from the surgery."""

import json
from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
from nets import NETS, Bert, FusedAttention, PreNorm, ViT, build
from torch import nn
from torch.nn import functional as F

from stages.base import Surgery
from stages.network import parameters
from stages.structure.channels import narrowing
from stages.structure.strands import least, stirred, strands
from stages.structure.surgery import operate
from stages.structure.trial import merged
from stages.zoo import mobile, resnet
from targets.errors import InputError, StageError


def halved(found):
    """The cuts that take the less important half of each strand."""
    steps = [max(strand.unit, strand.channels // 2 // strand.unit * strand.unit) for strand in found]
    return merged(strand.group.cuts(least(strand, stay)) for strand, stay in zip(found, steps, strict=True))


def compare(module, inputs, surgery):
    """Asserts that the cut network is the silenced one, and gives it back."""
    silent, cut = deepcopy(module), operate(deepcopy(module), surgery)
    with torch.no_grad():
        for one in surgery:
            if one.kind == "in":
                silent.get_submodule(one.module).weight[:, list(one.indexes)] = 0
        expected = silent(inputs)
        torch.testing.assert_close(cut(inputs), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, module(inputs), rtol=1e-2, atol=1e-2)
    assert parameters(cut) < parameters(module)
    return cut


FOUND = {  # strands, refused
    "resnet": (9, 0),
    "padded": (6, 1),
    "mobile": (10, 0),
    "dense": (14, 0),
    "plain": (5, 0),
    "sequential": (4, 0),
    "vit": (6, 1),
    "bert": (7, 1),
    "vit torch": (3, 4),
}


@pytest.mark.parametrize("name", NETS)
def test_all_that_is_found_leaves_by_half_and_the_network_answers_as_if_silenced(name):
    module, inputs = build(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found, refused = strands(module, inputs)
    assert (len(found), len(refused)) == FOUND[name]
    cut = compare(module, inputs, halved(found))
    assert cut(inputs).shape == (3, 4)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    again, _ = strands(module, inputs)
    assert again == found  # to the last digit of the scores


def test_what_stays_whole_says_why():
    def why(name):
        return strands(*build(name))[1]

    assert why("padded") == {"stem.0": "a shortcut fills it up with channels of zeros, so that they cannot be followed"}
    assert why("vit") == {"blocks.2.mlp.fc2": "it reaches norm, a LayerNorm, which cannot lose single channels"}
    assert why("vit torch")["blocks.0.attn.attention"] == (
        "heads cannot leave: nn.MultiheadAttention keeps q, k, v in one parameter"
    )


def test_whole_heads_leave_and_their_number_follows():
    module, inputs = build("vit")
    found = {strand.name: strand for strand in strands(module, inputs)[0]}
    strand = found["blocks.1.attn.qkv"]
    assert (strand.unit, strand.channels) == (4, 16)
    second = strand.group.cuts((4, 5, 6, 7))
    assert set(second) == {
        Surgery("blocks.1.attn.qkv", "out", (*range(4, 8), *range(20, 24), *range(36, 40))),
        Surgery("blocks.1.attn.proj", "in", (4, 5, 6, 7)),
        Surgery("blocks.1.attn.num_heads", "count", (1,)),
    }
    cut = compare(module, inputs, second).blocks[1].attn
    assert (cut.num_heads, cut.head_dim, cut.qkv.out_features, cut.proj.in_features) == (3, 4, 36, 12)
    assert json.loads(json.dumps([asdict(one) for one in second]))  # surgery stays data


class Attention(nn.Module):
    """Writes itself out in several ways.

    Args:
        style: "interleaved" keeps q, k, v of one head together; "chunked" cuts them apart and counts by a second
            integer; "grouped" shares keys among pairs of heads; "fixed" writes the width as a constant.
    """

    def __init__(self, dim, heads, style):
        super().__init__()
        self.heads, self.inner, self.size, self.style = heads, dim, dim // heads, style
        self.fixed = (dim,)
        self.kv_heads = heads // 2 if style == "grouped" else heads
        self.make = nn.Linear(dim, dim + 2 * self.kv_heads * self.size)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        b, t, _ = x.shape
        y = self.make(x)
        if self.style == "interleaved":
            q, k, v = y.view(b, t, -1, 3 * self.size).transpose(1, 2).chunk(3, -1)
        elif self.style == "grouped":
            y = y.view(b, t, self.heads + 2 * self.kv_heads, self.size).transpose(1, 2)
            q, k, v = y.split([self.heads, self.kv_heads, self.kv_heads], 1)
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        else:
            q, k, v = (z.view(b, t, self.heads, self.size).transpose(1, 2) for z in y.split(self.inner, -1))
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)
        return self.out(y.reshape(b, t, *self.fixed) if self.style == "fixed" else y.flatten(2))


@pytest.mark.parametrize(
    ("style", "unit", "counted"),
    [
        ("interleaved", 4, set()),
        ("chunked", 4, {"heads", "inner"}),
        ("grouped", 8, {"heads", "kv_heads"}),
    ],
)
def test_heads_are_found_however_attention_is_written(style, unit, counted):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 16), Attention(16, 4, style), nn.Flatten(), nn.Linear(16 * 6, 4)).eval()
    inputs = torch.randn(3, 6, 5)
    found = {strand.name: strand for strand in strands(module, inputs)[0]}
    strand = found["1.make"]
    assert strand.unit == unit
    assert {m.module for m in strand.group.members if m.kind == "count"} == {f"1.{name}" for name in counted}
    compare(module, inputs, strand.group.cuts(least(strand, 8)))


def test_heads_that_a_constant_holds_back_say_so():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 16), Attention(16, 4, "fixed"), nn.Flatten(), nn.Linear(16 * 6, 4)).eval()
    found, refused = strands(module, torch.randn(3, 6, 5))
    assert "1.make" not in {strand.name for strand in found}
    assert refused["1.make"].startswith("heads cannot leave: the cut network fails (")


def test_gated_units_leave_with_both_of_their_rows():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Linear(6, 20), nn.Linear(10, 4)

        def forward(self, x):
            return self.narrow(F.glu(self.wide(x)))

    torch.manual_seed(0)
    module, inputs = Gated().eval(), torch.randn(5, 6)
    (strand,), _ = strands(module, inputs)
    assert (strand.unit, strand.channels) == (1, 10)
    assert Surgery("wide", "out", (3, 13)) in strand.group.cuts((3,))
    compare(module, inputs, halved((strand,)))


def test_an_embedding_without_a_norm_behind_it_is_narrowed():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

        def forward(self, tokens):
            return self.head(self.words(tokens).mean(1))

    module, inputs = Words().eval(), NETS["bert"][1]
    (strand,), refused = strands(module, inputs)
    assert (strand.name, refused) == ("words", {})
    assert compare(module, inputs, halved((strand,))).words.embedding_dim == 4


def test_equal_strands_have_equal_kinds():
    module = resnet(56, classes=4, in_channels=1, width=4).eval()
    found, refused = strands(module, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    kinds = {strand.name: strand.kind for strand in found}
    assert (len(found), refused, len(set(kinds.values()))) == (30, {}, 8)  # 3 streams, 3 inner, 2 first of a stage
    assert {len(kind) for kind in kinds.values()} == {12}
    assert len({kinds[f"stages.1.{i}.conv1"] for i in range(1, 9)}) == 1
    heads = {strand.kind for strand in strands(*build("bert"))[0] if strand.unit > 1}
    assert len(heads) == 1


def test_the_multiple_of_the_target_is_kept_and_what_is_too_narrow_says_so():
    module, inputs = build("dense")
    found, refused = strands(module, inputs, multiple=4)
    assert "between.2" in {strand.name for strand in found}  # 10 channels: 4 or 8 may stay
    assert refused["first.0.conv2"] == "its 4 channels can only leave in multiples of 4, and some must stay"
    narrow = ViT(heads=1).eval()
    assert strands(narrow, build("vit")[1])[1]["blocks.0.attn.qkv"].startswith("it has one head")


def test_a_scale_of_zero_does_not_hide_a_wrong_cut():
    """Residual branches often start as nothing: whatever is cut in them would pass."""

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x):
            x = self.stem(x)
            y = self.first(x)
            x = x + self.norm(self.second(y - y.mean(1, keepdim=True)))
            return self.head(x.mean((2, 3)))

    found, refused = strands(Mixing().eval(), NETS["plain"][1])
    assert [strand.name for strand in found] == ["stem"]
    assert refused["first"].startswith("the cut network answers otherwise than with silenced channels")


def test_excluded_modules_stay_whole():
    module, inputs = build("vit")
    found, refused = strands(module, inputs, exclude=("blocks.*.attn",))
    assert all(".mlp." in strand.name for strand in found)
    assert refused == {}  # the stream goes through them
    with pytest.raises(InputError, match=r"pattern 'block.0' matches no module"):
        strands(module, inputs, exclude=("block.0",))


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_ratios_leave_whole_heads_too(importance):
    module, inputs = build("bert")
    F.cross_entropy(module(inputs), torch.tensor([0, 1, 2])).backward()
    cut = narrowing(module, inputs, importance).cut(0.4)
    compare(module, inputs, cut.surgery)
    layer = cut.module.layers[0]
    assert (layer.attention.query.out_features, layer.mlp.fc1.out_features) == (8, 13)
    gone = next(one.indexes for one in cut.surgery if (one.module, one.kind) == ("layers.0.attention.out", "in"))
    weight, made = module.layers[0].attention.out.weight, module.layers[0].attention.value.weight
    assert {i // 4 for i in gone} == {i for i in range(4) if set(range(4 * i, 4 * i + 4)) <= set(gone)}
    if importance == "l2":
        total = weight.pow(2).sum(0) + sum(
            getattr(module.layers[0].attention, name).weight.pow(2).sum(1) for name in ("query", "key", "value")
        )
        assert {i // 4 for i in gone} == set(total.view(4, 4).sum(1).argsort()[:2].tolist())
    assert made.shape == (16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "size"), [(lambda: resnet(56), 32), (lambda: mobile(3), 32), (lambda: ViT(depth=6, dim=64), 8)]
)
def test_larger_networks(net, size):
    torch.manual_seed(0)
    module = net().eval()
    inputs = torch.randn(4, 3 if size == 32 else 1, size, size)
    found, _ = strands(module, inputs, multiple=8)
    assert found
    compare(stirred(module, inputs), inputs, halved(found))


def test_surgery_that_no_longer_fits_is_a_stage_error():
    module = PreNorm(16, FusedAttention(16, 4))
    with pytest.raises(StageError, match=r"attn.number is to count less, and the network has no such integer"):
        operate(module, (Surgery("attn.number", "count", (0,)),))
    with pytest.raises(StageError, match=r"attn.num_heads: cannot remove 4 channels count of 4"):
        operate(module, (Surgery("attn.num_heads", "count", (0, 1, 2, 3)),))
    with pytest.raises(StageError, match="is a Embedding and has no 'in' channels"):
        operate(Bert(), (Surgery("words", "in", (0,)),))


def test_fresh_weights_do_not_hide_which_integer_counts_the_heads():
    """With weights near zero attention is a mean, whatever its heads; here each has as many columns as there are."""
    module, inputs = build("vit")
    with torch.no_grad():
        for block in module.blocks:
            block.attn.qkv.weight.mul_(0.01)
            block.attn.qkv.bias.zero_()
    counted = {m.module for s in strands(module, inputs)[0] for m in s.group.members if m.kind == "count"}
    assert counted == {f"blocks.{i}.attn.num_heads" for i in range(3)}


class _Heads(nn.Module):
    """Attention whose heads follow from their size."""

    def __init__(self, size):
        super().__init__()
        self.qkv, self.out, self.size = nn.Linear(16, 48), nn.Linear(16, 16), size

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.size)).transpose(1, 3).unbind(2)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_of_another_size_are_another_kind():
    torch.manual_seed(0)
    found, _ = strands(nn.Sequential(_Heads(4), _Heads(8), _Heads(8)).eval(), torch.randn(4, 6, 16))
    assert [strand.unit for strand in found] == [4, 8, 8]
    kinds = [strand.kind for strand in found]
    assert kinds[0] != kinds[1] == kinds[2]
