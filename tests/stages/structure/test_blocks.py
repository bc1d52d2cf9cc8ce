"""Whole blocks that may leave: found by tracing, tried alone, gone from the exported graph too."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base import Candidate, Origin, Signature, Surgery
from stages.export import to_onnx, trace
from stages.structure.anatomy import Shape, dissect
from stages.structure.blocks import blocks, removable, shorten
from stages.structure.surgery import operate
from stages.structure.trial import fault
from stages.vendors import ort_quantizer
from targets.errors import StageError
from tests.stages.structure.nets import CLASSES, NETS, Mlp, build, holder

VIT = "blocks.0.attn blocks.0.mlp blocks.1.attn blocks.1.mlp blocks.2.mlp"
FOUND = {
    "resnet": "stages.0.0 stages.0.1 stages.1.0.conv2 stages.1.1 stages.2.0.conv2 stages.2.1",
    "padded": "stages.0.0 stages.0.1 stages.1.0.norm2 stages.1.1 stages.2.0.norm2 stages.2.1",
    "mobile": "stages.0.0 stages.0.1 stages.1.1 stages.2.1",
    "dense": "first.0.conv1",
    "plain": "convs.0 convs.1 convs.2",
    "sequential": "1 2 3",
    "vit": VIT,
    "bert": " ".join(f"layers.{i}.{part}" for i in range(3) for part in ("attention", "mlp")) + " pool",
    "vit torch": VIT,
}
BLIND = {"blocks.2.attn": "without it and all others, nothing would bring the inputs to the outputs"}
REFUSED = {
    "vit": BLIND,
    "vit torch": BLIND,
    "resnet": {
        "stages.1.0": "its shape changes from (8, 8, 8) to (16, 4, 4)",
        "stages.2.0": "its shape changes from (16, 4, 4) to (32, 2, 2)",
    },
    "mobile": {
        "stages.1.0": "its shape changes from (4, 8, 8) to (8, 4, 4)",
        "stages.2.0": "its shape changes from (8, 4, 4) to (16, 2, 2)",
    },
}


def onnx_of(module: nn.Module, inputs: Tensor, folder):
    """The folded graph, after a look that it answers as torch does."""
    signature = Signature(tuple(inputs.shape[1:]), CLASSES)
    model = ort_quantizer.fold(to_onnx(trace(module, inputs[:2].numpy()), signature, 20), folder)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": inputs.numpy()})[0], module(inputs), atol=1e-4)
    return model


@pytest.mark.parametrize("name", NETS)
def test_blocks_of_all_kinds_of_networks(name):
    module, inputs = build(name)
    found, refused = blocks(module, inputs)
    assert " ".join(block.name for block in found) == FOUND[name]
    assert refused == REFUSED.get(name, {})
    assert not any(one.holds(other.name) for one in found for other in found if one is not other)
    assert all(fault(module, (block.surgery,), inputs) == "" for block in found)
    short = operate(build(name)[0], [block.surgery for block in found])
    assert macs(short, inputs) < macs(module, inputs)
    with torch.no_grad():
        assert short(inputs).std(0).max() > 1e-4  # the inputs still matter
    kinds = [block.kind for block in found]
    assert all(re.fullmatch("[0-9a-f]{12}", kind) for kind in kinds)
    if name == "vit":
        assert kinds == [*kinds[:2], *kinds[:2], kinds[1]]
        assert kinds[0] != kinds[1]
    if name == "resnet":
        assert kinds[0] == kinds[1]
        assert len(set(kinds)) == 5


def macs(module: nn.Module, inputs: Tensor) -> int:
    """As `stages.network.macs`, for tokens too."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        module(inputs)
    for hook in hooks:
        hook.remove()
    return total


EXPORTED = ["padded", "vit", "bert"]


@pytest.mark.parametrize(
    "name", [*EXPORTED, *(pytest.param(name, marks=pytest.mark.slow) for name in NETS if name not in EXPORTED)]
)
def test_what_left_is_gone_from_the_exported_graph_too(name, tmp_path):
    module, inputs = build(name)
    found, _ = blocks(module, inputs)
    model = onnx_of(operate(module, [block.surgery for block in found]), inputs, tmp_path)
    assert not [tensor.name for tensor in model.graph.initializer if any(block.holds(tensor.name) for block in found)]
    kinds = [node.op_type for node in model.graph.node]
    if name == "padded":
        assert not {"Add", "BatchNormalization"} & set(kinds)
        assert kinds.count("Conv") == 1
    if name == "bert":  # words and positions; the layers' norms are left
        assert kinds.count("LayerNormalization") == 7
        assert kinds.count("Add") == 1
    if name == "vit":  # one attention, one norm before it, one at the end
        assert kinds.count("LayerNormalization") == 2
        assert kinds.count("Softmax") == 1


def test_weights_do_not_matter():
    module, inputs = build("resnet")
    found = blocks(module, inputs)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)  # every branch is a way through
    assert blocks(module, inputs) == found
    assert not any(parameter.any() for parameter in module.parameters())


class Attend(nn.Module):
    """Attention as in the Hugging Face library: takes a mask by name, returns a tuple."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2)
        weights = (scores + mask).softmax(-1)
        return weights @ self.value(hidden), weights


class Joined(nn.Module):
    """The sum lies in here, away from most of the branch."""

    def __init__(self, dim: int, wide: int) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = nn.Linear(wide, dim), nn.Dropout(0.1), nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.dropout(self.dense(hidden)) + x)


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention, self.joined = Attend(dim), Joined(dim, dim)
        self.wide, self.output = nn.Linear(dim, 2 * dim), Joined(dim, 2 * dim)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        x = self.joined(self.attention(hidden, mask=mask)[0], hidden)
        return (self.output(F.gelu(self.wide(x)), x),)


class Scaled(nn.Module):
    """Branches with a dropout that both use, a scale of its own, attention that returns a tuple."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attend(dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 2 * dim)
        self.drop, self.gamma = nn.Dropout(0.1), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), mask=mask)[0])
        return x + self.gamma * self.drop(self.mlp(self.norm2(x)))


class Mixed(nn.Module):
    """Layers with a mask, one that is called twice, torch's own encoder layer, a branch that ends in a function."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(4, 4).triu(1))
        self.read, self.layer, self.scaled = nn.Linear(2, dim), Layer(dim), Scaled(dim)
        self.twice = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        self.encoder = nn.TransformerEncoderLayer(dim, 2, 16, batch_first=True)
        self.gate, self.up = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.memory, self.head = nn.GRU(dim, dim, batch_first=True), nn.Linear(dim, CLASSES)
        self.last = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = self.scaled(self.layer(x, mask=self.mask)[0], self.mask)
        x = self.encoder(self.twice(self.twice(x)))
        x = x + torch.sigmoid(self.gate(x)) * self.up(x)
        x, _ = self.memory(x)
        return self.last(torch.tanh(self.head(x.mean(1))))


def test_tuples_masks_shared_modules_and_what_cannot_go(tmp_path):
    torch.manual_seed(0)
    net, x = Mixed().eval(), torch.randn(3, 4, 2)
    found, refused = blocks(net, x)
    attention = ("layer.attention.query", "layer.attention.key", "layer.attention.value", "layer.joined.dense")
    assert [b.surgery for b in found] == [
        Surgery("layer.joined.dropout", "zero", (), attention),
        Surgery("layer.output.dropout", "zero", (), ("layer.wide", "layer.output.dense")),
        Surgery("scaled.attn", "zero", (0, 2), ("scaled.norm1",)),
        Surgery("scaled.mlp", "zero", (), ("scaled.norm2",)),
        Surgery("encoder", "identity"),  # not its branches: its fast path would pass by what stands there
        Surgery("gate", "identity"),
        Surgery("up", "identity"),
        Surgery("memory", "identity", (0, 2)),
    ]
    assert refused == {"twice": "it is called 2 times", "last": "it gives the network's outputs"}
    model = onnx_of(operate(net, [b.surgery for b in found]), x, tmp_path)
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Softmax", "Gelu", "GRU", "Erf"} & set(kinds)
    assert kinds.count("Add") == 4  # the biases of read and of twice, twice; and x + sigmoid(x) * x
    assert kinds.count("LayerNormalization") == 2  # behind the sums of layer


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        if x.sum() > 0:  # THE LINE
            x = -x
        return x


def test_a_network_that_cannot_be_traced_names_the_line():
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# THE LINE"))
    with pytest.raises(
        StageError,
        match=rf"test_blocks.py:{line}: `if x.sum\(\) > 0:.*`: torch.export could not capture.*"
        r"Every recipe exports its float network.*What still works: `quantize` of an .onnx",
    ):
        blocks(nn.Sequential(Branching()).eval(), torch.randn(2, 1, 8, 8))


def test_shorten_takes_layers_with_masks_and_tuples():
    class Pre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(8), Mlp(8, 16)

        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, None]:
            return x + self.mlp(self.norm(x)) * mask, None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Pre() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(x, mask=torch.ones(8))
            return x

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(3, 8)
    assert removable(net, x) == [f"layers.{i}" for i in range(4)]
    cut = shorten(net, x, 0.5)
    assert cut.surgery == (Surgery("layers.0", "identity", (0, 2)), Surgery("layers.2", "identity", (0, 2)))
    with torch.no_grad():
        assert torch.equal(cut.module(x), net.layers[3](net.layers[1](x, 1)[0], 1)[0])


def test_surgery_of_blocks_survives_the_disk_and_says_what_is_missing(tmp_path):
    surgery = (Surgery("blocks.0.attn", "zero", (0, 2), ("blocks.0.norm1",)), Surgery("blocks.1", "identity"))
    Candidate("a", Origin("x:y"), Signature((1,), 2), surgery).save(tmp_path)
    assert Candidate.load(tmp_path).surgery == surgery
    with pytest.raises(StageError, match=r"blocks.0.norm9 is to go with blocks.0.attn, and is not there: has the"):
        operate(build("vit")[0], [Surgery("blocks.0.attn", "zero", (), ("blocks.0.norm9",))])


def test_a_cut_that_is_no_removal_fails_its_trial():
    module, inputs = build("vit")
    assert "cut network fails" in fault(module, (Surgery("patch", "zero"),), inputs)
    # Zeros that are spread: only a sum may read them.
    assert "cut network" in fault(module, (Surgery("blocks.0.attn.qkv", "zero"),), inputs)
    # Something else listened.
    assert "otherwise" in fault(module, (Surgery("blocks.0.mlp", "zero", (), ("blocks.0.attn",)),), inputs)


def test_dissect_respects_what_stays_whole():
    module, inputs = build("resnet")
    anatomy = dissect(module, inputs, exclude=["stages.1.1.conv1", "stages.0"])
    assert [block.name for block in anatomy.blocks] == ["stages.1.0.conv2", "stages.2.0.conv2", "stages.2.1"]
    assert not {"stages.1.1.conv1", "stages.0.0.conv1"} & {strand.name for strand in anatomy.strands}
    assert anatomy.refused["stages.1.0"] == "its shape changes from (8, 8, 8) to (16, 4, 4)"
    inner = next(strand for strand in anatomy.strands if strand.name == "stages.2.1.conv1")
    assert holder(anatomy, inner) is anatomy.blocks[-1]
    cuts = anatomy.surgery(Shape(frozenset({"stages.2.1"}), {"stages.2.1.conv1": 4}))
    assert cuts == (Surgery("stages.2.1", "identity"),)
