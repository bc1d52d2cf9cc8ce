import pytest
import torch
from torch import nn

from stages.network import macs, parameters
from stages.structure.blocks import removable
from stages.zoo import mobile, resnet, seed_cnn
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


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_mobile_has_its_blocks(blocks):
    net = mobile(blocks)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 1 + 3 * 3 * blocks + 1
    alone = [m for m in convs if m.groups == m.in_channels > 1]
    assert len(alone) == 3 * blocks
    assert all(m.kernel_size == (3, 3) and m.out_channels == m.in_channels for m in alone)
    assert all(m.kernel_size == (1, 1) for m in convs[1:] if m.groups == 1)


def test_mobile_has_the_size_that_its_arguments_say():
    net = mobile(1, classes=7, in_channels=1, width=8, expansion=3)
    first = 32 * 32 * (8 * 24 + 24 * 9 + 24 * 8)
    second = 32 * 32 * 8 * 24 + 16 * 16 * (24 * 9 + 24 * 16)  # strides in the depthwise convolution
    third = 16 * 16 * 16 * 48 + 8 * 8 * (48 * 9 + 48 * 32)
    stem, last = 32 * 32 * 8 * 9, 8 * 8 * 32 * 128
    assert macs(net, (1, 32, 32)) == stem + first + second + third + last + 128 * 7
    weights = 8 * 9 + (24 * 9 + 2 * 8 * 24) + (24 * 9 + 24 * 24) + (48 * 9 + 48 * 48) + 32 * 128
    norms = 2 * (8 + (24 + 24 + 8) + (24 + 24 + 16) + (48 + 48 + 32) + 128)
    assert parameters(net) == weights + norms + 128 * 7 + 7


def test_mobile_goes_around_blocks_that_keep_the_shape_and_narrows_without_relu():
    net = mobile(2, width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    assert removable(net, x) == ["stages.0.0", "stages.0.1", "stages.1.1", "stages.2.1"]
    assert net.stages(net.stem(x)).min() < 0
    y = net.last(net.stages(net.stem(x)) * 1000)
    assert y.min() == 0
    assert y.max() == 6


@pytest.mark.parametrize("size", [4, 7, 28, 32])
def test_mobile_takes_any_size(size):
    net = mobile(1, classes=7, in_channels=1, width=5, expansion=2).eval()
    assert net(torch.randn(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("argument", ["blocks", "width", "expansion"])
def test_mobile_says_what_is_wrong(argument):
    with pytest.raises(InputError, match=f"{argument} 0 must be at least 1"):
        mobile(**{argument: 0})
