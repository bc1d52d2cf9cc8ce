"""Dynamic quantization of a small attention block that torch exported."""

import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from stages import graph
from stages.base import Candidate, Origin, Signature
from stages.data import Preprocessing, Split, Splits
from stages.export import to_onnx, trace
from stages.int8 import dynamic
from stages.int8.bench import Bench
from stages.settings import QuantizeConfig
from stages.testing import context
from stages.vendors import ort_quantizer
from targets.errors import StageError
from targets.target import Int8Rules, Target

ROOT = Path(__file__).parents[3]
TOKENS, WIDTH, CLASSES = 12, 32, 5


class Block(nn.Module):
    """Self-attention with two heads and an MLP, both with a residual, on (batch, tokens, width); pooled to logits."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        q, k, v = (
            part.reshape(-1, TOKENS, 2, WIDTH // 2).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        seen = F.softmax(q @ k.transpose(-1, -2) / (WIDTH // 2) ** 0.5, -1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    signature = Signature((TOKENS, WIDTH), CLASSES)
    program = trace(Block().eval(), np.zeros((2, TOKENS, WIDTH), np.float32))
    return to_onnx(program, signature, 20)


@pytest.fixture
def bench(block, tmp_path):
    """A bench of the block by some rules."""

    def call(rules=Int8Rules(), exclude=frozenset()):  # noqa: B008  frozen
        random = np.random.default_rng(0)
        raw = random.normal(size=(96, TOKENS, WIDTH)).astype(np.float32)
        split = Split(raw, np.arange(96, dtype=np.int64) % CLASSES, Preprocessing(divide_by=1))
        data = Splits(split, split, split, tuple("abcde"), "")
        path = tmp_path / "model.onnx"
        graph.write(block, path)
        candidate = Candidate("block", Origin("x"), Signature((TOKENS, WIDTH), CLASSES), onnx=path)
        folded = ort_quantizer.fold(block, tmp_path)
        folder = context(tmp_path / f"run{len(list(tmp_path.iterdir()))}", data)
        return Bench(candidate, QuantizeConfig(), folder, rules, folded, ort_quantizer.operators(rules), exclude)

    return call


def convolutional():
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], "conv"),
            helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flat"),
            helper.make_node("MatMul", ["f", "w"], ["y"], "fc"),
        ],
        "n",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4))],
        [
            numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "k"),
            numpy_helper.from_array(np.ones((8, 4), np.float32), "w"),
        ],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_it_suits_transformers_and_no_convolutional_networks(bench):
    folded = bench().folded
    assert dynamic.suits(folded)
    assert dynamic.suits(folded, Target(name="cpu"))
    elsewhere = Target(name="gpu", runtime={"provider": "TensorrtExecutionProvider"})
    assert not dynamic.suits(folded, elsewhere)
    assert not dynamic.suits(convolutional())


def test_weights_are_int8_in_the_file_and_the_numbers_hold(bench, tmp_path):
    b = bench()
    made = dynamic.make(b)
    kinds = Counter(node.op_type for node in made.graph.node)
    assert dynamic.layers(made) == kinds["MatMulInteger"] == 5
    assert kinds["MatMul"] == 2  # activations with each other
    assert kinds["Gemm"] == 0
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert not [name for name, value in values.items() if value.dtype == np.float32 and value.ndim > 1]
    assert sum(value.size for value in values.values() if value.dtype == np.int8) > 12 * WIDTH**2
    assert len(made.SerializeToString()) < 0.45 * len(b.folded.SerializeToString())
    ours, theirs = b.logits(made), b.logits(b.folded)
    noise = np.square(ours - theirs).sum() / np.square(theirs).sum()
    assert 10 * np.log10(1 / noise) > 30
    assert graph.int8_form(made) == "DynamicQuantizeLinear"
    assert not made.metadata_props
    assert [opset.domain for opset in made.opset_import] == [""]


def test_it_follows_the_rules_for_weights(bench):
    for rules, most, sizes in (
        (Int8Rules(), 127, {CLASSES, WIDTH, 3 * WIDTH, 4 * WIDTH}),
        (Int8Rules(reduce_range=True, per_channel=False), 64, {1}),
    ):
        values = {t.name: numpy_helper.to_array(t) for t in dynamic.make(bench(rules)).graph.initializer}
        weights = [value for value in values.values() if value.dtype == np.int8 and value.ndim == 2]
        assert {int(abs(weight.astype(int)).max()) for weight in weights} == {most}
        assert {value.size for name, value in values.items() if name.endswith("_scale")} == sizes


def test_excluded_layers_stay_float(bench):
    names = [node.name for node in bench().folded.graph.node if node.op_type in ("MatMul", "Gemm")]
    for name in (names[0], names[-1]):
        assert dynamic.layers(dynamic.make(bench(exclude=frozenset({name})))) == 4
    with pytest.raises(StageError, match="found no matrix product with a constant weight that is not excluded"):
        dynamic.make(bench(exclude=frozenset(names)))


AGAIN = """
import sys
from pathlib import Path
from stages import graph
from stages.vendors.ort_dynamic import place_dynamic
from targets.target import Int8Rules
made = place_dynamic(graph.read(Path(sys.argv[1])), Int8Rules())
Path(sys.argv[2]).write_bytes(made.SerializeToString(deterministic=True))
assert "torch" not in sys.modules
"""


def test_the_same_bytes_in_other_processes_without_torch(bench, tmp_path):
    source = tmp_path / "folded.onnx"
    graph.write(bench().folded, source)
    digests = {sha256(dynamic.make(bench()).SerializeToString(deterministic=True)).hexdigest()}
    running = {}
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running[out] = subprocess.Popen([sys.executable, "-c", AGAIN, source, out], cwd=ROOT, env=environment, **pipes)
    for out, process in running.items():
        _, complained = process.communicate()
        assert (process.returncode, complained) == (0, "")
        digests.add(sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
