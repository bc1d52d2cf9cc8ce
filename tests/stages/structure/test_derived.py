import numpy as np
import pytest
import torch
from torch import nn

from stages.base import Signature, Surgery
from stages.structure.anatomy import Shape, dissect
from stages.structure.derived import Derived
from stages.structure.mockup import mockup, whole
from stages.testing import tiny_mobile, tiny_residual, tiny_tokens
from tests.stages.structure.nets import build as build_net


def inputs(shape=(1, 8, 8)):
    return np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)


def exported(module, shape=(1, 8, 8)) -> Derived:
    return whole(module, Signature(shape, 4), inputs(shape), 20)


def operators(model):
    return [node.op_type for node in model.graph.node]


def sizes(model):
    return sorted(list(tensor.dims) for tensor in model.graph.initializer)


@pytest.mark.parametrize("build", [tiny_residual, tiny_tokens, tiny_mobile])
def test_a_graph_that_is_derived_is_the_one_that_an_export_gives(build):
    module, x = build().eval(), inputs()
    anatomy, derived = dissect(module, torch.from_numpy(x)), exported(module)
    half = {s.name: max(s.unit, s.channels // 2) for s in anatomy.strands}
    every = Shape(frozenset(block.name for block in anatomy.blocks), half)
    for shape in (*(Shape(frozenset({block.name})) for block in anatomy.blocks), Shape(widths=half), every):
        found = derived.cut(anatomy.surgery(shape), x)
        assert found is not None, shape
        if shape in (every, Shape(widths=half)):
            wanted = mockup(module, Signature((1, 8, 8), 4), anatomy.surgery(shape), x, 20)
            assert (operators(found), sizes(found)) == (operators(wanted), sizes(wanted))


def test_attention_that_folds_tokens_into_the_batch_is_derived_too():
    module, x = build_net("vit torch")
    anatomy, x = dissect(module, x), x.numpy()
    derived = exported(module, x.shape[1:])
    narrow = Shape(widths={strand.name: strand.channels // 2 for strand in anatomy.strands})
    for shape in (narrow, *(Shape(frozenset({block.name})) for block in anatomy.blocks)):
        assert derived.cut(anatomy.surgery(shape), x) is not None, shape


def test_the_whole_graph_stays_as_it_was():
    derived = exported(tiny_residual().eval())
    before = derived.model.SerializeToString(deterministic=True)
    assert derived.cut([Surgery("rest.1", "identity")], inputs()) is not None
    assert derived.model.SerializeToString(deterministic=True) == before


class Fixed(nn.Module):
    """Says how many channels it has in the middle of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.heads = 8

    def forward(self, x):
        x = self.one(x)
        x = x.reshape(x.shape[0], self.heads, x.shape[1] // self.heads, *x.shape[2:]).mean(2)
        return self.two(x).mean((2, 3))


def test_a_number_of_channels_that_is_a_constant_of_the_graph_is_not_derived():
    cuts = [Surgery("one", "out", (6, 7)), Surgery("two", "in", (6, 7)), Surgery("heads", "count", (6, 7))]
    assert exported(Fixed().eval()).cut(cuts, inputs()) is None


def test_a_graph_that_answers_otherwise_is_not_believed():
    derived = exported(tiny_residual().eval())
    wrong = {**derived.ends, "rest.1": derived.ends["rest.0"]}
    other = Derived(derived.module, derived.model, derived.shadow, derived.places, wrong)
    assert other.cut([Surgery("rest.1", "identity")], inputs()) is None
