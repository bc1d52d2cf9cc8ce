import numpy as np
import pytest

from targets.accuracy import accuracy, accuracy_drop, agreement
from targets.errors import DeviceError, InputError


def test_accuracy():
    answers = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    found = accuracy(answers, np.array([0, 1, 2, 0, 0]), 0.95)
    assert (found.metric, found.value, found.samples) == ("accuracy", 80, 5)
    assert 0 < found.low < 80 < found.high < 100


def test_accuracy_drop_is_paired():
    labels = np.arange(200) % 4
    teacher, student = np.eye(4, dtype=np.float32)[labels], np.eye(4, dtype=np.float32)[labels]
    student[:3] = np.roll(student[:3], 1, axis=1)
    found = accuracy_drop(teacher, student, labels, 0.95)
    assert (found.metric, found.value) == ("accuracy_drop_points", 1.5)
    assert -0.5 < found.low < 1.5 < found.high < 4
    assert accuracy_drop(student, teacher, labels, 0.95).value == -1.5


def test_accuracy_of_what_does_not_fit():
    answers = np.zeros((3, 4), np.float32)
    with pytest.raises(InputError, match="3 outputs and 2 labels: one of each is needed per example"):
        accuracy(answers, np.array([0, 1]), 0.95)
    with pytest.raises(InputError, match="labels from 0 to 4 do not fit a model of 4 classes"):
        accuracy(answers, np.array([0, 1, 4]), 0.95)
    with pytest.raises(InputError, match="labels from -1 to 1 do not fit"):
        accuracy(answers, np.array([0, 1, -1]), 0.95)
    answers[1, 2] = np.nan
    with pytest.raises(DeviceError, match="the model gave NaN or infinite outputs for 1 of 3 examples"):
        accuracy(answers, np.array([0, 1, 2]), 0.95)


def test_agreement_counts_equal_classes():
    here = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    there = here.copy()
    there[3] = [1, 0, 0, 0.9]
    found = agreement(here, there, 0.95)
    assert (found.metric, found.value, found.samples) == ("parity_percent", 75, 4)
    assert agreement(here, here * 2, 0.95).value == 100
