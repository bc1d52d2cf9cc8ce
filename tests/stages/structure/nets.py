"""Tiny networks of the kinds that people have, and inputs for them: (builder, example inputs) by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.structure.anatomy import Anatomy, Block, Strand
from stages.zoo import mobile, resnet

__all__ = ["NETS", "build", "holder"]

CLASSES = 4
SIZE = 8  # pixels
TOKENS, WORDS = 6, 20


class Growth(nn.Module):
    """norm, ReLU, convolution; its channels are put behind those that came in (DenseNet)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        width = 8
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.first = nn.Sequential(*(Growth(width + i * growth, growth) for i in range(layers)))
        width += layers * growth
        self.between = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)
        )
        width //= 2
        self.second = nn.Sequential(*(Growth(width + i * growth, growth) for i in range(layers)))
        width += layers * growth
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.between(self.first(self.stem(x)))))
        return self.head(F.relu(x).mean((2, 3)))


class Plain(nn.Module):
    """VGG-like: 3x3 convolutions of equal width, activations in the forward."""

    def __init__(self, width: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(layers))
        self.hidden = nn.Linear(width * 16, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = F.relu(self.hidden(F.max_pool2d(x, 2).flatten(1)))
        return self.head(x)


def plain_sequential(width: int = 8, layers: int = 3) -> nn.Sequential:
    """VGG-like: each layer a Sequential of convolution, norm, ReLU."""

    def layer(before: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    return nn.Sequential(
        layer(1),
        *(layer(width) for _ in range(layers)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    )


class FusedAttention(nn.Module):
    """q, k, v from one linear layer; the forward reads the number of heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TorchAttention(nn.Module):
    """Self attention by torch's own module."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PreNorm(nn.Module):
    """A transformer block that normalizes what goes into its branches."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, class token, learned positions, blocks, a linear layer on the class token."""

    def __init__(
        self, attention: Callable[[int, int], nn.Module] = FusedAttention, dim: int = 16, heads: int = 4, depth: int = 3
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.1)
        self.position = nn.Parameter(torch.randn(1, (SIZE // 4) ** 2 + 1, dim) * 0.1)
        self.blocks = nn.ModuleList(PreNorm(dim, attention(dim, heads)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class SplitAttention(nn.Module):
    """q, k, v apart; the forward knows the size of a head and leaves their number open."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_size = dim // heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.flatten(2))


class PostNorm(nn.Module):
    """A transformer layer that normalizes what comes out of its sums."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = SplitAttention(dim, heads), nn.LayerNorm(dim)
        self.mlp, self.norm2 = Mlp(dim, 2 * dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Module):
    """Words and positions, layers, a pooled first token."""

    def __init__(self, dim: int = 16, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, dim), nn.Embedding(TOKENS, dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(PostNorm(dim, heads) for _ in range(depth))
        self.pool = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.positions(torch.arange(tokens.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.tanh(self.pool(x[:, 0])))


def _images() -> Tensor:
    return torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _tokens() -> Tensor:
    return torch.randint(0, WORDS, (3, TOKENS), generator=torch.Generator().manual_seed(1))


def _resnet(shortcut: str) -> nn.Module:
    return resnet(14, CLASSES, 1, shortcut, width=8)


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet": (lambda: _resnet("projection"), _images()),
    "padded": (lambda: _resnet("padded"), _images()),
    "mobile": (lambda: mobile(2, CLASSES, 1, width=4, expansion=3), _images()),
    "dense": (DenseNet, _images()),
    "plain": (Plain, _images()),
    "sequential": (plain_sequential, _images()),
    "vit": (ViT, _images()),
    "bert": (Bert, _tokens()),
    "vit torch": (lambda: ViT(TorchAttention), _images()),
}
"""By name: a function that builds the network, and inputs (batch, ...). All give logits (batch, CLASSES)."""


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """(the network in eval mode, inputs). Its norms are not fresh: their shifts and statistics are random, as training
    leaves them."""
    builder, inputs = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = builder().eval()
        for layer in module.modules():
            if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
                with torch.no_grad():
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(0, 0.2)
                    if isinstance(layer, nn.BatchNorm2d):
                        layer.running_mean.normal_(0, 0.2)
                        layer.running_var.uniform_(0.5, 1.5)
    return module, inputs.clone()


def holder(anatomy: Anatomy, strand: Strand) -> Block | None:
    """The block that a strand lies in with all of its layers: it leaves with it."""
    members = [member.module for member in strand.group.members]
    return next((block for block in anatomy.blocks if all(map(block.holds, members))), None)
