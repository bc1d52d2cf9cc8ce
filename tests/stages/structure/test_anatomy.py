"""Blocks and channels at once: a network without half of all that may go answers, exports, and answers alike."""

import numpy as np
import onnxruntime
import pytest
import torch
from nets import CLASSES, NETS, build

from stages.base import Signature
from stages.export import to_onnx, trace
from stages.structure.anatomy import Shape, dissect
from stages.structure.costs import levels
from stages.structure.surgery import operate
from stages.structure.trial import fault

EXPORTED = ["resnet", "mobile", "dense"]


def shapes(anatomy):
    """Every second block and all strands at their narrowest; then all blocks too."""
    narrow = {strand.name: found[0] for strand in anatomy.strands if (found := levels(strand))}
    half = frozenset(block.name for block in anatomy.blocks[::2])
    return Shape(half, narrow), Shape(frozenset(block.name for block in anatomy.blocks), narrow)


@pytest.mark.parametrize("name", NETS)
def test_half_of_it_and_all_of_it_may_go(name):
    module, inputs = build(name)
    anatomy = dissect(module, inputs)
    assert anatomy.blocks
    assert anatomy.strands
    for shape in shapes(anatomy):
        surgery = anatomy.surgery(shape)
        assert fault(module, surgery, inputs) == ""
        cut = operate(build(name)[0], surgery)
        assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "name", [*EXPORTED, *(pytest.param(name, marks=pytest.mark.slow) for name in NETS if name not in EXPORTED)]
)
def test_what_is_left_exports_and_answers_as_torch_does(name):
    module, inputs = build(name)
    anatomy = dissect(module, inputs)
    cut = operate(module, anatomy.surgery(shapes(anatomy)[0]))
    model = to_onnx(trace(cut, inputs[:2].numpy()), Signature(tuple(inputs.shape[1:]), CLASSES), 20)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": inputs.numpy()})[0], cut(inputs), atol=1e-4)


def test_what_is_excluded_stays_whole():
    module, inputs = build("resnet")
    anatomy = dissect(module, inputs, exclude=["stages.1.*"])
    assert not [block.name for block in anatomy.blocks if block.name.startswith("stages.1")]
    members = {member.module for strand in anatomy.strands for member in strand.group.members}
    assert not [name for name in members if name.startswith("stages.1")]
