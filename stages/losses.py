"""What a student is told to match, as plain functions. Each is zero when student and teacher agree, and each is a mean
over the batch, so that weights mean the same at any batch size.

    kd         soft targets                          Hinton, Vinyals, Dean 2015, arXiv:1503.02531
    dkd        soft targets, decoupled               Zhao et al., CVPR 2022, arXiv:2203.08679
    dist       relations between and within classes  Huang et al., NeurIPS 2022, arXiv:2205.10536
    feature    features inside the network           Romero et al. (FitNets), ICLR 2015, arXiv:1412.6550
    attention  where the features are large          Zagoruyko, Komodakis, ICLR 2017, arXiv:1612.03928
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention", "dist", "dkd", "feature", "kd"]


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the teacher's softened probabilities to the student's, times temperature squared, which keeps
    the size of the gradients independent of the temperature (section 2 of the paper).

    Args:
        student: logits (batch, classes).
        teacher: logits (batch, classes).
        temperature: divides the logits before the softmax.
    """
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """`kd` taken apart: true class against all others (weight `alpha`), and among the others (weight `beta`). In plain
    `kd` the second part fades as the teacher grows sure; here it keeps its weight (equation 7 of the paper).

    Args:
        student: logits (batch, classes), at least two classes.
        teacher: logits (batch, classes).
        labels: (batch,), int64.
        temperature: divides the logits before the softmax.
    """
    true = F.one_hot(labels, student.shape[1]).bool()

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of (true, other), (batch, 2); and among the others, (batch, classes - 1)."""
        log_p = F.log_softmax(logits / temperature, 1)
        others = log_p[~true].view(len(labels), -1)
        log_rest = others.logsumexp(1, keepdim=True)
        return torch.cat([log_p[true].unsqueeze(1), log_rest], 1), others - log_rest

    (target_s, other_s), (target_t, other_t) = parts(student), parts(teacher)
    target = F.kl_div(target_s, target_t, reduction="batchmean", log_target=True)
    other = F.kl_div(other_s, other_t, reduction="batchmean", log_target=True)
    return (alpha * target + beta * other) * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """One minus Pearson correlation of the probabilities, over the classes of each example (weight `beta`) and over
    the batch for each class (weight `gamma`): a much stronger teacher is matched in its preferences, not in its exact
    values (equations 6 to 10 of the paper; times temperature squared as in its published code).

    Args:
        student: logits (batch, classes), at least two of each.
        teacher: logits (batch, classes).
        temperature: divides the logits before the softmax.
    """
    p, q = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    between = (1 - _pearson(p, q)).mean()
    within = (1 - _pearson(p.T, q.T)).mean()
    return (beta * between + gamma * within) * temperature**2


def _pearson(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Correlation of each pair of rows: (rows, n), (rows, n) -> (rows,)."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), 1, eps)


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features. Where channel counts differ, the caller first brings the student's to the
    teacher's by a learned 1x1 projection, trained along and no part of the student (the regressor of FitNets).

    Args:
        student: (batch, channels, ...).
        teacher: the same shape.
    """
    return F.mse_loss(student, teacher)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention maps: squares summed over the channels, scaled to length one per example
    (equation 2 of the paper with p = 2, averaged over positions as in its published code). Channel counts may differ.

    Args:
        student: (batch, channels, height, width).
        teacher: (batch, other channels, height, width).
    """

    def where(features: Tensor) -> Tensor:
        return F.normalize(features.pow(2).mean(1).flatten(1), dim=1)

    return (where(student) - where(teacher)).pow(2).mean()
