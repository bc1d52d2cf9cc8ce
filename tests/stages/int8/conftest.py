from dataclasses import dataclass

import pytest

from stages import graph, testing
from stages.base import Candidate, Context, Origin, Signature
from stages.export import export
from stages.int8.bench import Bench
from stages.settings import ExportConfig, QuantizeConfig
from stages.testing import context, tiny_splits, tiny_teacher
from stages.vendors import ort_quantizer
from targets.target import Int8Rules

NETS = {
    # name: (network, epochs, what breaks it, how much)
    "heavy_tailed": ("tiny_cnn", 4, testing.heavy_tailed, 300.0),
    "unbalanced": ("tiny_mobile", 12, testing.unbalanced, 30.0),
    "unbalanced a little": ("tiny_mobile", 12, testing.unbalanced, 10.0),
    "lopsided": ("tiny_residual", 4, testing.lopsided, 300.0),
    "outlier_features": ("tiny_tokens", 7, testing.outlier_features, 300.0),
}


@dataclass
class Nets:
    folder: object
    data: object

    def __post_init__(self):
        self.teachers, self.exported = {}, {}

    def candidate(self, name):
        """A network that int8 by min-max breaks, exported; made once."""
        source, epochs, change, amount = NETS[name]
        if source not in self.teachers:
            self.teachers[source] = tiny_teacher(self.folder / source, self.data, f"stages.testing:{source}", epochs)
        if name not in self.exported:
            changed = change(self.teachers[source], self.folder / name, self.data, amount)
            self.exported[name] = export(changed, ExportConfig(), context(self.folder / name / "onnx", self.data))
        return self.exported[name]


@pytest.fixture(scope="session")
def broken(tmp_path_factory):
    return Nets(tmp_path_factory.mktemp("broken"), tiny_splits(train=400, other=400))


@pytest.fixture
def bench(broken, tmp_path):
    """A bench for a network by its name in NETS, or for a graph on 8x8 images (one channel, four classes)."""

    def make(net, rules=None, **config):
        if isinstance(net, str):
            candidate = broken.candidate(net)
            model = graph.read(candidate.onnx)
        else:
            candidate, model = Candidate("made", Origin("made.onnx"), Signature((1, 8, 8), 4)), net
        rules = rules or Int8Rules()
        folded = ort_quantizer.fold(model, tmp_path)
        ctx = Context(broken.data, tmp_path, tmp_path)
        return Bench(candidate, QuantizeConfig(**config), ctx, rules, folded, ort_quantizer.operators(rules))

    return make


@pytest.fixture
def climbed():
    """All that a rung tries, made and scored, by title."""

    def run(bench, rung, best):
        return {step.title: bench.attempt(step.title, step.make()) for step in rung(bench, best)}

    return run


@pytest.fixture
def made():
    """A float graph from (operator, inputs, output, attributes) and constants, by onnx's helpers."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    def build(nodes, **constants):
        graph_nodes = [
            helper.make_node(op, inputs.split(), [out], name=out, **attributes) for op, inputs, out, attributes in nodes
        ]
        tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
        drawn = helper.make_graph(graph_nodes, "made", [given], [logits], tensors)
        model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return shape_inference.infer_shapes(model)

    return build
