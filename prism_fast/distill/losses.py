"""What the student minimises. Terms take logits or features and return one number an image, in fp32.

Sources: T^2 KL by Hinton et al. 2015 (arXiv 1503.02531), label smoothing by Szegedy et al. 2016 (arXiv 1512.00567,
section 7), standardised logits by Sun et al. 2024 (arXiv 2403.01427), hints by Romero et al. 2015 (arXiv 1412.6550),
contrast by Tian et al. 2020 (arXiv 1910.10699) and van den Oord et al. 2018 (arXiv 1807.03748), the free energy by Liu
et al. 2020 (arXiv 2010.03759).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from prism_fast.distill.batches import TrainingBatch
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.learner import Answer

_EPSILON = 1e-7
"""Beside a standard deviation: logits that are all equal stay 0."""


def training_loss(config: DistillConfig, answer: Answer, batch: TrainingBatch, weight: Tensor | None) -> Tensor:
    """The mean over a batch of the terms that ``config.loss`` weighs, a scalar.

    Args:
        config: which terms.
        answer: what the student says about the batch.
        weight: of each image [B], mean 1 over the whole step; None: all are 1.
    """
    loss = config.loss
    if batch.logits is None:
        total = label_loss(answer.logits, batch.labels, loss.label_smoothing)
    else:
        total = torch.zeros(len(batch.images), device=answer.logits.device)
        if loss.soft > 0:
            divergence = distillation_loss(answer.logits, batch.logits, config.temperature, loss.standardize)
            total = total + loss.soft * divergence
        if loss.hard > 0:
            total = total + loss.hard * label_loss(answer.logits, batch.labels, loss.label_smoothing)
        if answer.pair is not None:
            pair = answer.pair
            hint = loss.features == "hint"
            term = hint_loss(*pair) if hint else contrast_loss(*pair, loss.features_temperature)
            total = total + loss.features_weight * term
    return (total if weight is None else weight * total).mean()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, standardized: bool = False) -> Tensor:
    """T^2 KL(p_teacher || p_student) with p = softmax(logits / T), [B].

    Hinton et al. 2015, section 2: T^2 keeps the gradient's size about the same whatever T is.

    Args:
        student: logits [B,K].
        teacher: logits [B,K]; no gradient goes into them.
        temperature: T > 0.
        standardized: both go through :func:`standardize` first.
    """
    student, teacher = student.float(), teacher.detach().float()
    if standardized:
        student, teacher = standardize(student), standardize(teacher)
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def standardize(logits: Tensor) -> Tensor:
    """Z(x) = (x - mean(x)) / std(x) of each row [B,K]: the Z-score of Sun et al. 2024; T divides it afterwards.

    The deviation is the population's, over K. The authors' code takes the sample's, over K - 1: another T by the factor
    sqrt(K / (K - 1)), 1.005 for 100 classes.

    The student need not copy the teacher's shift and scale, only the order and the relations of its logits.
    """
    centred = logits - logits.mean(1, keepdim=True)
    deviation = (centred.square().mean(1, keepdim=True) + _EPSILON**2).sqrt()  # the root has a slope at 0
    return centred / deviation


def label_loss(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with (1 - s) onehot(label) + s / K, [B]; Szegedy et al. 2016, section 7.

    Args:
        student: logits [B,K].
        labels: class indices int64 [B].
        smoothing: s in [0, 1).
    """
    return functional.cross_entropy(student.float(), labels, reduction="none", label_smoothing=smoothing)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over D of (r(h_student) - h_teacher)^2, [B]; Romero et al. 2015, equation 3, on pooled features.

    There it is half the sum over D: another weight.

    Args:
        student: features after the learned map r, [B,D].
        teacher: features [B,D]; no gradient goes into them.
    """
    return (student.float() - teacher.detach().float()).square().mean(1)


def contrast_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-log exp(s_i . t_i / T) / sum_j exp(s_i . t_j / T), [B], for unit vectors s, t: an image's two embeddings meet.

    The contrastive objective of Tian et al. 2020 (CRD) with its learned embeddings, in the form of InfoNCE (van den
    Oord et al. 2018, equation 4): the other images of the batch are the negatives, where CRD keeps a bank of them.

    Args:
        student, teacher: embeddings [B,D], of any length.
        temperature: T > 0.
    """
    one, other = functional.normalize(student.float(), dim=1), functional.normalize(teacher.float(), dim=1)
    own = torch.arange(len(one), device=one.device)
    return functional.cross_entropy(one @ other.T / temperature, own, reduction="none")


def free_energy(logits: Tensor) -> Tensor:
    """E = -logsumexp(f) of logits [B,K] at temperature 1, [B]; Liu et al. 2020, equation 4. Low: recognised."""
    return -logits.float().logsumexp(1)


def energy_weights(energy: Tensor, everyone: Tensor, temperature: float) -> Tensor:
    """exp(-E / T) over its mean over all images of the step, [B]: low energies count more, the mean weight is 1.

    Args:
        energy: of some images [B].
        everyone: of all images of the step, those among them.
        temperature: T > 0, in units of energy; large: all weights are 1.
    """
    mean = (-everyone / temperature).logsumexp(0) - math.log(len(everyone))
    return (-energy / temperature - mean).exp()


def agreement(student: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose largest logit is the target's class; target: logits [B,K] or class indices [B]."""
    wanted = target.argmax(1) if target.ndim == 2 else target
    return (student.argmax(1) == wanted).to(torch.float32).mean()
