"""The calibration set: memory under a cap, what is told about the set, its digest; and bad input."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.data import Preprocessing, Split
from stages.int8.calibration import check_ranges, examine
from stages.int8.memory import batch_size, footprint
from stages.int8.shapes import macs, shapes
from stages.vendors import ort_quantizer
from targets.errors import InputError, StageError

ROOT = Path(__file__).parents[3]
RANDOM = np.random.default_rng(0)


def network(size=8, channels=4, layers=2, classes=3, nodes=()):
    """Convolutions with ReLU, pooled, and a linear layer; (3, size, size) in."""
    weights, made, last, width = {}, [], "x", 3
    for i in range(layers):
        weights[f"k{i}"] = RANDOM.normal(0, 0.2, (channels, width, 3, 3)).astype(np.float32)
        made += [
            helper.make_node("Conv", [last, f"k{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"),
        ]
        last, width = f"r{i}", channels
    weights["w"] = RANDOM.normal(size=(channels, classes)).astype(np.float32)
    made += [
        helper.make_node("GlobalAveragePool", [last], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w"], ["y"], "fc"),
    ]
    body = helper.make_graph(
        made,
        "n",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, size, size))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", classes))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def split(n=60, size=8, classes=3, seed=1):
    raw = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
    return Split(raw, np.arange(n, dtype=np.int64) % classes, Preprocessing())


def test_shapes_and_macs_are_those_of_one_example():
    model = network(size=8, channels=4)
    known = shapes(model, (3, 8, 8))
    assert known["x"] == (1, 3, 8, 8)
    assert known["c1"] == (1, 4, 8, 8)
    assert known["y"] == (1, 3)
    assert {node.name: count for node, count in macs(model, (3, 8, 8))} == {
        "conv0": 4 * 64 * 27,
        "conv1": 4 * 64 * 36,
        "fc": 4 * 3,
    }


def test_a_footprint_counts_every_value_and_the_largest_again():
    model = network(size=8, channels=4, layers=2)
    values = 4 * (3 * 64 + 4 * 4 * 64 + 4 + 4 + 3)
    assert footprint(model, (3, 8, 8)).per_example == 5 * values + 4 * (4 * 4 * 64)


def test_a_value_that_inference_cannot_tell_is_measured():
    """Compress keeps as many numbers as a condition says: only running shows how many."""
    model = network(size=8, channels=4)
    keep = numpy_helper.from_array(np.array([True, False, True]), "keep")
    model.graph.node.insert(0, helper.make_node("Compress", ["x", "keep"], ["some"], axis=1))
    model.graph.initializer.append(keep)
    assert "some" not in shapes(model, (3, 8, 8))
    more = footprint(model, (3, 8, 8)).per_example - footprint(network(size=8, channels=4), (3, 8, 8)).per_example
    assert more == 5 * 4 * 2 * 64


def test_the_batch_shrinks_until_it_fits():
    model = network(size=64, channels=16, layers=4)
    sizes = [batch_size(model, (3, 64, 64), cap, most=32) for cap in (1000, 100, 50, 35)]
    assert sizes[0] == 32
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= sizes[-1] < sizes[1] < 32
    found = footprint(model, (3, 64, 64))
    assert found.fixed + sizes[1] * found.per_example <= 100e6 < found.fixed + (sizes[1] + 1) * found.per_example


def test_not_even_one_example_fits():
    model = network(size=256, channels=16, layers=4)
    says = r"may take 20 MB and needs (\d+) MB even for one example .*: set quantize\.memory_mb to \d+ or more"
    with pytest.raises(StageError, match=says) as caught:
        batch_size(model, (3, 256, 256), 20, most=32)
    enough = int(str(caught.value).split()[-3])
    assert batch_size(model, (3, 256, 256), enough, most=32) == 1
    with pytest.raises(StageError, match="even for one example"):
        batch_size(model, (3, 256, 256), enough - 1, most=32)


def test_data_of_another_shape():
    says = r"inputs of shape \(3, 9, 9\) and the graph's 'x' takes \(3, 8, 8\)\n   help: set data\.image_size"
    with pytest.raises(InputError, match=says):
        batch_size(network(), (3, 9, 9), 1000, most=32)


CAPPED = """
import sys
import numpy as np, onnx
from stages import graph
from stages.data import Preprocessing, Split
from stages.int8.calibration import examine
from stages.int8.memory import batch_size
from stages.vendors import ort_quantizer
import onnxruntime.quantization.calibrate  # code, not memory that calibration takes
path, method, cap_mb, most = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024 / 1e6
raw = np.random.default_rng(0).integers(0, 256, (128, 64, 64, 3), np.uint8)
split = Split(raw, np.zeros(128, np.int64), Preprocessing())
model = onnx.load(path)
size = batch_size(model, (3, 64, 64), cap_mb, most, samples=128) if cap_mb else most
before = memory("VmRSS")
if method == "examine":
    examine(split, 128, (), model, size)
else:
    ort_quantizer.calibrate(model, lambda: (x for x, _ in split.batches(size)), method)
assert "torch" not in sys.modules
print(size, memory("VmHWM") - before)
"""


def peak(path, method, cap_mb, most=128):
    """(batch size, MB by which a fresh process grew at most)."""
    command = [sys.executable, "-c", CAPPED, str(path), method, str(cap_mb), str(most)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    size, mb = done.stdout.split()
    return int(size), float(mb)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel tells the peak there")
@pytest.mark.parametrize("method", ["minmax", "percentile", "examine"])
def test_the_peak_of_a_fresh_process_stays_under_the_cap(tmp_path, method):
    """All 128 examples at once take 170 MB of values, and calibration at least twice that."""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(network(size=64, channels=16, layers=6)), path)
    size, mb = peak(path, method, cap_mb=150)
    assert 4 <= size < 32
    assert 40 < mb < 150  # used, and kept
    if method == "minmax":
        assert peak(path, method, cap_mb=0)[1] > 400


def test_a_sound_set_gives_no_notes_and_the_ranges_of_min_max():
    model, data = onnx.shape_inference.infer_shapes(network()), split(n=240)
    report = examine(data, 240, ("cat", "dog", "fox"), model, size=32)
    assert report.notes == ()
    assert (report.examples, report.class_counts) == (240, (80, 80, 80))
    expected = ort_quantizer.calibrate(model, lambda: (x for x, _ in data.batches(240)))
    assert report.ranges.keys() == expected.keys()
    for name, limits in expected.items():
        assert report.ranges[name] == pytest.approx(limits, rel=1e-5, abs=1e-6)


def test_the_digest_is_that_of_the_inputs():
    data = split()
    digests = {examine(data, 60, size=size).digest for size in (1, 7, 64)}
    assert len(digests) == 1
    assert examine(data, 59).digest not in digests
    raw = data.raw.copy()
    raw[59, 7, 7, 2] ^= 1
    assert examine(replace(data, raw=raw), 60).digest not in digests
    assert examine(replace(data, preprocessing=Preprocessing(mean=(0.1,))), 60).digest not in digests
    assert examine(data, 60, model=network()).digest in digests


def test_absent_and_rare_classes_are_named():
    labels = np.array([0] * 40 + [1] * 2 + [3] * 18)
    report = examine(replace(split(), labels=labels), 60, ("cat", "dog", "fox", "hen"))
    assert report.class_counts == (40, 2, 0, 18)
    assert report.notes[:2] == (
        "no calibration example is of class fox: their ranges are unknown",
        "few calibration examples are of class dog (2), where an even share is 15",
    )
    names = tuple(f"k{i}" for i in range(100))
    assert examine(split(classes=50), 60, names).notes[0] == (
        "60 calibration examples cannot hold all 100 classes: 50 have none"
    )


def test_fewer_examples_than_asked_for():
    assert examine(split(), 256).notes == ("256 calibration examples were asked for and the training split has 60",)


def test_an_outlier_is_found_and_does_not_blur_coverage():
    raw = split(n=120).raw.astype(np.float32)
    raw[17] *= 9
    report = examine(Split(raw, np.zeros(120, np.int64), Preprocessing()), 120, model=network())
    (note,) = report.notes
    assert note.startswith("calibration example 17 reaches ")
    assert "times what 98% of the examples reach" in note
    assert note.endswith("is it a sound one?")


def test_halves_that_differ_ask_for_more_examples():
    """Every other one of eight lacks the brightest; with the same again, backwards, none does."""
    raw = np.zeros((8, 8, 8, 3), np.float32)
    raw[:, :, :, 0] = np.array([10, 20, 40, 60, 80, 100, 120, 200])[:, None, None]
    report = examine(Split(raw, np.zeros(8, np.int64), Preprocessing()), 8)
    assert report.notes == (
        "ranges have not settled: half of the 8 calibration examples go beyond the ranges of the other half in 1 of 1 "
        "values, most in 'input' by 67%; a larger quantize.samples would help",
    )
    again = np.concatenate([raw, raw[::-1]])
    assert examine(Split(again, np.zeros(16, np.int64), Preprocessing()), 16).notes == ()


def test_a_nan_is_told_with_its_example():
    raw = split().raw.astype(np.float32)
    raw[41, 0, 0, 0] = np.nan
    data = replace(split(), raw=raw)
    with pytest.raises(StageError, match=r"value 'x' holds NaN or infinite numbers .* \(training example 41\)"):
        examine(data, 60, model=network())
    with pytest.raises(StageError, match=r"value 'input' holds NaN .* \(training example 41\)"):
        examine(data, 60, size=7)


def test_no_examples():
    empty = replace(split(), raw=split().raw[:0], labels=split().labels[:0])
    with pytest.raises(StageError, match="no training examples to calibrate with"):
        examine(empty, 10)


@pytest.mark.parametrize("limits", [(0.0, np.nan), (-np.inf, 1.0), (2.0, 1.0)])
def test_ranges_that_no_scale_can_be_made_of(limits):
    check_ranges({"fine": (-1.0, 1.0), "flat": (0.0, 0.0)})
    with pytest.raises(StageError, match=r"ranges of 1 value: 'relu' \("):
        check_ranges({"fine": (-1.0, 1.0), "relu": limits})
