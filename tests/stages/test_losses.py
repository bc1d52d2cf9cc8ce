"""Against values worked out another way: by hand, or step by step in float64 numpy."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages import losses

RANDOM = np.random.default_rng(0)
S, T = RANDOM.normal(0, 2, (6, 5)), RANDOM.normal(0, 2, (6, 5))
LABELS = np.array([0, 1, 2, 3, 4, 0])
TAU = 3.0


def soft(x, tau=TAU):
    e = np.exp(x / tau - (x / tau).max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def t(x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


LOGIT_LOSSES = {
    "kd": lambda s, x: losses.kd(s, x, TAU),
    "dkd": lambda s, x: losses.dkd(s, x, torch.tensor(LABELS), TAU),
    "dist": lambda s, x: losses.dist(s, x, TAU),
}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_agreement_costs_nothing_and_disagreement_does(name):
    loss = LOGIT_LOSSES[name]
    assert float(loss(t(T), t(T))) == pytest.approx(0, abs=1e-12)
    assert float(loss(t(T) + 7.0, t(T))) == pytest.approx(0, abs=1e-9)  # softmax does not see a shift
    assert float(loss(t(S), t(T))) > 0.01


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_gradients_reach_the_student_and_descend(name):
    student = t(S, grad=True)
    before = LOGIT_LOSSES[name](student, t(T))
    before.backward()
    assert student.grad.abs().sum() > 0
    after = LOGIT_LOSSES[name](student.detach() - 0.01 * student.grad, t(T))
    assert after < before


def test_kd_by_hand():
    """Two classes, temperature 2: the teacher's odds are e^(2/2) : 1, the student's 1 : 1."""
    p = math.e / (1 + math.e)
    by_hand = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert float(losses.kd(t([[0.0, 0.0]]), t([[2.0, 0.0]]), 2.0)) == pytest.approx(by_hand)


def test_kd_is_a_mean_over_the_batch_of_klds():
    assert float(losses.kd(t(S), t(T), TAU)) == pytest.approx(TAU**2 * kl(soft(T), soft(S)).mean())


def test_kd_gradients_keep_their_size_as_the_temperature_grows():
    """At high temperature the gradient tends to that of the mean squared difference of centred logits, over classes."""
    student = t(S, grad=True)
    losses.kd(student, t(T), 1000.0).backward()
    centred = (S - S.mean(1, keepdims=True)) - (T - T.mean(1, keepdims=True))
    np.testing.assert_allclose(student.grad.numpy(), centred / 5 / 6, rtol=0.02, atol=1e-4)


def test_dkd_from_its_definition():
    p, q = soft(T), soft(S)
    rows = np.arange(6)
    target_t = np.stack([p[rows, LABELS], 1 - p[rows, LABELS]], 1)
    target_s = np.stack([q[rows, LABELS], 1 - q[rows, LABELS]], 1)
    others_t = np.stack([np.delete(row, k) for row, k in zip(p, LABELS, strict=True)])
    others_s = np.stack([np.delete(row, k) for row, k in zip(q, LABELS, strict=True)])
    others_t, others_s = (o / o.sum(1, keepdims=True) for o in (others_t, others_s))
    expected = TAU**2 * (0.7 * kl(target_t, target_s).mean() + 5.0 * kl(others_t, others_s).mean())
    got = losses.dkd(t(S), t(T), torch.tensor(LABELS), TAU, alpha=0.7, beta=5.0)
    assert float(got) == pytest.approx(expected)


def test_dkd_and_kd_are_two_weightings_of_the_same_parts():
    """Equation 5 of the paper: kd = target part + (1 - p of the true class) * other part, for a single example."""
    s, x, label = t(S[:1]), t(T[:1]), torch.tensor(LABELS[:1])
    rest = 1 - soft(T[:1])[0, LABELS[0]]
    assert float(losses.kd(s, x, TAU)) == pytest.approx(float(losses.dkd(s, x, label, TAU, alpha=1, beta=rest)))


def test_dist_is_one_minus_correlation():
    p, q = soft(S), soft(T)
    between = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    within = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    got = losses.dist(t(S), t(T), TAU, beta=2.0, gamma=0.5)
    assert float(got) == pytest.approx(TAU**2 * (2.0 * between + 0.5 * within))


def test_dist_does_not_mind_the_order_of_examples_or_classes():
    rows, columns = RANDOM.permutation(6), RANDOM.permutation(5)
    shuffled = losses.dist(t(S[rows][:, columns]), t(T[rows][:, columns]), TAU)
    assert float(shuffled) == pytest.approx(float(losses.dist(t(S), t(T), TAU)))


def test_dist_works_in_float32_on_tiny_probabilities():
    sure = torch.zeros(4, 10)
    sure[range(4), range(4)] = 15.0
    sure += torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) * 0.1
    assert float(losses.dist(sure, sure.clone(), 1.0)) == pytest.approx(0, abs=1e-5)


def test_feature_is_the_mean_squared_difference():
    a, b = RANDOM.normal(size=(2, 3, 4, 4)), RANDOM.normal(size=(2, 3, 4, 4))
    assert float(losses.feature(t(a), t(b))) == pytest.approx(((a - b) ** 2).mean())


def test_attention_by_hand():
    """Maps (1, 0) and (3, 4) / 5 at two positions: differences 0.4 and -0.8, squares 0.16 and 0.64, mean 0.4."""
    student = t([[[[1.0, 0.0]]]])
    teacher = t([[[[math.sqrt(3), 2.0]]]])
    assert float(losses.attention(student, teacher)) == pytest.approx(0.4)


def test_attention_does_not_mind_channels_or_scale():
    a, b = t(RANDOM.normal(size=(2, 3, 4, 4))), t(RANDOM.normal(size=(2, 5, 4, 4)))
    assert float(losses.attention(a, b)) == pytest.approx(float(losses.attention(9 * a[:, [2, 0, 1]], b)))
    assert float(losses.attention(a, a[:, [1, 2, 0]])) == pytest.approx(0, abs=1e-12)
    assert float(losses.attention(a, b)) > 0


def test_label_weighting_matches_torch():
    """The label part of a distillation is torch's own cross entropy: kd against one-hot teachers tends to it."""
    hot = t(np.eye(5)[LABELS] * 200)
    assert float(losses.kd(t(S), hot, 1.0)) == pytest.approx(float(F.cross_entropy(t(S), torch.tensor(LABELS))))
