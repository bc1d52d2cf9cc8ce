import pytest
import torch
from torch import nn

from stages.network import macs, parameters
from stages.zoo import resnet, seed_cnn
from targets.errors import InputError


def test_seed_cnn_is_the_articles_network():
    net = seed_cnn()
    convs = [(m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, nn.Conv2d)]
    linears = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert convs == [(3, 64), (64, 128), (128, 256)]
    assert linears == [(4096, 128), (128, 256)]
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 256)
    assert seed_cnn(classes=10, in_channels=1)(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_resnet_has_its_depth(depth):
    net = resnet(depth)
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n]
    assert len(layers) == depth


def test_resnet_of_the_paper_has_the_papers_size():
    net = resnet(20, shortcut="padded")
    assert round(parameters(net) / 1e6, 2) == 0.27  # table 6
    stem, first = 32 * 32 * 16 * 27, 6 * 32 * 32 * 16 * 144
    second, third = 16 * 16 * 32 * (144 + 5 * 288), 8 * 8 * 64 * (288 + 5 * 576)
    assert macs(net, (3, 32, 32)) == stem + first + second + third + 64 * 10


@pytest.mark.parametrize("shortcut", ["projection", "padded"])
@pytest.mark.parametrize("size", [8, 28, 32])
def test_resnet_takes_any_size(shortcut, size):
    net = resnet(8, classes=7, in_channels=1, shortcut=shortcut, width=5).eval()
    assert net(torch.randn(2, 1, size, size)).shape == (2, 7)


def test_padded_shortcut_strides_and_fills_up_with_zeros():
    shortcut = resnet(8, shortcut="padded", width=2).stages[1][0].shortcut
    x = torch.randn(1, 2, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 21}, r"depth 21 must be 6n \+ 2: 8, 14, 20"),
        ({"depth": 2}, "depth 2 must be"),
        ({"shortcut": "none"}, "shortcut 'none' must be 'projection' or 'padded'"),
        ({"width": 0}, "width 0 must be at least 1"),
    ],
)
def test_resnet_says_what_is_wrong(arguments, said):
    with pytest.raises(InputError, match=said):
        resnet(**arguments)
