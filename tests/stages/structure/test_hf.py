"""Networks from `transformers` configurations (no hub, no weights): what leaves, and that the rest answers as if it had
been silenced."""

from copy import deepcopy

import onnxruntime
import pytest
import torch
from torch import nn

from stages.base import Signature
from stages.export import to_onnx, trace
from stages.structure.anatomy import Shape, dissect
from stages.structure.strands import least, strands
from stages.structure.surgery import operate
from stages.structure.trial import fault, merged

transformers = pytest.importorskip("transformers", minversion="5.0")
pytestmark = [pytest.mark.slow]

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "num_labels": 3}


class Logits(nn.Module):
    """Gives the logits alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).logits


def bert():
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, **TINY)
    return transformers.BertForSequenceClassification(config), torch.randint(0, 30, (3, 7))


def vit():
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_channels=1, **TINY)
    return transformers.ViTForImageClassification(config), torch.randn(3, 1, 16, 16)


@pytest.mark.parametrize("make", [bert, vit])
def test_heads_and_hidden_widths_leave(make):
    torch.manual_seed(0)
    net, inputs = make()
    module = Logits(net).eval()
    found, refused = strands(module, inputs)
    assert [strand.unit for strand in found if strand.unit > 1] == [4, 4]
    assert sum(strand.channels == 32 for strand in found) == 2
    assert all("LayerNorm" in why for why in refused.values())
    assert len(refused) == 1
    surgery = merged(strand.group.cuts(least(strand, strand.channels // 2)) for strand in found)
    silent, cut = deepcopy(module), operate(deepcopy(module), surgery)
    with torch.no_grad():
        for one in surgery:
            if one.kind == "in":
                silent.get_submodule(one.module).weight[:, list(one.indexes)] = 0
        torch.testing.assert_close(cut(inputs), silent(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [bert, vit])
def test_blocks_and_heads_leave_and_what_is_left_exports(make):
    torch.manual_seed(0)
    net, inputs = make()
    module = Logits(net).eval()
    anatomy = dissect(module, inputs)
    assert len(anatomy.blocks) >= 3  # two layers with attention and MLP each, of which one may have to stay
    shape = Shape(
        frozenset(block.name for block in anatomy.blocks[:2]), {s.name: s.channels // 2 for s in anatomy.strands}
    )
    surgery = anatomy.surgery(shape)
    assert fault(module, surgery, inputs) == ""
    cut = operate(deepcopy(module), surgery)
    model = to_onnx(trace(cut, inputs[:2].numpy()), Signature(tuple(inputs.shape[1:]), 3), 20)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0]), cut(inputs), rtol=1e-4, atol=1e-5
        )
