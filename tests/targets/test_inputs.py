"""Inputs that nobody has data for: what is made up, what is given, and what cannot be guessed."""

from pathlib import Path

import numpy as np
import pytest

from targets.artifact import Artifact, Value
from targets.errors import InputError
from targets.inputs import given, made, names_known


def model(*values):
    return Artifact(Path("net.onnx"), "0" * 64, 1, 20, 10, values, (Value("y", ("batch",), "float32"),))


IMAGE = Value("x", ("batch", 3, 8, 8), "float32")
IDS = Value("ids", ("batch", "length"), "int64")
MASK = Value("mask", ("batch", "length"), "float32")


def test_what_the_model_says_is_enough():
    x = made(model(IMAGE), {})["x"]
    assert (x.shape, x.dtype) == ((1, 3, 8, 8), np.float32)
    assert 0.5 < x.std() < 1.5
    np.testing.assert_array_equal(x, made(model(IMAGE), {})["x"])  # the same each time
    assert made(model(IMAGE), {}, 32)["x"].shape == (32, 3, 8, 8)


def test_every_type():
    kinds = ("float16", "float64", "int8", "uint8", "int32", "int64", "uint64", "bool")
    found = made(model(*(Value(kind, (100,), kind) for kind in kinds)), {})
    assert {name: str(array.dtype) for name, array in found.items()} == {kind: kind for kind in kinds}
    assert set(found["int64"]) == {0, 1}  # an index must not lead out of a table
    assert found["uint8"].max() > 128
    assert found["int8"].min() < -32
    assert found["bool"].all()
    assert made(model(Value("s", (), "float32")), {})["s"].shape == ()


def test_a_size_that_is_given_once_is_known_for_all():
    found = made(model(IDS, MASK), {"ids": (1, 128)})
    assert found["mask"].shape == (1, 128)
    found = made(model(IDS, MASK), {"mask": (4, 16)})
    assert found["ids"].shape == (4, 16)
    assert {array.shape for array in made(model(IDS, MASK), {"mask": (4, 16)}, 8).values()} == {(8, 16)}


def test_an_array_is_fed_as_it_is_and_repeated_to_a_batch():
    array = np.arange(3 * 192, dtype=np.float32).reshape(3, 3, 8, 8)
    np.testing.assert_array_equal(made(model(IMAGE), {"x": array})["x"], array)
    np.testing.assert_array_equal(made(model(IMAGE), {"x": array}, 5)["x"], array[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(made(model(IMAGE), {"x": array}, 2)["x"], array[:2])
    assert made(model(IMAGE), {"x": array.astype(np.float64)})["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("values", "known", "told"),
    [
        (
            [IDS],
            {},
            r"net\.onnx: input 'ids' has the shape batchxlength \(int64\), and not all of its sizes are known\n"
            r" +help: give it: --input ids=1x128, or --input ids=FILE\.npy",
        ),
        ([IMAGE], {"x": (1, 3, 9, 8)}, r"input 'x' takes the shape batchx3x8x8 \(float32\), and 1x3x9x8 was given"),
        ([IMAGE], {"x": (3, 8, 8)}, r"3x8x8 was given"),
        ([IMAGE], {"x": np.zeros((1, 3, 8, 9), np.float32)}, r"1x3x8x9 was given"),
        ([Value("t", ("n",), "string")], {}, r"input 't' is of the type string\n +help: numbers can be fed: float16"),
        ([Value("i", ("n",), "int64")], {"i": np.zeros(3, np.float32)}, r"'i' is int64, and the file holds float32"),
        (
            [Value("z", (0, 8), "float32")],
            {},
            r"'z' has the shape 0x8: there would be nothing to compute\n +help: export",
        ),
        ([Value("h", (10**5, 10**5), "float32")], {}, r"of shape 100000x100000 would take 40,000 MB"),
    ],
)
def test_what_cannot_be_fed(values, known, told):
    with pytest.raises(InputError, match=told):
        made(model(*values), known)


def test_all_that_is_missing_at_once():
    with pytest.raises(InputError) as raised:
        made(model(IDS, MASK, IMAGE), {"x": (1, 1, 1, 1)})
    assert len(raised.value.faults) == 3


def test_options(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    found = given(["a=1x3x224x224", "b=7", "c=scalar", "odd=name=2x2", f"x={tmp_path / 'x.npy'}"])
    assert found.pop("x").shape == (2, 3)
    assert found == {"a": (1, 3, 224, 224), "b": (7,), "c": (), "odd=name": (2, 2)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x", r"--input: 'x' must look like NAME=1x3x224x224 or NAME=FILE\.npy"),
        ("=3", "must look like"),
        ("x=", "must look like"),
        ("x=3,4", r"must give a shape such as 1x3x224x224.*\n +help: a shape is numbers with an x"),
        ("x=-1x3", "must give a shape"),
        ("x=0x3", "has a size of 0"),
        ("x=gone.npy", r"cannot be read: No such file.*\n +help: write the file with numpy\.save"),
        ("x=text.npy", "is no plain array in numpy's format"),
        ("x=pickled.npy", "is no plain array in numpy's format"),
        ("x=empty.npy", "holds an empty array"),
        ("x=cut.npy", "is no plain array"),
        ("x=folder.npy", "cannot be read"),
    ],
)
def test_options_that_say_nothing(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("no array")
    Path("folder.npy").mkdir()
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("empty.npy", np.ones((0, 3)))
    np.save("cut.npy", np.ones(1000))
    Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:200])
    with pytest.raises(InputError, match=told):
        given([text])


def test_a_name_twice_and_an_unknown_one():
    with pytest.raises(InputError, match="gives 'x' a second time"):
        given(["x=1", "x=2"])
    with pytest.raises(InputError, match=r"no model has an input 'idz'\n +help: did you mean 'ids'"):
        names_known([model(IMAGE), model(IDS)], {"idz": (1,), "x": (1,)})
