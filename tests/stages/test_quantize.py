"""int8 files against their float originals: numbers, rules, bytes, and what is refused."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import graph
from stages.base import Candidate, Origin, Signature
from stages.quantize import quantize
from stages.settings import QuantizeConfig
from stages.testing import context, tiny_splits
from stages.vendors import ort_quantizer
from targets.errors import InputError, StageError
from targets.target import Int8Rules, Target

ROOT = Path(__file__).parents[2]
TINY = tiny_splits()  # (1, 8, 8) inputs, 4 classes


@pytest.fixture
def run(exported, digits, tmp_path):
    """Quantizes one of the networks that know digits.

    Gives the candidate and its graph.
    """

    def call(name, rules=None, data=digits, **config):
        target = None if rules is None else Target(name="t", int8=rules)
        settings = QuantizeConfig(**{"pays": False, **config})  # what is placed, whether or not it is faster here
        made = quantize(exported[name], settings, context(tmp_path / "q", data, target=target))
        return made, onnx.load(made.onnx)

    return call


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def activation_types(model):
    values = constants(model)
    return {values[node.input[2]].dtype.name for node in model.graph.node if node.op_type == "QuantizeLinear"}


def weight_scales(model):
    """Weight name -> its scales."""
    values = constants(model)
    return {
        name.removesuffix("_quantized"): values[name.removesuffix("_quantized") + "_scale"]
        for name, value in values.items()
        if value.dtype == np.int8 and value.ndim > 1
    }


@pytest.mark.parametrize(("name", "share"), [("seed_cnn", 0.27), ("projection", 0.35), ("padded", 0.35)])
def test_int8_is_smaller_and_agrees(run, exported, digits, name, share):
    made, _ = run(name)
    step = made.steps[-1]
    assert made.onnx.stat().st_size < share * exported[name].onnx.stat().st_size
    assert step.changed
    assert step.metrics["agreement"] > 0.95
    assert step.metrics["signal_to_noise_db"] > 22
    assert step.metrics["size_mb"] == made.onnx.stat().st_size / 1e6
    assert step.metrics["nodes_int8"] >= 9
    images = digits.test.inputs(slice(0, 300))
    before, after = (graph.predict(graph.session(path), images) for path in (exported[name].onnx, made.onnx))
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.93
    assert sorted(p.name for p in made.onnx.parent.iterdir()) == ["model.onnx", made.weights.name]


def test_weights_are_int8_and_biases_int32_in_the_file(run):
    _, model = run("projection", samples=64)
    kinds = Counter()
    makers = {name: node for node in model.graph.node for name in node.output}
    values = constants(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert node.input[0] not in values, "a float weight behind a Q"
        if node.op_type in ("Conv", "Gemm"):
            kinds[
                values[makers[node.input[1]].input[0]].dtype.name, values[makers[node.input[2]].input[0]].dtype.name
            ] += 1
    assert kinds == {("int8", "int32"): 10}
    floats = {name for name, value in values.items() if value.dtype == np.float32}
    assert all(name.endswith("_scale") for name in floats)
    assert activation_types(model) == {"uint8"}


def test_the_file_is_clean_and_no_newer_than_before(run, exported, tmp_path):
    _, model = run("padded", samples=64)
    before = onnx.load(exported["padded"].onnx)
    assert (graph.opset_of(model), model.ir_version) == (graph.opset_of(before), before.ir_version)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not model.metadata_props
    assert [path.name for path in (tmp_path / "q" / "scratch").iterdir()] == ["ladder"]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_signs_follow_the_target(run, activations, symmetric):
    made, model = run("projection", Int8Rules(activations=activations, symmetric_activations=symmetric), samples=64)
    assert activation_types(model) == {activations}
    assert made.steps[-1].metrics["agreement"] > 0.9
    zeros = {int(value) for name, value in constants(model).items() if name.endswith("_zero_point") and not value.ndim}
    middle = {"uint8": 128, "int8": 0}[activations]
    assert (zeros - {0} <= {middle}) == symmetric


def test_per_channel_and_per_tensor(run, tmp_path):
    _, model = run("projection", samples=64)
    assert {scale.size for scale in weight_scales(model).values()} == {16, 32, 64, 10}


def test_one_scale_per_tensor(run):
    _, model = run("projection", Int8Rules(per_channel=False), samples=64)
    assert {scale.size for scale in weight_scales(model).values()} == {1}


def test_reduced_range_keeps_weights_within_seven_bits(run):
    _, model = run("projection", Int8Rules(reduce_range=True), samples=64)
    weights = [value for value in constants(model).values() if value.dtype == np.int8 and value.ndim > 1]
    assert len(weights) == 10
    assert {int(abs(weight.astype(int)).max()) for weight in weights} == {64}


def test_only_the_operators_that_the_target_wants(run):
    made, _ = run("projection", Int8Rules(op_types=("Gemm",)), samples=64)
    assert made.steps[-1].metrics["nodes_int8"] == 1
    assert "stayed float: 3 Add, 9 Conv, 1 ReduceMean, 7 Relu, 1 Reshape" in made.steps[-1].notes


def test_an_operator_that_cannot_be_quantized(run):
    says = (
        r"int8\.op_types: 'ConvTransposed' is no operator that can be quantized\n   help: did you mean 'ConvTranspose'"
    )
    with pytest.raises(InputError, match=says):
        run("projection", Int8Rules(op_types=("ConvTransposed", "Gemm")))


def test_excluded_nodes_stay_float(run):
    made, model = run("projection", exclude=("stem.*", "head"), samples=64)
    assert {"stem.0.weight", "head.weight"} <= constants(model).keys()
    assert "stayed float: 1 Conv, 1 Gemm, 1 ReduceMean, 1 Relu, 1 Reshape" in made.steps[-1].notes


def test_patterns_that_match_nothing(run):
    with pytest.raises(InputError) as caught:
        run("projection", exclude=("stages.1.0.conv3", "head", "Foo*"))
    first, second = caught.value.faults
    assert str(first).startswith(
        "exclude: pattern 'stages.1.0.conv3' matches no node of the graph\n   help: did you mean"
    )
    assert "'stages.1.0.conv1'" in first.help
    assert second.what == "pattern 'Foo*' matches no node of the graph"


def test_nothing_to_quantize_is_news(run, exported):
    made, _ = run("projection", exclude=("*",), samples=64)
    step = made.steps[-1]
    assert not step.changed
    assert "nothing was quantized: no node is left that can be, by the target's op_types and exclude" in step.notes
    assert made.onnx.read_bytes() == exported["projection"].onnx.read_bytes()
    assert (step.metrics["nodes_int8"], step.metrics["agreement"]) == (0, 1.0)


def test_int8_is_not_quantized_again(run, digits, tmp_path):
    made, _ = run("projection", samples=64)
    with pytest.raises(StageError, match="teacher is quantized already: its graph holds DequantizeLinear"):
        quantize(made, QuantizeConfig(), context(tmp_path / "again", digits))


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_other_calibrations_clip_a_little_and_still_agree(run, exported, digits, tmp_path, calibration):
    made, model = run("projection", calibration=calibration, percentile=99.9, samples=96)
    wide = quantize(exported["projection"], QuantizeConfig(samples=96), context(tmp_path / "wide", digits))
    ours, theirs = constants(model), constants(onnx.load(wide.onnx))
    scales = [n for n in ours if n.endswith("_scale") and ours[n].ndim == 0]
    shares = [float(ours[name] / theirs[name]) for name in scales]
    assert max(shares) <= 1.0001
    assert min(shares) < 0.99
    assert made.steps[-1].metrics["agreement"] > 0.93


def outlier_ranges(method, batches, **more):
    """Ranges of one value that is the input, doubled."""
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 1000))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 1000))],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort_quantizer.calibrate(model, lambda: iter(batches), method, **more)


def test_ranges_are_what_they_are_called():
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 1000)).astype(np.float32)
    x[3, 5] = 500.0
    batches = [x[:32], x[32:]]
    assert outlier_ranges("minmax", batches) == {
        "x": (pytest.approx(x.min()), 500.0),
        "y": (pytest.approx(2 * x.min()), 1000.0),
    }
    low, high = outlier_ranges("percentile", batches, percentile=99.0)["x"]
    assert low == pytest.approx(np.percentile(x, 0.5), abs=0.6)  # a bin is 1000 / 2048 wide
    assert high == pytest.approx(np.percentile(x, 99.5), abs=0.6)
    assert outlier_ranges("entropy", batches)["x"][1] < 260  # the outlier is given up
    calm = x.clip(-1, 1)
    assert outlier_ranges("entropy", [calm])["x"] == (-1.0, 1.0)


def test_the_order_of_batches_does_not_matter():
    random = np.random.default_rng(1)
    small = random.normal(size=(8, 1000)).astype(np.float32) * 1e-6
    large = random.normal(size=(8, 1000)).astype(np.float32)
    for method in ("minmax", "percentile", "entropy"):
        assert outlier_ranges(method, [small, large]) == outlier_ranges(method, [large, small])


def test_calibration_data_with_a_nan(run, digits):
    raw = digits.train.raw.copy()
    raw[40, 3, 3, 0] = np.nan
    with pytest.raises(StageError, match="value 'input' holds NaN or infinite numbers on calibration data"):
        run("projection", data=replace(digits, train=replace(digits.train, raw=raw)))


def handmade(tmp_path, nodes, weights=(), opset=17):
    """A candidate of a graph by hand, (1, 8, 8) to 4 logits, that has no torch twin."""
    body = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 1, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = tmp_path / "handmade.onnx"
    path.write_bytes(model.SerializeToString())
    return Candidate("mine", Origin(str(path)), Signature((1, 8, 8), 4, "x", "y"), onnx=path)


RANDOM = np.random.default_rng(0)
HEAD = {"w": RANDOM.normal(size=(64, 4)).astype(np.float32), "b": np.zeros(4, np.float32)}


def test_a_nan_inside_the_network_is_named(tmp_path):
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Sqrt", ["flat"], ["root"]),
        helper.make_node("Relu", ["root"], ["positive"]),
        helper.make_node("Gemm", ["positive", "w", "b"], ["y"], "head"),
    ]
    with pytest.raises(StageError, match="value 'root' holds NaN or infinite numbers"):
        quantize(handmade(tmp_path, nodes, HEAD), QuantizeConfig(), context(tmp_path / "q", TINY))


def test_a_users_graph_is_folded_first(tmp_path):
    """Batch norms go into convolutions, MatMul and Add become one; an excluded node is still excluded afterwards."""
    channels = np.ones(3, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w3"], ["m"], "fc"),
        helper.make_node("Add", ["m", "b"], ["y"], "bias"),
    ]
    weights = {
        "k": RANDOM.normal(size=(3, 1, 3, 3)).astype(np.float32),
        "w3": RANDOM.normal(size=(3, 4)).astype(np.float32),
        "b": np.ones(4, np.float32),
        "scale": channels * 2,
        "shift": channels,
        "mean": channels * 0.5,
        "var": channels * 3,
    }
    candidate = handmade(tmp_path, nodes, weights)
    made = quantize(candidate, QuantizeConfig(samples=32), context(tmp_path / "q", TINY))
    operators = Counter(node.op_type for node in onnx.load(made.onnx).graph.node)
    assert operators["BatchNormalization"] == operators["MatMul"] == operators["Relu"] == 0
    assert (operators["Conv"], operators["Gemm"]) == (1, 1)
    assert made.steps[-1].metrics["nodes_float"] == 0
    assert made.steps[-1].metrics["agreement"] > 0.9
    assert made.weights is None
    part = quantize(candidate, QuantizeConfig(samples=32, exclude=("fc",)), context(tmp_path / "part", TINY))
    assert "stayed float: 1 Gemm" in part.steps[-1].notes


def test_an_old_graph(tmp_path):
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"], "head")]
    candidate = handmade(tmp_path, nodes, HEAD, opset=12)
    with pytest.raises(StageError, match="mine uses opset 12; int8 needs at least 13: export it anew"):
        quantize(candidate, QuantizeConfig(), context(tmp_path / "q", TINY))


def test_data_of_another_shape(run):
    says = r"inputs of shape \(1, 8, 8\) and teacher takes \(3, 32, 32\)\n   help: set data\.image_size"
    with pytest.raises(InputError, match=says):
        run("seed_cnn", data=TINY)


@pytest.mark.parametrize(
    ("split", "says"),
    [("train", "no training examples to calibrate with"), ("validation", "validation examples, and there are none")],
)
def test_no_examples(run, digits, split, says):
    full = getattr(digits, split)
    none = replace(full, raw=full.raw[:0], labels=full.labels[:0])
    with pytest.raises(StageError, match=says):
        run("seed_cnn", data=replace(digits, **{split: none}), samples=32)


def test_a_torch_network_is_sent_to_export(exported, digits, tmp_path):
    with pytest.raises(StageError, match="quantize takes an exported network, and teacher is a torch one: export it"):
        quantize(replace(exported["seed_cnn"], onnx=None), QuantizeConfig(), context(tmp_path, digits))


def test_without_a_torch_twin_neural_compressor_cannot_work(exported, digits, tmp_path):
    says = "engine neural_compressor works on the torch network, and teacher has none .*: choose engine onnxruntime"
    with pytest.raises(StageError, match=says):
        quantize(
            replace(exported["seed_cnn"], weights=None),
            QuantizeConfig(engine="neural_compressor"),
            context(tmp_path, digits),
        )


def test_nothing_is_printed(run, capfd):
    run("projection", calibration="percentile", samples=64)
    assert capfd.readouterr() == ("", "")


WITHOUT_TORCH = """
import hashlib, resource, sys
from pathlib import Path
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchao", "neural_compressor", "sklearn"):
            raise ImportError(name + " is refused")
sys.meta_path.insert(0, Refuse())
import numpy as np
from stages.base import Candidate, Context, Origin, Signature
from stages.data import Preprocessing, Split, Splits
from stages.quantize import quantize
from stages.settings import QuantizeConfig
def split(n):
    raw = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    return Split(raw, np.zeros(n, np.int64), Preprocessing())
data = Splits(split(512), split(32), split(1), tuple("0123456789"), "")
candidate = Candidate("c", Origin("x"), Signature((3, 32, 32), 10), onnx=Path("../model.onnx"))
for folder, samples in (("few", 64), ("many", 512)):
    Path(folder).mkdir()
    config = QuantizeConfig(samples=samples, calibration="percentile")
    made = quantize(candidate, config, Context(data, Path(folder), Path("scratch")))
    digest = hashlib.sha256(made.onnx.read_bytes()).hexdigest()
    print(made.steps[-1].metrics["nodes_int8"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, digest)
"""


def test_onnxruntimes_engine_needs_no_torch_streams_and_repeats(exported, tmp_path):
    """One batch of 32 makes 40 MB of values in this network; all 16 batches would take 640 MB."""
    (tmp_path / "model.onnx").write_bytes(exported["seed_cnn"].onnx.read_bytes())
    running, lines = [], []
    for seed in ("1", "2"):
        folder = tmp_path / f"in folder {seed}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([sys.executable, "-c", WITHOUT_TORCH], cwd=folder, env=environment, **pipes))
    for process in running:
        told, complained = process.communicate()
        assert complained == ""
        lines.append([line.split() for line in told.splitlines()])
    for few, many in lines:
        assert few[0] == many[0] == "9"
        assert int(many[1]) - int(few[1]) < 80
    assert [line[2] for line in lines[0]] == [line[2] for line in lines[1]]


AGAIN = """
import sys
from pathlib import Path
from stages.base import Candidate
from stages.quantize import quantize
from stages.settings import QuantizeConfig
from stages.testing import context, tiny_splits
data = tiny_splits(size=32, channels=3, classes=10)
config = QuantizeConfig(engine="neural_compressor", samples=64)
quantize(Candidate.load(Path(sys.argv[1])), config, context(Path.cwd() / "int8", data))
"""


@pytest.mark.slow
def test_neural_compressors_engine_repeats_in_another_process(exported, tmp_path):
    exported["projection"].save(exported["projection"].onnx.parent)
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / f"in folder {seed}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", AGAIN, exported["projection"].onnx.parent]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("", "")
        digests.add(sha256((folder / "int8" / "out" / "model.onnx").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.skipif("avx512_vnni" not in Path("/proc/cpuinfo").read_text(), reason="int8 pays where VNNI is")
@pytest.mark.parametrize("engine", ["onnxruntime", "neural_compressor"])
@pytest.mark.parametrize("name", ["seed_cnn", "projection"])
def test_int8_is_faster_than_float(run, exported, digits, name, engine):
    """Medians of turns, one thread, batch 1."""
    from time import perf_counter

    made, _ = run(name, engine=engine)
    sessions = [graph.session(path) for path in (exported[name].onnx, made.onnx)]
    x = digits.test.inputs(slice(0, 1))
    times = [[], []]
    for _ in range(300):
        for session, taken in zip(sessions, times, strict=True):
            for _ in range(3):
                start = perf_counter()
                session.run(None, {"input": x})
            taken.append(perf_counter() - start)
    assert np.median(times[0]) > 1.3 * np.median(times[1])


def test_a_bias_that_gemm_scales_stays_scaled(tmp_path):
    """onnxruntime's quantizer drops beta and leaves the bias."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], beta=0.25),
    ]
    weights = {"w": HEAD["w"], "b": np.array([40, -40, 20, 0], np.float32)}
    candidate = handmade(tmp_path, nodes, weights)
    made = quantize(candidate, QuantizeConfig(samples=64, pays=False), context(tmp_path / "q", TINY))
    images = TINY.validation.inputs(slice(0, 32))
    before, after = (graph.predict(graph.session(path), images) for path in (candidate.onnx, made.onnx))
    assert made.steps[-1].metrics["nodes_int8"] == 1
    assert np.abs(before - after).max() < 0.03 * np.abs(before).max()
    node = next(n for n in onnx.load(made.onnx).graph.node if n.op_type == "Gemm")
    assert all(a.f == 1 for a in node.attribute if a.name == "beta")
    assert node.name, "a node without a name could not be excluded"
