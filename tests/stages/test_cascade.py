"""The cascade's file answers as its small network where that is sure, and as the large one elsewhere; and it pays."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import STAGES, graph, joined
from stages.base import perform
from stages.cascade import cascade, cut
from stages.data import Preprocessing, Split, Splits
from stages.export import export
from stages.quantize import quantize
from stages.settings import CascadeConfig, ExportConfig, QuantizeConfig
from stages.testing import context, tiny_splits, tiny_teacher
from targets.accuracy import accuracy_drop
from targets.errors import StageError
from targets.measure import race
from targets.operators import findings, node_counts
from targets.samples import measurements
from targets.target import Meter, load

METER = Meter(warmup_s=0.02, samples=120, blocks=12, max_seconds=4, throughput_batch=8, energy_s=0)
TARGET = load("local").model_copy(update={"meter": METER})
CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cascade")


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's handwritten digits: one channel, 8x8; shuffled, as they come writer by writer."""
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    raw, labels = raw[order], labels[order]
    images, preprocessing = raw.reshape(-1, 8, 8, 1).astype(np.float32), Preprocessing(divide_by=16, mean=(0.3,))

    def split(start, stop):
        return Split(images[start:stop], labels[start:stop].astype(np.int64), preprocessing)

    return Splits(split(0, 384), split(384, 1090), split(1090, 1797), tuple("0123456789"), "digits")


@pytest.fixture(scope="module")
def pair(digits, folder):
    """(small, large): the second right more often, and many times as slow."""
    made = []
    for name, width in (("small", 3), ("large", 56)):
        teacher = tiny_teacher(folder / name, digits, "stages.testing:tiny_concat", 4, classes=10, width=width)
        candidate = export(teacher, ExportConfig(samples=8), context(folder / f"{name}-export", digits))
        made.append(replace(candidate, name=name))
    return tuple(made)


@pytest.fixture(scope="module")
def int8(pair, digits, folder):
    config = QuantizeConfig(engine="onnxruntime", pays=False, samples=64)
    small, large = pair
    quick = quantize(small, config, context(folder / "int8-small", digits))
    return quick, quantize(large, config, context(folder / "int8-large", digits))


def joined_of(pair, digits, folder, **config):
    small, large = pair
    return perform(STAGES["cascade"], large, CascadeConfig(**config), context(folder, digits, others=(small,)))


def answers(candidate, x, batch):
    runner = graph.session(candidate.onnx)
    return np.concatenate([graph.predict(runner, x[i : i + batch]) for i in range(0, len(x), batch)])


def right(candidate, split, batch=64):
    return answers(candidate, split.inputs(), batch).argmax(1) == split.labels


# ---- the graph


@pytest.mark.parametrize("which", ["pair", "int8"])
def test_it_answers_as_one_of_its_parts_to_the_bit(which, digits, tmp_path, request):
    small, large = request.getfixturevalue(which)
    both = joined_of((small, large), digits, tmp_path)
    threshold, x = both.steps[-1].metrics["threshold"], digits.test.inputs(slice(0, 192))
    given = {}
    for batch in (1, 3, 64):
        quick, sound = answers(small, x, batch), answers(large, x, batch)
        unsure = joined.margins(quick) < np.float32(threshold)
        assert 0.005 < unsure.mean() < 0.98, "both have something to say"
        given[batch] = answers(both, x, batch)
        np.testing.assert_array_equal(given[batch], np.where(unsure[:, None], sound, quick))
    for batch in (3, 64):
        np.testing.assert_array_equal(given[batch].argmax(1), given[1].argmax(1))
    assert both.signature == large.signature
    assert both.weights is None


def test_all_names_are_of_their_own(int8, digits, tmp_path):
    model = graph.read(joined_of(int8, digits, tmp_path).onnx)
    parts = list(graph.graphs(model.graph))
    nodes = [node.name for part in parts for node in part.node]
    assert len(parts) == 3
    assert len(nodes) == len(set(nodes))
    assert {name.partition("/")[0] for name in nodes} == {"small", "large", "cascade", "logits"}
    (branch,) = (part for part in parts if part.name == "large")
    inside = {tensor.name for tensor in branch.initializer}
    assert inside, "weights lie in the branch: outside of it onnxruntime lays float convolutions out more slowly"
    assert all(name.startswith("large/") for name in inside)
    tallies = [graph.tally(graph.read(one.onnx)).int8 for one in int8]
    assert graph.tally(model).int8 == sum(tallies) > 4
    assert graph.int8_form(model)


def test_a_cascade_can_be_a_part_of_another(pair, digits, tmp_path):
    small, large = (graph.read(one.onnx) for one in pair)
    two = joined.join(small, large, 0.5)
    three = joined.join(small, two, 1.0)
    graph.write(three, tmp_path / "three.onnx")
    x = digits.test.inputs(slice(0, 64))
    got, inner = (graph.predict(graph.session(one), x) for one in (three, two))
    np.testing.assert_array_equal(got, inner)  # whoever is sure by 1.0 is sure by 0.5
    assert small == graph.read(pair[0].onnx), "the parts stay as they were"


def test_opsets_that_differ_are_refused(pair):
    small, large = (graph.read(one.onnx) for one in pair)
    large.opset_import[0].version -= 1
    with pytest.raises(StageError, match="version 20 of the operators of ONNX and the large one 19"):
        joined.join(small, large, 1.0)
    for model in (small, large):
        model.opset_import[0].version = 12
    with pytest.raises(StageError, match="takes opset 13 or above, and the networks have 12"):
        joined.join(small, large, 1.0)
    small, large = (graph.read(one.onnx) for one in pair)
    small.ir_version, large.ir_version = 8, 9
    assert joined.join(small, large, 1.0).ir_version == 9


# ---- the threshold


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([0.0, 5.0, 20.0, 100.0]),
)
def test_the_small_network_answers_until_too_much_is_lost(rows, drop):
    margins = np.array([row[0] for row in rows], np.float32)
    small, large = (np.array([row[i] for row in rows]) for i in (1, 2))
    found = cut(margins, small, large, drop)

    def together(threshold):
        asked = margins < np.float32(threshold)
        return int(asked.sum()), int(np.where(asked, large, small).sum())

    least = large.sum() - drop / 100 * len(rows) - 1e-9
    falling = map(together, np.arange(14, -2, -1) / 2)
    allowed = [asked for asked, _ in itertools.takewhile(lambda got: got[1] >= least, falling)]
    assert (found.asked, found.right) == together(found.threshold)
    assert found.right >= least
    assert found.asked == min(allowed)


def test_neighbouring_floats_are_told_apart():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    found = cut(np.array([low, high]), np.array([False, True]), np.array([True, True]), 0.0)
    assert (found.asked, found.right) == (1, 2)
    assert low < np.float32(found.threshold) <= high


# ---- the stage


def test_it_holds_the_accuracy_and_says_so(pair, digits, tmp_path):
    small, large = pair
    both = joined_of(pair, digits, tmp_path, drop_points=1.0)
    step, n = both.steps[-1], len(digits.validation)
    good = [right(one, digits.validation).sum() for one in (small, large, both)]
    assert good[1] > good[0] + 0.015 * n, "there is a gap to bridge"
    assert good[2] >= good[1] - 0.01 * n
    names = ("small_validation_accuracy", "large_validation_accuracy", "validation_accuracy")
    assert [step.metrics[name] for name in names] == pytest.approx([count / n for count in good])
    assert 0 < step.metrics["large_share"] < 1
    assert "large answers the rest" in step.notes[0]
    strict = joined_of(pair, digits, tmp_path / "strict").steps[-1].metrics
    assert strict["large_share"] >= step.metrics["large_share"]


def test_where_the_small_one_is_never_good_enough_nothing_changes(pair, digits, tmp_path):
    small, large = pair
    model = graph.read(small.onnx)
    model.graph.node[-1].input[1] = model.graph.node[-1].input[1]
    wrong = replace(digits.validation, labels=answers(large, digits.validation.inputs(), 64).argmax(1))
    wrong = replace(digits, validation=wrong)
    flipped = tmp_path / "flipped.onnx"
    for tensor in model.graph.initializer:
        if tensor.name == model.graph.node[-1].input[1]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-5 * onnx.numpy_helper.to_array(tensor), tensor.name))
    graph.write(model, flipped)
    said = []
    ctx = replace(context(tmp_path / "c", wrong, others=(replace(small, onnx=flipped),)), say=said.append)
    both = perform(STAGES["cascade"], large, CascadeConfig(), ctx)
    assert both.steps[-1].metrics["large_validation_accuracy"] == 1
    assert not both.steps[-1].changed
    assert said == ["cascade changed nothing in large"]
    assert "no threshold is worth it" in both.steps[-1].notes[0]
    assert both.onnx.read_bytes() == large.onnx.read_bytes()
    assert both.weights.read_bytes() == large.weights.read_bytes()


def test_what_cannot_be_joined_is_refused(pair, digits, tmp_path):
    small, large = pair
    odd = replace(small, signature=replace(small.signature, outputs=7))
    wide = replace(small, signature=replace(small.signature, input_shape=(3, 8, 8)))
    torch = replace(small, onnx=None)
    none = replace(
        digits, validation=replace(digits.validation, raw=digits.validation.raw[:0], labels=np.empty(0, int))
    )
    for number, (others, data, said) in enumerate(
        (
            ((), digits, "joins two networks, and got 0 beside large"),
            ((odd,), digits, "small and large cannot be joined: their outputs are 7 and 10"),
            ((wide,), digits, r"their inputs are \(3, 8, 8\) and \(1, 8, 8\)"),
            ((torch,), digits, "small is a torch one: export it first"),
            ((small,), none, "on validation examples, and there are none"),
        )
    ):
        with pytest.raises(StageError, match=said):
            cascade(large, CascadeConfig(), context(tmp_path / str(number), data, others=others))


def test_nothing_comes_after_it(pair, digits, tmp_path):
    both = joined_of(pair, digits, tmp_path)
    with pytest.raises(StageError, match="large is a cascade, the last stage there is: quantize its two"):
        quantize(both, QuantizeConfig(), context(tmp_path / "q", digits))


# ---- on a device


def test_its_mean_latency_lies_under_the_large_ones_at_equal_accuracy(pair, digits, tmp_path):
    small, large = pair
    both = joined_of(pair, digits, tmp_path)
    models = {"large": large.onnx, "cascade": both.onnx, "small": small.onnx}

    def open_yet(measured):
        return measurements(measured, "cascade", "large")["speedup_mean"].low <= 1

    measured = race(TARGET, models, digits.test.inputs(slice(0, 256)), undecided=open_yet)
    ours = measurements(measured, "cascade", "large")
    theirs = measurements(measured, "large")
    assert ours["speedup_mean"].low > 1
    assert ours["latency_mean_ms"].value < theirs["latency_mean_ms"].value
    assert ours["latency_mean_ms"].samples >= 3 * 256, "each input three times"
    assert measured.models["cascade"].inputs["count"] == 256
    split = digits.test
    sound, mixed = (answers(one, split.inputs(), 64) for one in (large, both))
    drop = accuracy_drop(sound, mixed, split.labels, 0.95)
    assert drop.low <= 0, "within its interval nothing is lost"


def test_int8_nodes_in_the_branch_are_looked_for_and_found(int8, digits, tmp_path):
    both = joined_of(int8, digits, tmp_path)
    sample = digits.test.inputs(slice(0, 64))
    measured = race(TARGET, {"cascade": both.onnx}, sample, operators=True).models["cascade"]
    assert node_counts(both.onnx, CPU, measured.operators) == {"fallback_nodes": 0, "float_int8_nodes": 0}
    assert findings(both.onnx, CPU, measured.operators) == ()
    sure = tmp_path / "sure.onnx"
    graph.write(joined.join(*(graph.read(one.onnx) for one in int8), -1.0), sure)
    asleep = race(TARGET, {"sure": sure}, sample, operators=True).models["sure"]
    assert node_counts(sure, CPU, asleep.operators)["float_int8_nodes"] is None
    (finding,) = findings(sure, CPU, asleep.operators)
    assert finding.what.endswith(
        "int8 nodes lie in a branch that no input took, so whether they run in int8 is not known"
    )
    assert all(name.startswith("large/") for name in finding.nodes)


def test_two_networks_that_agree_need_no_large_one(tmp_path):
    data = tiny_splits()
    teacher = tiny_teacher(tmp_path / "t", data)
    one = export(teacher, ExportConfig(samples=8), context(tmp_path / "e", data))
    both = cascade(one, CascadeConfig(), context(tmp_path / "c", data, others=(replace(one, name="twin"),)))
    assert both.steps[-1].metrics["large_share"] == 0
    assert "twin alone holds the accuracy on validation" in both.steps[-1].notes[-1]
    measured = race(TARGET, {"c": both.onnx}, data.test.inputs(slice(0, 32)), operators=True)
    assert measured.models["c"].assignment[CPU] > len(graph.read(one.onnx).graph.node), "both networks are counted"
