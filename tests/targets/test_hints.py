"""Hints: each speaks on a case made for it, with the right share, and is silent on the nearest harmless one."""

import pytest

from targets.hints import hints
from targets.operator_rows import Operator
from targets.source_graph import Node


def op(name, op_type, us, precision="float32", channels=None, group=1, macs=None, spread=0.0, **node):
    source = Node(0, name, op_type, (channels[1], channels[0] // group, 3, 3) if channels else (), group, **node)
    return Operator(
        name=name,
        op_type=op_type,
        provider="CPUExecutionProvider",
        precision=precision,
        us=us,
        us_low=us - spread,
        us_high=us + spread,
        profiled_us=us + 2,
        share=0.0,
        macs=macs,
        bytes=1000,
        channels=channels,
        source=source,
    )


def shared(*ops):
    """With shares of their sum."""
    total = sum(one.us for one in ops)
    return [Operator(**{**vars(one), "share": one.us / total}) for one in ops]


def kinds(*ops, **known):
    return {hint.kind: hint for hint in hints(shared(*ops), **known)}


def conv(name, us, channels=(64, 64), rate=100.0, **more):
    """A convolution of so many GMAC/s."""
    return op(name, "Conv", us, channels=channels, macs=int(us * rate * 1e3), **more)


def test_nothing_to_say():
    assert hints([]) == ()
    assert kinds(conv("a", 50), conv("b", 50), op("r", "Relu", 1)) == {}


def test_int8_slower_than_float():
    float_ops = shared(conv("a", 10), conv("b", 50))
    found = kinds(conv("a", 30, precision="int8"), conv("b", 20, precision="int8"), against={"float.onnx": float_ops})
    hint = found["int8_slower"]
    assert hint.nodes == ("a",)
    assert hint.share == pytest.approx(20 / 50)
    assert hint.what == "up to 40 % of the time is lost where 1 int8 operator is slower than in float.onnx"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (conv("a", 30, precision="int8", spread=15), conv("a", 20, spread=1)),  # intervals touch
        (conv("a", 30, precision="int8"), conv("b", 10)),  # another node
        (conv("a", 30), conv("a", 10)),  # both in float
        (conv("a", 30, precision="int8"), conv("a", 10, precision="int8")),  # both in int8
        (conv("a", 30, precision="int8"), conv("a", 29)),  # within a tenth
    ],
)
def test_int8_is_not_called_slower_without_proof(ours, theirs):
    assert "int8_slower" not in kinds(ours, against={"other": shared(theirs)})


def test_rounding_and_copies():
    found = kinds(
        conv("a", 80),
        op("q", "QuantizeLinear", 6, "mixed"),
        op("d", "DequantizeLinear", 4, "mixed"),
        op("t", "Transpose", 10),
    )
    assert found["rounding"].share == pytest.approx(0.1)
    assert found["rounding"].what == "10 % of the time goes into quantizing and dequantizing alone (2 operators)"
    assert found["rounding"].nodes == ("q", "d")
    assert found["copies"].what == "10 % of the time goes into copies to another layout or device (1 operator)"
    assert kinds(conv("a", 98), op("q", "QuantizeLinear", 2, "mixed")) == {}


def test_narrow_channels():
    wide = conv("wide", 50, (64, 64), 100)
    hint = kinds(wide, conv("narrow", 50, (64, 8), 20))["narrow"]
    assert hint.nodes == ("narrow",)
    assert hint.what == (
        "50 % of the time goes into 1 convolution with channels under 16, at less than half of the best rate"
    )
    assert "narrow" not in kinds(wide, conv("narrow", 50, (64, 8), 60)), "its rate does not show it"
    assert "narrow" not in kinds(wide, conv("first", 50, (3, 64), 20, reads_input=True)), "an image has 3 channels"
    assert "narrow" not in kinds(wide, conv("int8", 50, (8, 8), 20, precision="int8")), "rates within one precision"
    assert "narrow" not in kinds(wide, conv("depthwise", 50, (8, 8), 20, group=8)), "its rate is that of its bytes"


def test_channels_off_the_targets_multiple():
    ops = conv("wide", 50, (64, 64), 100), conv("odd", 50, (64, 40), 20)
    assert "narrow" not in kinds(*ops)
    assert "no multiple of 32" in kinds(*ops, channel_multiple=32)["narrow"].what


def test_float_left_in_int8():
    int8 = conv("a", 80, precision="int8")
    hint = kinds(int8, op("mean", "ReduceMean", 20))["float_left"]
    assert hint.what == "20 % of the time goes into 1 float operator of an int8 model (ReduceMean)"
    assert "float_left" not in kinds(conv("a", 80), op("mean", "ReduceMean", 20)), "the model is float"
    lie = op("lie", "Add", 20, quantized=True)
    assert "float_left" not in kinds(int8, lie), "int8 that ran in float is a finding, and no hint"
    assert "float_left" not in kinds(int8, op("d", "DequantizeLinear", 20)), "said by another hint"
    mean = op("mean", "ReduceMean", 20)
    slow, fast = op("mean", "ReduceMean", 30, "int8"), op("mean", "ReduceMean", 5, "int8")
    assert "float_left" not in kinds(int8, mean, against={"other": [slow]}), "int8 was tried there, and is slower"
    assert "float_left" in kinds(int8, mean, against={"other": [fast]})


def test_what_mostly_moves_data():
    hint = kinds(conv("a", 50), conv("dw", 30, (64, 64), 5, group=64), op("add", "QLinearAdd", 20, "int8"))["memory"]
    assert hint.share == pytest.approx(0.5)
    assert "2 operators with little to compute (QLinearAdd, depthwise Conv)" in hint.what
    assert "memory" not in kinds(conv("a", 95), op("add", "Add", 5)), "every network has some"


def test_many_tiny_operators():
    tiny = [op(f"r{i}", "Reshape", 1.5) for i in range(10)]
    hint = kinds(conv("a", 40), *tiny)["tiny"]
    assert hint.what == "27 % of the time goes into 10 operators of at most 2 µs, mostly for calling them"
    assert "tiny" not in kinds(conv("a", 90), *tiny)


def test_time_outside_of_operators():
    ops = conv("a", 50), conv("b", 20)
    assert kinds(*ops, latency_us=100)["outside"].share == pytest.approx(0.3)
    assert "outside" not in kinds(*ops, latency_us=80)
    assert "outside" not in kinds(*ops)


def test_the_dearest_comes_first():
    found = hints(shared(conv("a", 60, precision="int8"), op("t", "Transpose", 10), op("m", "ReduceMean", 30)))
    assert [hint.kind for hint in found] == ["float_left", "copies"]


def test_braces_in_a_files_words_are_just_text():
    """Names and types of operators come from the file."""
    odd = op("n", "{0.__class__}{operators}", 40)
    assert "{0.__class__}" in kinds(conv("a", 60, precision="int8"), odd)["float_left"].what
