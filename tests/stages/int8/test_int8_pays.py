"""What does not pay in int8 goes back to float: estimates from given times, and the real thing on this machine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from profiled_graphs import answer, convolutions, executed, quantized

from stages import graph
from stages.base import Candidate, Origin, Signature
from stages.int8.bench import Bench
from stages.int8.costs import Costs, Ran, dearest
from stages.int8.pays import fastest, pays, slower_nodes
from stages.settings import QuantizeConfig
from stages.testing import context, tiny_splits
from stages.vendors import ort_quantizer
from targets.measure import race
from targets.target import Int8Rules, Meter, Target, load
from targets.testing import FakeDevice

DATA = tiny_splits(size=28)  # (1, 28, 28) inputs, 4 classes
SAMPLE = DATA.train.inputs(slice(0, 4))
VNNI = "avx512_vnni" in Path("/proc/cpuinfo").read_text() or "avx_vnni" in Path("/proc/cpuinfo").read_text()


def network(*widths):
    """3x3 convolutions "conv0", "conv1", ... of these channels, each with a ReLU; averaged over the plane; "head"."""
    random = np.random.default_rng(0)
    nodes, constants, value, before = [], {}, "input", 1
    for i, width in enumerate(widths):
        constants[f"w{i}"] = random.standard_normal((width, before, 3, 3)) / np.sqrt(4.5 * before)
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        value, before = f"r{i}", width
    constants |= {"w": random.standard_normal((before, 4)), "b": random.standard_normal(4)}
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], "head"),
    ]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "g", [image], [logits], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def bench_of(folder, model, target=None, **more):
    """A bench, and its plain int8 attempt."""
    ctx = context(folder, DATA, target=load("local") if target is None else target)
    path = folder / "model.onnx"
    onnx.save(model, path)
    candidate = Candidate("net", Origin("net"), Signature((1, 28, 28), 4), onnx=path)
    folded, rules = ort_quantizer.fold(model, ctx.scratch), ctx.target.int8
    config = QuantizeConfig(samples=32, batch_size=16)
    bench = Bench(candidate, config, ctx, rules, folded, ort_quantizer.operators(rules), **more)
    return bench, bench.attempt("min-max", bench.setup("onnxruntime", "minmax"))


def ratio(first, second, folder):
    """How many times faster the second graph is, each of many turns by itself."""
    from targets.statistics import paired_ratio

    models = {"first": first, "second": second}
    for name, model in models.items():
        graph.write(model, folder / f"{name}.onnx")
    meter = Meter(samples=600, blocks=15, max_seconds=5, energy_s=0)
    target = load("local").model_copy(update={"meter": meter})
    found = race(target, {name: folder / f"{name}.onnx" for name in models}, SAMPLE).models
    return paired_ratio(found["first"].latency_ms, found["second"].latency_ms, 0.95).value


# ---- the estimate, from given times


@pytest.fixture
def placed():
    """A float graph of three convolutions, and its int8 one."""
    model = onnx.shape_inference.infer_shapes(network(16, 16, 16))
    ranges = ort_quantizer.calibrate(model, lambda: [SAMPLE])
    return model, ort_quantizer.place(model, ranges, Int8Rules(), ort_quantizer.operators(Int8Rules()))


PLANE = "1 16 28 28"


def times(floats, int8, moves=2.0):
    """A device on which the three convolutions take these microseconds; quantizing the image takes `moves`."""

    def conv(kind, number, us, dtype):
        name = f"conv{number}" if kind == "QLinearConv" else f"r{number}"  # as onnxruntime calls them
        return executed(name, kind, [f"{dtype} {PLANE}"], [f"{dtype} {PLANE}"], us=[us] * 20)

    def tail(dtype):
        kinds = ("GlobalAveragePool", "Gemm") if dtype == "float" else ("QLinearGlobalAveragePool", "QGemm")
        return [
            executed(name, kind, [f"{dtype} 1 16"], [f"{dtype} 1 16"], us=[1.0] * 20)
            for name, kind in zip(("pool", "head"), kinds, strict=True)
        ]

    image = [
        executed(
            "input_QuantizeLinear", "QuantizeLinear", ["float 1 1 28 28"], ["uint8 1 1 28 28"], us=[moves / 2] * 20
        ),
        executed("Transpose", "Transpose", ["uint8 1 1 28 28"], ["uint8 1 28 28 1"], us=[moves / 2] * 20),
    ]
    rows = {
        "float": [*(conv("Conv", i, us, "float") for i, us in enumerate(floats)), *tail("float")],
        "int8": [*image, *(conv("QLinearConv", i, us, "uint8") for i, us in enumerate(int8)), *tail("uint8")],
    }
    latencies = {name: [sum(row["us"][0] for row in found) / 1e3] * 400 for name, found in rows.items()}
    return FakeDevice(latencies, operators={name: answer(*found) for name, found in rows.items()})


def test_the_border_of_a_node_is_part_of_its_price(placed):
    """Quantizing the image, 784 numbers, takes 2 us with its copy: a plane of 16 channels takes 16 times that (the copy
    counts as numbers too). The first convolution no longer needs the image quantized."""
    target = Target(name="t")
    (run,) = slower_nodes(*placed, target, SAMPLE, times([5, 50, 50], [30, 20, 20]))
    assert run == ({"conv0"}, pytest.approx(25 + 2 - 16))
    assert slower_nodes(*placed, target, SAMPLE, times([5, 50, 50], [18, 20, 20])) == [], "13 + 2 - 16 is a loss"
    (run,) = slower_nodes(*placed, target, SAMPLE, times([50, 5, 50], [20, 40, 20], moves=1.0))
    assert run == ({"conv1"}, pytest.approx(35 - 2 * 8)), "a border on each side"


def test_neighbours_share_borders(placed):
    """The middle one of three convolutions alone costs more in borders than it saves."""
    assert slower_nodes(*placed, Target(name="t"), SAMPLE, times([50, 5, 50], [20, 18, 20], moves=1.0)) == []
    device = times([50, 5, 5], [20, 18, 18], moves=1.0)
    (run,) = slower_nodes(*placed, Target(name="t"), SAMPLE, device)
    assert run[0] >= {"conv1", "conv2"}
    assert "conv0" not in run[0]
    assert run[1] == pytest.approx(2 * 13 - 8, abs=0.1), "and the pooled plane's border is small"


def test_times_are_scaled_to_latencies_in_turns(placed):
    """The profiler met a busier machine when it ran the float graph."""
    device = times([10, 100, 100], [10, 20, 20], moves=0.0)
    calm = replace(device, latency_ms={**device.latency_ms, "float": [0.0212] * 400})
    assert slower_nodes(*placed, Target(name="t"), SAMPLE, device) == []
    ((names, _),) = slower_nodes(*placed, Target(name="t"), SAMPLE, calm)
    assert {"conv0", "conv1", "conv2"} <= names


def test_what_one_graph_runs_together_is_compared_together(tmp_path):
    """The float graph runs conv, relu and add as one operator, the int8 one conv with relu, and add."""
    float_model = onnx.load(convolutions(tmp_path / "float.onnx"))
    int8_model = onnx.load(quantized(tmp_path / "int8.onnx"))

    def ran(**us):
        return [Ran(name, time, 3136, moves=False, int8=time > 1) for name, time in us.items()]

    for add, expected in ((7.0, [({"conv", "add"}, 5.0)]), (1.5, [])):
        int8 = ran(conv=8.0, add=add, mean=1.0, head=1.0)
        costs = Costs(float_model, int8_model, ran(conv=10.0, mean=1.0, head=1.0), int8, {"conv", "add", "head"})
        assert dearest(costs) == expected


def test_a_runtime_that_tells_no_operators_apart(placed):
    assert slower_nodes(*placed, Target(name="t"), SAMPLE, FakeDevice()) == []


# ---- choices, from given latencies


@pytest.fixture(scope="module")
def stemmed(tmp_path_factory):
    return bench_of(tmp_path_factory.mktemp("stemmed"), network(16, 16, 16))


def chosen(stemmed, *medians, seed=1, noise=0.01):
    """`fastest` among graphs of these median latencies; the first is float."""
    bench, attempt = stemmed
    random = np.random.default_rng(seed)
    names = ["float", *map(str, range(len(medians) - 1))]
    device = FakeDevice({n: list(ms * random.lognormal(0, noise, 400)) for n, ms in zip(names, medians, strict=True)})
    attempts = [replace(attempt, title=f"graph {name}") for name in names[1:]]
    number, notes = fastest(attempts, bench.folded, Target(name="t"), SAMPLE, device)
    return number, " | ".join(notes), device


def test_the_fastest_is_taken_and_ties_go_to_the_first(stemmed):
    assert chosen(stemmed, 2.0, 1.0, 1.01)[:1] == (0,)
    assert chosen(stemmed, 2.0, 1.01, 1.0)[:1] == (0,), "below 2 %"
    number, notes, device = chosen(stemmed, 2.0, 1.2, 1.0, 1.1)
    assert number == 1
    assert "int8 is 2.0" in notes
    assert "graph 1: 1.20 times faster (1.20 to 1.20) than graph 0" in notes
    assert [job["tasks"] for job in device.jobs] == [["latency"]]
    assert device.jobs[0]["meter"]["energy_s"] == 0


def test_slower_than_float_is_not_shipped(stemmed):
    number, notes, _ = chosen(stemmed, 1.0, 1.3, 1.2)
    assert number is None
    assert "int8 does not pay on this network: 0.83 times the float's speed (0.83 to 0.83); the float" in notes
    assert chosen(stemmed, 1.0, 1.3, 0.9)[0] == 1, "one of them pays"
    assert chosen(stemmed, 1.0, 0.99, 1.3)[0] == 0


def test_what_is_undecided_is_measured_for_longer(stemmed):
    number, _, device = chosen(stemmed, 1.0, 1.0, noise=0.3)
    samples = [job["meter"]["samples"] for job in device.jobs]
    assert number == 0
    assert len(samples) > 2
    assert samples == [400 * 2**i for i in range(len(samples))]


def test_a_device_that_is_not_the_target_decides_nothing(stemmed):
    bench, attempt = stemmed
    device = FakeDevice(facts={"machine": "aarch64"})
    target = Target(name="server", machine="x86_64")
    number, notes = fastest([attempt], bench.folded, target, SAMPLE, device)
    assert (number, device.jobs) == (0, [])
    assert notes == ["whether int8 pays was not measured: server is x86_64 hardware, and this is aarch64"]
    elsewhere = replace(bench, context=replace(bench.context, target=target))
    assert pays(elsewhere, attempt, device) == (attempt, notes)
    assert device.jobs == []
    assert pays(replace(bench, context=replace(bench.context, target=None)), attempt, device) == (attempt, [])


def test_no_trial_without_time(stemmed):
    bench, attempt = stemmed
    device = FakeDevice({"float": [2.0] * 400})
    best, notes = pays(replace(bench, seconds_left=lambda: -1.0), attempt, device)
    assert best is attempt
    assert notes[0] == "no time was left to look for operators that do not pay in int8"
    assert notes[1].startswith("int8 is 2.00 times faster")
    assert [list(job["models"]) for job in device.jobs] == [["float", "0"]]


class Slowed(FakeDevice):
    """Three convolutions of which the first does not pay: a run takes 1 ms, and `trial` when that one is float."""

    def __init__(self, trial):
        given = times([5, 50, 50], [60, 20, 20], moves=1.0)
        super().__init__({**given.latency_ms, "0": [0.05] * 400, "trial": [trial] * 400}, operators=given.operators)


def test_a_trial_must_be_faster_beyond_the_margin_in_two_processes(stemmed):
    bench, attempt = stemmed
    for trial, floats in ((0.95, {"conv0"}), (0.995, set()), (1.1, set())):
        device = Slowed(trial)
        best, notes = pays(bench, attempt, device)
        assert best.setup.exclude == floats, trial
        races = [list(job["models"]) for job in device.jobs]
        assert races[0] == ["float", "int8"]
        assert races[1:] == [["best", "trial"]] * (2 if floats else 1) + [["float", "0"]]
        assert ("conv0 stays float: 1.05 times faster (1.05 to 1.05) so" in notes) == bool(floats)


def test_a_trial_that_loses_accuracy_is_not_taken(stemmed, monkeypatch):
    bench, attempt = stemmed
    said = []
    bench = replace(bench, context=replace(bench.context, say=said.append))
    worse = replace(attempt.score, accuracy=attempt.score.accuracy - 0.1, drop_points=10.0, drop_high=12.0)
    monkeypatch.setattr(bench, "attempt", lambda title, setup: replace(attempt, title=title, setup=setup, score=worse))
    best, notes = pays(bench, attempt, Slowed(0.9))
    assert best is attempt
    assert not any("stays float" in note for note in notes)
    assert "min-max, conv0 stays float: 1.11 times faster (1.11 to 1.11), but accuracy does not hold" in said


# ---- the real thing


@pytest.mark.slow
@pytest.mark.skipif(not VNNI, reason="where int8 pays elsewhere is not known")
def test_a_stem_of_one_channel_goes_back_to_float(tmp_path):
    bench, attempt = bench_of(tmp_path, network(16, 16, 16, 16))
    best, notes = pays(bench, attempt)
    assert "conv0" in best.setup.exclude
    assert not {"conv2", "conv3"} & best.setup.exclude
    assert any(note.startswith("conv0") and "float: 1." in note for note in notes)
    assert notes[-1].startswith("int8 is ")
    assert best.score.accuracy >= attempt.score.accuracy
    assert ratio(attempt.int8, best.int8, tmp_path) > 1.03, notes
    makers = {value: node.op_type for node in best.int8.graph.node for value in node.output}
    inputs = {node.name: makers.get(node.input[0]) for node in best.int8.graph.node if node.op_type == "Conv"}
    assert inputs == {"conv0": None, **dict.fromkeys(("conv1", "conv2", "conv3"), "DequantizeLinear")}


@pytest.mark.slow
def test_the_float_network_is_kept_where_int8_never_pays(tmp_path):
    """Convolutions of two channels: int8 kernels work on vectors of 16."""
    bench, attempt = bench_of(tmp_path, network(2, 2, 2))
    best, notes = pays(bench, attempt)
    assert best is None
    assert notes[-1].startswith("int8 does not pay on this network: 0.")


def test_of_two_real_graphs_the_faster_is_taken(tmp_path):
    """The second has all its wide convolutions in float."""
    bench, attempt = bench_of(tmp_path, network(16, 32, 32))
    slow = bench.attempt("slow", replace(attempt.setup, exclude=frozenset({"conv1", "conv2"})))
    number, notes = fastest([slow, attempt], bench.folded, bench.context.target, SAMPLE)
    assert number == 1, notes
    assert notes[1].startswith("min-max: ")
