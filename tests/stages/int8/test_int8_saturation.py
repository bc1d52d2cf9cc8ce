"""Why x86 without VNNI wants 7-bit weights: products of u8 x s8 are added in pairs in 16 bits, and saturate.

First with the instructions' arithmetic in numpy; then, slowly, with onnxruntime itself on an emulated Haswell.
"""

import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import graph
from stages.vendors import ort_quantizer
from targets import measure
from targets.target import Int8Rules, Target

RULES = {"8 bits": Int8Rules(), "7 bits": Int8Rules(reduce_range=True)}


def vpmaddubsw(a, b):
    """Pairs of u8 x s8 products, (..., 2n) each, added with signed saturation to 16 bits: (..., n).
    Intel's Software Developer's Manual, volume 2, PMADDUBSW."""
    assert (a.dtype, b.dtype) == (np.uint8, np.int8)
    products = a.astype(np.int32) * b.astype(np.int32)
    return (products[..., ::2] + products[..., 1::2]).clip(-32768, 32767).astype(np.int16)


def vpmaddwd(a, b):
    """Pairs of s16 x s16 products added in 32 bits, which wrap. The same manual, PMADDWD."""
    assert (a.dtype, b.dtype) == (np.int16, np.int16)
    products = a.astype(np.int64) * b.astype(np.int64)
    return (products[..., ::2] + products[..., 1::2]).astype(np.int32)


def dot_avx2(a, b):
    """u8 (m, k) x s8 (k, n) in steps of four, as kernels without VNNI do it: s32 (m, n)."""
    k = -(-a.shape[1] // 4) * 4
    a = np.pad(a, ((0, 0), (0, k - a.shape[1])))
    b = np.pad(b, ((0, k - b.shape[0]), (0, 0)))
    sums = vpmaddwd(vpmaddubsw(a[:, None, :], b.T[None]), np.ones(k // 2, np.int16))
    return sums.sum(-1, dtype=np.int32)


def dot_vnni(a, b):
    """The same with VPDPBUSD, which adds four products in 32 bits."""
    return a.astype(np.int32) @ b.astype(np.int32)


@pytest.mark.parametrize(("largest", "saturates"), [(127, True), (65, True), (64, False)])
def test_the_worst_pair(largest, saturates):
    a = np.full((1, 4), 255, np.uint8)
    for sign in (1, -1):
        b = np.full((4, 1), sign * largest, np.int8)
        assert (dot_avx2(a, b) != dot_vnni(a, b)).any() == saturates
    assert (2 * 255 * largest > 32767) == saturates


def test_random_numbers_saturate_with_eight_bits_and_not_with_seven():
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (64, 96)).astype(np.uint8)
    full, narrow = (random.integers(-limit, limit + 1, (96, 32)).astype(np.int8) for limit in (127, 64))
    assert (dot_avx2(a, full) != dot_vnni(a, full)).any()
    assert (dot_avx2(a, narrow) == dot_vnni(a, narrow)).all()
    kept = dot_avx2(a, abs(full)) / dot_vnni(a, abs(full))
    assert 0.9 < kept.mean() < 0.98


def network(kind):
    """Bright inputs, and weights of one sign in each channel: the sums of such a network are large."""
    random = np.random.default_rng(0)
    signs = np.array([1, -1, 1, -1, 1, -1, 1, -1], np.float32)
    if kind == "matmul":
        weights = {"w": random.uniform(0.7, 1, (64, 8)).astype(np.float32) * signs}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")]
        shape = (64,)
    else:
        weights = {"w": random.uniform(0.7, 1, (8, 16, 3, 3)).astype(np.float32) * signs[:, None, None, None]}
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["y"], "flat"),
        ]
        shape = (16, 8, 8)
    body = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", *shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 8))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, random.uniform(0.6, 1, (16, *shape)).astype(np.float32)


@pytest.fixture(scope="module", params=["matmul", "conv"])
def placed(request, tmp_path_factory):
    """(kind, files by name: float and int8 by either rule, inputs)."""
    folder = tmp_path_factory.mktemp(request.param)
    model, x = network(request.param)
    folded = ort_quantizer.fold(model, folder)
    ranges = ort_quantizer.calibrate(folded, lambda: [x])
    models = {"float": folded} | {
        name: ort_quantizer.place(folded, ranges, rules, ort_quantizer.operators(rules))
        for name, rules in RULES.items()
    }
    for name, made in models.items():
        graph.write(made, folder / f"{name}.onnx")
    return request.param, {name: folder / f"{name}.onnx" for name in models}, x


def operands(path, kind, x):
    """The integers that a layer multiplies: u8 (m, k) rows and s8 (k, n) weights, by the graph's own scales."""
    values = {t.name: numpy_helper.to_array(t) for t in graph.read(path).graph.initializer}
    rows = np.rint(x / values["x_scale"]) + int(values["x_zero_point"])
    rows = rows.clip(0, 255).astype(np.uint8)
    weight = values["w_quantized"]
    if kind == "conv":  # patches that lie wholly inside
        windows = np.lib.stride_tricks.sliding_window_view(rows, (3, 3), (2, 3))
        rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 16 * 9)
        weight = weight.reshape(8, -1).T
    return rows, np.ascontiguousarray(weight)


def test_what_the_placement_writes_saturates_with_eight_bits_and_cannot_with_seven(placed):
    kind, files, x = placed
    full = operands(files["8 bits"], kind, x)
    assert abs(full[1].astype(int)).max() == 127
    assert (dot_avx2(*full) != dot_vnni(*full)).mean() > 0.9
    assert np.median(dot_avx2(*full) / dot_vnni(*full)) < 0.9
    rows, narrow = operands(files["7 bits"], kind, x)
    assert abs(narrow.astype(int)).max() == 64
    assert (dot_avx2(rows, narrow) == dot_vnni(rows, narrow)).all()
    bright = np.full_like(rows, 255)  # nor with any other input
    assert (dot_avx2(bright, narrow) == dot_vnni(bright, narrow)).all()


QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
HASWELL = "Haswell,-hle,-rtm,-pcid,-x2apic,-tsc-deadline,-invpcid"  # less what qemu cannot and would complain of


@pytest.mark.slow
@pytest.mark.skipif(not QEMU, reason="qemu-x86_64 is not installed: apt-get install qemu-user-static")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="this Python is not an x86-64 one, which qemu would run")
def test_onnxruntime_on_a_haswell_saturates_with_eight_bits_and_not_with_seven(placed, tmp_path):
    """qemu emulates AVX2 without VNNI from version 7.2 on. All goes through the probe, as on any device."""
    _, files, x = placed
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{QEMU}" -cpu {HASWELL} "{sys.executable}" "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    haswell = Target(name="haswell", connection={"python": str(wrapper)})
    old = measure.outputs(haswell, files, x)
    new = measure.outputs(Target(name="here"), files, x)
    scale = abs(old["float"]).max()
    assert abs(old["float"] - new["float"]).max() < 1e-5 * scale
    assert abs(old["7 bits"] - new["7 bits"]).max() < 0.01 * scale
    assert abs(old["7 bits"] - old["float"]).max() < 0.02 * scale
    assert abs(old["8 bits"] - old["float"]).mean() > 0.1 * scale
    if "vnni" in Path("/proc/cpuinfo").read_text():
        assert abs(new["8 bits"] - new["float"]).max() < 0.02 * scale
