"""Equalization and SmoothQuant: the float network stays the same, the int8 one comes back."""

import numpy as np
import pytest

from stages import graph
from stages.int8.constants import Constants
from stages.int8.equalize import cross_layer, equalized, smooth_quant, smoothed
from stages.int8.seams import Reader, seams
from targets.target import Int8Rules

PER_TENSOR = Int8Rules(per_channel=False)
PADS = {"pads": [1, 1, 1, 1]}


def difference(bench, one, other):
    """Largest difference of logits, as a share of the largest."""
    first, second = bench.logits(one), bench.logits(other)
    return np.abs(first - second).max() / np.abs(first).max()


def weight(*shape, seed=0):
    """Random weights whose channels differ a lot."""
    random = np.random.default_rng(seed)
    return (random.normal(0, 0.3, shape) * random.uniform(0.01, 3, (shape[0], *[1] * (len(shape) - 1)))).astype("f4")


@pytest.mark.parametrize("per_channel", [False, True])
def test_equalization_saves_a_depthwise_network(bench, climbed, per_channel):
    b = bench("unbalanced", Int8Rules(per_channel=per_channel))
    best = b.attempt("min-max", b.setup("onnxruntime", "minmax"))
    found = climbed(b, cross_layer, best)["cross-layer equalization"]
    assert b.float_score.accuracy - best.score.accuracy > 0.3
    assert b.float_score.accuracy - found.score.accuracy < 0.01
    assert found.score.signal_to_noise_db > 25
    assert found.setup.notes == ("cross-layer equalization: 3 values rescaled; others stand 1 behind the input",)
    assert difference(b, b.folded, found.setup.model) < 1e-5
    constants = Constants(found.setup.model)
    for seam in seams(constants)[0]:
        assert np.allclose(seam.written(constants), seam.read(constants), rtol=0.05)


def test_smooth_quant_saves_a_transformer_block(bench, climbed):
    """A layer norm has no weights to equalize with; its outliers move into the matrix that reads it."""
    b = bench("outlier_features")
    best = b.attempt("min-max", b.setup("onnxruntime", "minmax"))
    assert list(cross_layer(b, best)) == []
    found = climbed(b, smooth_quant, best)
    assert list(found) == ["SmoothQuant alpha 0.5", "SmoothQuant alpha 0.75"]
    assert b.float_score.accuracy - best.score.accuracy > 0.4
    for attempt in found.values():
        assert b.float_score.accuracy - attempt.score.accuracy < 0.01
        assert attempt.score.signal_to_noise_db > 25
        assert difference(b, b.folded, attempt.setup.model) < 1e-5
    assert found["SmoothQuant alpha 0.5"].setup.notes == (
        "SmoothQuant alpha 0.5: 1 values rescaled; others stand 1 behind Gelu, 1 behind ReduceMax, 1 behind the input",
    )


@pytest.mark.parametrize("name", ["heavy_tailed", "unbalanced", "lopsided"])
@pytest.mark.parametrize("how", [equalized, lambda b, setup: smoothed(b, setup, 0.5)], ids=["equalized", "smoothed"])
def test_the_float_network_computes_the_same(bench, name, how):
    b = bench(name)
    setup = b.setup("onnxruntime", "minmax")
    before = setup.model.SerializeToString(deterministic=True)
    after = how(b, setup)
    assert setup.model.SerializeToString(deterministic=True) == before
    assert after.model.SerializeToString(deterministic=True) != before
    assert difference(b, setup.model, after.model) < 1e-5


THROUGH = {
    "groups": [
        ("Conv", "input w1 b1", "one", PADS),
        ("PRelu", "one slope", "act", {}),
        ("Conv", "act grouped", "two", {**PADS, "group": 2}),
        ("LeakyRelu", "two", "act2", {"alpha": 0.1}),
        ("Conv", "act2 w3", "three", {}),
        ("GlobalAveragePool", "three", "pool", {}),
        ("Flatten", "pool", "flat", {}),
        ("Gemm", "flat head", "logits", {}),
    ],
    "positions": [
        ("Conv", "input w1 b1", "one", PADS),
        ("AveragePool", "one", "pool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Relu", "pool", "act", {}),
        ("Flatten", "act", "flat", {}),
        ("Gemm", "flat wide b4", "hidden", {"transB": 1}),
        ("Relu", "hidden", "act2", {}),
        ("Gemm", "act2 head", "logits", {}),
    ],
    "two readers": [
        ("Conv", "input w1 b1", "one", PADS),
        ("Relu", "one", "act", {}),
        ("Conv", "act w3", "left", {}),
        ("Conv", "act w3", "right", {}),
        ("Add", "left right", "sum", {}),
        ("ReduceMean", "sum axes", "mean", {"keepdims": 0}),
        ("Gemm", "mean head", "logits", {}),
    ],
}
CONSTANTS = {
    "w1": weight(6, 1, 3, 3),
    "b1": weight(6),
    "slope": weight(6, 1, 1),
    "grouped": weight(6, 3, 3, 3),
    "w3": weight(6, 6, 1, 1),
    "wide": weight(6, 96),
    "b4": weight(1, 6),
    "head": weight(6, 4),
    "axes": np.array([2, 3]),
}


@pytest.mark.parametrize(("name", "count"), [("groups", 3), ("positions", 2), ("two readers", 1)])
def test_factors_pass_through(bench, made, name, count):
    read = {value for _, inputs, _, _ in THROUGH[name] for value in inputs.split()}
    b = bench(made(THROUGH[name], **{key: value for key, value in CONSTANTS.items() if key in read}))
    assert len(seams(Constants(b.folded))[0]) == count
    setup = b.setup("onnxruntime", "minmax")
    for after in (equalized(b, setup), smoothed(b, setup, 0.75)):
        assert after.model.graph != setup.model.graph
        assert difference(b, setup.model, after.model) < 1e-5


@pytest.mark.parametrize(
    ("act", "why"), [("Clip", "Clip"), ("Sigmoid", "Sigmoid"), ("HardSwish", "Mul"), ("Softmax", "Softmax")]
)
def test_they_stop_where_factors_would_change_the_network(bench, climbed, made, act, why):
    limits = " zero six" if act == "Clip" else ""
    model = made(
        [
            ("Conv", "input w1 b1", "one", PADS),
            (act, f"one{limits}", "act", {}),
            ("Conv", "act w3", "two", {}),
            ("GlobalAveragePool", "two", "pool", {}),
            ("Flatten", "pool", "flat", {}),
            ("Gemm", "flat head", "logits", {}),
        ],
        **{key: CONSTANTS[key] for key in ("w1", "b1", "w3", "head")},
        **({"zero": np.float32(0), "six": np.float32(6)} if limits else {}),
    )
    b = bench(model)
    found, blocked = seams(Constants(b.folded))
    assert [seam.value for seam in found] == ["flat"]
    assert blocked == {why: 1, "the input": 1}


def test_a_branch_stops_them(bench):
    found, blocked = seams(Constants(bench("lopsided").folded))
    assert "add" not in {seam.value for seam in found}
    assert blocked["Add"] == 2


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_reader_scales_what_reads_each_channel(groups):
    random = np.random.default_rng(2)
    kernel = random.normal(0, 1, (12, 6 // groups, 3, 3)).astype(np.float32)
    reader = Reader((0, 1), 1, groups)
    for channel in range(6):
        group, place = divmod(channel, 6 // groups)
        outputs = slice(group * 12 // groups, (group + 1) * 12 // groups)
        assert reader.reach(kernel, 6)[channel] == np.abs(kernel[outputs, place]).max()
        factor = np.ones(6, np.float32)
        factor[channel] = 4
        expected = kernel.copy()
        expected[outputs, place] *= 4
        assert np.array_equal(reader.scaled(kernel, factor), expected)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_ranges_are_found_anew_by_the_same_method(bench, method):
    b = bench("heavy_tailed")
    setup = b.setup("onnxruntime", method)
    after = equalized(b, setup)
    assert after.method == method
    assert after.ranges == b.calibrated(after.model, method) != setup.ranges


def test_silent_channels_do_no_harm(bench, made):
    w1, w3 = CONSTANTS["w1"].copy(), CONSTANTS["w3"].copy()
    w1[0], w3[:, 1] = 0, 0
    w1[2], w3[:, 2] = 0, 0
    model = made(
        [
            ("Conv", "input w1 b1", "one", PADS),
            ("Relu", "one", "act", {}),
            ("Conv", "act w3", "two", {}),
            ("GlobalAveragePool", "two", "pool", {}),
            ("Flatten", "pool", "flat", {}),
            ("Gemm", "flat head", "logits", {}),
        ],
        **{**{key: CONSTANTS[key] for key in ("b1", "head")}, "w1": w1, "w3": w3},
    )
    b = bench(model)
    setup = b.setup("onnxruntime", "minmax")
    for after in (equalized(b, setup), smoothed(b, setup, 0.5)):
        assert difference(b, setup.model, after.model) < 1e-5
        values = graph.predict(graph.session(b.place(after)), b.context.data.validation.inputs(slice(0, 8)))
        assert np.isfinite(values).all()


def test_they_repeat(bench):
    b = bench("unbalanced", PER_TENSOR)
    for how in (equalized, lambda b, setup: smoothed(b, setup, 0.5)):
        one, two = (how(b, b.setup("onnxruntime", "minmax")) for _ in range(2))
        assert one.model.SerializeToString(deterministic=True) == two.model.SerializeToString(deterministic=True)
        assert one.ranges == two.ranges
