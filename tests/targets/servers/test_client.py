"""The client that travels beside an artifact: run as a newcomer would, and its preprocessing beside attar's own."""

import ast
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oip_server
import pytest
from PIL import Image

from pipeline.data_files import decode
from pipeline.recipe import DataSpec
from pipeline.splits import _example, _numbers, load_data
from stages.data import Preprocessing, Split
from targets import artifact
from targets.servers.client import source
from targets.servers.shipment import Layout, Shipment
from targets.target import Target
from targets.testing import tiny_onnx

TRITON, MLSERVER = Layout({"model.onnx": b""}), Layout({"model.onnx": b""}, added={"model-settings.json": b""})


def shipment_of(path, preprocessing, shape, labels=("zero", 'it\'s "one"', "zwei é \U0001f600")):
    model = artifact.load(tiny_onnx(path, shape=shape, classes=3))
    sample = np.zeros((1, *shape), np.float32)
    told = preprocessing.model_dump(mode="json")
    return Shipment("tiny", model, Target(name="here"), labels, told, sample, np.zeros((1, 3), np.float32))


def prepared_by(text):
    """The function `prepared` of a client's text, with what it needs of its imports; nothing is asked."""
    tree = ast.parse(text)
    wanted = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Import | ast.ImportFrom) and "tritonclient" not in ast.unparse(node))
    )
    space = {}
    exec(compile(ast.Module(list(wanted), []), "client.py", "exec"), space)
    return space["prepared"]


def client_of(path, preprocessing, shape, layout=TRITON):
    return source(shipment_of(path / "model.onnx", preprocessing, shape), layout).decode()


def test_digits_are_prepared_to_the_last_bit(tmp_path):
    """Raw images of scikit-learn through the client of an artifact made of them."""
    from sklearn.datasets import load_digits

    spec = DataSpec(source="digits", image_size=32, channels=3)
    splits = load_data(spec, tmp_path, seed=7)
    known = {x[None].tobytes() for split in (splits.train, splits.validation, splits.test) for x in split.inputs()}
    prepared = prepared_by(client_of(tmp_path, splits.test.preprocessing, (3, 32, 32)))
    for i, image in enumerate(load_digits().images[::9]):
        np.save(tmp_path / "raw.npy", image if i % 2 else image.astype(np.float32))
        assert prepared(str(tmp_path / "raw.npy")).tobytes() in known


MEANS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("size", [None, 8, 24])
@pytest.mark.parametrize("file", ["RGB.png", "L.png", "RGBA.png", "P.png", "RGB.bmp"])
def test_image_files_are_prepared_as_attar_reads_them(tmp_path, channels, size, file):
    random = np.random.default_rng(size or 0)
    image = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).convert(file.partition(".")[0])
    image.save(path := tmp_path / file)
    means = {"mean": (0.5,), "std": (0.3,)} if channels == 1 else MEANS
    preprocessing = Preprocessing(image_size=size, channels=channels, **means)
    spec = DataSpec(source="folder", image_size=size, channels=channels)
    ours = Split(_example(decode(path), spec, "test")[None], np.zeros(1, np.int64), preprocessing).inputs()
    theirs = prepared_by(client_of(tmp_path, preprocessing, (channels or 3, size or 16, size or 16)))(str(path))
    assert theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("raw", [(16, 16), (16, 16, 1), (16, 16, 3), (16, 16, 4), (16, 20, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_arrays_are_prepared_as_attar_reads_them(tmp_path, channels, raw, dtype):
    array = np.random.default_rng(1).integers(0, 256, raw).astype(dtype)
    np.save(path := tmp_path / "raw.npy", array)
    preprocessing = Preprocessing(image_size=12, channels=channels, divide_by=255.0, mean=(0.4,), std=(0.3,))
    spec = DataSpec(source="x.npz", image_size=12, channels=channels, divide_by=255.0)
    example = _example(_numbers(array, spec, "test"), spec, "test")
    ours = Split(example[None], np.zeros(1, np.int64), preprocessing).inputs()
    theirs = prepared_by(client_of(tmp_path, preprocessing, ours.shape[1:]))(str(path))
    np.testing.assert_array_equal(ours, theirs)


def test_a_network_that_learned_from_grey_arrays_takes_grey_files(tmp_path):
    grey = np.random.default_rng(2).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    preprocessing = Preprocessing(mean=(0.286,), std=(0.353,))  # Fashion-MNIST's IDX files, as they are
    ours = preprocessing.normalize(grey[None, ..., None])
    theirs = prepared_by(client_of(tmp_path, preprocessing, (1, 28, 28)))(str(tmp_path / "grey.png"))
    np.testing.assert_array_equal(ours, theirs)


def told_of(shipment, source="digits", **changes):
    """The shipment, of data from a source that is told."""
    return replace(shipment, source=source, **changes)


def test_a_files_white_becomes_that_of_training(tmp_path):
    """Digits, 0 to 16, saved as any picture is."""
    from sklearn.datasets import load_digits

    shipment = told_of(shipment_of(tmp_path / "m.onnx", Preprocessing(divide_by=16.0), (1, 8, 8)))
    text = source(shipment, TRITON).decode()
    assert "raw values from 0 to 16, as in training. An image file's 255 becomes 16." in text
    prepared = prepared_by(text)
    for image in load_digits().images[:9]:
        np.save(tmp_path / "raw.npy", image)
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(tmp_path / "file.png")
        raw, file = (prepared(str(tmp_path / name)) for name in ("raw.npy", "file.png"))
        np.testing.assert_allclose(file, raw, atol=0.5 / 255 + 1e-6)
    tensors = told_of(shipment_of(tmp_path / "m.onnx", Preprocessing(divide_by=1.0), (1, 8, 8)), "a.b:load")
    file = np.asarray(Image.open(tmp_path / "file.png"))
    theirs = prepared_by(source(tensors, TRITON).decode())(str(tmp_path / "file.png"))
    np.testing.assert_array_equal(theirs[0, 0], file.astype(np.float32) / np.float32(255))  # as torchvision does it


@pytest.mark.parametrize("divide_by", [1.0, 127.5, 256.0])
def test_a_network_that_learned_from_files_gets_them_as_it_did(tmp_path, divide_by):
    image = Image.fromarray(np.random.default_rng(6).integers(0, 256, (16, 16, 3), np.uint8))
    image.save(tmp_path / "file.png")
    preprocessing = Preprocessing(image_size=12, channels=3, divide_by=divide_by, mean=(0.4,), std=(0.3,))
    spec = DataSpec(source="images/flowers", image_size=12, channels=3, divide_by=divide_by)
    example = _example(decode(tmp_path / "file.png"), spec, "test")
    ours = Split(example[None], np.zeros(1, np.int64), preprocessing).inputs()
    shipment = told_of(shipment_of(tmp_path / "m.onnx", preprocessing, (3, 12, 12)), spec.source, sample=ours)
    text = source(shipment, TRITON).decode()
    assert "raw values from 0 to 255, as in training." in text
    np.testing.assert_array_equal(prepared_by(text)(str(tmp_path / "file.png")), ours)


@pytest.mark.parametrize(
    ("divide_by", "sample"),
    [
        (1.0, np.full((1, 3, 4, 4), -0.1)),
        (1.0, np.full((1, 3, 4, 4), 255.0)),
        (16.0, np.full((1, 3, 4, 4), 1.2)),
        (1.0, np.zeros((0, 3, 4, 4))),
    ],
)
def test_files_are_refused_where_white_is_not_known(tmp_path, divide_by, sample):
    shipment = shipment_of(tmp_path / "m.onnx", Preprocessing(divide_by=divide_by), (3, 4, 4))
    text = source(told_of(shipment, "x.npz", sample=sample.astype(np.float32)), TRITON).decode()
    assert "Image files are refused" in text
    assert "PIL" not in text
    prepared = prepared_by(text)
    with pytest.raises(ValueError, match="image files are refused: give raw values"):
        prepared("file.png")
    np.save(tmp_path / "raw.npy", raw := np.full((4, 4, 3), 300.0))
    np.testing.assert_array_equal(prepared(str(tmp_path / "raw.npy")), raw.transpose(2, 0, 1)[None] / divide_by)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (np.zeros((1, 8, 8, 1)), r"its shape is \(1, 8, 8, 1\), and must be \(height, width\[, 1 to 4 channels\]\)"),
        (np.zeros(64), r"its shape is \(64,\), and must be"),
        (np.zeros((3, 8, 8)), r"its shape is \(3, 8, 8\), and must be"),
        (np.full((8, 8), 255, np.uint8), "it holds 255 to 255, and must hold 0 to 16"),
        (np.full((8, 8), -1.0), r"it holds -1\.0 to -1\.0, and must hold 0 to 16"),
        (np.full((8, 8), np.nan), "it holds nan to nan"),
    ],
)
def test_an_array_that_is_no_raw_image_is_refused(tmp_path, raw, said):
    np.save(tmp_path / "raw.npy", raw)
    prepared = prepared_by(client_of(tmp_path, Preprocessing(divide_by=16.0, image_size=8, channels=3), (3, 8, 8)))
    with pytest.raises(ValueError, match=said):
        prepared(str(tmp_path / "raw.npy"))


def test_a_file_of_16_bits_is_refused_as_in_training(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"it has more than 8 bits per channel \(mode I;16\)"):
        prepared_by(client_of(tmp_path, Preprocessing(), (3, 4, 4)))(str(tmp_path / "deep.png"))


def test_what_is_no_image_is_prepared_too(tmp_path):
    row = np.random.default_rng(3).standard_normal(7)
    np.save(tmp_path / "row.npy", row)
    preprocessing = Preprocessing(divide_by=2.0, mean=(0.1,), std=(0.7,))
    text = client_of(tmp_path, preprocessing, (7,))
    assert "PIL" not in text.partition('"""\n')[2]
    theirs = prepared_by(text)(str(tmp_path / "row.npy"))
    np.testing.assert_array_equal(preprocessing.normalize(row[None].astype(np.float32)), theirs)


def run(folder, *words):
    command = [sys.executable, "-I", "client.py", *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False, timeout=60
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.parametrize(("layout", "binary"), [(TRITON, True), (MLSERVER, False)])
def test_a_newcomer_runs_it(tmp_path, layout, binary):
    preprocessing = Preprocessing(image_size=4, channels=3)
    shipment = shipment_of(tmp_path / "model.onnx", preprocessing, (3, 4, 4))
    (tmp_path / "client.py").write_bytes(source(shipment, layout))
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "image.png")
    oip = oip_server.Oip(tmp_path / "model.onnx")
    oip.binary = binary
    x = prepared_by(source(shipment, layout).decode())(str(tmp_path / "image.png"))
    right = int(oip.infer(x)[0].argmax())
    with oip_server.http(oip) as place:
        assert run(tmp_path, "image.png", place).out == f"{shipment.labels[right]}\n"
        oip.spoil = lambda y: np.roll(y, 1, axis=1)
        assert run(tmp_path, "image.png", f"http://{place}", "tiny").out == f"{shipment.labels[(right + 1) % 3]}\n"
        other = run(tmp_path, "image.png", place, "other")
        assert other.code == 1
        assert other.err == f"{place} gave no answer of 'other': [404] no /v2/models/other/infer here\n"
    usage = "    python client.py EXAMPLE [HOST:PORT [MODEL]]\n"
    told = run(tmp_path)
    assert (told.code, told.out) == (1, "")
    assert usage in told.err
    told = run(tmp_path, "--help")
    assert (told.code, told.err) == (0, "")
    assert usage in told.out
    assert max(map(len, told.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("none.png", "none.png cannot be read as an example: [Errno 2] No such file or directory: 'none.png'"),
        ("text.png", "text.png cannot be read as an example: cannot identify image file 'text.png'"),
        ("text.npy", "text.npy cannot be read as an example: "),
        ("words.npy", "words.npy cannot be read as an example: "),
        ("image.npy", "127.0.0.1:9 gave no answer of 'tiny': [Errno 111] Connection refused"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path, example, said):
    (tmp_path / "client.py").write_text(client_of(tmp_path, Preprocessing(image_size=4), (3, 4, 4)), encoding="utf-8")
    for name in ("text.png", "text.npy"):
        (tmp_path / name).write_text("no picture", encoding="utf-8")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "image.npy", np.zeros((4, 4, 3), np.uint8))
    found = run(tmp_path, example, "127.0.0.1:9")
    assert (found.code, found.out, found.err.count("\n")) == (1, "", 1)
    assert found.err.startswith(said)


def test_without_labels_it_prints_the_number_of_the_class(tmp_path):
    text = source(shipment_of(tmp_path / "m.onnx", Preprocessing(), (3, 4, 4), labels=()), TRITON).decode()
    assert """print(answer.as_numpy('y')[0].argmax())""" in text
    assert "LABELS" not in text


@pytest.mark.parametrize("layout", [TRITON, MLSERVER])
def test_it_is_short(tmp_path, layout):
    text = client_of(tmp_path, Preprocessing(image_size=32, channels=3, **MEANS), (3, 32, 32), layout)
    tree = ast.parse(text)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    asking = text.splitlines()[function.end_lineno :]
    assert len([line for line in asking if line.strip()]) <= 21
    assert max(map(len, text.splitlines())) <= 120


def test_a_fixed_batch_is_filled_and_the_first_answer_counts(tmp_path):
    text = {}
    for batch in (1, 4):
        shipment = shipment_of(tmp_path / "m.onnx", Preprocessing(), (3, 4, 4))
        fixed = artifact.load(tiny_onnx(tmp_path / "fixed.onnx", shape=(3, 4, 4), classes=3, batch=batch))
        text[batch] = source(replace(shipment, model=fixed), TRITON).decode()
    assert "x = prepared(path).repeat(4, 0)" in text[4]
    assert "x = prepared(path)\n" in text[1]
