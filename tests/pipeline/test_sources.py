"""Sources: every kind of data ends in the same three splits; what cannot be learned from is refused with a reason."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import code, sources
from pipeline.recipe import DataSpec, ModelSpec
from targets.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = ("train", "validation", "test")


def _load(folder, seed=0, **spec):
    return sources.load_data(DataSpec(**spec), folder, seed)


def _parts(splits):
    return [getattr(splits, name) for name in NAMES]


def _images(n=60, classes=3, shape=(6, 5, 3), seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, *shape)).astype(np.uint8), np.arange(n) % classes


@pytest.fixture
def npz(tmp_path):
    """Writes arrays into data.npz and loads it."""

    def load(seed=0, spec=None, **arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return _load(tmp_path, seed, source="data.npz", **(spec or {}))

    return load


def _module(folder, text):
    """A module beside the recipe, of a name that no other test uses."""
    name = f"user_{folder.name}"
    (folder / f"{name}.py").write_text("import numpy as np\nimport torch\n" + text, encoding="utf-8")
    return name


# splits


def test_digits_are_real_and_divided(tmp_path):
    splits = _load(tmp_path, source="digits", image_size=32, channels=3)
    train, validation, test = _parts(splits)
    assert len(train) + len(validation) + len(test) == 1797
    assert abs(len(test) / 1797 - 0.2) < 0.01
    assert abs(len(validation) / 1797 - 0.15) < 0.01
    assert train.raw.shape[1:] == (32, 32, 1)
    assert splits.input_shape == (3, 32, 32)
    assert splits.classes == tuple("0123456789")
    assert train.preprocessing.divide_by == 16
    assert train.inputs().max() == 1
    assert train.labels.dtype == np.int64


def test_splits_share_no_example_and_lose_none(npz):
    x = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)
    splits = npz(x=x, y=np.arange(90) % 3)
    found = np.concatenate([part.raw.ravel() for part in _parts(splits)])
    assert sorted(found) == list(range(90))
    for part in _parts(splits):
        assert (part.raw.ravel() % 3 == part.labels).all()


def test_classes_keep_their_proportions_in_splits_and_in_every_prefix(npz):
    y = np.repeat([0, 1, 2], [600, 300, 100])
    splits = npz(x=np.zeros((1000, 2, 2, 1), np.uint8), y=y)
    for part in _parts(splits):
        for n in (20, 50, len(part)):
            shares = np.bincount(part.labels[:n], minlength=3) / n
            assert np.allclose(shares, [0.6, 0.3, 0.1], atol=1.5 / n + 0.01)


def test_the_same_seed_gives_the_same_arrays_and_another_seed_others(npz):
    x, y = _images()
    one, again, other = (npz(seed, x=x, y=y) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest
    for a, b in zip(_parts(one), _parts(again), strict=True):
        assert (a.raw == b.raw).all()
        assert (a.labels == b.labels).all()
    assert not (one.train.raw == other.train.raw).all()


def test_the_digest_sees_numbers_labels_and_preprocessing(npz):
    x, y = _images()
    digests = {npz(x=x, y=y).digest, npz(x=x, y=y, spec={"mean": [0.5]}).digest}
    x[3, 0, 0, 0] ^= 1
    digests.add(npz(x=x, y=y).digest)
    digests.add(npz(x=x, y=(y + 1) % 3).digest)
    digests.add(npz(x=x, y=y, classes=["a", "b", "c"]).digest)
    assert len(digests) == 5


def test_own_splits_are_kept_and_validation_is_taken_off_train(npz):
    (x, y), (xt, yt) = _images(100), _images(30, seed=1)
    splits = npz(x_train=x, y_train=y, x_test=xt, y_test=yt)
    assert [len(part) for part in _parts(splits)] == [85, 15, 30]
    assert sorted(map(bytes, splits.test.raw)) == sorted(map(bytes, xt))
    splits = npz(x_train=x, y_train=y, x_test=xt, y_test=yt, x_val=xt[:9], y_val=yt[:9])
    assert [len(part) for part in _parts(splits)] == [100, 9, 30]
    with pytest.raises(InputError, match=r"data\.test: would do nothing: this data has a split of its own"):
        npz(x_train=x, y_train=y, x_test=xt, y_test=yt, spec={"test": 0.3})


def test_limit_takes_a_fair_sample_of_train_only(npz):
    x, y = _images(100, classes=2)
    splits = npz(x=x, y=y, spec={"limit": 10})
    assert np.bincount(splits.train.labels).tolist() == [5, 5]
    assert (splits.train.raw == npz(x=x, y=y).train.raw[:10]).all()
    assert len(splits.test) == 20


def test_small_classes_get_two_examples_in_every_split(npz):
    x, y = _images(6 * 3)
    splits = npz(x=x, y=y)
    assert [np.bincount(part.labels).tolist() for part in _parts(splits)] == [[2] * 3] * 3


# preprocessing


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizing_is_pillows_bilinear(npz, dtype):
    from PIL import Image

    x, y = _images(shape=(7, 9, 3))
    splits = npz(x=x.astype(dtype), y=y, spec={"image_size": 4})
    assert splits.train.raw.dtype == dtype
    assert splits.train.raw.shape[1:] == (4, 4, 3)
    wanted = [np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BILINEAR)) for image in x]
    for raw in splits.train.raw:
        assert min(np.abs(raw.astype(float) - w).max() for w in wanted) <= (
            0 if dtype == np.uint8 else 1
        )  # bytes are rounded twice


@pytest.mark.parametrize(
    ("dtype", "spec", "divide_by"),
    [(np.uint8, {}, 255), (np.float64, {}, 1), (np.uint8, {"divide_by": 2.0}, 2), (np.int16, {"divide_by": 9.0}, 9)],
)
def test_what_becomes_one(npz, dtype, spec, divide_by):
    x, y = _images()
    split = npz(x=x.astype(dtype), y=y, spec=spec).train
    assert split.preprocessing.divide_by == divide_by
    assert split.raw.dtype in (np.uint8, np.float32)
    assert np.isclose(split.inputs().max(), split.raw.max() / divide_by)


def test_grey_images_without_an_axis_of_channels_and_plain_vectors(npz):
    x, y = _images()
    assert npz(x=x[..., 0], y=y).input_shape == (1, 6, 5)
    assert npz(x=x[..., 0], y=y, spec={"channels": 3, "mean": [0.1, 0.2, 0.3]}).input_shape == (3, 6, 5)
    assert npz(x=x[:, 0, 0].astype(np.float32), y=y).input_shape == (3,)


# what is refused


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros((0, 4, 4)), "y": np.zeros(0, int)}, "train has no examples"),
        ({"y": np.arange(59) % 3}, "train has 60 examples and 59 labels"),
        ({"y": np.eye(3)[np.arange(60) % 3]}, r"labels of train have shape \(60, 3\)"),
        ({"y": (np.arange(60) % 3).astype(float)}, "labels of train are float64, where integers are expected"),
        ({"y": np.array(["a", "b", "c"])[np.arange(60) % 3]}, "labels of train are <U1"),
        ({"y": np.arange(60) % 3 - 1}, "label -1 of example 0 in train is out of range"),
        ({"y": np.arange(60) % 3 + 10**12}, "label 1000000000002 of example 2 in train is out of range"),
        ({"y": np.arange(60) % 3, "classes": ["a", "b"]}, "label 2 of example 2 .*: there are 2 names of classes"),
        ({"y": np.arange(60) % 3 + 1}, r"train has fewer than 2 examples of 1 of 4 classes \('0': 0\)"),
        ({"y": np.zeros(60, int)}, r"there is one class only \(0\)"),
        ({"y": np.r_[np.arange(55) % 3, [3] * 5]}, r"train has fewer than 2 examples of 1 of 4 classes \('3': 1\)"),
        ({"x": np.full((60, 4, 4), np.nan)}, "example 0 of .* holds NaN or infinite numbers, and .* more do"),
        ({"x": np.full((60, 4, 4), 1e300)}, "holds NaN or infinite"),
        ({"x": np.zeros((60, 4, 4), complex)}, "examples of train are complex128, where numbers are expected"),
        ({"x": np.zeros((60, 4, 4), np.int32)}, "examples of train are int32, of which the range is not known"),
        ({"x": np.zeros((60, 3, 9, 9))}, r"shape \(3, 9, 9\), where .* is expected\n.*x.transpose\(0, 2, 3, 1\)"),
        ({"classes": [1, 2, 3]}, "classes must be a list of names, got int"),
        (
            {"x_test": np.zeros((9, 7, 7, 3), np.uint8), "y_test": np.arange(9) % 3},
            r"splits differ in shape or type \(tr",
        ),
        ({"x_test": _images(9)[0].astype(np.float32), "y_test": np.arange(9) % 3}, "splits differ in shape or type"),
        (
            {"x_test": _images(9)[0], "y_test": np.arange(9) % 4},
            "label 3 of example 3 in test .*: train has no such class",
        ),
        ({"x_test": _images(9)[0], "y_test": np.arange(9) % 2}, "test has fewer than 2 examples of 1 of 3 classes"),
        ({"x_test": _images(9)[0]}, "lacks x_test or y_test; it holds x, y, x_test"),
    ],
)
def test_arrays_that_cannot_be_used(npz, arrays, told):
    x, y = _images()
    with pytest.raises(InputError, match=told):
        npz(**{"x": x, "y": y} | arrays)


@pytest.mark.parametrize(
    ("shape", "spec", "told"),
    [
        ((6, 5, 3), {"mean": [0.1, 0.2]}, r"data\.mean: has 2 values, and inputs have 3 channels"),
        ((6, 5, 3), {"limit": 3}, "train has fewer than 2 examples of 3 of 3 classes .*\n.*raise or remove `limit`"),
        ((8,), {"image_size": 4}, r"image_size and channels are for images, .* \(8,\)"),
        ((8,), {"channels": 3}, r"image_size and channels are for images, .* \(8,\)"),
    ],
)
def test_settings_that_do_not_fit_the_data(npz, shape, spec, told):
    x, y = _images(shape=shape)
    with pytest.raises(InputError, match=told):
        npz(x=x, y=y, spec=spec)


def test_one_bad_number_is_named_by_its_place_in_the_source(npz):
    x = np.zeros((60, 4, 4), np.float32)
    x[41, 1, 1] = np.inf
    with pytest.raises(InputError, match=r"example 41 of \w+ holds NaN or infinite numbers$"):
        npz(x=x, y=np.arange(60) % 3)


def test_archives_that_are_none(tmp_path, npz):
    path = tmp_path / "data.npz"
    with pytest.raises(InputError, match=r"data\.npz: refused: it holds pickled objects"):
        npz(x=np.array([{"a": 1}, [2]], object), y=np.arange(2))
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(InputError, match=r"data\.npz: refused: it holds pickled objects"):
        _load(tmp_path, source="data.npz")
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"data\.npz: is no readable \.npz archive"):
        _load(tmp_path, source="data.npz")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="holds a single array"):
        _load(tmp_path, source="data.npz")
    with pytest.raises(InputError, match=r"lacks x_train or y_train; it holds images"):
        npz(images=np.zeros(3))
    with pytest.raises(InputError, match="no such file"):
        _load(tmp_path, source="gone.npz")
    (tmp_path / "data.csv").touch()
    with pytest.raises(InputError, match=r"is neither a folder nor a \.npz file"):
        _load(tmp_path, source="data.csv")


# folders of images


def _folder(root, classes=("cat", "dog"), n=8, size=(6, 5), seed=0, mode="RGB"):
    from PIL import Image

    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            image = Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).convert(mode)
            image.save(root / name / f"{i}.png")
    return root


def test_a_folder_of_images_by_class(tmp_path):
    from PIL import Image

    root = _folder(tmp_path / "pets")
    (root / ".DS_Store").touch()
    splits = _load(tmp_path, source="pets")
    assert splits.classes == ("cat", "dog")
    assert splits.input_shape == (3, 6, 5)
    assert [len(part) for part in _parts(splits)] == [12 - 4, 4, 4]
    cats = {np.asarray(Image.open(path)).tobytes() for path in (root / "cat").iterdir()}
    assert {raw.tobytes() for raw in splits.train.raw[splits.train.labels == 0]} <= cats


def test_a_folder_with_splits_of_its_own(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        _folder(tmp_path / "pets" / split, n=3 + i, seed=i)
    splits = _load(tmp_path, source="pets", image_size=4)
    assert [len(part) for part in _parts(splits)] == [6, 8, 10]
    assert splits.input_shape == (3, 4, 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA"])
def test_other_kinds_of_pixels_are_read_as_rgb(tmp_path, mode):
    _folder(tmp_path / "pets", mode=mode)
    assert _load(tmp_path, source="pets", channels=1).input_shape == (1, 6, 5)
    assert _load(tmp_path, source="pets").input_shape == (3, 6, 5)


def test_images_of_different_sizes_need_image_size(tmp_path):
    root = _folder(tmp_path / "pets")
    _folder(tmp_path / "more", size=(7, 7))
    (tmp_path / "more" / "dog").rename(root / "wolf")
    with pytest.raises(
        InputError, match=r"train differ in shape: .*\d\.png has \(\d, \d, 3\), and .*png has .*\n.*image_size"
    ):
        _load(tmp_path, source="pets")
    assert _load(tmp_path, source="pets", image_size=8).input_shape == (3, 8, 8)


def test_files_that_are_no_images_are_named(tmp_path):
    from PIL import Image

    root = _folder(tmp_path / "pets")
    for path in (root / "cat").iterdir():  # all of them: which are read depends on the seed
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"pets/cat/\d\.png: cannot be read as an image"):
        _load(tmp_path, source="pets")
    for path in (root / "cat").iterdir():
        Image.fromarray(np.zeros((6, 5), np.uint16)).save(path)
    with pytest.raises(InputError, match=r"pets/cat/\d\.png: has pixels of mode 'I;16'"):
        _load(tmp_path, source="pets")
    (root / "cat" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt: is no image"):
        _load(tmp_path, source="pets")


def test_links_in_a_folder_are_refused_not_followed(tmp_path):
    root = _folder(tmp_path / "pets")
    _folder(tmp_path / "elsewhere")
    link = root / "cat" / "link.png"
    link.symlink_to(tmp_path / "elsewhere" / "cat" / "0.png")
    for ask in (lambda: _load(tmp_path, source="pets"), lambda: _digest(tmp_path, source="pets")):
        with pytest.raises(InputError, match=r"link\.png: is a symbolic link, which is not followed"):
            ask()
    link.unlink()
    (root / "wolf").symlink_to(tmp_path / "elsewhere" / "cat")
    with pytest.raises(InputError, match="wolf: is a symbolic link"):
        _load(tmp_path, source="pets")


def test_folders_of_another_layout(tmp_path):
    root = _folder(tmp_path / "pets" / "train").parent
    (root / "cat").mkdir()
    with pytest.raises(InputError, match="has cat beside train"):
        _load(tmp_path, source="pets")
    (root / "cat").rename(root / "test")
    _folder(root / "test2", ("cat", "cow"))
    (root / "test").rmdir()
    (root / "test2").rename(root / "test")
    with pytest.raises(InputError, match="test: has class 'cow', which train lacks"):
        _load(tmp_path, source="pets")
    (tmp_path / "flat").mkdir()
    with pytest.raises(InputError, match="train has no examples"):
        _load(tmp_path, source="flat")
    (tmp_path / "flat" / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.png: lies where a folder is expected"):
        _load(tmp_path, source="flat")


# IDX


def _idx(folder, zipped=True, sep="-"):
    def write(name, array):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        data = head + array.tobytes()
        path = folder / f"{name}{sep}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data) if zipped else data)

    folder.mkdir()
    for prefix, n in (("train", 60), ("t10k", 20)):
        x, y = _images(n, classes=2)
        write(f"{prefix}-images", x[..., 0])
        write(f"{prefix}-labels", y.astype(np.uint8))
    return folder


@pytest.mark.parametrize(("zipped", "sep"), [(True, "-"), (False, "-"), (False, ".")])
def test_idx_files(tmp_path, zipped, sep):
    _idx(tmp_path / "mnist", zipped, sep)
    splits = _load(tmp_path, source="mnist")
    assert splits.input_shape == (1, 6, 5)
    assert [len(part) for part in _parts(splits)] == [52, 8, 20]
    assert sorted(map(bytes, splits.test.raw)) == sorted(map(bytes, _images(20)[0][..., :1]))


def test_spoiled_idx_files(tmp_path):
    folder = _idx(tmp_path / "mnist", zipped=False)
    images = folder / "train-images-idx3-ubyte"
    data = images.read_bytes()
    images.write_bytes(data[:-1])
    with pytest.raises(
        InputError, match=r"is cut off or spoiled: it holds 1799 numbers, and its header says \(60, 6, 5\)"
    ):
        _load(tmp_path, source="mnist")
    for spoiled in (b"", data[:9], b"\0\0\x0d" + data[3:]):
        images.write_bytes(spoiled)
        with pytest.raises(InputError, match="is no IDX file of uint8 numbers of rank 3"):
            _load(tmp_path, source="mnist")
    images.rename(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(InputError, match="cannot be read: Not a gzipped file"):
        _load(tmp_path, source="mnist")
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"there is neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        _load(tmp_path, source="mnist")


# functions


def test_a_function_gives_arrays_lists_or_tensors(tmp_path):
    name = _module(
        tmp_path,
        """
x, y = np.arange(480, dtype=np.uint8).reshape(30, 4, 4, 1), np.arange(30) % 2
def arrays(): return x, y
def lists(): return [x.tolist(), y.tolist()]
def tensors(): return torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
""",
    )
    arrays = _load(tmp_path, source=f"{name}:arrays")
    assert arrays.train.raw.shape == (20, 4, 4, 1)
    assert _load(tmp_path, source=f"{name}:tensors").digest == arrays.digest
    assert (_load(tmp_path, source=f"{name}:lists", divide_by=255).train.raw == arrays.train.raw).all()


def test_a_function_is_called_with_args_and_may_give_splits_and_names(tmp_path):
    name = _module(
        tmp_path,
        """
def data(n, value=0.0):
    make = lambda k: (np.full((k, 3), value), np.arange(k) % 2)
    return {"train": make(n), "val": make(4), "test": make(6), "classes": ["no", "yes"]}
""",
    )
    splits = _load(tmp_path, source=f"{name}:data", args={"n": 10, "value": 0.5})
    assert [len(part) for part in _parts(splits)] == [10, 4, 6]
    assert splits.classes == ("no", "yes")
    assert splits.train.raw.max() == 0.5


def test_torch_datasets_with_and_without_length(tmp_path):
    name = _module(
        tmp_path,
        """
from PIL import Image
class Items(torch.utils.data.Dataset):
    def __len__(self): return 20
    def __getitem__(self, i): return torch.full((3, 4 + i % 2, 5), i / 20), torch.tensor(i % 2)
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        for i in range(20): yield Image.new("RGB", (5, 4), (i, i, i)), i % 2
def items(): return {"train": Items(), "test": Items()}
def stream(): return Stream()
""",
    )
    splits = _load(tmp_path, source=f"{name}:items", image_size=6)
    assert splits.input_shape == (3, 6, 6)
    assert np.allclose(sorted(splits.test.raw[:, 0, 0, 0]), np.arange(20) / 20)
    with pytest.raises(
        InputError, match=r"examples of train differ in shape: example \d+ has \(\d, 5, 3\), and example"
    ):
        _load(tmp_path, source=f"{name}:items")
    splits = _load(tmp_path, source=f"{name}:stream")
    assert splits.train.raw.dtype == np.uint8
    assert splits.input_shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise OSError('no disk')", r"called with \{\} raised OSError: no disk"),
        ("return 5", "returned a int that is no pair of arrays"),
        ("return None", "returned a NoneType that is no pair of arrays"),
        ("return [1, 2, 3]", "returned a list that is no pair of arrays"),
        ("return {'test': ([], [])}", r"returned a dict with the keys test\n.*train is needed"),
        ("return {'train': ([], []), 'dev': ([], [])}", "returned a dict with the keys train, dev"),
        ("return {'train': ([1.0, 2.0], [0, 1]), 'classes': 5}", "classes must be a list of names"),
        ("return [[1], [1, 2]], [0, 1]", "raised ValueError"),
        ("return iter([1, 2])", "raised TypeError"),
        ("return ['a', 'b'] * 9, [0, 1] * 9", "are <U1, where numbers are expected"),
    ],
)
def test_functions_that_give_no_data(tmp_path, body, told):
    name = _module(tmp_path, f"def data(): {body}\n")
    with pytest.raises(InputError, match=told):
        _load(tmp_path, source=f"{name}:data", validation=0.01, test=0.01)


def test_functions_that_are_not_there_or_refuse_their_args(tmp_path):
    name = _module(tmp_path, "def data(): ...\n")
    with pytest.raises(InputError, match=r"has no function 'dta'\n.*did you mean 'data'"):
        _load(tmp_path, source=f"{name}:dta")
    with pytest.raises(InputError, match="unexpected keyword argument 'n'"):
        _load(tmp_path, source=f"{name}:data", args={"n": 1})
    with pytest.raises(InputError, match="there is no module 'user_gone'"):
        _load(tmp_path, source="user_gone:data")


def test_a_module_of_the_same_name_from_elsewhere_is_not_taken_for_it(tmp_path):
    """Two recipes in one notebook, each with a module of its own of the same name; and one that was edited since."""
    text = "import numpy as np\ndef data(): return np.full((30, 2), {}), np.arange(30) % 2\n"
    for value, folder in enumerate(("one", "two", "one")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "user_twice.py").write_text(text.format(f"{value}.0 + 0"))
        assert (_load(tmp_path / folder, source="user_twice:data").train.raw == value).all()


def test_missing_libraries_name_the_extra(tmp_path, monkeypatch):
    _folder(tmp_path / "pets")
    for library, spec in (("sklearn", {"source": "digits"}), ("PIL", {"source": "pets"})):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.setitem(sys.modules, f"{library}.datasets", None)
        with pytest.raises(InputError, match=r"which is not installed\n.*pip install 'attar\[compress\]'"):
            _load(tmp_path, **spec)


# digests


def _digest(folder, **spec):
    return sources.data_digest(DataSpec(**spec), folder)


def test_the_data_digest_sees_settings_and_contents_but_no_places(tmp_path):
    x, y = _images()
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=x, y=y)
    assert _digest(tmp_path, source="a.npz") == _digest(tmp_path, source="./b.npz")
    assert _digest(tmp_path, source="a.npz") != _digest(tmp_path, source="a.npz", limit=9)
    x[0] += 1
    np.savez(tmp_path / "b.npz", x=x, y=y)
    assert _digest(tmp_path, source="a.npz") != _digest(tmp_path, source="b.npz")
    before = _digest(tmp_path, source="digits")
    assert before == _digest(tmp_path / "elsewhere", source="digits")
    assert before != _digest(tmp_path, source="digits", image_size=8)
    with pytest.raises(InputError, match=r"gone\.npz: cannot be read"):
        _digest(tmp_path, source="gone.npz")


def test_the_data_digest_sees_names_and_contents_of_images(tmp_path):
    root = _folder(tmp_path / "pets")
    seen = {_digest(tmp_path, source="pets")}
    (root / "cat" / "0.png").rename(root / "cat" / "00.png")
    seen.add(_digest(tmp_path, source="pets"))
    (root / "dog" / "0.png").write_bytes((root / "dog" / "1.png").read_bytes())
    seen.add(_digest(tmp_path, source="pets"))
    assert len(seen) == 3


def test_the_data_digest_sees_the_code_of_a_function(tmp_path):
    name = _module(tmp_path, "def data(): ...\ndef other(): ...\n")
    before = _digest(tmp_path, source=f"{name}:data")
    assert before != _digest(tmp_path, source=f"{name}:other")
    _module(tmp_path, "def data(): return 1\ndef other(): ...\n")
    code.closure.cache_clear()
    assert before != _digest(tmp_path, source=f"{name}:data")


def test_digests_wake_no_heavy_library():
    script = (
        "import sys\nfrom pathlib import Path\nfrom pipeline import sources\n"
        "from pipeline.recipe import DataSpec, ModelSpec\n"
        "sources.data_digest(DataSpec(source='digits'), Path())\n"
        "sources.model_digest(ModelSpec(source='stages.zoo:resnet', train={}), Path())\n"
        "print({'torch', 'onnx', 'onnxruntime', 'sklearn', 'PIL'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


# models


def test_the_model_digest_sees_what_decides_the_network(tmp_path):
    def digest(**spec):
        return sources.model_digest(ModelSpec(**{"source": "stages.zoo:resnet"} | spec), tmp_path)

    (tmp_path / "w.pt").write_bytes(b"1")
    plain = digest(train={})
    assert plain == digest(train={"epochs": 3})  # settings of training are a matter of its step
    seen = {plain, digest(args={"depth": 8}), digest(source="stages.zoo:seed_cnn"), digest(weights="w.pt")}
    (tmp_path / "w.pt").write_bytes(b"2")
    seen.add(digest(weights="w.pt"))
    (tmp_path / "net.onnx").write_bytes(b"3")
    seen.add(digest(source="net.onnx"))
    (tmp_path / "net.onnx").write_bytes(b"4")
    seen.add(digest(source="net.onnx"))
    assert len(seen) == 7
    with pytest.raises(InputError, match=r"gone\.onnx: model: cannot be read"):
        digest(source="gone.onnx")


def test_the_digest_of_code_names_the_function(tmp_path):
    assert sources.code_digest("stages.zoo:resnet", tmp_path) != sources.code_digest("stages.zoo:seed_cnn", tmp_path)


# real data beside the repository


@pytest.mark.skipif(not (SHARED / "fashion_mnist").is_dir(), reason="no shared data here")
def test_fashion_mnist():
    splits = _load(SHARED, source="fashion_mnist", limit=500)
    assert [len(part) for part in _parts(splits)] == [500, 9000, 10000]
    assert splits.input_shape == (1, 28, 28)
    assert np.bincount(splits.test.labels).tolist() == [1000] * 10
    assert np.bincount(splits.train.labels).tolist() == [50] * 10


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no shared data here")
def test_cifar_with_names_of_classes():
    splits = _load(SHARED, source="cifar10/cifar10_small_pixels.npz", limit=100)
    assert splits.classes[:2] == ("airplane", "automobile")
    assert splits.input_shape == (3, 32, 32)
    assert len(splits.test) == 1000
