import numpy as np
import pytest
import torch

from stages.base import Origin
from stages.data import Preprocessing, Split, Splits
from stages.export import export
from stages.settings import ExportConfig, TrainConfig
from stages.teacher import teach
from stages.testing import context


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks this small wait for their second thread longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's handwritten digits as 3x32x32 images."""
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    images = raw.reshape(-1, 8, 8, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3).astype(np.float32)
    preprocessing = Preprocessing(divide_by=16, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))

    def split(start, stop):
        return Split(images[start:stop], labels[start:stop].astype(np.int64), preprocessing)

    return Splits(split(0, 384), split(384, 640), split(640, 1797), tuple("0123456789"), "digits")


@pytest.fixture(scope="session")
def exported(digits, tmp_path_factory):
    """Networks that know a little of digits, as ONNX, by name."""
    folder = tmp_path_factory.mktemp("digits")
    nets = {
        "seed_cnn": (1, "stages.zoo:seed_cnn", {"classes": 10}),
        "projection": (2, "stages.zoo:resnet", {"depth": 8}),
        "padded": (2, "stages.zoo:resnet", {"depth": 8, "shortcut": "padded"}),
    }
    made = {}
    for name, (epochs, source, args) in nets.items():
        train = TrainConfig(epochs=epochs, batch_size=32)
        teacher = teach(Origin(source, args), None, train, context(folder / name / "torch", digits))
        made[name] = export(teacher, ExportConfig(), context(folder / name / "onnx", digits))
    return made
